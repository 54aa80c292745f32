"""Windows in history: six aggregates at each of many instants, over the best query written by hand for the same answer.

Ours counts a producer's repeats once and leaves out what history and the log both hold; the query by hand knows of none
of it, and there is none of it in these events. Ours finds that out at its first query of the files, which is not among
the samples; how long it took is in the details.
"""

import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import Entity, FeatureStore, Field, FileSource, KafkaSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat, ParquetFormat
from feast.types import Float64, Int64

from benchmarks.figures import Bench, Measured, Side
from benchmarks.offline_projects import (
    FIRST,
    LIMIT,
    OURS,
    RESTAURANTS,
    answer_hash,
    feature_store,
    memory_limit,
    restaurant,
)
from feature_repo.clock import to_ms
from feature_repo.stores.duckdb_client import connect, literal
from feature_repo.stores.online import store_settings
from feature_repo.stores.parquet_files import publish_file

DAY_MS, DAYS = 86_400_000, 7
BY_HAND = Path(__file__).parent / "sql" / "windows.sql"
_10, _30 = timedelta(minutes=10), timedelta(minutes=30)
AGGREGATES = (
    ("orders_10m", "order_id", "count", _10),
    ("orders_30m", "order_id", "count", _30),
    ("items_30m", "item_count", "sum", _30),
    ("basket_mean_30m", "basket_total", "mean", _30),
    ("basket_max_30m", "basket_total", "max", _30),
    ("basket_min_10m", "basket_total", "min", _10),
)
NAMES = [name for name, *_ in AGGREGATES]


def run(bench: Bench) -> list[Measured]:
    """The one figure; in its details the sizes and the hash of the answer that both sides gave."""
    events, rows = (1_000_000, 100_000) if bench.quick else (10_000_000, 1_000_000)
    with memory_limit(LIMIT):
        return [measure(bench, events, rows)]


def measure(bench: Bench, events: int, rows: int) -> Measured:
    """Time both sides in turn. Raises ValueError if their answers differ."""
    log = bench.folder / "log"
    write_events(log, events)
    store = feature_store(bench.folder, "windows", [entity := restaurant(), window_view(entity, log)], OURS)
    asked = entity_rows(rows)
    kept: dict[str, pa.Table] = {}
    first = _seconds(kept, "ours", lambda: ours(store, asked))
    samples = bench.interleaved(
        ours=partial(_seconds, kept, "ours", lambda: ours(store, asked)),
        hand=partial(_seconds, kept, "hand", lambda: by_hand(store, log, asked)),
    )
    hashes = {side: answer_hash(table, NAMES) for side, table in kept.items()}
    if len(set(hashes.values())) != 1:
        raise ValueError(f"windows: the answers differ: {hashes}")
    settings = store_settings(store.config)
    return Measured(
        "windows_vs_handwritten_sql",
        over=Side("hand-written SQL", "s", samples["hand"]),
        under=Side("get_historical_features", "s", samples["ours"]),
        details={
            "events": events,
            "rows": rows,
            "aggregates": NAMES,
            "events_counted_in_30m": pc.sum(kept["ours"]["orders_30m"]).as_py(),
            "answer": hashes["ours"],
            "first_query_s": first,
            "memory_limit": settings.duckdb_memory,
            "threads": settings.duckdb_threads or "one a core",
        },
    )


def ours(store: FeatureStore, asked: pd.DataFrame) -> pa.Table:
    """The rows with their windows, by Feast's own call on our offline store."""
    refs = [f"recent:{name}" for name in NAMES]
    return store.get_historical_features(entity_df=asked, features=refs).to_arrow()


def by_hand(store: FeatureStore, log: Path, asked: pd.DataFrame) -> pa.Table:
    """The same by the query in ``sql/windows.sql``, in a database with the same threads and memory."""
    with connect(store_settings(store.config)) as connection:
        connection.execute("SET preserve_insertion_order = false")
        connection.register("given", asked)
        connection.execute("CREATE TEMP TABLE asked AS FROM given")
        query = BY_HAND.read_text().format(events=literal(str(log / "*.parquet"))[1:-1])
        connection.execute(f"CREATE TEMP TABLE answer AS {query}")
        return connection.execute("FROM answer").to_arrow_table()


def window_view(entity: Entity, log: Path) -> StreamFeatureView:
    """Six aggregates of two windows over one topic, hops of a minute."""
    aggregations = [Aggregation(column=c, function=f, time_window=w, name=name) for name, c, f, w in AGGREGATES]
    events = FileSource(
        name="orders_log",
        path=str(log),
        file_format=ParquetFormat(),
        timestamp_field="event_time",
        created_timestamp_column="append_time",
    )
    return StreamFeatureView(
        name="recent",
        entities=[entity],
        ttl=_30,
        timestamp_field="event_time",
        aggregations=aggregations,
        enable_tiling=True,
        tiling_hop_size=timedelta(minutes=1),
        schema=[Field(name=name, dtype=Int64 if f == "count" else Float64) for name, _, f, _ in AGGREGATES],
        source=KafkaSource(
            name="orders",
            topic="orders",
            kafka_bootstrap_servers="",
            message_format=JsonFormat(schema_json=""),
            timestamp_field="event_time",
            batch_source=events,
        ),
    )


def write_events(log: Path, events: int) -> None:
    """A week of orders in time order, Zipf 1.0 over the restaurants, no repeats; appended within half a second.

    Totals are quarters: sums of them are exact in floating point, so that the order of summing makes no difference.
    """
    dice = np.random.default_rng(1)
    weights = 1 / np.arange(1, RESTAURANTS + 1)
    who = dice.choice(RESTAURANTS, events, p=weights / weights.sum()) + 1
    times = np.sort(dice.integers(0, DAYS * DAY_MS, events)) + to_ms(FIRST)
    numbers = np.arange(events)
    names = pa.array(numbers).cast(pa.string())
    table: dict[str, Any] = {
        "event_id": pc.binary_join_element_wise("event", names, "-"),
        "restaurant_id": who,
        "order_id": pc.binary_join_element_wise("order", names, "-"),
        "basket_total": dice.integers(20, 400, events) / 4,
        "item_count": dice.integers(1, 9, events),
        "event_time": pa.array(times * 1000, pa.timestamp("us", "UTC")),
        "append_time": pa.array((times + dice.integers(0, 500, events)) * 1000, pa.timestamp("us", "UTC")),
        "partition": pa.array(who % 4, pa.int32()),
        "offset": numbers,
    }
    publish_file(log / "events.parquet", pa.table(table))


def entity_rows(rows: int) -> pd.DataFrame:
    """Random restaurants at random instants."""
    dice = np.random.default_rng(2)
    instants = dice.integers(to_ms(FIRST), to_ms(FIRST) + DAYS * DAY_MS, rows)
    return pd.DataFrame(
        {
            "row": np.arange(rows),
            "restaurant_id": dice.integers(1, RESTAURANTS + 1, rows),
            "event_timestamp": pd.to_datetime(instants, unit="ms", utc=True),
        }
    )


def _seconds(kept: dict[str, pa.Table], side: str, work: Any) -> float:
    began = time.perf_counter()
    kept[side] = work()
    return time.perf_counter() - began
