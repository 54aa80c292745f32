"""The servers that development uses, beside the embedded one: `tiffin services up|down|status`.

One Apache Kafka node (KRaft, broker and controller in one process) and one Valkey over TCP, both on 127.0.0.1. Where a
Docker engine answers they are containers; elsewhere processes, their data in ``.services`` at the project's root.
"""

import os
import subprocess
import sys
from pathlib import Path

from deploy.processes import ServiceError
from deploy.servers import HOME, KafkaServer, Server, ValkeyServer

_COMPOSE = Path(__file__).parent / "compose.yaml"


def docker_answers() -> bool:
    """Whether a Docker engine (not the client alone) answers, quickly."""
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=5, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _compose(kafka_port: int, redis_port: int, *words: str) -> int:
    ports = {"KAFKA_PORT": str(kafka_port), "REDIS_PORT": str(redis_port)}
    command = ["docker", "compose", "-f", str(_COMPOSE), *words]
    return subprocess.run(command, env=os.environ | ports, stdout=sys.stderr, check=False).returncode


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def up(servers: list[Server]) -> int:
    """Start what does not run yet, and print what a shell must export."""
    kafka, valkey = servers
    if docker_answers():
        if _compose(kafka.port, valkey.port, "up", "--detach", "--wait") != 0:
            raise ServiceError("docker compose could not start the servers: see its output above")
    else:
        for server in servers:
            server.start()
    _say(f"export KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:{kafka.port}")
    _say(f"export REDIS_URL=redis://127.0.0.1:{valkey.port}/0")
    return 0


def down(servers: list[Server]) -> int:
    """End what `up` started; the data stay."""
    for server in servers:
        server.stop()
    if docker_answers():
        return _compose(servers[0].port, servers[1].port, "down")
    return 0


def status(servers: list[Server]) -> int:
    """Say of each server whether it answers; 0 if all do."""
    answering = [server.answers() for server in servers]
    for server, answers in zip(servers, answering, strict=True):
        pid = server.pid()
        how = f"process {pid}" if pid else "not started from here"
        _say(f"{server.name}: {'answers' if answers else 'does not answer'} on 127.0.0.1:{server.port} ({how})")
    return 0 if all(answering) else 1


ACTIONS = {"up": up, "down": down, "status": status}


def control(action: str, kafka_port: int, redis_port: int) -> int:
    """Do one of ACTIONS; the exit code. Raises ServiceError: what cannot be started, and what to do."""
    return ACTIONS[action]([KafkaServer(HOME / "kafka", kafka_port), ValkeyServer(HOME / "valkey", redis_port)])
