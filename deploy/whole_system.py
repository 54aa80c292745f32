"""A system of its own for a drill: real Kafka and Valkey, a repository folder with the city's history and models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.bootstrap import bootstrap
from deploy.environment import settings_named
from deploy.servers import KafkaServer, ValkeyServer, free_port
from feature_repo.settings import Settings

Say = Callable[[str], None]


@contextmanager
def whole_system(home: Path, say: Say) -> Iterator[tuple[Settings, ValkeyServer]]:
    """It lies below `home` and runs for as long as the block lasts; gives its settings and its online store.

    Raises ServiceError.
    """
    kafka, valkey = KafkaServer(home / "kafka", free_port()), ValkeyServer(home / "valkey", free_port())
    repo, source = home / "repo", Path(__file__).parent.parent / "feature_repo"
    repo.mkdir()
    (repo / "feature_store.yaml").write_text((source / "feature_store.yaml").read_text())
    (repo / "definitions.py").write_text("from feature_repo.definitions import *\n")
    named = {
        "TIFFIN_REPO": str(repo),
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "REDIS_URL": f"redis://127.0.0.1:{valkey.port}/0",
        "TIFFIN_PREDICTIONS_URL": "",
        "TIFFIN_TOPIC_PREFIX": "",
        "TIFFIN_PORT": str(free_port()),
        "TIFFIN_CLOCK_START": "",
    }
    try:
        kafka.start()
        valkey.start()
        with settings_named(named) as given:
            bootstrap(given, say)
            yield given, valkey
    finally:
        kafka.stop()
        valkey.stop()
