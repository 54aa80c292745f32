"""A small Feast project on the tests' Valkey: its definitions, its events, a worker, and both ways of reading it.

Times are milliseconds since the epoch; the clock is a fake one that tests move. `START` is a whole hop.
"""

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import ParquetFormat
from feast.types import Float64, Int64, String

from feature_repo.clock import from_ms, to_ms
from feature_repo.feast_quietly import quiet
from feature_repo.settings import Settings, settings
from feature_repo.stores.embedded import socket_path
from feature_repo.stores.reading import Feature, ReadPlan, Wanted, read
from feature_repo.stores.redis_client import Redis
from feature_repo.stores.stream_store import StreamStore
from feature_repo.views import StreamView, stream_views
from ingestion.archive import Archiver
from ingestion.archive_reader import ArchivedLog
from ingestion.log import EventLog, Message, Record
from ingestion.redis_log import RedisLog
from ingestion.worker import Worker

HOP = MINUTE = 60_000
START = to_ms(datetime(2026, 3, 1, 12, tzinfo=UTC))
PROJECT = "tests"
ORDERS, DELIVERIES, COURIERS = "order_placed", "order_delivered", "courier_status"
DEADLINE_S = 20.0
REPO_FOLDER = Path(__file__).parent.parent / "feature_repo"

NUMBERS = ("sum", "mean", "min", "max", "std", "last")
ITEMS_WINDOW, BASKET_WINDOW, CUSTOMERS_WINDOW, LONG_WINDOW = 2 * MINUTE, 5 * MINUTE, 3 * MINUTE, 7 * MINUTE
PRESENCE_TTL = 10 * MINUTE
WINDOWS: dict[str, tuple[str, str, int]] = {
    "orders_5m": ("order_id", "count", BASKET_WINDOW),
    "orders_7m": ("order_id", "count", LONG_WINDOW),
    "items_known": ("item_count", "count", ITEMS_WINDOW),
    "customers": ("customer_id", "count_distinct", CUSTOMERS_WINDOW),
    "baskets_distinct": ("basket_total", "count_distinct", BASKET_WINDOW),
    **{f"items_{f}": ("item_count", f, ITEMS_WINDOW) for f in NUMBERS},
    **{f"basket_{f}": ("basket_total", f, BASKET_WINDOW) for f in NUMBERS},
}
"""What `by_restaurant` and `by_zone` compute: {feature: (column, function, window)}. They know every function."""

VIEWS = {"r_": "by_restaurant", "z_": "by_zone", "op": "open_orders"}
"""Views by how their features begin; the others are those of ``couriers``."""


@contextmanager
def quietly() -> Iterator[None]:
    """Warnings are errors in tests; Feast's about stream views being experimental is known."""
    with warnings.catch_warnings():
        quiet()
        warnings.filterwarnings("ignore", "Entity value_type will be mandatory", DeprecationWarning)
        yield


with quietly():
    from feature_repo import definitions


