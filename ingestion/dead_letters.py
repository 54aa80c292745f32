"""Dead letters: what could not be taken, with where it lay and why."""

import base64

import msgspec

from ingestion.events import BadEvent
from ingestion.log import Message, Record

MAX_RAW = 512 * 1024
"""Bytes of a record that a dead letter carries at most: with base64 it must fit into what a Kafka broker takes."""

_SHOWN = 200  # characters of the refused value that are shown


def dead_letter(record: Record, error: BadEvent) -> Message:
    """The message for the `dead_letters` topic. Its `event_id` is the record's place, so that a repeat is known as one.

    Fields: event_id, topic, partition, offset, append_ms, field, value, reason, raw (base64 of the record's bytes, cut
    at MAX_RAW) and raw_bytes (how many there were).
    """
    place = f"{record.topic}:{record.partition}:{record.offset}"
    value = msgspec.json.encode(
        {
            "event_id": place,
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "append_ms": record.append_ms,
            "field": error.field,
            "value": repr(error.value)[:_SHOWN],
            "reason": error.reason,
            "raw": base64.b64encode(record.value[:MAX_RAW]).decode(),
            "raw_bytes": len(record.value),
        }
    )
    return Message(place.encode(), value)
