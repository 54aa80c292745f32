"""Servers for the tests: a real Valkey, Kafka and PostgreSQL, started once a session, and an event log's homes on them.

And what several test files build on them: a repository that Feast has applied, and the API. These import Feast, which
takes seconds, where they are used: not for every test.
"""

import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pydantic import SecretStr

from deploy.postgres import running_postgres
from deploy.processes import ServiceError
from deploy.servers import KafkaServer, free_port, why_no_kafka
from feature_repo.settings import Settings
from feature_repo.stores import embedded
from feature_repo.stores.redis_client import Redis, connect
from ingestion.log import EventLog
from ingestion.redis_log import RedisLog

with warnings.catch_warnings():
    # Its schemas are read by functions that Python 3.11 deprecates and 3.13 does not; here, since warnings are errors.
    warnings.filterwarnings("ignore", r"(read|open)_text is deprecated", DeprecationWarning)
    from kafka import KafkaAdminClient

    from ingestion.kafka_log import KafkaLog

if TYPE_CHECKING:
    from tests.repo import Lab, Repo
    from tests.serving_stack import Stack

LEASE_MS = 3_000
"""How long a silent member keeps its partitions in tests, in either home: short, for tests wait for it."""


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A Kafka node. Tests are skipped where it cannot run; with TIFFIN_REQUIRE_KAFKA=1 they fail."""
    lacking = why_no_kafka()
    if lacking is not None and os.environ.get("TIFFIN_REQUIRE_KAFKA") != "1":
        pytest.skip(lacking)
    server = KafkaServer(tmp_path_factory.mktemp("kafka"), free_port())
    try:
        server.start()
    except ServiceError as error:
        pytest.fail(str(error), pytrace=False)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL. Tests are skipped where it cannot run; with TIFFIN_REQUIRE_POSTGRES=1 they fail."""
    with ExitStack() as opened:
        try:
            url = opened.enter_context(running_postgres())
        except ServiceError as error:
            if os.environ.get("TIFFIN_REQUIRE_POSTGRES") == "1":
                pytest.fail(str(error), pytrace=False)
            pytest.skip(str(error))
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def predictions_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database for stored predictions, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'predictions.db'}"
    server: str = request.getfixturevalue("postgres")
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.replace("postgresql+psycopg:", "postgresql:"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of an embedded Valkey that runs."""
    data = tmp_path_factory.mktemp("valkey")
    child = embedded.start(data)
    yield data
    embedded.stop(child)


@pytest.fixture
def redis_client(valkey: Path) -> Iterator[Redis]:
    """A client of that Valkey, which is empty."""
    client = connect(Settings(REDIS_URL=SecretStr(f"unix://{embedded.socket_path(valkey)}")))
    client.flushall()
    yield client
    client.close()


@dataclass(frozen=True)
class LogHome:
    """A home of the event log, and what tests must do to it that the port does not offer."""

    log: EventLog
    dead: EventLog
    """A log of the same home whose server is not there."""
    delete_topic: Callable[[str], None]


@pytest.fixture(params=["redis", pytest.param("kafka", marks=pytest.mark.kafka)])
def log_home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LogHome]:
    """Each home in turn, under a prefix that no other test uses."""
    prefix = f"test-{uuid.uuid4().hex[:12]}-"
    if request.param == "kafka":
        server: KafkaServer = request.getfixturevalue("kafka_server")
        home = _kafka_home(server.bootstrap_servers, prefix)
    else:
        home = _redis_home(request.getfixturevalue("redis_client"), prefix, tmp_path)
    yield home
    home.log.close()
    home.dead.close()


@pytest.fixture
def event_log(log_home: LogHome) -> EventLog:
    """An empty event log, of each home in turn."""
    return log_home.log


@pytest.fixture(scope="module")
def repo(valkey: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Repo]":
    """A repository with the views that most tests of the stores and the worker need, applied."""
    from tests.repo import applied_repo, project_objects  # noqa: PLC0415  # see above

    with applied_repo(tmp_path_factory.mktemp("repo"), valkey, project_objects()) as made:
        yield made


@pytest.fixture
def lab(repo: "Repo", redis_client: Redis) -> "Lab":
    """That repository with an empty store and log, and no files."""
    from tests.repo import Lab  # noqa: PLC0415  # see above

    repo.forget_files()
    return Lab(repo, redis_client)


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> "Iterator[Stack]":
    """The API on a stack of the test's own, with nothing in the log, and folded."""
    from tests.serving_stack import running  # noqa: PLC0415  # see above

    with running(tmp_path_factory.getbasetemp(), tmp_path) as stack:
        stack.fold()
        yield stack


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Stack]":
    """A stack for tests that change nothing: one order at restaurant 1, two at 3."""
    from tests.serving_stack import running  # noqa: PLC0415  # see above

    with running(tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("shared")) as stack:
        stack.push("order_placed", stack.order(1), stack.order(3), stack.order(3, basket_total=10.0))
        stack.fold()
        yield stack


def _kafka_home(servers: str, prefix: str) -> LogHome:
    def delete_topic(topic: str) -> None:
        admin = KafkaAdminClient(bootstrap_servers=servers)
        admin.delete_topics([prefix + topic])
        admin.close()

    log = KafkaLog(servers, prefix, session_timeout_ms=LEASE_MS)
    return LogHome(log, KafkaLog(f"127.0.0.1:{free_port()}"), delete_topic)


def _redis_home(client: Redis, prefix: str, folder: Path) -> LogHome:
    def delete_topic(topic: str) -> None:
        keys: Any = client.keys(f"{prefix}log:{topic}*")
        client.delete(*keys)

    nowhere = connect(Settings(REDIS_URL=SecretStr(f"unix://{folder}/nothing.sock")))
    return LogHome(RedisLog(client, prefix, lease_ms=LEASE_MS), RedisLog(nowhere), delete_topic)