class FakeClock:
    """A clock that moves when it is told to."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def window_view(
    name: str, entity: Entity, features: Mapping[str, tuple[str, str, int]], prefix: str = ""
) -> StreamFeatureView:
    """A view of windows over ``order_placed``."""
    aggregations = [
        Aggregation(column=column, function=function, time_window=timedelta(milliseconds=window), name=prefix + feature)
        for feature, (column, function, window) in features.items()
    ]
    return definitions.stream_windows(name, entity, definitions.order_placed, aggregations)


def presence_view(ttl: timedelta = timedelta(milliseconds=PRESENCE_TTL)) -> StreamFeatureView:
    """Couriers by zone and status."""
    return StreamFeatureView(
        name="couriers",
        entities=[definitions.zone],
        ttl=ttl,
        source=definitions.courier_status,
        timestamp_field="event_time",
        schema=[Field(name="available", dtype=Int64), Field(name="busy", dtype=Int64)],
        tags={
            "presence.member": "courier_id",
            "presence.state": "status",
            "presence.count.available": "available",
            "presence.count.busy": "busy",
        },
    )


def open_orders_view() -> StreamFeatureView:
    """Orders placed and not yet delivered, by zone: presence over two topics."""
    return StreamFeatureView(
        name="open_orders",
        entities=[definitions.zone],
        ttl=timedelta(milliseconds=PRESENCE_TTL),
        source=definitions.order_placed,
        timestamp_field="event_time",
        schema=[Field(name="open", dtype=Int64)],
        tags={
            "presence.member": "order_id",
            "presence.state": "topic",
            "presence.topics": f"{ORDERS} {DELIVERIES}",
            "presence.count.open": ORDERS,
        },
    )


def batch_view(name: str = "profile", ttl: timedelta = timedelta(days=1), **source: Any) -> FeatureView:
    """Batch rows by restaurant: a number, a whole number and a text, which may be null."""
    return FeatureView(
        name=name,
        entities=[definitions.restaurant],
        ttl=ttl,
        schema=[
            Field(name="prep", dtype=Float64),
            Field(name="orders", dtype=Int64),
            Field(name="cuisine", dtype=String),
        ],
        source=FileSource(
            name=f"{name}_rows",
            path=f"data/batch/{name}",
            file_format=ParquetFormat(),
            timestamp_field="event_time",
            created_timestamp_column="created",
            **source,
        ),
    )


def project_objects() -> list[Any]:
    """The objects of the tests' project."""
    with quietly():
        return [
            definitions.restaurant,
            definitions.zone,
            definitions.customer,
            window_view("by_restaurant", definitions.restaurant, WINDOWS, "r_"),
            window_view("by_zone", definitions.zone, WINDOWS, "z_"),
            presence_view(),
            open_orders_view(),
            definitions.order_delivered,
            batch_view(),
        ]


@dataclass
class Repo:
    """An applied project in a folder of its own."""

    path: Path
    feast: FeatureStore
    settings: Settings

    def views(self) -> tuple[StreamView, ...]:
        """The stream views, compiled from the registry."""
        with quietly():
            return stream_views(self.feast.list_stream_feature_views())

    def forget_files(self) -> None:
        """Delete the archive and the batch rows."""
        for name in ("log", "batch"):
            shutil.rmtree(self.settings.data / name, ignore_errors=True)


@contextmanager
def applied_repo(path: Path, valkey: Path, objects: Sequence[Any]) -> Iterator[Repo]:
    """A project folder with `objects` applied by Feast; meanwhile the process's settings point at it."""
    store_yaml = (REPO_FOLDER / "feature_store.yaml").read_text().replace("project: tiffin", f"project: {PROJECT}")
    (path / "feature_store.yaml").write_text(store_yaml)
    with pytest.MonkeyPatch.context() as patch, quietly():
        patch.setenv("REDIS_URL", f"unix://{socket_path(valkey)}")
        patch.setenv("TIFFIN_REPO", str(path))
        patch.setenv("TIFFIN_DUCKDB_THREADS", "1")
        settings.cache_clear()
        feast = FeatureStore(repo_path=str(path))
        feast.apply(list(objects))
        yield Repo(path, feast, settings())
    settings.cache_clear()


def order(event_id: str, at: int, restaurant: int = 7, zone: int = 3, **more: object) -> Message:
    """An ``order_placed`` event; `more` sets or adds fields, a `key` too."""
    key = str(more.pop("key", restaurant))
    event = {
        "event_id": event_id,
        "order_id": f"order {event_id}",
        "restaurant_id": restaurant,
        "zone_id": zone,
        "customer_id": 1,
        "placed_at": at,
        "basket_total": 10.5,
        "item_count": 2,
    }
    return Message(key.encode(), msgspec.json.encode(event | more))


def delivery(event_id: str, placed: Message, at: int, zone: int = 3) -> Message:
    """The ``order_delivered`` event of an order, not before it was placed."""
    told = msgspec.json.decode(placed.value)
    kept = {name: told[name] for name in ("order_id", "restaurant_id", "placed_at")}
    event = {"event_id": event_id, "zone_id": zone, "courier_id": 1, "delivered_at": max(at, told["placed_at"])}
    return Message(placed.key, msgspec.json.encode(kept | event))


