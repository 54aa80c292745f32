"""Records out of what a Kafka broker sends, in one pass over the bytes: the client's own way takes 6 µs a record."""

from collections.abc import Iterator
from typing import Any

from ingestion.log import Record

_MORE = 0x80


def plain_records(batch: Any, topic: str, partition: int) -> Iterator[Record]:
    """The records of a batch of format 2. Raises ValueError.

    A record without a value, as compaction knows them, says nothing; but it has an offset, and a reader.
    """
    batch._maybe_uncompress()
    data, at = bytes(batch._buffer), batch._pos
    base, stamped = batch.base_offset, batch.timestamp_type == batch.LOG_APPEND_TIME
    first, time = batch.first_timestamp, batch.max_timestamp
    try:
        for _ in range(batch.records_count):
            length, at = _varint(data, at)
            end = at + length
            at += 1  # attributes: none are in use
            if stamped:
                while data[at] >= _MORE:
                    at += 1
                at += 1
            else:
                delta, at = _varint(data, at)
                time = first + delta
            offset, at = _varint(data, at)
            size, at = _varint(data, at)
            key = None
            if size >= 0:
                key = data[at : at + size]
                at += size
            size, at = _varint(data, at)
            value = data[at : at + size] if size >= 0 else b""
            if at + len(value) >= end:  # the count of headers follows
                raise ValueError(f"the record of {topic} at offset {base + offset} is longer than it says")
            yield Record(topic, partition, base + offset, time, key, value)
            at = end
    except IndexError:
        raise ValueError(f"the batch of {topic} at offset {base} ends within a record") from None
    if at != len(data):
        raise ValueError(f"the batch of {topic} at offset {base} has {len(data) - at} bytes too many")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in zigzag form and variable length, and where the next begins."""
    byte = data[at]
    if byte < _MORE:
        return (byte >> 1) ^ -(byte & 1), at + 1
    value = (byte & 0x7F) | (data[at + 1] & 0x7F) << 7
    if data[at + 1] < _MORE:  # most lengths
        return (value >> 1) ^ -(value & 1), at + 2
    at, shift = at + 2, 14
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < _MORE:
            return (value >> 1) ^ -(value & 1), at
