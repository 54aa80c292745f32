"""The system under the drill: Kafka, Valkey, two workers and the archive, each kept running by a keeper of its own."""

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.environment import settings_named
from deploy.processes import Process, ServiceError
from deploy.servers import KafkaServer, ValkeyServer, free_port
from feature_repo.settings import Settings

SESSION_TIMEOUT_MS = 3_000
PARTITIONS = 4
ARCHIVE_EVERY_S = 3
_DOWN_S = (0.1, 2.0)
_LOOK_S = 0.05
_DEFINITIONS = "from deploy.chaos.definitions import *\n"
_YAML = Path(__file__).parent.parent.parent / "feature_repo" / "feature_store.yaml"


def _nothing() -> None:
    """What is done to most processes before they come back."""


class Keeper(threading.Thread):
    """Keeps a process running: starts it again a random short while after it has ended, whoever ended it."""

    def __init__(self, process: Process, dice: random.Random) -> None:
        super().__init__(name=f"keeper of {process.name}", daemon=True)
        self.process, self._dice = process, dice
        self._done = threading.Event()
        self._killed, self._at_once, self._then = False, False, _nothing
        self._resume_at: float | None = None
        self._up_since = time.monotonic()
        self.died = 0
        """How often it ended without being killed."""

    @property
    def up_seconds(self) -> float | None:
        """For how long it has been running; None while it does not, or is paused."""
        if self._resume_at is not None or self.process.pid() is None:
            return None
        return time.monotonic() - self._up_since

    def strike(self, then: Callable[[], None] | None = None, at_once: bool = False) -> None:
        """Kill it; `then` is done before it comes back, which is after a random short while, or `at_once`."""
        self._killed, self._at_once, self._then = True, at_once, then or self._then
        self.process.kill()

    def pause(self, seconds: float) -> None:
        """Stop it, and let it go on so much later."""
        self._resume_at = time.monotonic() + seconds
        self.process.pause()

    def run(self) -> None:
        """Watch until `release`."""
        while not self._done.wait(_LOOK_S):
            if self._resume_at is not None and time.monotonic() >= self._resume_at:
                self.process.resume()
                self._resume_at = None
            if self.process.pid() is None:
                self._revive()

    def release(self) -> None:
        """Stop keeping it, and end it."""
        self._done.set()
        while self.is_alive():  # it may be starting the process at this moment
            self.process.kill()
            self.join(0.1)
        self.process.kill()

    def _revive(self) -> None:
        self.died += not self._killed
        self._killed = False
        if self._done.wait(0 if self._at_once else self._dice.uniform(*_DOWN_S)):
            return
        then, self._then = self._then, _nothing
        then()
        self._up_since = time.monotonic()
        with suppress(ServiceError):  # killed while it started: once more
            self.process.start()


class System:
    """Everything that a drill runs below `home`, with data, ports and a repository folder of its own."""

    def __init__(self, home: Path, seed: int) -> None:
        self._home = home
        kafka, valkey = KafkaServer(home / "kafka", free_port()), ValkeyServer(home / "valkey", free_port())
        self._servers = (kafka, valkey)
        self.environment = {
            "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "REDIS_URL": f"redis://127.0.0.1:{valkey.port}/0",
            "TIFFIN_REPO": str(home / "repo"),
            "TIFFIN_TOPIC_PREFIX": "",
            "TIFFIN_PARTITIONS": str(PARTITIONS),
            "TIFFIN_SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS),
            "TIFFIN_CLOCK_START": "",
        }
        dice = random.Random(seed)

        def kept(process: Process) -> Keeper:
            return Keeper(process, random.Random(dice.random()))

        def child(name: str, *words: str) -> Keeper:
            return kept(Process(name, home / name, [sys.executable, "-m", "tiffin", *words]))

        self.kafka, self.valkey, self.valkey_server = kept(kafka), kept(valkey), valkey
        self.workers = (child("worker-1", "worker"), child("worker-2", "worker"))
        self.archive = child("archive", "archive", "--every", str(ARCHIVE_EVERY_S))

    @property
    def keepers(self) -> Sequence[Keeper]:
        """The keepers of all that runs."""
        return (self.kafka, self.valkey, *self.workers, self.archive)

    @contextmanager
    def settings(self) -> Iterator[Settings]:
        """The settings of the drill, for this process and those that it starts, and the repository folder they name."""
        repo = self._home / "repo"
        repo.mkdir()
        (repo / "feature_store.yaml").write_text(_YAML.read_text())
        (repo / "definitions.py").write_text(_DEFINITIONS)
        with settings_named(self.environment) as given:
            yield given

    @contextmanager
    def servers(self) -> Iterator[None]:
        """Kafka and Valkey, started; everything is ended with the block. Raises ServiceError."""
        try:
            for server in self._servers:
                server.start()
            yield
        finally:
            self._end()

    def start(self) -> None:
        """Start workers and archive, and keep all of it running from now on."""
        for keeper in (*self.workers, self.archive):
            keeper.process.start()
        for keeper in self.keepers:
            keeper.start()

    def _end(self) -> None:
        for keeper in self.keepers:
            keeper.release()
