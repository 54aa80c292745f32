"""What the tests of the event log share: messages to publish, and readers that wait for what must come."""

import time
from collections.abc import Callable, Mapping, Sequence

from ingestion.log import LogConsumer, Message, Record, TopicPartition

TOPIC = "order_placed"
PARTITIONS = 4
DEADLINE_S = 30.0
KEYS = [f"restaurant-{number}".encode() for number in range(20)]


def messages(count: int, start: int = 0) -> list[Message]:
    return [Message(KEYS[number % len(KEYS)], str(number).encode()) for number in range(start, start + count)]


def from_begin(gained: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
    return dict.fromkeys(gained, 0)


def read(count: int, *readers: LogConsumer) -> list[list[Record]]:
    """Poll the readers by turns until they have `count` records together, and a little longer: there must be no more.

    The records of each reader, in the order in which they came.
    """
    taken: list[list[Record]] = [[] for _ in readers]
    deadline = time.monotonic() + DEADLINE_S
    extra = 3
    while extra:
        for records, reader in zip(taken, readers, strict=True):
            for batch in reader.poll(50, 500).values():
                records.extend(batch)
        if sum(map(len, taken)) >= count:
            extra -= 1
        assert time.monotonic() < deadline, f"{[len(records) for records in taken]} of {count} records came"
    assert sum(map(len, taken)) == count
    return taken


def settle(condition: Callable[[], bool], *readers: LogConsumer) -> None:
    """Poll the readers by turns, where nothing is to be read, until the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"held: {[sorted(reader.assignment()) for reader in readers]}"
        for reader in readers:
            assert reader.poll(50, 500) == {}


def by_partition(records: Sequence[Record]) -> dict[TopicPartition, list[Record]]:
    found: dict[TopicPartition, list[Record]] = {}
    for record in records:
        found.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
    return found
