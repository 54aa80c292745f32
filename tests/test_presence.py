"""Presence on a real Valkey: the latest event of each member decides, in whatever order events come, however often."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import SecretStr

from feature_repo.settings import Settings
from feature_repo.stores import layout
from feature_repo.stores.embedded import socket_path
from feature_repo.stores.progress import Progress
from feature_repo.stores.reading import Feature, ReadPlan, Status, Wanted, read
from feature_repo.stores.redis_client import Redis, connect
from feature_repo.stores.stream_store import PresenceEvent, StreamStore, Swap
from feature_repo.views import PresenceView

PROJECT, TOPIC, TTL = "presence", "courier_status", 1000
VIEW = PresenceView(
    "couriers",
    ("zone_id",),
    (ValueType.INT64,),
    {"free": ValueType.INT64, "busy": ValueType.INT64},
    (TOPIC,),
    "courier_id",
    "status",
    {"free": "available", "busy": "busy"},
    TTL,
    10_000,
    "hash",
)
EPOCH = 5


@pytest.fixture(scope="module")
def client(valkey: Path) -> Iterator[Redis]:
    made = connect(Settings(REDIS_URL=SecretStr(f"unix://{socket_path(valkey)}")))
    yield made
    made.close()


@pytest.fixture
def store(client: Redis) -> StreamStore:
    return fresh(client)


def fresh(client: Redis) -> StreamStore:
    """A store of two partitions that are folded up to now."""
    client.flushall()
    store = StreamStore(client, PROJECT)
    store.describe_topic(TOPIC, 2)
    store.serve([VIEW], {})
    for partition in (0, 1):
        new = Progress(EPOCH, 0, -(10**9), 2**60, 0, 1)
        store.swap_progress(TOPIC, partition, [Swap(VIEW.tiles_hash, None, new)])
    return store


def moved(member: str, time: int, offset: int, zone: int = 3, state: str = "available") -> PresenceEvent:
    return PresenceEvent(member, time, offset, state, str(zone))


def counts(client: Redis, *zones: int, now: int = 0) -> list[tuple[object, object]]:
    """Free and busy, of each zone."""
    plan = ReadPlan(PROJECT, [Wanted(VIEW, ("free", "busy"), ("zone_id",))])
    ((free, busy),) = read(client, plan, {"zone_id": zones}, now).columns
    return [(f.value, b.value) for f, b in zip(free, busy, strict=True)]


moves = st.builds(
    moved,
    member=st.sampled_from("abc"),
    time=st.integers(-3, 3),
    offset=st.integers(0, 2**60),
    zone=st.sampled_from([3, 4]),
    state=st.sampled_from(["available", "busy", "offline"]),
)


@examples(max_examples=80, deadline=None)
@given(data=st.data(), history=st.lists(moves, min_size=1, max_size=12, unique_by=lambda m: m.offset))
def test_in_any_order_and_any_number_of_times_the_counts_are_the_same(
    client: Redis, data: st.DataObject, history: list[PresenceEvent]
) -> None:
    store = fresh(client)
    told = data.draw(st.permutations(history)) + data.draw(st.lists(st.sampled_from(history), max_size=5))
    cut = data.draw(st.integers(0, len(told)))
    for chunk in (told[:cut], told[cut:]):
        store.apply_presence(VIEW, TOPIC, 0, EPOCH, chunk)
    latest = {m.member: m for m in sorted(history, key=lambda m: (m.time, m.offset))}
    true = [
        tuple(sum(m.group == zone and m.state == state for m in latest.values()) for state in ("available", "busy"))
        for zone in ("3", "4")
    ]
    assert counts(client, 3, 4, now=3) == true


def test_of_events_at_the_same_time_the_later_of_the_log_decides(client: Redis, store: StreamStore) -> None:
    for order in ([1, 2**40, 2**40 + 1], [2**40 + 1, 1, 2**40]):
        for offset in order:
            state = "busy" if offset == 2**40 + 1 else "available"
            store.apply_presence(VIEW, TOPIC, 0, EPOCH, [moved("a", 0, offset, state=state)])
        assert counts(client, 3) == [(0, 1)]


def test_of_events_at_the_same_time_in_two_partitions_the_higher_partition_decides(
    client: Redis, store: StreamStore
) -> None:
    store.apply_presence(VIEW, TOPIC, 1, EPOCH, [moved("a", 0, 1, zone=4)])
    store.apply_presence(VIEW, TOPIC, 0, EPOCH, [moved("a", 0, 2, zone=3)])
    assert counts(client, 3, 4) == [(0, 0), (1, 0)]


def test_a_member_is_in_one_zone_at_a_time_and_offline_in_none(client: Redis, store: StreamStore) -> None:
    store.apply_presence(VIEW, TOPIC, 0, EPOCH, [moved("a", 0, 0), moved("b", 0, 1), moved("a", 1, 2, zone=4)])
    assert counts(client, 3, 4, now=1) == [(1, 0), (1, 0)]
    store.apply_presence(
        VIEW, TOPIC, 0, EPOCH, [moved("b", 1, 3, state="busy"), moved("a", 2, 4, zone=4, state="offline")]
    )
    assert counts(client, 3, 4, now=2) == [(0, 1), (0, 0)]
    store.apply_presence(VIEW, TOPIC, 0, EPOCH, [moved("a", 1, 9, zone=3)])
    assert counts(client, 3, now=2) == [(0, 1)], "what they said before they went offline does not bring them back"


def test_a_member_counts_up_to_the_very_end_of_the_ttl(client: Redis, store: StreamStore) -> None:
    store.apply_presence(VIEW, TOPIC, 0, EPOCH, [moved("a", 0, 0)])
    assert [counts(client, 3, now=now) for now in (0, TTL, TTL + 1)] == [[(1, 0)], [(1, 0)], [(0, 0)]]


def test_times_before_1970_and_far_ahead_are_kept_in_order(client: Redis, store: StreamStore) -> None:
    store.apply_presence(VIEW, TOPIC, 0, EPOCH, [moved("a", -5, 0), moved("a", -9, 1, zone=4)])
    assert counts(client, 3, 4, now=-5) == [(1, 0), (0, 0)]
    store.apply_presence(VIEW, TOPIC, 0, EPOCH, [moved("a", 2**52, 2, zone=4)])
    assert counts(client, 3, 4, now=2**52) == [(0, 0), (1, 0)]


def test_the_answers_instant_is_moved_up_to_the_newest_event(client: Redis, store: StreamStore) -> None:
    store.apply_presence(VIEW, TOPIC, 0, EPOCH, [moved("a", 0, 0), moved("b", TTL + 1, 1, zone=4)])
    plan = ReadPlan(PROJECT, [Wanted(VIEW, ("free",), ("zone_id",))])
    answer = read(client, plan, {"zone_id": [3]}, 0)
    assert answer.instant == TTL + 1
    assert answer.columns[0][0][0].value == 0


def test_a_new_epoch_forgets_the_members_of_its_own_partition_alone(client: Redis, store: StreamStore) -> None:
    store.apply_presence(VIEW, TOPIC, 0, EPOCH, [moved("a", 0, 0), moved("b", 0, 1, state="busy")])
    store.apply_presence(VIEW, TOPIC, 1, EPOCH, [moved("c", 0, 0)])
    store.apply_presence(VIEW, TOPIC, 0, EPOCH + 1, [moved("d", 0, 0)])
    store.purge_presence(VIEW, TOPIC, 0, EPOCH + 1)
    assert counts(client, 3) == [(2, 0)]
    assert members(client) == {b"c", b"d"}


def test_purging_passes_over_many_members(client: Redis, store: StreamStore) -> None:
    store.apply_presence(VIEW, TOPIC, 0, EPOCH, [moved(f"m{i}", 0, i) for i in range(3000)])
    store.apply_presence(VIEW, TOPIC, 0, EPOCH + 1, [moved("m7", 1, 0)])
    store.purge_presence(VIEW, TOPIC, 0, EPOCH + 1)
    assert counts(client, 3, now=1) == [(1, 0)]
    assert members(client) == {b"m7"}


def test_members_that_fell_silent_are_forgotten_and_a_late_word_of_theirs_brings_none_back(
    client: Redis, store: StreamStore
) -> None:
    """Where members are orders, most are never heard of again: the store must not keep them for ever."""
    for i in range(50):
        crowd = [moved(f"m{i}-{k}", i * TTL // 5, i * 100 + k) for k in range(100)]
        store.apply_presence(VIEW, TOPIC, 0, EPOCH, crowd)
    newest = 49 * TTL // 5
    assert len(members(client)) == 600, "those of the last TTL, its end included"
    assert counts(client, 3, now=newest) == [(600, 0)]
    store.apply_presence(VIEW, TOPIC, 1, EPOCH, [moved("m0-0", 1, 7), moved("m45-0", newest - 1, 8, state="busy")])
    assert counts(client, 3, now=newest) == [(599, 1)]


def test_a_partition_that_is_behind_makes_presence_outside(client: Redis, store: StreamStore) -> None:
    store.apply_presence(VIEW, TOPIC, 0, EPOCH, [moved("a", 0, 0)])
    plan = ReadPlan(PROJECT, [Wanted(VIEW, ("free",), ("zone_id",))])
    behind = Progress(EPOCH, 0, -(10**9), -1, 0, 1)
    before = store.progress(TOPIC, 1, VIEW.tiles_hash)
    assert store.swap_progress(TOPIC, 1, [Swap(VIEW.tiles_hash, before, behind)]) == [None]
    found = [read(client, plan, {"zone_id": [3]}, now).columns[0][0][0] for now in (9_999, 10_000)]
    assert [feature.status for feature in found] == [Status.PRESENT, Status.OUTSIDE_MAX_AGE]
    assert found[1] == Feature(None, Status.OUTSIDE_MAX_AGE, -1)


def members(client: Redis) -> set[bytes]:
    found: Sequence[Any] = client.hkeys((layout.presence_base(PROJECT, VIEW) + b":m").decode())  # type: ignore[assignment]
    return set(found)
