"""Everything that runs together on one machine: worker, archive and API as children, restarted if they die."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from feature_repo.settings import Settings
from feature_repo.stores import embedded
from ingestion.push import get_json, wait_until

PROCESSES = (("worker",), ("archive", "--every", "60"), ("serve",))
READY_SECONDS = 90.0
_STOP_SECONDS = 20.0
_RESTARTS_A_MINUTE = 5

logger = structlog.get_logger(__name__)


class StackError(RuntimeError):
    """Something that should run does not, and would not stay up."""


@dataclass
class _Child:
    command: tuple[str, ...]
    process: subprocess.Popen[bytes]
    restarts: list[float] = field(default_factory=list)


class Stack:
    """The children. The embedded server, if it is used, is this process's own."""

    def __init__(self, settings: Settings, processes: Sequence[tuple[str, ...]] = PROCESSES) -> None:
        self._settings = settings
        self._logs = settings.data / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._processes = processes
        self._children: list[_Child] = []

    def start(self) -> None:
        """Start the children."""
        for command in self._processes:
            self._children.append(_Child(command, self._start(command)))

    def watch(self) -> None:
        """Restart what has died; call this now and then. Raises StackError for what keeps dying."""
        if self._settings.redis_url is None:
            embedded.ensure(self._settings.data)
        for child in self._children:
            code = child.process.poll()
            if code is None:
                continue
            now = time.monotonic()
            child.restarts = [at for at in child.restarts if now - at < 60] + [now]
            if len(child.restarts) > _RESTARTS_A_MINUTE:
                raise StackError(f"{child.command[0]} keeps ending (exit code {code}): see {self._log(child.command)}")
            logger.warning("restarting", process=child.command[0], exit_code=code)
            child.process = self._start(child.command)

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until predictions can be made in the best mode. Raises StackError or ApiError, saying what is not."""

        def check() -> str | None:
            self.watch()
            with suppress(RuntimeError):
                status, document = get_json(self._settings, "/ready")
                if status == 200:
                    return None
                return "; ".join(f"{n}: {c.get('reason', c)}" for n, c in document["checks"].items() if not c["ok"])
            return "the API does not answer yet"

        wait_until(check, seconds)

    def stop(self) -> None:
        """End the children: each writes what it has first."""
        for child in self._children:
            child.process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self._children:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def _start(self, command: tuple[str, ...]) -> subprocess.Popen[bytes]:
        with self._log(command).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tiffin", *command],
                env=os.environ | {"TIFFIN_REPO": str(self._settings.repo)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C comes to us, and we stop them in order
            )

    def _log(self, command: tuple[str, ...]) -> Path:
        return self._logs / f"{command[0]}.log"


@contextmanager
def running(settings: Settings, processes: Sequence[tuple[str, ...]] = PROCESSES) -> Iterator[Stack]:
    """A stack that is stopped when the block ends, however it ends."""
    if settings.redis_url is None:
        embedded.ensure(settings.data)
    stack = Stack(settings, processes)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