def courier(event_id: str, at: int, who: int = 1, zone: int = 3, status: str = "available") -> Message:
    """A ``courier_status`` event."""
    event = {"event_id": event_id, "courier_id": who, "zone_id": zone, "status": status, "at": at}
    return Message(str(who).encode(), msgspec.json.encode(event))


@dataclass
class Lab:
    """A log and a store on one Valkey, with a clock of their own."""

    repo: Repo
    client: Redis
    clock: FakeClock = field(default_factory=FakeClock)
    partitions: int = 2

    def __post_init__(self) -> None:
        self.log: EventLog = RedisLog(self.client, retention_ms=None)
        self.views = self.repo.views()
        self.store = StreamStore(self.client, PROJECT)
        self.create_topics()

    def create_topics(self) -> None:
        """Make every topic that a worker of the project uses."""
        self.log.create_topics([ORDERS, DELIVERIES, COURIERS, "dead_letters"], self.partitions)

    def view(self, name: str) -> StreamView:
        """A stream view by its name."""
        return next(view for view in self.views if view.name == name)

    def worker(self, group: str | None = None) -> Worker:
        """A new worker; without a group it has every partition to itself."""
        return Worker(self.log, self.store, self.views, self.clock, group, ArchivedLog(self.repo.settings))

    def publish(self, *messages: Message, topic: str = ORDERS, at: int | None = None) -> None:
        """Append at the clock's present, or at `at`."""
        self.log.publish(topic, list(messages), append_ms=self.clock.now if at is None else at)

    def read(self, view: str, *ids: int, now: int | None = None) -> list[dict[str, Feature]]:
        """The online features of a view, of each id, read at the clock's present (or `now`)."""
        found = self.view(view)
        wanted = Wanted(found, tuple(found.features), found.join_keys)
        rows = {found.join_keys[0]: list(ids)}
        answer = read(self.client, ReadPlan(PROJECT, [wanted]), rows, self.clock.now if now is None else now)
        (columns,) = answer.columns
        return [dict(zip(wanted.features, row, strict=True)) for row in zip(*columns, strict=True)]

    def value(self, feature: str, entity: int = 7, now: int | None = None) -> object:
        """One online feature's value; its view is by how it begins (`VIEWS`)."""
        view = VIEWS.get(feature[:2], "couriers")
        (found,) = self.read(view, entity, now=now)
        return found[feature].value

    def archive(self, *topics: str) -> None:
        """Copy the log into the event log's Parquet files, as the archiver does."""
        archiver = Archiver(self.log, self.repo.settings, self.clock, topics or (ORDERS, DELIVERIES, COURIERS))
        while archiver.step(timeout_ms=0):
            pass
        archiver.flush()
        archiver.close()

    def records(self, topic: str) -> list[Record]:
        """Everything in a topic."""
        consumer = self.log.consumer([topic], None, self.log_begins)
        found: list[Record] = []
        while batches := consumer.poll(0, 1000):
            found += [record for batch in batches.values() for record in batch]
        consumer.close()
        return found

    @staticmethod
    def log_begins(gained: Sequence[Any]) -> dict[Any, int]:
        """Read from the very start."""
        return dict.fromkeys(gained, 0)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_S) -> None:
    """Wait until the condition holds; it must within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.01)


def drain(worker: Worker, max_records: int = 5000) -> None:
    """Fold everything that is in the log, and write progress."""
    while worker.step(timeout_ms=0, max_records=max_records) or _reads_archive(worker):
        pass
    worker.write_progress()


def _reads_archive(worker: Worker) -> bool:
    return any(held.archived is not None for held in worker.held().values())


def offline(repo: Repo, rows: Any, features: Sequence[str], full: bool = False, **more: Any) -> pd.DataFrame:
    """What Feast's ``get_historical_features`` answers; `more` goes to it."""
    with quietly():
        job = repo.feast.get_historical_features(
            entity_df=rows, features=list(features), full_feature_names=full, **more
        )
        frame: pd.DataFrame = job.to_df()
    return frame


def at(ms: int) -> datetime:
    """The aware datetime of an instant."""
    return from_ms(ms)
