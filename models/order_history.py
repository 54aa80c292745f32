"""Who ordered where, and how often: the event log's placed orders, counted for recommendations.

An event counts once by its ``event_id``: the record of the lowest append time, partition and offset.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.clock import from_ms, to_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import connect, literal, parquet_files

Ints = NDArray[np.int64]

_COUNTS = """
SELECT coalesce(customer_id, 0) AS customer_id, customer_id IS NOT NULL AS known, restaurant_id, zone_id,
    count(*) AS orders
FROM (
    SELECT customer_id, restaurant_id, zone_id, event_time
    FROM read_parquet([{files}], hive_partitioning = false, union_by_name = true) WHERE append_time <= $now
    QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY append_time, "partition", "offset") = 1
) WHERE event_time >= $since AND event_time < $until GROUP BY ALL ORDER BY ALL
"""


class NoOrders(ValueError):
    """There is nothing to learn from: which folder or range is empty."""


@dataclass(frozen=True)
class OrderCounts:
    """Orders placed at `since_ms` <= t < `until_ms`, by customer, restaurant and zone: one array a column.

    Sorted by these, so that equal history gives equal arrays. Where `known` is False the order named no customer.
    """

    since_ms: int
    until_ms: int
    customer_id: Ints
    known: NDArray[np.bool_]
    restaurant_id: Ints
    zone_id: Ints
    orders: Ints

    @property
    def total(self) -> int:
        """How many orders there are."""
        return int(self.orders.sum())

    def of_customers(self) -> "OrderCounts":
        """Those that named their customer."""
        of = self.known
        ids = self.customer_id[of], self.known[of], self.restaurant_id[of], self.zone_id[of]
        return OrderCounts(self.since_ms, self.until_ms, *ids, self.orders[of])


def order_counts(settings: Settings, since: datetime, until: datetime, now_ms: int) -> OrderCounts:
    """Orders placed in [since, until), both aware, of records appended by `now_ms`.

    Raises NoOrders if there are none, TypeError for a naive instant.
    """
    since_ms, until_ms = to_ms(since), to_ms(until)
    folder = settings.data / "log" / "order_placed"
    # An event's time is never later than its append time. A day more, as for the other batch features.
    first = (since - timedelta(days=1)).date().isoformat()
    files = [file for file in parquet_files(folder) if file.parent.name >= f"date={first}"]
    found = _counted(settings, files, since, until, now_ms) if files else None
    if found is None or not len(found["orders"]):
        raise NoOrders(
            f"{folder} holds no order placed from {since.isoformat()} until {until.isoformat()}: "
            "there is nothing to recommend from"
        )
    columns = [np.asarray(found[name], dtype=np.int64) for name in ("restaurant_id", "zone_id", "orders")]
    known = np.asarray(found["known"], dtype=np.bool_)
    return OrderCounts(since_ms, until_ms, np.asarray(found["customer_id"], dtype=np.int64), known, *columns)


def order_span(settings: Settings) -> tuple[int, int]:
    """When the oldest and the newest order of the event log were placed (ms). Raises NoOrders if it holds none."""
    folder = settings.data / "log" / "order_placed"
    files = parquet_files(folder)
    edges = "min(epoch_ms(event_time)), max(epoch_ms(event_time))"
    found = None
    if files:
        with connect(settings) as connection:
            query = (
                f"SELECT {edges} FROM read_parquet([{_paths(files)}], hive_partitioning = false, union_by_name = true)"
            )
            found = connection.execute(query).fetchone()
    if found is None or found[0] is None:
        raise NoOrders(f"{folder} holds no order: there is nothing to recommend from")
    return int(found[0]), int(found[1])


def _counted(settings: Settings, files: list[Path], since: datetime, until: datetime, now_ms: int) -> dict[str, Any]:
    with connect(settings) as connection:
        bounds = {"since": since, "until": until, "now": from_ms(now_ms)}
        return dict(connection.execute(_COUNTS.format(files=_paths(files)), bounds).fetchnumpy())


def _paths(files: list[Path]) -> str:
    return ", ".join(literal(str(file)) for file in files)
