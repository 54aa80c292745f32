"""A training set of batch features: our offline store beside Feast's DuckDB store, and beside an ASOF query by hand.

All three read the same Parquet files and give an Arrow table of the same values. The views have no TTL, as Feast's
have by default: the query by hand then has no age to check, and Feast's joins all earlier rows of a restaurant before
it chooses one. The entity rows are of the last month of the history, as those of a training set are.
"""

import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureStore

from benchmarks.figures import Bench, Measured, Side
from benchmarks.offline_projects import (
    DAYS,
    FEATURES,
    FIRST,
    LIMIT,
    OURS,
    RESTAURANTS,
    answer_hash,
    batch_view,
    feature_store,
    memory_limit,
    restaurant,
    write_rows,
)
from feature_repo.stores.duckdb_client import connect
from feature_repo.stores.online import store_settings
from feature_repo.stores.values import micros

VIEWS = ("a", "b", "c")
NAMES = [f"{view}_{feature}" for view in VIEWS for feature in FEATURES]
BY_HAND = Path(__file__).parent / "sql" / "historical_asof.sql"
TRAINED_DAYS = 30
FEAST_ROUNDS = 2
Retrieve = Callable[[], pa.Table]


def run(bench: Bench) -> list[Measured]:
    """Both figures; Feast is measured fewer times, for it takes a minute."""
    with memory_limit(LIMIT):
        return measure(bench, 300_000, 1_000_000, feast_rounds=1 if bench.quick else FEAST_ROUNDS)


def measure(bench: Bench, rows: int, feature_rows: int, feast_rounds: int) -> list[Measured]:
    """Time all sides. Raises ValueError if their answers differ."""
    for number, view in enumerate(VIEWS):
        write_rows(bench.folder, view, feature_rows, seed=number)
    entity = restaurant()
    objects = [entity, *(batch_view(bench.folder, view, entity, ttl=timedelta(0)) for view in VIEWS)]
    store = feature_store(bench.folder, "ours", objects, OURS)
    asked = entity_rows(rows)
    sides: dict[str, Retrieve] = {
        "ours": lambda: retrieved(store, asked),
        "hand": lambda: by_hand(store, bench.folder, asked),
    }
    hashes = {side: answer_hash(retrieve(), NAMES) for side, retrieve in sides.items()}
    samples = bench.interleaved(**{side: _timed(retrieve) for side, retrieve in sides.items()})
    settings = store_settings(store.config)
    details: dict[str, Any] = {
        "rows": rows,
        "views": len(VIEWS),
        "feature_rows_a_view": feature_rows,
        "restaurants": RESTAURANTS,
        "features": len(NAMES),
        "ttl": "none",
        "result": "to_arrow() on all sides",
        "memory_limit": settings.duckdb_memory,
        "threads": settings.duckdb_threads or os.cpu_count(),
    }
    theirs = feast_store(bench.folder, objects, details)
    beside_feast, feast = [], list[float]()
    for _ in range(feast_rounds):
        began = time.perf_counter()
        answer = retrieved(theirs, asked.copy())
        feast.append(time.perf_counter() - began)
        hashes["feast"] = answer_hash(answer, NAMES)
        beside_feast.append(_timed(sides["ours"])())
    if len(set(hashes.values())) != 1:
        raise ValueError(f"historical: the answers differ: {hashes}")
    details["answer"] = hashes["ours"]
    ours, ours_by_feast = (Side("get_historical_features", "s", found) for found in (samples["ours"], beside_feast))
    return [
        Measured("historical_vs_feast_duckdb", Side("Feast's DuckDB store", "s", feast), ours_by_feast, details),
        Measured("historical_vs_handwritten_asof", Side("hand-written SQL", "s", samples["hand"]), ours, details),
    ]


def retrieved(store: FeatureStore, asked: pd.DataFrame) -> pa.Table:
    """The training set, by Feast's own call."""
    refs = [f"{view}:{view}_{feature}" for view in VIEWS for feature in FEATURES]
    return store.get_historical_features(entity_df=asked, features=refs).to_arrow()


def by_hand(store: FeatureStore, folder: Path, asked: pd.DataFrame) -> pa.Table:
    """The same by ``sql/historical_asof.sql``, in a database with the same threads and memory."""
    with connect(store_settings(store.config)) as connection:
        connection.execute("SET preserve_insertion_order = false")
        connection.register("given", asked)
        connection.execute("CREATE TEMP TABLE asked AS SELECT *, CAST(restaurant_id AS INTEGER) AS id FROM given")
        query = BY_HAND.read_text().format(**{view: folder / f"{view}.parquet" for view in VIEWS})
        connection.execute(f"CREATE TEMP TABLE answer AS {query}")
        return connection.execute("FROM answer").to_arrow_table()


def feast_store(folder: Path, objects: list[Any], limits: Mapping[str, Any]) -> FeatureStore:
    """The same definitions on Feast's own stores; its database has the threads and the memory that ours has.

    Raises ImportError if ibis, which Feast's DuckDB store is made of, is not installed.
    """
    try:
        ibis = import_module("ibis")
    except ImportError:
        raise ImportError(
            "Feast's DuckDB offline store needs ibis: `pip install 'ibis-framework[duckdb]'`; without it there is "
            "nothing to compare with"
        ) from None
    ibis.set_backend(ibis.duckdb.connect(threads=limits["threads"], memory_limit=limits["memory_limit"]))
    stores = {"offline_store": {"type": "duckdb"}, "online_store": {"type": "sqlite", "path": str(folder / "o.db")}}
    return feature_store(folder, "feast", objects, stores)


def entity_rows(rows: int) -> pd.DataFrame:
    """Random restaurants at random instants of the last month, no two at one instant."""
    dice = np.random.default_rng(9)
    first = micros(FIRST + timedelta(days=DAYS - TRAINED_DAYS))
    instants = first + np.arange(rows) * (TRAINED_DAYS * 86_400_000_000 // rows)
    dice.shuffle(instants)
    return pd.DataFrame(
        {
            "row": np.arange(rows),
            "restaurant_id": dice.integers(1, RESTAURANTS + 1, rows),
            "event_timestamp": pd.to_datetime(instants, unit="us", utc=True),
        }
    )


def _timed(work: Retrieve) -> Callable[[], float]:
    def seconds() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return seconds
