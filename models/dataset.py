"""Training sets: delivered orders from the event log, their features through Feast, split by time.

Features come only from ``FeatureStore.get_historical_features``, at the instant at which a prediction would have been
asked for: 1 ms before the order was placed, since then its own event does not exist yet.

Features have two views of time: by event time a row has what is known now of its instant, late and corrected events
included; by arrival what was known then, by events appended and batch rows created by then. Imported and simulated
events have their own time as append time, so for stream features both are the same there; batch rows that were computed
later were not known, and are missing by arrival. Labels are what is known now in both.

Text features (``cuisine``) and arrays are left out. A code for a text would have to be learnt in training and kept in
step with serving for every new value, and the restaurant's own preparation times say more than its cuisine does. Ids
are not features, with one exception: ``zone_id`` is a feature of ``restaurant_profile``, and zones are few and lasting.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureService, FeatureStore
from feast.types import Bool, Float32, Float64, Int32, Int64
from numpy.typing import NDArray

from feature_repo.clock import iso, to_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import connect, literal, parquet_files
from feature_repo.stores.parquet_files import replace_file
from models.vector import REQUEST_FEATURES, FeatureVector, Matrix, request_features

MAX_DELIVERY_MINUTES = 180.0
"""A longer delivery is a fault of the record (an order left open), not an order that took three hours."""

ASKED_BEFORE_MS = 1
"""A prediction is asked this long before its order is placed."""

_ENTITY_COLUMNS = ["order_id", "restaurant_id", "zone_id", "event_timestamp", "delivery_minutes"]
_NUMBERS = (Bool, Int32, Int64, Float32, Float64)


class NoTrainingRows(ValueError):
    """There is nothing to train on: which folder or range is empty."""


class EntityRows(NamedTuple):
    """Delivered orders, and how many others were left out for an impossible label.

    `frame` has order_id (text), restaurant_id, zone_id (int64), event_timestamp (µs, UTC) and delivery_minutes, ordered
    by event_timestamp, then order_id.
    """

    frame: pd.DataFrame
    left_out: int


@dataclass(frozen=True)
class Dataset:
    """Rows to train or test on, in the order of time.

    `features` is float64, columns `vector.names`, NaN where a value is missing; `label` is minutes from placed to
    delivered; `event_ms` the instant of the features in ms, UTC. `left_out` counts orders with an impossible label.
    """

    service: str
    vector: FeatureVector
    features: pd.DataFrame
    label: NDArray[np.float64]
    order_id: NDArray[np.object_]
    event_ms: NDArray[np.int64]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.label)

    @property
    def matrix(self) -> Matrix:
        """The features as the models see them: float32, [rows, features]."""
        return np.ascontiguousarray(self.features.to_numpy(dtype=np.float32))

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "Dataset":
        """The rows chosen by a mask or by positions."""
        return Dataset(
            self.service,
            self.vector,
            self.features.iloc[np.flatnonzero(rows) if rows.dtype == np.bool_ else rows].reset_index(drop=True),
            self.label[rows],
            self.order_id[rows],
            self.event_ms[rows],
            self.left_out,
        )


def entity_rows(
    settings: Settings, since: datetime, until: datetime, where: Mapping[str, str] | None = None
) -> EntityRows:
    """One row for each delivered order placed in [since, until), both aware.

    `where` keeps the orders whose unknown fields (`extra` of order_placed, else of order_delivered) hold these texts:
    ``{"is_asap": "true"}``. An event_id or an order that occurs again counts once, by the lowest (append time,
    partition, offset). Labels below 0 or above MAX_DELIVERY_MINUTES are left out and counted.
    Raises NoTrainingRows if a topic's log or the range is empty, TypeError for a naive instant.
    """
    to_ms(since), to_ms(until)  # refuses naive instants before DuckDB would take them for UTC
    with connect(settings) as connection:
        frame = connection.execute(_orders_sql(settings, where or {}), [since, until]).df()
    possible = frame["delivery_minutes"].between(0.0, MAX_DELIVERY_MINUTES)
    kept = frame.loc[possible, _ENTITY_COLUMNS].reset_index(drop=True)
    if kept.empty:
        raise NoTrainingRows(
            f"no delivered order placed from {since.isoformat()} until {until.isoformat()} with {dict(where or {})}: "
            f"there is nothing to train on ({len(frame)} left out for impossible labels)"
        )
    return EntityRows(kept, len(frame) - len(kept))


def vector_of(service: FeatureService) -> FeatureVector:
    """The numeric features of a feature service from the registry, in its own order, by full name."""
    return FeatureVector(
        tuple(
            f"{projection.name_to_use()}__{field.name}"  # type: ignore[no-untyped-call] # Feast left it untyped
            for projection in service.feature_view_projections
            for field in projection.features
            if field.dtype in _NUMBERS
        )
    )


def build(
    store: FeatureStore,
    settings: Settings,
    service_name: str,
    since: datetime,
    until: datetime,
    where: Mapping[str, str] | None = None,
    arrival: bool = False,
) -> Dataset:
    """The training set of a feature service: orders placed in [since, until) with their features at that time.

    `arrival` asks for what was known at that time, not for what is known of it now.
    Raises NoTrainingRows like `entity_rows`, ValueError if Feast answers with another number of rows than it was asked.
    """
    rows, left_out = entity_rows(settings, since, until, where)
    service = store.get_feature_service(service_name)
    vector = vector_of(service)
    joined = store.get_historical_features(
        entity_df=rows,
        features=service,
        full_feature_names=True,
        filter_by_created_timestamp=arrival,
    ).to_df()
    if len(joined) != len(rows):
        raise ValueError(f"{service_name}: {len(joined)} rows for {len(rows)} orders: labels would be counted twice")
    # Feast promises no order of rows.
    joined = joined.sort_values(["event_timestamp", "order_id"], ignore_index=True)
    event_ms = _milliseconds(joined["event_timestamp"])
    features = joined[list(vector.stored)].astype("float64")
    labels = joined["delivery_minutes"].to_numpy(dtype=np.float64)
    return dataset_of(service_name, vector, features, labels, joined["order_id"], event_ms, left_out)


def write(dataset: Dataset, path: Path) -> list[str]:
    """Write the rows as one Parquet file, replacing what is there; the columns' names.

    They are order_id, event_timestamp (the instant of the features, µs, UTC), the features, null where missing, and
    delivery_minutes, the label.
    """
    columns = {"order_id": pa.array(dataset.order_id, pa.string())}
    columns["event_timestamp"] = pa.array(dataset.event_ms, pa.timestamp("ms", "UTC")).cast(pa.timestamp("us", "UTC"))
    for name in dataset.vector.names:
        columns[name] = pa.array(dataset.features[name], pa.float64(), from_pandas=True)
    columns["delivery_minutes"] = pa.array(dataset.label)
    replace_file(path, pa.table(columns))
    return list(columns)


def known_by(dataset: Dataset, at: datetime) -> Dataset:
    """The rows whose label was known at `at`: those delivered before."""
    delivered_ms = dataset.event_ms + ASKED_BEFORE_MS + np.rint(dataset.label * 60_000).astype(np.int64)
    return dataset.take(delivered_ms < to_ms(at))


def split(dataset: Dataset, at: datetime) -> tuple[Dataset, Dataset]:
    """(train, test): what was known at `at`, and what was asked from then on.

    Orders asked before `at` and delivered after it are in neither: at `at` nobody knew their label yet.
    Raises NoTrainingRows if either side is empty.
    """
    border = to_ms(at)
    train, test = known_by(dataset, at), dataset.take(dataset.event_ms >= border)
    if not len(train) or not len(test):
        raise NoTrainingRows(
            f"at {at.isoformat()}: {len(train)} rows before it, {len(test)} from it on; the {len(dataset)} rows lie "
            f"from {iso(int(dataset.event_ms.min()))} to {iso(int(dataset.event_ms.max()))}: both sides need some"
        )
    return train, test


def dataset_of(
    service: str,
    vector: FeatureVector,
    stored: pd.DataFrame,
    labels: Any,
    order_ids: Any,
    instants: Any,
    left_out: int,
) -> Dataset:
    """The rows with the features that follow from the stored ones and from the instants."""
    event_ms = np.asarray(instants, dtype=np.int64)
    features = stored.assign(**vector.derive(stored))
    features[list(REQUEST_FEATURES)] = np.array([list(request_features(t).values()) for t in event_ms.tolist()])
    ids = np.asarray(order_ids, dtype=object)
    return Dataset(service, vector, features, np.asarray(labels, dtype=np.float64), ids, event_ms, left_out)


def _milliseconds(instants: "pd.Series[pd.Timestamp]") -> NDArray[np.int64]:
    """Instants of any resolution, aware, in ms since the epoch, rounded down."""
    naive = instants.dt.tz_convert(UTC).dt.tz_localize(None)
    return np.floor_divide(naive.to_numpy(dtype="datetime64[us]").astype(np.int64), 1000)


def _orders_sql(settings: Settings, where: Mapping[str, str]) -> str:
    """The query for delivered orders; its two parameters are the bounds of placed_at."""
    delivered = once_sql(settings, "order_delivered", "restaurant_id, zone_id, placed_at, delivery_minutes, extra")
    query = (
        "SELECT d.order_id, d.restaurant_id, d.zone_id, d.delivery_minutes, "
        f"d.placed_at - to_milliseconds({ASKED_BEFORE_MS}) AS event_timestamp FROM ({delivered}) AS d "
    )
    if where:
        query += f"LEFT JOIN ({once_sql(settings, 'order_placed', 'extra')}) AS p USING (order_id) "
    conditions = ["d.placed_at >= ?", "d.placed_at < ?"]
    for field, value in where.items():
        pointer = literal("/" + field.replace("~", "~0").replace("/", "~1"))
        conditions.append(
            f"coalesce(json_extract_string(p.extra, {pointer}), json_extract_string(d.extra, {pointer}))"
            f" = {literal(value)}"
        )
    return query + f"WHERE {' AND '.join(conditions)} ORDER BY event_timestamp, order_id"


def once_sql(settings: Settings, topic: str, columns: str) -> str:
    """A query for `columns` of a topic's log, each event_id and each order once: the first in the log."""
    folder = settings.data / "log" / topic
    files = parquet_files(folder)
    if not files:
        raise NoTrainingRows(f"{folder} holds no Parquet file: without {topic} events there is nothing to train on")
    paths = ", ".join(literal(str(path)) for path in files)
    first = 'ORDER BY append_time, "partition", "offset") = 1'
    return (
        f'SELECT * FROM (SELECT order_id, append_time, "partition", "offset", {columns} '
        f"FROM read_parquet([{paths}], hive_partitioning = false, union_by_name = true) "
        f"QUALIFY row_number() OVER (PARTITION BY event_id {first}) "
        f"QUALIFY row_number() OVER (PARTITION BY order_id {first}"
    )
