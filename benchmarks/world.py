"""What serving is measured on: a town whose features are all known, a real Valkey, a real Kafka, a worker, a server.

Everything runs as it does for users: the definitions of the project, applied by Feast; models of the usual size; batch
rows written by our store; events folded by a worker.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copy

import numpy as np
import pandas as pd
from feast import FeatureStore
from pydantic import SecretStr

from benchmarks.events import Town, by_topic, made_up
from deploy.processes import Process, wait
from deploy.servers import KafkaServer, ValkeyServer, free_port
from feature_repo.clock import wall_clock
from feature_repo.feast_quietly import apply_definitions, open_store
from feature_repo.settings import Settings
from feature_repo.stores.batch_rows import Row, write_rows
from feature_repo.stores.redis_client import connect
from feature_repo.stores.stream_store import open_stream_store
from feature_repo.stores.values import to_proto
from feature_repo.views import BatchView, compile_view, features_hash, stream_views, views_of_service
from ingestion.events import TOPICS
from ingestion.log import TopicPartition, open_log
from models.dataset import Dataset, vector_of
from models.export import export, manifest_of
from models.registry import Registry
from models.train import train
from models.vector import REQUEST_FEATURES, request_features

DEFINITIONS = Path(__file__).parent.parent / "feature_repo"
TOWN = Town()
PARTITIONS = 4
_TRAINED_ON = 20_000
_MINUTE_MS = 60_000
_READY_S = 120.0


@dataclass
class World:
    """A repository folder with its servers; all of it ends with the block of `made`."""

    settings: Settings
    store: FeatureStore
    valkey: ValkeyServer
    environment: Mapping[str, str]
    folder: Path
    published: Counter[TopicPartition]
    """How many events were published when it was made; offsets begin at 0."""
    _ends: ExitStack

    def program(self, name: str, *words: str, **more: str) -> Process:
        """A command of ours as a process of its own, started."""
        assigned = [f"{key}={value}" for key, value in {**self.environment, **more}.items()]
        process = Process(name, self.folder / name, ["env", *assigned, sys.executable, "-m", "tiffin", *words])
        process.start()
        self._ends.callback(process.stop)
        return process

    def server(self) -> int:
        """Start the API; its port, once it is ready to answer in the best mode."""
        import httpx  # noqa: PLC0415  # asked a few times, by hand

        port = free_port()
        process = self.program("api", "serve", "--port", str(port))

        def ready() -> bool:
            assert process.pid() is not None, process.log.read_text()
            try:
                return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
            except httpx.TransportError:
                return False

        assert wait(ready, _READY_S), f"the API did not become ready: see {process.log}"
        return port

    def caught_up(self) -> bool:
        """Whether the worker has folded everything that was published when the world was made."""
        store = open_stream_store(self.settings, self.store.project)
        return all(
            (found := store.progress(topic, partition, view.tiles_hash)) is not None
            and found.offset >= self.published[TopicPartition(topic, partition)]
            for view in stream_views(self.store.list_stream_feature_views())
            for topic in view.topics
            for partition in range(PARTITIONS)
        )


@contextmanager
def made(folder: Path, town: Town = TOWN, events: int = 100_000, kafka: bool = True) -> Iterator[World]:
    """A world in `folder`: `events` of the last half hour are folded, and no feature of any restaurant is empty."""
    with ExitStack() as ends:
        repo = folder / "repo"
        repo.mkdir(parents=True)
        for name in ("definitions.py", "feature_store.yaml", ".feastignore"):
            copy(DEFINITIONS / name, repo)
        valkey = ValkeyServer(folder / "valkey", free_port())
        valkey.start()
        ends.callback(valkey.stop)
        environment = {
            "TIFFIN_REPO": str(repo),
            "REDIS_URL": f"redis://127.0.0.1:{valkey.port}",
            "TIFFIN_PARTITIONS": str(PARTITIONS),
        }
        if kafka:
            broker = KafkaServer(folder / "kafka", free_port())
            broker.start()
            ends.callback(broker.stop)
            environment["KAFKA_BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
        settings = Settings(
            TIFFIN_REPO=repo,
            REDIS_URL=SecretStr(environment["REDIS_URL"]),
            KAFKA_BOOTSTRAP_SERVERS=environment.get("KAFKA_BOOTSTRAP_SERVERS"),
            TIFFIN_PARTITIONS=PARTITIONS,
        )
        apply_definitions(settings)
        store = open_store(settings)
        for service in ("eta_streaming", "eta_batch"):
            publish_model(settings, store, service)
        write_batch(settings, store, town)
        world = World(settings, store, valkey, environment, folder, _publish(settings, town, events), ends)
        worker = world.program("worker", "worker")
        assert wait(world.caught_up, _READY_S), f"the worker did not catch up: see {worker.log}"
        yield world


def publish_model(settings: Settings, store: FeatureStore, service: str) -> None:
    """Train a model of the usual size on made-up orders that take longer the more is to be done; put it into use."""
    vector = vector_of(store.get_feature_service(service))
    views = views_of_service(store, store.get_feature_service(service))
    dice, now = np.random.default_rng(1), wall_clock()
    event_ms = now - np.arange(_TRAINED_ON, 0, -1, dtype=np.int64) * _MINUTE_MS
    stored = dice.uniform(0, 40, (_TRAINED_ON, len(vector.stored)))
    frame = pd.DataFrame(stored, columns=list(vector.stored))
    frame = frame.assign(**vector.derive(frame))
    frame[list(REQUEST_FEATURES)] = np.array([list(request_features(int(t)).values()) for t in event_ms])
    label = 20.0 + stored @ dice.uniform(0, 0.2, len(vector.stored)) + dice.gamma(2.0, 3.0, _TRAINED_ON)
    ids = np.array([f"o{i}" for i in range(_TRAINED_ON)], dtype=object)
    orders = Dataset(service, vector, frame, label, ids, event_ms)
    cut = _TRAINED_ON * 4 // 5
    trained = train(orders.take(np.arange(cut)), orders.take(np.arange(cut, _TRAINED_ON)))
    registry = Registry(settings.data / "models")
    meaning = features_hash(views, only=set(vector.stored))
    registry.promote(service, registry.publish(manifest_of(trained, meaning, now), export(trained, orders.matrix)))


def write_batch(settings: Settings, store: FeatureStore, town: Town) -> None:
    """Batch rows of yesterday for every restaurant."""
    dice, event_us = np.random.default_rng(2), (wall_clock() - 720 * _MINUTE_MS) * 1000
    client = connect(settings)
    try:
        for name in ("restaurant_profile", "restaurant_prep_stats"):
            view = compile_view(store.get_feature_view(name))
            assert isinstance(view, BatchView)
            everyone = np.arange(1, town.restaurants + 1)
            values = {feature: dice.uniform(5, 40, town.restaurants).round(2).tolist() for feature in view.features} | {
                "zone_id": town.zone_of(everyone).tolist(),
                "cuisine": ["noodles"] * town.restaurants,
                "orders_28d": dice.integers(1, 900, town.restaurants).tolist(),
            }
            rows = (
                Row(
                    [restaurant],
                    {f: to_proto(kind, values[f][i]).SerializeToString() for f, kind in view.features.items()},
                    event_us,
                    event_us,
                )
                for i, restaurant in enumerate(everyone.tolist())
            )
            write_rows(client, store.project, view, rows)
    finally:
        client.close()


def _publish(settings: Settings, town: Town, events: int) -> Counter[TopicPartition]:
    log, now = open_log(settings), wall_clock()
    published: Counter[TopicPartition] = Counter()
    try:
        log.create_topics(TOPICS, PARTITIONS)
        for topic, messages in by_topic(made_up(town, events, now - 30 * _MINUTE_MS, now, everywhere=True)).items():
            for at in range(0, len(messages), 5000):
                published.update(log.publish(topic, messages[at : at + 5000]))
    finally:
        log.close()
    return published
