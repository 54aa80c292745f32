"""The fence on a real Valkey: stale writers, replays, rivals and older epochs change nothing; the newest row wins."""

import random
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import SecretStr

from feature_repo.settings import Settings
from feature_repo.stores import layout, tile_codec
from feature_repo.stores.batch_rows import Row, write_rows
from feature_repo.stores.embedded import socket_path
from feature_repo.stores.progress import Progress
from feature_repo.stores.reading import Feature, ReadPlan, Status, Wanted, read
from feature_repo.stores.redis_client import Redis, connect
from feature_repo.stores.stream_store import FieldWrite, StreamStore, Swap
from feature_repo.stores.tile_codec import Header
from feature_repo.views import BatchView, WindowView
from feature_repo.windows import Aggregate, Layout
from ingestion.events import Event
from ingestion.folding import FieldCache, LostPartition, Placed, WindowFolder

PROJECT, TOPIC, MINUTE = "fence", "order_placed", 60_000
AGGREGATES = (
    Aggregate("orders", "order_id", "count", 5 * MINUTE),
    Aggregate("last", "basket_total", "last", 5 * MINUTE),
    Aggregate("customers", "customer_id", "count_distinct", 5 * MINUTE),
)
VIEW = WindowView(
    "recent",
    ("restaurant_id",),
    (ValueType.INT64,),
    {"orders": ValueType.INT64, "last": ValueType.DOUBLE, "customers": ValueType.INT64},
    TOPIC,
    AGGREGATES,
    Layout.of(MINUTE, AGGREGATES),
    10_000,
    "hash",
)
PROFILE = BatchView(
    "profile", ("restaurant_id",), (ValueType.INT64,), {"prep": ValueType.DOUBLE, "note": ValueType.STRING}, 0
)
STANDING = Progress(epoch=5, offset=0, covered_from=-(10**9), complete_until=0, newest=0, log=1)
KEY = layout.key_builder(PROJECT, ("restaurant_id",), (ValueType.INT64,))
FIELD = layout.tiles_field(VIEW, 0)


@pytest.fixture
def store(redis_client: Redis) -> StreamStore:
    made = StreamStore(redis_client, PROJECT)
    made.describe_topic(TOPIC, 1)
    made.serve([VIEW], {})
    swap(made, None, STANDING)
    return made


def swap(store: StreamStore, expected: Progress | None, new: Progress, partition: int = 0) -> Progress | None:
    """The view's progress in place of the one expected; what is stored instead, if it is another."""
    (found,) = store.swap_progress(TOPIC, partition, [Swap(VIEW.tiles_hash, expected, new)])
    return found


def folder(store: StreamStore) -> WindowFolder:
    return WindowFolder(VIEW, store)


def event(time: int, restaurant: int = 1, basket: float = 1.0, customer: int = 1) -> Event:
    columns: dict[str, Any] = {
        "order_id": "o",
        "restaurant_id": restaurant,
        "basket_total": basket,
        "customer_id": customer,
    }
    return Event(TOPIC, "e", time, columns)


def placed(*times: int) -> list[Placed]:
    """Events at these times, at offsets 0, 1, 2 ..."""
    return [(offset, event(time)) for offset, time in enumerate(times)]


def field(client: Redis, restaurant: int = 1) -> bytes | None:
    found: Any = client.hget(KEY([restaurant]), FIELD)  # type: ignore[arg-type]  # redis-py types names as text
    return bytes(found) if found is not None else None


def orders(client: Redis, now: int = 0, restaurant: int = 1) -> Feature:
    plan = ReadPlan(PROJECT, [Wanted(VIEW, ("orders",), ("restaurant_id",))])
    return read(client, plan, {"restaurant_id": [restaurant]}, now).columns[0][0][0]


def test_a_write_is_refused_unless_its_header_is_what_is_stored(redis_client: Redis, store: StreamStore) -> None:
    first, second, third = (tile_codec.pack_header(Header(5, offset)) for offset in (1, 2, 3))
    assert store.write_fields([FieldWrite(b"k", b"f", b"", first + b"one")]) == [True]
    assert store.write_fields([FieldWrite(b"k", b"f", b"", second + b"two")]) == [False]
    assert store.write_fields([FieldWrite(b"k", b"f", second, third + b"three")]) == [False]
    assert redis_client.hgetall("k") == {b"f": first + b"one"}
    both = [FieldWrite(b"k", b"f", first, second + b"two"), FieldWrite(b"k", b"g", first, second)]
    assert store.write_fields(both) == [True, False]
    assert redis_client.hgetall("k") == {b"f": second + b"two"}


