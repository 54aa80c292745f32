"""Answers as they leave the server's process: what was read and answered, of which receipts are made elsewhere.

Making a receipt takes longer than handing over what it is made of. The process that makes them (`receipt_process`)
imports neither Feast nor the web framework, so neither does this.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from feature_repo.stores.reads import Read, Trace, ViewRead
from models.receipt import Prediction, Receipt, Served, Shadow, StoredFrom

Said = Callable[[str, str, dict[str, Any], int], Shadow | None]
"""What a model (name, version) says of features by name at an instant (ms)."""


class Entry(Struct, frozen=True, array_like=True):
    """One answer. `values` are its features (value, status, the instant it speaks of), in the order of the batch's
    names, and `traces` what was read for it, in the order of the batch's views; both empty where it was `stored`.
    """

    prediction_id: str
    restaurant_id: int
    zone_id: int | None
    customer_id: int | None
    order_id: str | None
    now: int
    at: int
    mode: str
    eta_minutes: float
    eta_minutes_p90: float
    model: str
    model_version: str
    stepped_down: list[str]
    definition: str
    keys: dict[str, int | str]
    values: list[Any]
    traces: list[Trace]
    stored: StoredFrom | None = None
    shadow: tuple[str, str] | None = None


class Batch(Struct, frozen=True, array_like=True):
    """Answers of one request of the online store. `append_ms` is a drill's clock; None: the log stamps by itself.

    `statuses` are the names of the numbers of statuses.
    """

    append_ms: int | None
    names: tuple[str, ...]
    statuses: dict[int, str]
    views: list[ViewRead]
    entries: list[Entry]


_ENCODER, _DECODER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Batch)


def pack(batch: Batch) -> bytes:
    """As bytes. Raises TypeError or ValueError if an answer holds what no receipt can."""
    return _ENCODER.encode(batch)


def unpack(data: bytes) -> Batch:
    """From `pack`'s bytes."""
    return _DECODER.decode(data)


def receipts_of(batch: Batch, said: Said) -> Callable[[Entry], Prediction]:
    """What makes the answers of a batch predictions with receipts; models in the shadow are asked by `said`."""
    since = {name: start for view in batch.views for name, start in view.since.items()}
    starts = [since.get(name) for name in batch.names]
    tellers = [(view.name, view.teller()) for view in batch.views]
    return lambda entry: _prediction(batch, entry, starts, tellers, said)


def _prediction(
    batch: Batch,
    entry: Entry,
    starts: Sequence[int | None],
    tellers: Sequence[tuple[str, Callable[[Trace], Read]]],
    said: Said,
) -> Prediction:
    statuses = batch.statuses
    served = [
        Served(_plain(value), statuses[status], event_ms, start)
        for (value, status, event_ms), start in zip(entry.values, starts, strict=False)  # none of a stored answer
    ]
    shadow = None
    if entry.shadow is not None:
        values = {name: value for name, (value, _, _) in zip(batch.names, entry.values, strict=True)}
        shadow = said(*entry.shadow, values, entry.at)
    receipt = Receipt(
        now=entry.now,
        definition=entry.definition,
        stepped_down=entry.stepped_down,
        features=dict(zip(batch.names, served, strict=False)),
        reads={name: tell(trace) for (name, tell), trace in zip(tellers, entry.traces, strict=False)},
        keys=entry.keys,
        stored=entry.stored,
        shadow=shadow,
    )
    return Prediction(
        event_id=entry.prediction_id,
        restaurant_id=entry.restaurant_id,
        zone_id=entry.zone_id,
        customer_id=entry.customer_id,
        order_id=entry.order_id,
        at=entry.at,
        mode=entry.mode,
        eta_minutes=entry.eta_minutes,
        eta_minutes_p90=entry.eta_minutes_p90,
        model=entry.model,
        model_version=entry.model_version,
        receipt=receipt,
    )


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; numbers that it has not are their names."""
    return str(value) if type(value) is float and not math.isfinite(value) else value
