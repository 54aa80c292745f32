"""What is served is what was folded: a registry that is ahead of it changes nothing, and hides nothing."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from feature_repo.settings import Settings
from feature_repo.stores import layout
from feature_repo.stores.embedded import socket_path
from feature_repo.stores.progress import Progress
from feature_repo.stores.reading import Answer, Feature, ReadPlan, Status, Wanted, read, read_async
from feature_repo.stores.redis_client import Redis, connect_async
from feature_repo.stores.redis_pipe import RedisPipe
from feature_repo.stores.stream_store import FieldWrite, StreamStore, Swap
from feature_repo.stores.tile_codec import Header, pack
from feature_repo.views import PresenceView, StreamView
from feature_repo.windows import SCALE, Observation, Tiles
from tests.test_definition_checks import PRESENCE, window

PROJECT, NOW = "served", 10_000_000
STANDING = Progress(epoch=1, offset=0, covered_from=-(10**9), complete_until=NOW, newest=0, log=1)


def folded(store: StreamStore, view: StreamView, partitions: int = 1) -> None:
    for topic in view.topics:
        store.describe_topic(topic, partitions)
        for partition in range(partitions):
            store.swap_progress(topic, partition, [Swap(view.tiles_hash, None, STANDING)])


def asked(client: Redis, view: StreamView, plan: ReadPlan | None = None) -> list[Feature]:
    plan = plan or ReadPlan(PROJECT, [Wanted(view, tuple(view.features), view.join_keys)])
    return [column[0] for column in read(client, plan, {view.join_keys[0]: [1]}, NOW).columns[0]]


@pytest.mark.parametrize("make", [window, lambda: PRESENCE])
def test_a_view_that_is_not_served_is_never_a_known_zero(redis_client: Redis, make: Callable[[], StreamView]) -> None:
    store, view = StreamStore(redis_client, PROJECT), make()
    assert [f.status for f in asked(redis_client, view)] == [Status.OUTSIDE_MAX_AGE]
    folded(store, view)
    assert [f.status for f in asked(redis_client, view)] == [Status.OUTSIDE_MAX_AGE], "folded, and not yet served"
    store.serve([view], {})
    known = Status.PRESENT if isinstance(view, PresenceView) else Status.NULL_VALUE
    assert [f.status for f in asked(redis_client, view)] == [known], "what is folded, and empty, is known"


def test_a_view_that_is_served_and_was_never_folded_is_outside(redis_client: Redis) -> None:
    store = StreamStore(redis_client, PROJECT)
    store.serve([window(), PRESENCE], {})
    for view in (window(), PRESENCE):
        assert [f.status for f in asked(redis_client, view)] == [Status.OUTSIDE_MAX_AGE]


def test_a_view_that_is_defined_otherwise_by_now_is_read_as_it_is_served(redis_client: Redis) -> None:
    store, view = StreamStore(redis_client, PROJECT), window()
    folded(store, view)
    store.serve([view], {})
    ahead = replace(view, tiles_hash="defined otherwise")
    assert asked(redis_client, ahead) == asked(redis_client, view)
    assert asked(redis_client, view)[0].status == Status.NULL_VALUE


def test_reads_that_share_a_plan_do_not_disturb_each_other(valkey: Path, redis_client: Redis) -> None:
    """Each learns what is served, and the number of partitions, while the others are under way."""
    store, view = StreamStore(redis_client, PROJECT), window()
    folded(store, view, partitions=3)
    store.serve([view], {})
    key = layout.key_builder(PROJECT, view.join_keys, view.key_types)([1])
    for partition in range(3):
        tiles = Tiles()
        tiles.fold(view.layout, Observation(NOW, partition, 1, (1, 60 * (partition + 1) * SCALE)))
        write = FieldWrite(key, layout.tiles_field(view, partition), b"", pack(Header(1, 1), view.layout, tiles))
        assert store.write_fields([write]) == [True]

    async def at_once() -> list[Answer]:
        plan = ReadPlan(PROJECT, [Wanted(view, tuple(view.features), view.join_keys)])
        pipe = RedisPipe(connect_async(Settings(REDIS_URL=SecretStr(f"unix://{socket_path(valkey)}"))))
        reads = [read_async(pipe, plan, {view.join_keys[0]: [1]}, NOW) for _ in range(8)]
        answers = await asyncio.gather(*reads)
        await pipe.aclose()
        return answers

    for _ in range(5):
        assert {answer.columns[0][0][0].value for answer in asyncio.run(at_once())} == {120.0}


def test_a_feature_that_is_not_served_yet_is_outside_beside_those_that_are(redis_client: Redis) -> None:
    store, view = StreamStore(redis_client, PROJECT), window()
    folded(store, view)
    store.serve([view], {})
    (name,) = view.features
    more = (replace(view.aggregates[0], name="new"), *view.aggregates)
    ahead = replace(view, features={"new": view.features[name], name: view.features[name]}, aggregates=more)
    found = asked(redis_client, ahead)
    assert [feature.status for feature in found] == [Status.OUTSIDE_MAX_AGE, Status.NULL_VALUE]


def test_a_view_of_another_entity_is_not_read_by_the_ids_of_the_old_one(redis_client: Redis) -> None:
    store, view = StreamStore(redis_client, PROJECT), window()
    folded(store, view)
    store.serve([view], {})
    ahead = replace(view, join_keys=("zone_id",))
    assert [f.status for f in asked(redis_client, ahead)] == [Status.OUTSIDE_MAX_AGE]


def test_readers_change_over_when_another_definition_is_served(redis_client: Redis) -> None:
    store, view = StreamStore(redis_client, PROJECT), window()
    folded(store, view, partitions=2)
    store.serve([view], {})
    plan = ReadPlan(PROJECT, [Wanted(view, tuple(view.features), view.join_keys)])
    assert asked(redis_client, view, plan)[0].status == Status.NULL_VALUE
    other = replace(view, tiles_hash="other")
    assert not store.serve([other], {}), "what is served by now is not what was expected"
    assert store.serve([other], {}, expected=store.served_digest())
    assert asked(redis_client, view, plan)[0].status == Status.OUTSIDE_MAX_AGE, "the other is folded nowhere"
    folded(store, other)
    store.describe_topic(view.topics[0], 2)
    assert asked(redis_client, view, plan)[0].status == Status.OUTSIDE_MAX_AGE, "one partition is not enough"
    store.describe_topic(view.topics[0], 1)
    assert asked(redis_client, view, plan)[0].status == Status.NULL_VALUE
