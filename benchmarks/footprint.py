"""What a restaurant takes of Redis' memory: batch features and full windows in our layout, over Feast's for the former.

Ours: the batch rows as our store writes them, and the tiles of every stream view of restaurants, folded by the worker's
own code from orders in every hop of every window. Feast's: the same batch rows as Feast's own Redis store writes them.
Embeddings are in neither.
"""

from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from feast import FeatureStore, RepoConfig
from feast.infra.online_stores.redis import RedisOnlineStoreConfig
from pydantic import SecretStr

from benchmarks.events import Town, made_up
from benchmarks.figures import Bench, Measured, Side
from benchmarks.stream_answers import WrongAnswer
from deploy.servers import ValkeyServer, free_port
from feature_repo import definitions
from feature_repo.clock import from_ms, wall_clock
from feature_repo.feast_quietly import quiet
from feature_repo.settings import Settings
from feature_repo.stores import layout
from feature_repo.stores.batch_rows import Row, write_rows
from feature_repo.stores.progress import UNKNOWN, Progress
from feature_repo.stores.redis_client import Redis, connect
from feature_repo.stores.stream_store import StreamStore, Swap
from feature_repo.stores.tile_codec import unpack
from feature_repo.stores.values import to_proto
from feature_repo.views import BatchView, View, WindowView, compile_view
from ingestion.events import parse
from ingestion.folding import FieldCache, Placed, WindowFolder

PROJECT = "tiffin"
_RESTAURANTS = 40
_EVENTS = 20  # of one restaurant in each minute: 4 orders that are placed, and 4 that are ready
_LISTPACK = "hash-max-listpack-value"
_SPREAD = 4
_MINUTE_MS = 60_000
_BATCH = (definitions.restaurant_profile, definitions.restaurant_prep_stats)
_STREAMS = (definitions.restaurant_recent_orders, definitions.restaurant_recent_prep)


def run(bench: Bench) -> list[Measured]:
    """The figure. Raises ServiceError; WrongAnswer if a hop of a window is empty."""
    quiet()
    valkey = ValkeyServer(bench.folder / "valkey", free_port())
    valkey.start()
    try:
        with closing(_client(valkey, 0)) as ours, closing(_client(valkey, 1)) as feasts:
            feast = _feast(bench.folder, valkey.port)
            batch = [compile_view(feast.get_feature_view(each.name)) for each in _BATCH]
            streams = [compile_view(feast.get_stream_feature_view(each.name)) for each in _STREAMS]
            now, ids = wall_clock(), range(1, _RESTAURANTS + 1)
            rows = _batch_rows(ids, now)
            _write_ours(ours, batch, rows, now)
            batch_alone = _bytes(ours)
            _fold(ours, streams, ids, now, partitions=1)
            whole = _bytes(ours)
            before: Any = ours.config_get(_LISTPACK)
            ours.config_set(_LISTPACK, 2048)
            ours.flushdb()
            _write_ours(ours, batch, rows, now)
            _fold(ours, streams, ids, now, partitions=1)
            compact = _bytes(ours)
            ours.config_set(_LISTPACK, before[_LISTPACK])
            for name, frame in rows.items():
                feast.write_to_online_store(name, frame)
            theirs = _bytes(feasts)
            ours.flushdb()
            _write_ours(ours, batch, rows, now)
            _fold(ours, streams, ids, now, partitions=_SPREAD)
            spread = _bytes(ours)
    finally:
        valkey.stop()
    details = {
        "restaurants": _RESTAURANTS,
        "events_of_each_in_a_minute": _EVENTS,
        f"with_{_LISTPACK}_2048": compact,
        "our_batch_features_alone": batch_alone,
        f"if_its_events_lay_in_{_SPREAD}_partitions": spread,
        "partitions": "a restaurant's events have its id as key, so they lie in one partition however many there are",
    }
    over = Side("batch features and windows, ours", "bytes", [whole])
    return [Measured("bytes_per_entity", over, Side("batch features, Feast's own", "bytes", [theirs]), details)]


def _client(valkey: ValkeyServer, database: int) -> Redis:
    return connect(Settings(REDIS_URL=SecretStr(f"redis://127.0.0.1:{valkey.port}/{database}")))


def _bytes(client: Redis) -> float:
    """The memory of an entity's hash, on average. Raises WrongAnswer if there are not as many as there should be."""
    keys = [key for key in client.scan_iter(count=1000) if not key.startswith(b"tiffin:")]  # those are progress
    sizes: list[Any] = [client.memory_usage(key, samples=0) for key in keys]
    if len(sizes) != _RESTAURANTS:
        raise WrongAnswer(f"{len(sizes)} keys are stored for {_RESTAURANTS} restaurants")
    return float(sum(sizes)) / len(sizes)


