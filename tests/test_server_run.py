"""A Redis that is killed and comes back without its last second, just between a batch's fields and its progress."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from deploy.servers import ValkeyServer, free_port
from feature_repo.settings import Settings
from feature_repo.stores.reading import ReadPlan, Wanted, read
from feature_repo.stores.redis_client import STORE_DOWN, Redis, ServerRun, connect
from feature_repo.stores.stream_store import StreamStore, open_stream_store
from ingestion.worker import Worker
from tests.repo import PROJECT, START, Lab, Repo, drain, order


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """The online store, apart from the log's server."""
    made = ValkeyServer(tmp_path / "online", free_port())
    made.start()
    yield made
    made.stop()


def settings_of(server: ValkeyServer) -> Settings:
    return Settings(REDIS_URL=SecretStr(f"redis://127.0.0.1:{server.port}"))


@pytest.mark.parametrize("method", ["send_fields", "settle", "note_seen", "swap_all"])
def test_what_was_lost_between_a_batchs_writes_is_folded_again(
    repo: Repo, redis_client: Redis, server: ValkeyServer, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client connects anew in silence: progress must not speak for fields that went with the last second."""
    lab, kept = Lab(repo, redis_client), server.home.with_name("kept")
    store = open_stream_store(settings_of(server), PROJECT)
    worker = Worker(lab.log, store, lab.views, lab.clock, group=None)
    drain(worker)
    shutil.copytree(server.home / "appendonlydir", kept)
    lab.publish(order("a", START), order("b", START, restaurant=8))
    original = getattr(StreamStore, method)

    def back_without_its_last_second(self: StreamStore, *args: object, **more: object) -> object:
        monkeypatch.undo()
        server.kill()
        shutil.rmtree(server.home / "appendonlydir")
        shutil.copytree(kept, server.home / "appendonlydir")
        server.start()
        return original(self, *args, **more)

    monkeypatch.setattr(StreamStore, method, back_without_its_last_second)
    with pytest.raises(STORE_DOWN) as caught:
        worker.step(timeout_ms=0)
    worker.recover(caught.value)
    drain(worker)
    plan = ReadPlan(PROJECT, [Wanted(lab.view("by_restaurant"), ("r_orders_7m",), ("restaurant_id",))])
    with connect(settings_of(server)) as client:
        (column,) = read(client, plan, {"restaurant_id": [7, 8]}, lab.clock.now).columns[0]
    assert [feature.value for feature in column] == [1, 1]


def test_outside_of_such_a_stretch_a_lost_connection_is_made_anew_in_silence(server: ValkeyServer) -> None:
    run = ServerRun()
    with connect(settings_of(server), run=run) as client:
        client.set("a", 1)
        server.kill()
        server.start()
        assert client.get("a") == b"1"
        server.kill()
        server.start()
        with run.unbroken(), pytest.raises(STORE_DOWN, match="between two writes"):
            client.get("a")
        assert client.get("a") == b"1"
