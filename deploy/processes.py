"""Processes of this machine that are started, found again by a record of their own, killed, paused and ended."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

RECORD = "process.json"
"""In a process's home: its number, and when it was born. A number that was given again does not count."""

_STOP_SECONDS = 20.0


class ServiceError(RuntimeError):
    """A process cannot be started, or does not end; one line that says why and what to do."""


class Process:
    """A program that runs as a child, or as the child of an earlier run, found again by its record in `home`."""

    def __init__(self, name: str, home: Path, command: Sequence[str] = ()) -> None:
        self.name, self.home = name, home
        self._command = list(command)
        self._record = home / RECORD
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it has said."""
        return self.home / f"{self.name}.log"

    def command(self) -> list[str]:
        """How to start it; prepares the home. Raises ServiceError."""
        return self._command

    def pid(self) -> int | None:
        """The process, if the one recorded still is that process."""
        if self._child is not None:  # not gone before all its threads are, and its ports free
            return self._child.pid if self._child.poll() is None else None
        return recorded(self._record)

    def start(self) -> None:
        """Start it, as the leader of a session of its own: Ctrl-C comes to us alone. Nothing to do if it runs.

        Raises ServiceError.
        """
        if self.pid() is None:
            self._spawn()

    def stop(self) -> None:
        """End it in order; killed if it takes too long."""
        self.resume()  # a paused process would not hear the next one
        if not self._ended_by(signal.SIGTERM):
            self.kill()
        self._record.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would. `start` brings it back. Raises ServiceError."""
        if not self._ended_by(signal.SIGKILL):
            raise ServiceError(f"{self.name} (process {self.pid()}) does not end")

    def pause(self) -> None:
        """Stop its clock (SIGSTOP): connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        self.home.mkdir(parents=True, exist_ok=True)
        command = self.command()
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                start_new_session=True,
            )
        self._child = child
        self._record.write_text(json.dumps({"pid": child.pid, "born": born(child.pid)}))
        return child

    def _ended_by(self, number: signal.Signals) -> bool:
        pid = self.pid()
        self._signal(number)
        return pid is None or wait(lambda: self.pid() != pid, _STOP_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid()
        if pid is not None:
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(pid, number)


def recorded(record: Path) -> int | None:
    """The process that a record names, if it still is that process."""
    try:
        known = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return None
    pid = int(known["pid"])
    return pid if known["born"] is not None and born(pid) == known["born"] else None


def born(pid: int) -> str | None:
    """When the process started, in the system's own words; None if there is none, or it is a zombie."""
    stat_file = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat_file.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] == "Z" else fields[19]
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came to hold within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
