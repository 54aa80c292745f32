"""The API as its callers meet it: uvicorn on a free port, a Valkey of its own, a worker that the test steps.

The repository folder (the project's own definitions, applied by Feast, and two tiny models) is made once a session and
copied for each stack. Every stack runs on a drill's clock, which stands still until the test moves it.
"""

import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pandas as pd
import pytest
import uvicorn
from feast import FeatureStore
from pydantic import SecretStr

from feature_repo.clock import Clock, iso
from feature_repo.feast_quietly import apply_definitions
from feature_repo.settings import Settings
from feature_repo.stores import embedded
from feature_repo.stores.batch_rows import Row, write_rows
from feature_repo.stores.redis_client import Redis, connect
from feature_repo.stores.stream_store import StreamStore
from feature_repo.stores.values import to_proto
from feature_repo.views import BatchView, StreamView, compile_view, features_hash, stream_views, views_of_service
from ingestion.events import TOPICS
from ingestion.log import EventLog, Record
from ingestion.redis_log import RedisLog
from ingestion.worker import Worker
from models.dataset import Dataset, vector_of
from models.export import export, manifest_of
from models.registry import Registry
from models.train import train
from models.vector import REQUEST_FEATURES, request_features
from serving.app import create_app
from serving.front_door import FrontDoor
from tests.event_log_tools import from_begin
from tests.repo import DEADLINE_S, MINUTE, REPO_FOLDER, START, FakeClock, drain, quietly, wait_for

PARTITIONS = 2
ZONE_OF = {1: 1, 2: 1, 3: 2}
"""Restaurants with every batch feature, and their zones."""
UNKNOWN = 999
"""A restaurant that nothing was ever written of."""
ORDERS_10M = "restaurant_recent_orders__orders_10m"
ZONE_ORDERS_10M = "zone_recent_orders__zone_orders_10m"
PREP_STATS = {
    "mean_prep_minutes_7d": 14.5,
    "mean_prep_minutes_28d": 15.0,
    "p90_prep_minutes_28d": 24.0,
    "mean_delivery_minutes_28d": 35.0,
    "orders_28d": 400,
}
BATCH_AGE_MS = 12 * 60 * MINUTE


@lru_cache(maxsize=1)
def applied_folder(base: Path) -> Path:
    """A repository folder with the project's definitions applied and a model a mode in use; made once."""
    repo = base / "repo"
    repo.mkdir()
    for name in ("definitions.py", "feature_store.yaml", ".feastignore"):
        shutil.copy(REPO_FOLDER / name, repo)
    settings = Settings(TIFFIN_REPO=repo)
    with quietly():
        apply_definitions(settings)
        store = FeatureStore(repo_path=str(repo))
        for service in ("eta_streaming", "eta_batch"):
            publish_model(settings, store, service)
    return repo


def publish_model(
    settings: Settings,
    store: FeatureStore,
    service: str,
    definition_hash: str | None = None,
    seed: int = 1,
    more: tuple[str, ...] = (),
) -> str:
    """Train a small model on made-up orders that come later the more the restaurant has to do; put it into use.

    `more` are features beyond those of the service.
    """
    with quietly():
        vector = vector_of(store.get_feature_service(service))
        vector = replace(vector, stored=(*vector.stored, *more))
        views = views_of_service(store, store.get_feature_service(service))
    dice, count = np.random.default_rng(seed), 240
    event_ms = START - np.arange(count, 0, -1, dtype=np.int64) * MINUTE
    stored = dice.uniform(0, 40, (count, len(vector.stored)))
    busy = vector.stored.index(ORDERS_10M) if ORDERS_10M in vector.stored else 0
    label = 20.0 + stored[:, busy]
    request = np.array([list(request_features(int(t)).values()) for t in event_ms])
    frame = pd.DataFrame(stored, columns=list(vector.stored))
    frame = frame.assign(**vector.derive(frame))
    frame[list(REQUEST_FEATURES)] = request
    ids = np.array([f"o{i}" for i in range(count)], dtype=object)
    orders = Dataset(service, vector, frame, label, ids, event_ms)
    trained = train(orders.take(np.arange(200)), orders.take(np.arange(200, count)))
    registry = Registry(settings.data / "models")
    meaning = definition_hash or features_hash(views, only=set(vector.stored))
    version = registry.publish(manifest_of(trained, meaning, START + seed * 1000), export(trained, orders.matrix))
    registry.promote(service, version)
    return version


