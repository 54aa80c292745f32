"""Dead letters: what could not be taken, whole, with where it lay and why."""

import base64

import msgspec

from ingestion.events import BadEvent
from ingestion.log import Message, Record

_SHOWN = 200  # characters of the refused value that are shown; the raw bytes are whole


def dead_letter(record: Record, error: BadEvent) -> Message:
    """The message for the `dead_letters` topic. Its `event_id` is the record's place, so that a repeat is known as one.

    Fields: event_id, topic, partition, offset, append_ms, field, value, reason, raw (base64 of the record's bytes).
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
            "raw": base64.b64encode(record.value).decode(),
        }
    )
    return Message(place.encode(), value)