def test_offsets_beyond_what_lua_numbers_can_hold_are_told_apart(store: StreamStore) -> None:
    great = 2**63 + 1
    near, exact = (tile_codec.pack_header(Header(5, offset)) for offset in (great + 1, great))
    store.write_fields([FieldWrite(b"k", b"f", b"", exact)])
    assert store.write_fields([FieldWrite(b"k", b"f", near, near)]) == [False]
    assert store.write_fields([FieldWrite(b"k", b"f", exact, near)]) == [True]


def test_a_stale_writer_is_refused_and_folds_on_what_it_finds(redis_client: Redis, store: StreamStore) -> None:
    stale, events = FieldCache(10), placed(0, 1, 2, 3)
    folder(store).fold(0, STANDING, stale, events[:1])
    folder(store).fold(0, STANDING, FieldCache(10), events[:3])  # another, which the first knows nothing of
    after_three = field(redis_client)
    folder(store).fold(0, STANDING, stale, events[:3])
    assert field(redis_client) == after_three
    folder(store).fold(0, STANDING, stale, events[1:])
    assert orders(redis_client, now=3).value == 4


def test_a_replayed_batch_changes_nothing(redis_client: Redis, store: StreamStore) -> None:
    events, cache = placed(0, 70_000, 3, 70_001), FieldCache(10)
    folder(store).fold(0, STANDING, cache, events)
    once = field(redis_client)
    for held in (cache, FieldCache(10)):
        folder(store).fold(0, STANDING, held, events)
        folder(store).fold(0, STANDING, held, events[1:3])
    assert field(redis_client) == once


@pytest.fixture(scope="module")
def module_client(valkey: Path) -> Iterator[Redis]:
    made = connect(Settings(REDIS_URL=SecretStr(f"unix://{socket_path(valkey)}")))
    yield made
    made.close()


@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    times=st.lists(st.tuples(st.integers(0, 12 * MINUTE), st.integers(1, 3)), min_size=1, max_size=30),
    turns=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 8)), max_size=20),
    cached=st.integers(0, 3),
)
def test_two_folders_with_caches_of_their_own_leave_the_very_bytes_that_one_leaves(
    module_client: Redis, times: list[tuple[int, int]], turns: list[tuple[int, int]], cached: int
) -> None:
    """Each goes through the whole log in batches of its own, in any interleaving, as two owners of a partition do."""
    events = [(offset, event(time, restaurant)) for offset, (time, restaurant) in enumerate(times)]
    one = _folded_alone(module_client, events)
    module_client.flushall()
    store = StreamStore(module_client, PROJECT)
    swap(store, None, STANDING)
    caches, positions = (FieldCache(cached), FieldCache(10)), [0, 0]
    for who, size in [*turns, (0, len(events)), (1, len(events))]:
        batch = events[positions[who] : positions[who] + size]
        positions[who] += len(batch)
        folder(store).fold(0, STANDING, caches[who], batch)
    assert [field(module_client, restaurant) for restaurant in (1, 2, 3)] == one


def _folded_alone(client: Redis, events: Sequence[Placed]) -> list[bytes | None]:
    client.flushall()
    store = StreamStore(client, PROJECT)
    swap(store, None, STANDING)
    cache = FieldCache(10)
    for each in events:
        folder(store).fold(0, STANDING, cache, [each])
    return [field(client, restaurant) for restaurant in (1, 2, 3)]


def test_a_field_of_an_older_epoch_counts_as_absent_for_folder_and_reader(
    redis_client: Redis, store: StreamStore
) -> None:
    folder(store).fold(0, STANDING, FieldCache(10), placed(0, 1, 2))
    newer = STANDING._replace(epoch=6)
    swap(store, STANDING, newer)
    assert orders(redis_client) == Feature(0, Status.PRESENT, 0)
    folder(store).fold(0, newer, FieldCache(10), placed(7))
    assert orders(redis_client, now=7).value == 1


def test_a_field_of_a_newer_epoch_is_not_served_and_not_folded_into(redis_client: Redis, store: StreamStore) -> None:
    newer = STANDING._replace(epoch=6)
    swap(store, STANDING, newer)
    folder(store).fold(0, newer, FieldCache(10), placed(0, 1, 2))
    swap(store, newer, STANDING)  # a reader that saw progress before the epoch changed
    assert orders(redis_client).status == Status.OUTSIDE_MAX_AGE
    before = field(redis_client)
    with pytest.raises(LostPartition, match="epoch 6"):
        folder(store).fold(0, STANDING, FieldCache(10), placed(9))
    assert field(redis_client) == before


def test_a_folder_whose_progress_is_not_the_stored_one_gives_up(redis_client: Redis, store: StreamStore) -> None:
    folder(store).fold(0, STANDING, FieldCache(10), placed(0))
    before = field(redis_client)
    with pytest.raises(LostPartition, match="not where it was left"):
        folder(store).fold(0, STANDING._replace(offset=9), FieldCache(10), [(9, event(0))])
    assert field(redis_client) == before