def _batch_rows(ids: Sequence[int], now: int) -> dict[str, pd.DataFrame]:
    dice = np.random.default_rng(1)
    head = {"restaurant_id": list(ids), "event_time": pd.Timestamp(from_ms(now)), "created": pd.Timestamp(from_ms(now))}
    minutes = ("mean_prep_minutes_7d", "mean_prep_minutes_28d", "p90_prep_minutes_28d", "mean_delivery_minutes_28d")
    return {
        "restaurant_profile": pd.DataFrame(
            head
            | {
                "zone_id": dice.integers(1, 100, len(ids)),
                "cuisine": dice.choice(["thai", "noodles", "pizza"], len(ids)),
            }
            | {"latitude": dice.uniform(52.3, 52.5, len(ids)), "longitude": dice.uniform(4.8, 5.0, len(ids))}
        ),
        "restaurant_prep_stats": pd.DataFrame(
            head
            | {name: dice.gamma(6.0, 2.5, len(ids)) for name in minutes}
            | {"orders_28d": dice.integers(1, 9_000, len(ids))}
        ),
    }


def _write_ours(client: Redis, views: Sequence[View], rows: dict[str, pd.DataFrame], now: int) -> None:
    for view in views:
        assert isinstance(view, BatchView)
        written = [
            Row(
                [row["restaurant_id"]],
                {name: to_proto(kind, row[name]).SerializeToString() for name, kind in view.features.items()},
                now * 1000,
                now * 1000,
            )
            for row in rows[view.name].to_dict("records")
        ]
        write_rows(client, PROJECT, view, written)


def _feast(folder: Path, port: int) -> FeatureStore:
    """A project of Feast's own on its Redis store, with the definitions of what is measured."""
    store = FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            provider="local",
            registry=str(folder / "registry.db"),
            online_store=RedisOnlineStoreConfig(connection_string=f"127.0.0.1:{port},db=1"),
            entity_key_serialization_version=3,
        )
    )
    store.apply([definitions.restaurant, *_BATCH, *_STREAMS])
    return store


def _fold(client: Redis, views: Sequence[View], ids: Sequence[int], now: int, partitions: int) -> None:
    """Fold half an hour of each restaurant; its events lie in so many partitions, one after the other."""
    store = StreamStore(client, PROJECT)
    # Whole minutes, so that every hop that a window can reach is behind us.
    end = now // _MINUTE_MS * _MINUTE_MS - 1
    for view in views:
        assert isinstance(view, WindowView)
        start = end + 1 - (view.layout.hops_kept + 1) * _MINUTE_MS
        for restaurant in ids:
            town = Town(restaurants=1, zones=1, seed=restaurant)
            events: list[Placed] = []
            minutes = range(start, end, _MINUTE_MS)
            made_each = (made_up(town, _EVENTS, at, at + _MINUTE_MS - 1, part) for part, at in enumerate(minutes))
            for made in chain.from_iterable(made_each):
                if made.topic == view.topic:
                    event = parse(made.topic, made.message.value, end)
                    events.append((len(events), event._replace(columns=event.columns | {"restaurant_id": restaurant})))
            for partition in range(partitions):
                _fold_partition(store, view, partition, events[partition::partitions])
            _check(client, view, restaurant, partitions)


def _fold_partition(store: StreamStore, view: WindowView, partition: int, events: Sequence[Placed]) -> None:
    standing = Progress(1, 0, 0, 0, UNKNOWN, 0)
    store.swap_progress(view.topic, partition, [Swap(view.tiles_hash, None, standing)])
    WindowFolder(view, store).fold(partition, standing, FieldCache(1), events)


def _check(client: Redis, view: WindowView, restaurant: int, partitions: int) -> None:
    """Raise WrongAnswer unless there is something in every hop."""
    key = layout.key_builder(PROJECT, view.join_keys, view.key_types)([restaurant])
    fields = [layout.tiles_field(view, partition) for partition in range(partitions)]
    found: Any = client.hmget(key, fields)  # type: ignore[arg-type]  # redis-py types names as text
    hops = {hop for number, data in enumerate(found) if data for hop in unpack(view.layout, number, data).by_hop}
    if len(hops) != view.layout.hops_kept + 1:
        raise WrongAnswer(f"{view.name} of {restaurant} has {len(hops)} hops, not {view.layout.hops_kept + 1}")
