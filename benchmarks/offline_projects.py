"""Projects of batch views for the offline benchmarks: the same definitions and files for our stores and Feast's."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float64, Int64

from feature_repo.feast_quietly import quiet
from feature_repo.settings import settings
from feature_repo.stores.parquet_files import publish_file
from feature_repo.stores.values import micros

RESTAURANTS = 10_000
FIRST, DAYS = datetime(2026, 1, 1, tzinfo=UTC), 90
TTL = timedelta(days=30)
FEATURES = ("f0", "f1", "f2", "n")
"""Of each view three numbers and a whole number, all on."""

LIMIT = "4GB"
_MEMORY = "TIFFIN_DUCKDB_MEMORY"

OURS = {
    "offline_store": {"type": "feature_repo.stores.offline.TiffinOfflineStore"},
    "online_store": {"type": "feature_repo.stores.online.TiffinOnlineStore"},
    "batch_engine": {"type": "feature_repo.stores.engine.TiffinComputeEngine"},
}


@contextmanager
def memory_limit(limit: str) -> Iterator[None]:
    """Within it, DuckDB has so much memory; Feast's joins need more than our default, and would spill."""
    before = os.environ.get(_MEMORY)
    os.environ[_MEMORY] = limit
    settings.cache_clear()
    try:
        yield
    finally:
        os.environ.pop(_MEMORY)
        if before is not None:
            os.environ[_MEMORY] = before
        settings.cache_clear()


def feature_store(folder: Path, name: str, objects: Sequence[Any], stores: Mapping[str, Any]) -> FeatureStore:
    """A Feast project with a registry of its own over the files of `folder`."""
    quiet()
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry=str(folder / f"{name}.db"),
            entity_key_serialization_version=3,
            repo_path=folder,
            **stores,
        )
    )
    store.apply(list(objects))
    return store


def restaurant() -> Entity:
    """The entity of every view."""
    return Entity(name="restaurant", join_keys=["restaurant_id"], value_type=ValueType.INT64)


def batch_view(folder: Path, name: str, entity: Entity, ttl: timedelta = TTL) -> FeatureView:
    """A view over ``<folder>/<name>.parquet``; its features are named after it."""
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=ttl,
        schema=[Field(name=f"{name}_{f}", dtype=Int64 if f == "n" else Float64) for f in FEATURES],
        source=FileSource(
            name=f"{name}_rows",
            path=str(folder / f"{name}.parquet"),
            file_format=ParquetFormat(),
            timestamp_field="event_time",
            created_timestamp_column="created",
        ),
    )


def write_rows(folder: Path, name: str, rows: int, seed: int, ids: int = RESTAURANTS) -> None:
    """The view's rows, written as we write batch rows: of random ids and in the order of their times.

    No id has two rows of one time: then which is the newer would be a matter of the store.
    """
    dice = np.random.default_rng(seed)
    table: dict[str, Any] = {"restaurant_id": dice.integers(1, ids + 1, rows)}
    times = np.sort(dice.integers(0, DAYS * 86_400_000_000 - rows, rows)) + np.arange(rows) + micros(FIRST)
    table["event_time"] = pa.array(times, pa.timestamp("us", "UTC"))
    table["created"] = pa.array(times + 3_600_000_000, pa.timestamp("us", "UTC"))
    for feature in FEATURES:
        values = dice.integers(0, 1000, rows) if feature == "n" else dice.normal(20, 5, rows)
        table[f"{name}_{feature}"] = values
    publish_file(folder / f"{name}.parquet", pa.table(table))


def answer_hash(table: pa.Table, features: Sequence[str]) -> str:
    """A hash of the features by the column ``row``, whatever the order of the rows; numbers are compared as doubles."""
    frame = table.select(["row", *features]).to_pandas().sort_values("row")
    digest = hashlib.sha256()
    for name in ("row", *features):
        digest.update((frame[name].to_numpy(np.float64, na_value=np.nan) + 0.0).tobytes())
    return digest.hexdigest()[:16]
