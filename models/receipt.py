"""The receipt of a prediction: what was answered, from which values, and what each value was read from.

It travels as an event of the topic ``eta_predictions``: the columns that queries go by are the event's own
(`ingestion.events.EtaPrediction`), the rest is its field ``receipt``. Serving writes receipts, replay reads them. Pure:
no clock, no client. Instants are ms since the epoch, UTC, unless their names say µs.
"""

from typing import Any

import msgspec
from msgspec import Struct

from feature_repo.stores.reads import BatchRead, Read, StreamRead, TopicRead

__all__ = [
    "BadReceipt",
    "BatchRead",
    "Prediction",
    "Read",
    "Receipt",
    "Served",
    "Shadow",
    "StoredFrom",
    "StreamRead",
    "TopicRead",
    "holds",
    "prediction_from",
    "receipt_from",
]


class Served(Struct, frozen=True, array_like=True):
    """A feature as it was served; `event_ms` is the instant it speaks of, `since` the start of its window."""

    value: Any
    status: str
    event_ms: int | None
    since: int | None = None


class Shadow(Struct, frozen=True):
    """What a model that answers nobody said of the same features."""

    model: str
    model_version: str
    eta_minutes: float
    eta_minutes_p90: float


class StoredFrom(Struct, frozen=True):
    """The batch run that an answer was made by: the hour of the day (UTC) it is for, and the instant it is of."""

    run_id: str
    hour: int
    as_of: int


class Receipt(Struct, frozen=True, omit_defaults=True):
    """What an answer was made from.

    `now` is the reader's clock; `features` and `reads` are by full name and by view, both empty where the answer was
    `stored`. `definition` is the hash of the features' meaning that the model was trained on.
    """

    now: int
    definition: str
    stepped_down: list[str]
    features: dict[str, Served]
    reads: dict[str, Read]
    keys: dict[str, int | str] = {}
    """The entity's join keys, as they were given or looked up."""
    stored: StoredFrom | None = None
    shadow: Shadow | None = None


def holds(receipt: Receipt, topic: str, partition: int, offset: int) -> bool:
    """Whether a record of a topic was in what any feature was made from."""
    prefixes = [
        read.topics[topic].prefix
        for read in receipt.reads.values()
        if isinstance(read, StreamRead) and topic in read.topics
    ]
    return any(partition < len(prefix) and offset < prefix[partition] for prefix in prefixes)


class Prediction(Struct, frozen=True):
    """A prediction with its receipt: the event, as it lies in the log."""

    event_id: str
    restaurant_id: int
    zone_id: int | None
    customer_id: int | None
    order_id: str | None
    at: int
    mode: str
    eta_minutes: float
    eta_minutes_p90: float
    model: str
    model_version: str
    receipt: Receipt


class BadReceipt(ValueError):
    """A receipt that cannot be read; says what is wrong with it."""


_PREDICTION = msgspec.json.Decoder(Prediction)
_EXTRA = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RECEIPT = msgspec.json.Decoder(Receipt)


def prediction_from(event: bytes) -> Prediction:
    """The prediction in a record of the log. Raises BadReceipt."""
    try:
        return _PREDICTION.decode(event)
    except msgspec.MsgspecError as error:
        raise BadReceipt(f"no prediction with a receipt: {error}") from None


def receipt_from(extra: str | None) -> Receipt:
    """The receipt in the archive's column ``extra``. Raises BadReceipt."""
    try:
        return _RECEIPT.decode(_EXTRA.decode(extra or "{}")["receipt"])
    except (msgspec.MsgspecError, KeyError) as error:
        raise BadReceipt(f"no receipt in {(extra or '')[:80]!r}: {error}") from None