def test_progress_is_swapped_only_over_what_was_expected(store: StreamStore) -> None:
    one, two = STANDING._replace(offset=1), STANDING._replace(offset=2)
    assert swap(store, one, two) == STANDING
    assert swap(store, None, two) == STANDING
    assert swap(store, STANDING, one) is None
    assert store.progress(TOPIC, 0, VIEW.tiles_hash) == one
    other = swap(store, one, two, partition=1)
    assert other is not None
    assert other.epoch == 0, "nothing is stored: of an epoch older than any"


# Batch rows: the newest wins.

moments = st.integers(-(2**62), 2**62)


def row(event_us: int, created_us: int | None, prep: float | None = 1.0, **values: bytes) -> Row:
    value = b"" if prep is None else Value(double_val=prep).SerializeToString()
    return Row([1], {"prep": value, **values}, event_us, created_us)


def prep(client: Redis) -> Feature:
    plan = ReadPlan(PROJECT, [Wanted(PROFILE, ("prep", "note"), ("restaurant_id",))])
    return read(client, plan, {"restaurant_id": [1]}, 0).columns[0][0][0]


def test_of_rows_written_by_many_at_once_the_greatest_event_and_created_time_stays(redis_client: Redis) -> None:
    dice = random.Random(11)
    rows = [row(e, c, float(e * 1000 + c)) for e in range(-5, 5) for c in range(-5, 5)] * 3
    dice.shuffle(rows)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: write_rows(redis_client, PROJECT, PROFILE, [one]), rows))
    assert prep(redis_client).value == 4004.0


@examples(max_examples=60, deadline=None)
@given(written=st.lists(st.tuples(moments, st.none() | moments), min_size=1, max_size=6))
def test_the_row_that_stays_is_the_greatest_whatever_the_order(
    module_client: Redis, written: list[tuple[int, int | None]]
) -> None:
    module_client.flushall()
    rows = [row(e, c, float(i)) for i, (e, c) in enumerate(written)]
    write_rows(module_client, PROJECT, PROFILE, rows[:1])
    for one in rows[1:]:
        write_rows(module_client, PROJECT, PROFILE, [one])
    best = max(range(len(written)), key=lambda i: (written[i][0], written[i][1] or 0, i))
    assert prep(module_client).value == float(best)


def test_a_full_tie_goes_to_the_later_write_and_an_older_row_changes_nothing(redis_client: Redis) -> None:
    assert write_rows(redis_client, PROJECT, PROFILE, [row(5, 5, 1.0), row(5, 5, 2.0)]) == 2
    assert prep(redis_client).value == 2.0
    assert write_rows(redis_client, PROJECT, PROFILE, [row(5, 4, 3.0), row(4, 9, 4.0)]) == 0
    assert prep(redis_client).value == 2.0


def test_a_null_is_a_value_and_a_feature_left_out_keeps_no_older_one(redis_client: Redis) -> None:
    note = Value(string_val="x").SerializeToString()
    write_rows(redis_client, PROJECT, PROFILE, [row(1, 1, 1.0, note=note)])
    write_rows(redis_client, PROJECT, PROFILE, [row(2, 1, None)])
    plan = ReadPlan(PROJECT, [Wanted(PROFILE, ("prep", "note"), ("restaurant_id",))])
    (columns,) = read(redis_client, plan, {"restaurant_id": [1, 2]}, 0).columns
    assert [[feature.status for feature in column] for column in columns] == [
        [Status.NULL_VALUE, Status.NOT_FOUND],
        [Status.NULL_VALUE, Status.NOT_FOUND],
    ]


def test_an_expired_row_is_outside_and_one_at_its_very_last_millisecond_is_not(redis_client: Redis) -> None:
    view = replace(PROFILE, ttl=1000)
    write_rows(redis_client, PROJECT, view, [row(0, None)])
    plan = ReadPlan(PROJECT, [Wanted(view, ("prep",), ("restaurant_id",))])
    found = [read(redis_client, plan, {"restaurant_id": [1]}, now).columns[0][0][0] for now in (1000, 1001)]
    assert found == [Feature(1.0, Status.PRESENT, 0), Feature(None, Status.OUTSIDE_MAX_AGE, 0)]


def test_the_version_field_holds_the_times_that_were_compared(redis_client: Redis) -> None:
    write_rows(redis_client, PROJECT, PROFILE, [row(7, -3)])
    stored: Any = redis_client.hget(KEY([1]), layout.version_field("profile"))  # type: ignore[arg-type]
    assert struct.unpack(">QQ", stored) == (2**63 + 7, 2**63 - 3)
