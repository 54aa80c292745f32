"""What the benchmarks of the stream run on: a Kafka, a Valkey and a repository folder of their own, and workers."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.events import TOPICS as EVENT_TOPICS
from benchmarks.events import Made, by_topic
from deploy.environment import settings_named
from deploy.processes import Process, ServiceError, wait
from deploy.servers import KafkaServer, ValkeyServer, free_port
from feature_repo.feast_quietly import apply_definitions, open_store
from feature_repo.settings import Settings
from feature_repo.stores.redis_client import Redis, connect
from feature_repo.stores.stream_store import StreamStore
from feature_repo.views import StreamView, stream_views
from ingestion.events import TOPICS
from ingestion.kafka_log import KafkaLog
from ingestion.log import TopicPartition

PARTITIONS = 4
WAIT_S = 120.0
_CHUNK = 20_000
_LOOK_S = 0.005
_END_OF_TIME = 2**52
_SOURCE = Path(__file__).parent.parent / "feature_repo"
_SESSION_MS = 600_000  # a worker that is paused between two measurements keeps its partitions


@dataclass(frozen=True)
class StreamSystem:
    """Kafka and Valkey that run, the project's own definitions applied, and every topic made."""

    home: Path
    settings: Settings
    kafka: KafkaServer
    valkey: ValkeyServer
    redis: Redis
    log: KafkaLog
    store: StreamStore
    views: Sequence[StreamView]

    def publish(self, events: Iterable[Made]) -> dict[TopicPartition, int]:
        """Put events into the log; where each partition of their topics ends then."""
        for topic, messages in by_topic(events).items():
            for at in range(0, len(messages), _CHUNK):
                self.log.publish(topic, messages[at : at + _CHUNK])
        return self.ends()

    def ends(self) -> dict[TopicPartition, int]:
        """Where each partition of every topic of events ends now."""
        places = [TopicPartition(topic, n) for topic in EVENT_TOPICS for n in range(self.log.partitions(topic))]
        return {where: self.log.offset_at(where, _END_OF_TIME) for where in places}

    def folded(self, ends: Mapping[TopicPartition, int]) -> Callable[[], bool]:
        """Asks whether the progress of every view has reached these ends, with as little work for the store as can be.

        One command a call: what was seen to be folded is not asked about again.
        """
        waiting = [
            (where, view.tiles_hash, end)
            for where, end in ends.items()
            for view in self.views
            if where.topic in view.topics
        ]

        def done() -> bool:
            while waiting:
                (topic, partition), tiles_hash, end = waiting[-1]
                found = self.store.progress(topic, partition, tiles_hash)
                if found is None or found.offset < end:
                    return False
                waiting.pop()
            return True

        return done

    def worker(self, name: str) -> Process:
        """A worker as it is run in production, not started yet."""
        return Process(name, self.home / name, [sys.executable, "-m", "tiffin", "worker"])


@contextmanager
def stream_system(home: Path, partitions: int = PARTITIONS) -> Iterator[StreamSystem]:
    """It lies below `home` and runs for as long as the block lasts. Raises ServiceError."""
    kafka, valkey = KafkaServer(home / "kafka", free_port()), ValkeyServer(home / "valkey", free_port())
    repo = home / "repo"
    repo.mkdir(parents=True)
    (repo / "feature_store.yaml").write_text((_SOURCE / "feature_store.yaml").read_text())
    (repo / "definitions.py").write_text("from feature_repo.definitions import *\n")
    named = {
        "TIFFIN_REPO": str(repo),
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "REDIS_URL": f"redis://127.0.0.1:{valkey.port}/0",
        "TIFFIN_PREDICTIONS_URL": "",
        "TIFFIN_TOPIC_PREFIX": "",
        "TIFFIN_PARTITIONS": str(partitions),
        "TIFFIN_SESSION_TIMEOUT_MS": str(_SESSION_MS),
        "TIFFIN_PORT": str(free_port()),
        "TIFFIN_CLOCK_START": "",
    }
    try:
        kafka.start()
        valkey.start()
        with settings_named(named) as given:
            apply_definitions(given)
            feast = open_store(given)
            with closing(connect(given)) as redis, closing(KafkaLog(kafka.bootstrap_servers)) as log:
                log.create_topics(TOPICS, partitions)
                views = stream_views(feast.list_stream_feature_views())
                yield StreamSystem(home, given, kafka, valkey, redis, log, StreamStore(redis, feast.project), views)
    finally:
        kafka.stop()
        valkey.stop()


@contextmanager
def running(*processes: Process) -> Iterator[None]:
    """The processes run for as long as the block lasts."""
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            process.stop()


def seconds_until(done: Callable[[], bool], what: str) -> float:
    """How long it takes until something holds, looked at every 5 ms. Raises ServiceError after two minutes."""
    began = time.perf_counter()
    while not done():
        if time.perf_counter() - began > WAIT_S:
            raise ServiceError(f"waited {WAIT_S:.0f} s for {what}")
        time.sleep(_LOOK_S)
    return time.perf_counter() - began


def wait_for(done: Callable[[], bool], what: str) -> None:
    """Wait patiently for what is not measured. Raises ServiceError after two minutes."""
    if not wait(done, WAIT_S):
        raise ServiceError(f"waited {WAIT_S:.0f} s for {what}")
