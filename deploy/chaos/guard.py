"""A folder for a drill, and a process that ends all that runs in it when the drill's own process is gone.

However the drill ends (done, failed, Ctrl-C, SIGKILL), the guard sees the end of the pipe between them, kills every
process that is recorded below the folder, and removes the folder.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.processes import RECORD, recorded, wait

_GONE_SECONDS = 20.0
_KEEP = b"keep"


class Home:
    """A drill's folder; each process has a folder of its own in it."""

    def __init__(self, path: Path, guard: "subprocess.Popen[bytes]") -> None:
        self.path, self._guard = path, guard

    def keep(self) -> None:
        """Let the folder stay when the drill ends: there is something to look at."""
        assert self._guard.stdin is not None
        self._guard.stdin.write(_KEEP)
        self._guard.stdin.flush()


@contextmanager
def guarded_home() -> Iterator[Home]:
    """A new temporary folder; nothing that was started in it outlives the block."""
    path = Path(tempfile.mkdtemp(prefix="tiffin-chaos-"))
    command = [sys.executable, "-m", __name__, str(path)]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield Home(path, guard)
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()


def end_all(path: Path) -> None:
    """Kill every process that is recorded below `path`, and wait until they are gone."""
    records = list(path.glob(f"*/{RECORD}"))
    for record in records:
        pid = recorded(record)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait(lambda: all(recorded(record) is None for record in records), _GONE_SECONDS)


def main() -> None:
    """Wait for the end of standard input, then end all and clean up."""
    path = Path(sys.argv[1])
    kept = sys.stdin.buffer.read() == _KEEP
    end_all(path)
    if not kept:
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