@dataclass
class Stack:
    """The API, its store and its worker; `url` answers while the block of `running` lasts."""

    settings: Settings
    store: FeatureStore
    views: tuple[StreamView, ...]
    clock: FakeClock
    url: str
    http: httpx.Client
    redis: Redis
    log: EventLog
    valkey: "Valkey"
    worker: Worker
    _ids: int = 0

    def get(self, path: str, **params: str) -> httpx.Response:
        """GET."""
        return self.http.get(path, params=params)

    def post(self, path: str, document: object, **headers: str) -> httpx.Response:
        """POST a JSON document (bytes go as they are), with no content type unless it is given."""
        content = document if isinstance(document, bytes) else msgspec.json.encode(document)
        return self.http.post(path, content=content, headers=headers)

    def push(self, topic: str, *events: Mapping[str, object]) -> None:
        """Push events; all must be taken."""
        answer = self.post(f"/v1/events/{topic}", list(events))
        assert answer.status_code == 200, answer.text

    def order(self, restaurant: int = 1, **more: object) -> dict[str, object]:
        """An ``order_placed`` event of now."""
        self._ids += 1
        return {
            "event_id": f"e{self._ids}",
            "order_id": f"o{self._ids}",
            "restaurant_id": restaurant,
            "zone_id": ZONE_OF.get(restaurant, 1),
            "customer_id": 1,
            "placed_at": self.clock.now,
            "basket_total": 20.0,
            "item_count": 2,
        } | more

    def fold(self) -> None:
        """Step the worker through all of the log; its progress is as of the clock's now."""
        drain(self.worker)

    def move(self, milliseconds: int) -> None:
        """Let time pass, and the worker with it."""
        self.clock.now += milliseconds
        self.fold()

    def eta(self, restaurant: int = 1, **params: str) -> Any:
        """The document of a prediction, which must be made."""
        answer = self.get(f"/v1/eta/{restaurant}", **params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def value(self, feature: str, restaurant: int = 1) -> Any:
        """A feature's value, as it is served."""
        return self.eta(restaurant)["features"][feature]["value"]

    def records(self, topic: str) -> list[Record]:
        """Everything in a topic."""
        return everything(self.log, topic)


class Valkey:
    """A stack's own server, store and log in one, that tests may stop and start again."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._child = embedded.start(data)

    @property
    def pid(self) -> int:
        """The process."""
        return self._child.pid

    def stop(self) -> None:
        """End it; what it was told is on disk."""
        embedded.stop(self._child)

    def start(self) -> None:
        """Bring it back, with what it had."""
        self._child = embedded.start(self._data)


@contextmanager
def running(base: Path, home: Path) -> Iterator[Stack]:
    """A stack in the folder `home`; `base` is where the session's applied repository is kept. Features are written."""
    repo = home / "repo"
    shutil.copytree(applied_folder(base), repo)
    clock = FakeClock()
    settings = Settings(
        TIFFIN_REPO=repo,
        REDIS_URL=SecretStr(f"unix://{embedded.socket_path(repo / 'data')}"),
        KAFKA_BOOTSTRAP_SERVERS=None,
        TIFFIN_CLOCK_START=iso(clock.now),
        TIFFIN_CLOCK_ORIGIN=0.0,
    )
    with ExitStack() as ends:
        server = Valkey(settings.data)
        ends.callback(server.stop)
        redis = ends.enter_context(closing(connect(settings)))
        log = RedisLog(redis, retention_ms=None)
        log.create_topics(TOPICS, PARTITIONS)
        with quietly():
            store = FeatureStore(repo_path=str(repo))
            views = stream_views(store.list_stream_feature_views())
        write_batch(redis, store, clock.now - BATCH_AGE_MS)
        url = ends.enter_context(served(app_on(settings, clock)))
        http = ends.enter_context(httpx.Client(base_url=url, timeout=DEADLINE_S))
        worker = Worker(log, StreamStore(redis, store.project), views, clock, group=None)
        ends.callback(worker.close)
        yield Stack(settings, store, views, clock, url, http, redis, log, server, worker)


def app_on(settings: Settings, clock: Clock) -> FrontDoor:
    """The app of the settings, on a clock that the test moves."""
    with pytest.MonkeyPatch.context() as patch, quietly():
        patch.setattr("serving.app.clock_of", lambda settings: clock)
        return create_app(settings)


@contextmanager
def served(app: FrontDoor) -> Iterator[str]:
    """The address of a server of the app, in a thread; it is shut down as by SIGTERM."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive(), "the server to start")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the server did not end"


def write_batch(redis: Redis, store: FeatureStore, event_ms: int, restaurants: Mapping[int, int] = ZONE_OF) -> None:
    """Profiles and preparation statistics of restaurants ({id: zone}), as of `event_ms`."""
    for restaurant, zone in restaurants.items():
        profile = {"zone_id": zone, "cuisine": "thai", "latitude": 52.4, "longitude": 4.9}
        for name, values in (("restaurant_profile", profile), ("restaurant_prep_stats", PREP_STATS)):
            view = batch_view(store, name)
            data = {f: to_proto(view.features[f], value).SerializeToString() for f, value in values.items()}
            write_rows(redis, store.project, view, [Row([restaurant], data, event_ms * 1000, event_ms * 1000)])


def batch_view(store: FeatureStore, name: str) -> BatchView:
    """A batch view of the registry, compiled."""
    view = compile_view(store.get_feature_view(name))
    assert isinstance(view, BatchView)
    return view


def everything(log: EventLog, topic: str) -> list[Record]:
    """Every record of a topic."""
    consumer = log.consumer([topic], None, from_begin)
    found: list[Record] = []
    ends = consumer.ends() or dict.fromkeys(log.begins(topic), 0)
    deadline = time.monotonic() + DEADLINE_S
    while True:
        for batch in consumer.poll(20, 1000).values():
            found += batch
        ends = consumer.ends()
        if ends and all(consumer.position(where) >= end for where, end in ends.items()):
            consumer.close()
            return found
        assert time.monotonic() < deadline, f"{topic} was not read to its end"


def problem(answer: httpx.Response, status: int) -> Any:
    """The document of an answer that must be a problem of this status, without a traceback."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    return document
