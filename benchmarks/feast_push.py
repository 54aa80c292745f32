"""What a user has without a worker: features that something else computed for each event, put in by Feast's `push`.

A project of its own on Feast's Redis store, with a push source a topic, and the views that the topic's events change.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig, ValueType
from feast.data_format import ParquetFormat
from feast.infra.online_stores.redis import RedisOnlineStoreConfig
from feast.types import Float64, Int64

from benchmarks.events import COURIER, DELIVERED, PLACED, READY, Made
from benchmarks.stream_answers import WrongAnswer
from feature_repo.clock import from_ms
from feature_repo.feast_quietly import quiet
from ingestion.events import parse

_ZONE, _RESTAURANT = "zone_id", "restaurant_id"
VIEWS: Mapping[str, tuple[str, str, Mapping[str, type]]] = {
    "restaurant_recent_orders": (PLACED, _RESTAURANT, {"orders_10m": int, "orders_30m": int, "basket_mean_30m": float}),
    "restaurant_recent_prep": (READY, _RESTAURANT, {"prep_minutes_mean_30m": float, "prep_minutes_max_30m": float}),
    "zone_recent_orders": (PLACED, _ZONE, {"zone_orders_10m": int}),
    "zone_recent_deliveries": (
        DELIVERED,
        _ZONE,
        {"zone_deliveries_10m": int, "zone_delivery_minutes_mean_30m": float},
    ),
    "zone_couriers": (COURIER, _ZONE, {"couriers_available": int, "couriers_busy": int}),
}
"""Of each view: the topic whose events change it, its join key and its features. The open orders are left to us."""


class FeastPush:
    """Feast's own path. `database` is one of the server at 127.0.0.1:`port` that nothing else uses."""

    def __init__(self, home: Path, port: int, database: int) -> None:
        quiet()
        home.mkdir()
        self.store = FeatureStore(
            config=RepoConfig(
                project="pushed",
                provider="local",
                registry=str(home / "registry.db"),
                online_store=RedisOnlineStoreConfig(connection_string=f"127.0.0.1:{port},db={database}"),
                entity_key_serialization_version=3,
            )
        )
        self.store.apply(list(self._objects(home)))

    def rows(self, events: Sequence[Made]) -> list[tuple[str, pd.DataFrame]]:
        """Of each event what is pushed: its topic, and a row with every feature that it changes, numbered by event."""
        return [self._row(made, number) for number, made in enumerate(events, start=1)]

    def push(self, batches: Sequence[tuple[str, pd.DataFrame]]) -> float:
        """Push them one after the other: rows a second."""
        began = time.perf_counter()
        for topic, frame in batches:
            self.store.push(topic, frame)
        return sum(len(frame) for _, frame in batches) / (time.perf_counter() - began)

    def check(self, batches: Sequence[tuple[str, pd.DataFrame]]) -> None:
        """Raise WrongAnswer unless Feast reads back, of each entity, a row that was pushed in these batches."""
        for view, (topic, key, features) in VIEWS.items():
            first = next(iter(features))
            pushed = pd.concat([frame for each, frame in batches if each == topic])
            newest = pushed.sort_values("event_time", kind="stable").groupby(key).tail(1)
            tied = pushed.merge(newest[[key, "event_time"]]).groupby(key)[first].agg(set)
            asked = [{key: int(one)} for one in tied.index]
            answer = self.store.get_online_features([f"{view}:{first}"], asked).to_dict()
            for one, value in zip(answer[key], answer[first], strict=True):
                if value not in tied[one]:
                    raise WrongAnswer(f"Feast reads {value} of {view}:{first} for {one}; pushed was {tied[one]}")

    def _objects(self, home: Path) -> Sequence[Any]:
        entities = {
            key: Entity(name=key.removesuffix("_id"), join_keys=[key], value_type=ValueType.INT64)
            for key in (_RESTAURANT, _ZONE)
        }
        sources = {
            topic: PushSource(
                name=topic,
                batch_source=FileSource(
                    name=f"{topic}_rows",
                    path=str(home / topic),
                    file_format=ParquetFormat(),
                    timestamp_field="event_time",
                ),
            )
            for topic in {topic for topic, _, _ in VIEWS.values()}
        }
        views = [
            FeatureView(
                name=name,
                entities=[entities[key]],
                ttl=timedelta(hours=1),
                schema=[Field(name=f, dtype=Int64 if kind is int else Float64) for f, kind in features.items()],
                source=sources[topic],
            )
            for name, (topic, key, features) in VIEWS.items()
        ]
        return [*entities.values(), *sources.values(), *views]

    def _row(self, made: Made, number: int) -> tuple[str, pd.DataFrame]:
        columns = parse(made.topic, made.message.value, made.time).columns
        row: dict[str, object] = {"event_time": pd.Timestamp(from_ms(made.time))}
        for topic, key, features in VIEWS.values():
            if topic == made.topic:
                # `order_ready` says no zone, and changes no view of a zone.
                row[key] = columns[key]
                row |= {name: kind(number) for name, kind in features.items()}
        return made.topic, pd.DataFrame([row])


def in_batches(rows: Sequence[tuple[str, pd.DataFrame]], size: int) -> list[tuple[str, pd.DataFrame]]:
    """The same rows, `size` of a topic in one frame; the rest of each topic is left out."""
    found = []
    for topic in dict.fromkeys(topic for topic, _ in rows):
        frames = [frame for each, frame in rows if each == topic]
        for at in range(0, len(frames) - size + 1, size):
            found.append((topic, pd.concat(frames[at : at + size], ignore_index=True)))
    return found
