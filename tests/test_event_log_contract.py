"""What every home of the event log must do, the same tests for each."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import pytest

from feature_repo.clock import wall_clock
from ingestion.log import EventLog, LogConsumer, LogUnavailable, Message, TopicPartition
from ingestion.partitioner import partition_of
from tests.conftest import LogHome
from tests.event_log_tools import DEADLINE_S, KEYS, PARTITIONS, TOPIC, by_partition, from_begin, messages, read, settle


@pytest.fixture
def topic(event_log: EventLog) -> str:
    event_log.create_topics([TOPIC], PARTITIONS)
    return TOPIC


@pytest.fixture
def consumers(event_log: EventLog) -> Iterator[Callable[..., LogConsumer]]:
    """Makes consumers of the topic, from its begin unless told otherwise, and closes them."""
    made: list[LogConsumer] = []

    def make(group: str | None = None, start_at: object = from_begin, released: object = None) -> LogConsumer:
        callbacks = {"start_at": start_at} | ({} if released is None else {"released": released})
        made.append(event_log.consumer([TOPIC], group, **callbacks))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for consumer in made:
        consumer.close()


def test_records_of_a_key_keep_their_order_in_the_partition_that_publish_names(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    sent = messages(200)
    placed = event_log.publish(topic, sent[:120]) + event_log.publish(topic, sent[120:])
    (records,) = read(200, consumers())
    for key in KEYS:
        values = [int(record.value) for record in records if record.key == key]
        assert values == sorted(values)
        assert len(values) == 10
    where = {record.value: TopicPartition(record.topic, record.partition) for record in records}
    assert [where[message.value] for message in sent] == placed


def test_a_key_has_the_same_partition_number_in_every_home(event_log: EventLog, topic: str) -> None:
    placed = event_log.publish(topic, [Message(key, b"") for key in KEYS])
    assert placed == [TopicPartition(topic, partition_of(key, PARTITIONS)) for key in KEYS]
    assert len(set(placed)) == PARTITIONS


def test_offsets_grow_and_append_times_are_when_the_log_took_the_records(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    before = wall_clock()
    event_log.publish(topic, messages(100))
    event_log.publish(topic, messages(100))
    after = wall_clock()
    (records,) = read(200, consumers())
    for batch in by_partition(records).values():
        assert all(a.offset < b.offset and a.append_ms <= b.append_ms for a, b in pairwise(batch))
    assert all(before - 5 <= record.append_ms <= after + 5 for record in records)  # two processes read the clock


def test_what_is_published_can_be_read_at_once_by_another_consumer(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    for start in range(0, 50, 10):
        event_log.publish(topic, messages(10, start))
        read(start + 10, consumers())


def test_nothing_published_is_nothing_appended(event_log: EventLog, topic: str) -> None:
    assert event_log.publish(topic, []) == []


def test_an_empty_value_and_any_bytes_survive(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    sent = [Message(b"\x00\xff", bytes(range(256))), Message(b"\x00\xff", b"")]
    event_log.publish(topic, sent)
    (records,) = read(2, consumers())
    assert [Message(record.key or b"", record.value) for record in records] == sent


def test_ends_lie_above_everything_and_positions_reach_them(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    reader = consumers()
    settle(lambda: len(reader.assignment()) == PARTITIONS, reader)
    assert set(reader.ends().values()) == {0}
    event_log.publish(topic, messages(60))
    ends = reader.ends()
    (records,) = read(60, reader)
    for where, batch in by_partition(records).items():
        assert batch[-1].offset < ends[where]
    assert {where: reader.position(where) for where in reader.assignment()} == ends
    assert reader.ends() == ends


def test_begins_are_0_as_long_as_nothing_was_dropped(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    assert event_log.begins(topic) == {TopicPartition(topic, number): 0 for number in range(PARTITIONS)}
    event_log.publish(topic, [Message(KEYS[0], str(number).encode()) for number in range(5)])
    read(5, consumers())
    assert set(event_log.begins(topic).values()) == {0}


def test_offset_at_finds_the_first_record_appended_at_an_instant_or_later(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    where = TopicPartition(topic, partition_of(KEYS[0], PARTITIONS))
    assert event_log.offset_at(where, wall_clock()) == 0
    for number in range(3):
        event_log.publish(topic, [Message(KEYS[0], str(number).encode())])
        time.sleep(0.02)  # so that the records have different append times
    reader = consumers()
    (records,) = read(3, reader)
    for record in records:
        assert event_log.offset_at(where, record.append_ms) == record.offset
    assert event_log.offset_at(where, records[0].append_ms + 1) == records[1].offset
    assert event_log.offset_at(where, -1) == records[0].offset
    assert event_log.offset_at(where, records[-1].append_ms + 1) == reader.ends()[where]


def test_a_seek_gives_the_same_records_again(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    event_log.publish(topic, messages(100))
    reader = consumers()
    (first,) = read(100, reader)
    for where in reader.assignment():
        reader.seek(where, 0)
    (again,) = read(100, reader)
    assert by_partition(again) == by_partition(first)
    middle = {where: batch[len(batch) // 2] for where, batch in by_partition(first).items()}
    for where, record in middle.items():
        reader.seek(where, record.offset)
        assert reader.position(where) == record.offset
    rest = {where: batch[len(batch) // 2 :] for where, batch in by_partition(first).items()}
    assert by_partition(read(sum(map(len, rest.values())), reader)[0]) == rest


def test_a_poll_gives_no_more_records_than_asked_for_and_none_twice(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    event_log.publish(topic, messages(100))
    reader = consumers()
    values: list[int] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(values) < 100:
        polled = [record for batch in reader.poll(50, 7).values() for record in batch]
        assert len(polled) <= 7
        values += [int(record.value) for record in polled]
        assert time.monotonic() < deadline
    assert sorted(values) == list(range(100))


def test_a_consumer_without_a_group_starts_where_it_is_told(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    event_log.publish(topic, messages(100))
    first, second = consumers(), consumers()
    assert [len(records) for records in read(200, first, second)] == [100, 100]
    ends = first.ends()
    late = consumers(start_at=lambda gained: {where: ends[where] for where in gained})
    settle(lambda: len(late.assignment()) == PARTITIONS, late)
    event_log.publish(topic, messages(10, 100))
    assert sorted(int(record.value) for record in read(10, late)[0]) == list(range(100, 110))


def test_a_partition_is_held_once_start_at_has_answered(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    event_log.publish(topic, messages(20))
    failures = iter([True, False])

    def start_at(gained: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        if next(failures):
            raise ValueError("the store is away")
        return from_begin(gained)

    reader = consumers("g", start_at)
    with pytest.raises(ValueError, match="the store is away"):
        read(20, reader)
    assert reader.assignment() == frozenset()
    read(20, reader)


def test_two_consumers_of_a_group_share_the_partitions(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    story: list[tuple[str, frozenset[TopicPartition]]] = []
    stored: dict[TopicPartition, int] = {}
    members: dict[str, LogConsumer] = {}

    def member(name: str) -> LogConsumer:
        def start_at(gained: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
            story.append((f"{name} gains", frozenset(gained)))
            return {where: stored.get(where, 0) for where in gained}

        def released(gone: Sequence[TopicPartition]) -> None:
            story.append((f"{name} releases", frozenset(gone)))
            stored.update({where: members[name].position(where) for where in gone})
            members[name].commit(stored)

        members[name] = consumers("group", start_at, released)
        return members[name]

    event_log.publish(topic, messages(100))
    one = member("one")
    read(100, one)
    assert len(one.assignment()) == PARTITIONS
    two = member("two")
    settle(lambda: len(one.assignment()) == len(two.assignment()) == PARTITIONS // 2, one, two)
    assert not one.assignment() & two.assignment()
    _each_was_released_before_it_was_gained(story)
    event_log.publish(topic, messages(100, 100))
    taken = read(100, one, two)
    assert [by_partition(records).keys() for records in taken] == [one.assignment(), two.assignment()]
    one.close()
    assert story[-1][0] == "one releases"
    settle(lambda: len(two.assignment()) == PARTITIONS, two)
    _each_was_released_before_it_was_gained(story)
    event_log.publish(topic, messages(100, 200))
    assert sorted(int(record.value) for record in read(100, two)[0]) == list(range(200, 300))


def _each_was_released_before_it_was_gained(story: Sequence[tuple[str, frozenset[TopicPartition]]]) -> None:
    held: dict[TopicPartition, str] = {}
    for event, partitions in story:
        name, what = event.split()
        for where in partitions:
            if what == "gains":
                assert where not in held, f"{where} went to {name} while {held[where]} had it"
                held[where] = name
            else:
                assert held.pop(where) == name


def test_a_release_that_fails_is_asked_for_again(
    event_log: EventLog, topic: str, consumers: Callable[..., LogConsumer]
) -> None:
    failures = [ValueError("the store is away")]
    asked: list[TopicPartition] = []

    def released(gone: Sequence[TopicPartition]) -> None:
        if failures:
            raise failures.pop()
        asked.extend(gone)

    one = consumers("group", from_begin, released)
    settle(lambda: len(one.assignment()) == PARTITIONS, one)
    two = consumers("group")
    with pytest.raises(ValueError, match="the store is away"):
        settle(lambda: False, one, two)
    settle(lambda: len(one.assignment()) == len(two.assignment()) == PARTITIONS // 2, one, two)
    assert two.assignment() <= set(asked)


def test_topics_are_created_once_and_keep_their_partitions(event_log: EventLog, topic: str) -> None:
    identity = event_log.topic_identity(topic)
    event_log.create_topics([topic, "another"], PARTITIONS + 1)
    assert event_log.topic_identity(topic) == identity
    assert event_log.partitions(topic) == PARTITIONS
    assert event_log.partitions("another") == PARTITIONS + 1
    assert event_log.topic_identity("another") != identity


def test_a_topic_made_again_is_another_topic(log_home: LogHome, topic: str) -> None:
    identity = log_home.log.topic_identity(topic)
    log_home.delete_topic(topic)
    _until_gone(log_home.log, topic)
    log_home.log.create_topics([topic], PARTITIONS)
    assert log_home.log.topic_identity(topic) != identity


def _until_gone(log: EventLog, topic: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            log.partitions(topic)
        except LogUnavailable:
            return
        time.sleep(0.05)
    raise AssertionError(f"{topic} is still there")


@pytest.mark.parametrize(
    "ask",
    [
        lambda log: log.partitions("nowhere"),
        lambda log: log.topic_identity("nowhere"),
        lambda log: log.begins("nowhere"),
        lambda log: log.consumer(["nowhere"], None, from_begin),
        lambda log: log.publish("nowhere", messages(1)),
    ],
)
def test_a_topic_that_is_not_there_is_named(event_log: EventLog, ask: Callable[[EventLog], object]) -> None:
    with pytest.raises(LogUnavailable, match="nowhere"):
        ask(event_log)


@pytest.mark.parametrize(
    "ask",
    [
        lambda log: log.create_topics([TOPIC], 1),
        lambda log: log.publish(TOPIC, messages(1)),
        lambda log: log.consumer([TOPIC], "group", from_begin),
    ],
)
@pytest.mark.timeout(60)  # it must not hang
def test_a_server_that_is_down_is_said_in_time(log_home: LogHome, ask: Callable[[EventLog], object]) -> None:
    with pytest.raises(LogUnavailable):
        ask(log_home.dead)
