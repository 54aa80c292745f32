"""The ladder with real servers: Kafka, Valkey, worker and API as processes: stopped, frozen, killed, brought back."""

import shutil
from pathlib import Path

import pytest
from pydantic import SecretStr

from deploy.environment import settings_named
from deploy.ladder import NOTHING_LEFT, climb
from deploy.servers import KafkaServer, ValkeyServer, free_port
from feature_repo.clock import wall_clock
from feature_repo.feast_quietly import open_store
from feature_repo.settings import Settings
from feature_repo.stores.redis_client import connect
from models.stored import ETA, Run, open_stored
from tests.serving_stack import ZONE_OF, applied_folder, write_batch

HOURS = range(24)


@pytest.mark.kafka
def test_each_rung_answers_while_the_one_above_cannot(
    kafka_server: KafkaServer, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    repo, valkey = tmp_path / "repo", ValkeyServer(tmp_path / "valkey", free_port())
    shutil.copytree(applied_folder(tmp_path_factory.getbasetemp()), repo)
    named = {
        "TIFFIN_REPO": str(repo),
        "KAFKA_BOOTSTRAP_SERVERS": kafka_server.bootstrap_servers,
        "REDIS_URL": f"redis://127.0.0.1:{valkey.port}/0",
        "TIFFIN_TOPIC_PREFIX": "ladder-",
        "TIFFIN_PARTITIONS": "2",
        "TIFFIN_PORT": str(free_port()),
        "TIFFIN_CLOCK_START": "",
        "TIFFIN_READ_TIMEOUT_MS": "500",  # a busy machine is no store that is down
        "TIFFIN_BUDGET_MS": "1000",
    }
    valkey.start()
    try:
        with settings_named(named) as given:
            prepare(given, f"redis://127.0.0.1:{valkey.port}/0")
            phases = climb(given, valkey, tmp_path, list(ZONE_OF), hold_s=1.0)
    finally:
        valkey.stop()
    rungs = [max(phase.settled) for phase in phases]
    assert rungs == [
        *("streaming", "batch_features", "streaming"),
        *("stored", "stored", NOTHING_LEFT, "stored", "streaming"),
    ]
    assert all(sum(phase.settled.values()) > 10 for phase in phases)


def prepare(given: Settings, url: str) -> None:
    """Batch features of now, and a run of stored predictions."""
    now = wall_clock()
    client = connect(Settings(REDIS_URL=SecretStr(url)))
    write_batch(client, open_store(given), now)
    client.close()
    run = Run("run", ETA, now, "eta_batch", "v1", 0, now, now)
    rows = [
        {"restaurant_id": r, "hour": hour, "eta_minutes": 10.0 * r, "eta_minutes_p90": 20.0 * r}
        for r in ZONE_OF
        for hour in HOURS
    ]
    stored = open_stored(given)
    stored.begin(run)
    stored.write(run, 0, {"etas": rows})
    stored.publish(run, now)
    stored.close()
