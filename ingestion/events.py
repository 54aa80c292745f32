"""The events: their schemas, and parsing. Parse or reject, as a function of the record alone.

Every consumer (worker, archive, refold, HTTP) parses by `parse`, which reads no clock, so all of them agree on what an
event says and when it happened. An event's time is the earlier of its own time and its append time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, NamedTuple, Protocol, get_args

import msgspec
import pyarrow as pa
from msgspec import Meta, Struct

from feature_repo.clock import iso, to_ms
from feature_repo.windows import MAX_AHEAD_MS, MAX_MAGNITUDE
from ingestion.json_form import json_fault

MAX_BYTES = 512 * 1024
"""A longer event is refused: brokers and dead letters take no more."""

MINUTE_MS = 60_000
DEAD_LETTERS = "dead_letters"

Moment = Annotated[datetime, Meta(tz=True)] | int
Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=256)] | int
Scalar = int | float | str | None


class BadEvent(ValueError):
    """An event that cannot be taken: which field, its value as it came, and why it matters."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.value, self.reason = field, value, reason


class OrderPlaced(Struct, frozen=True):
    """A customer has ordered. `basket_total` is in the currency's units; null where it is not known."""

    event_id: Name
    order_id: Name
    restaurant_id: Id
    zone_id: Id
    customer_id: Id | None
    placed_at: Moment
    basket_total: Annotated[float, Meta(ge=0, le=MAX_MAGNITUDE)] | None
    item_count: Annotated[int, Meta(ge=0, le=MAX_MAGNITUDE)] | None


class OrderReady(Struct, frozen=True):
    """The restaurant has the order ready."""

    event_id: Name
    order_id: Name
    restaurant_id: Id
    placed_at: Moment
    ready_at: Moment


class OrderDelivered(Struct, frozen=True):
    """The customer has the order."""

    event_id: Name
    order_id: Name
    restaurant_id: Id
    zone_id: Id
    courier_id: Id | None
    placed_at: Moment
    delivered_at: Moment


class EtaPrediction(Struct, frozen=True):
    """What was answered to somebody who asked when an order would arrive; `event_id` is the prediction's id.

    Minutes count from `at`, the instant that the answer holds at. What it was made from is an unknown field to this
    schema, ``receipt``: see `models.receipt`.
    """

    event_id: Name
    restaurant_id: Id
    zone_id: Id | None
    customer_id: Id | None
    order_id: str | None
    at: Moment
    mode: str
    eta_minutes: Annotated[float, Meta(ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE)]
    eta_minutes_p90: Annotated[float, Meta(ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE)]
    model: str
    model_version: str


class CourierStatus(Struct, frozen=True):
    """A courier says where they are and whether they are free."""

    event_id: Name
    courier_id: Id
    zone_id: Id
    status: str
    at: Moment


class Event(NamedTuple):
    """A parsed event. `time` is the event time in ms; `columns` has every declared and derived column.

    Moments in `columns` are milliseconds since the epoch, names are text.
    """

    topic: str
    event_id: str
    time: int
    columns: dict[str, Scalar]


class Check(Protocol):
    """Whether events say the impossible: asked of one, or of many by column (instants are arrays)."""

    def __call__(self, columns: Mapping[str, Any]) -> None:
        """Raises BadEvent if this event does."""
        ...

    def holds(self, columns: Mapping[str, Any]) -> bool:
        """Whether none of these events does."""
        ...


class _Anything:
    """Whatever its fields may hold is possible."""

    def __call__(self, columns: Mapping[str, Any]) -> None:
        return None

    def holds(self, columns: Mapping[str, Any]) -> bool:
        return True


@dataclass(frozen=True)
class _After:
    """One instant is not before another."""

    later: str
    earlier: str
    what: str

    def __call__(self, columns: Mapping[str, Any]) -> None:
        later, earlier = columns[self.later], columns[self.earlier]
        if later < earlier:
            raise BadEvent(
                self.later, iso(later), f"before {self.earlier} ({iso(earlier)}): {self.what} would be negative"
            )

    def holds(self, columns: Mapping[str, Any]) -> bool:
        return bool((columns[self.later] >= columns[self.earlier]).all())


@dataclass(frozen=True)
class _OneOf:
    """A column holds one of some texts."""

    name: str
    choices: tuple[str, ...]

    def __call__(self, columns: Mapping[str, Any]) -> None:
        if columns[self.name] not in self.choices:
            raise BadEvent(
                self.name, columns[self.name], f"not one of {', '.join(self.choices)}: no zone could count it"
            )

    def holds(self, columns: Mapping[str, Any]) -> bool:
        return set(columns[self.name]).issubset(self.choices)


@dataclass(frozen=True)
class EventType:
    """One topic's events: schema, key, which field is the event's own time, and the columns derived from it.

    `choices` are the texts that a column may hold, where not any will do.
    """

    topic: str
    schema: type[Struct]
    key: str
    time_field: str
    derived: Mapping[str, Callable[[dict[str, Any]], float]]
    check: Check
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def moments(self) -> tuple[str, ...]:
        """The fields that hold instants."""
        return tuple(name for name, hint in self.schema.__annotations__.items() if hint is Moment)


def _minutes(later: str, earlier: str) -> Callable[[dict[str, Any]], float]:
    return lambda columns: (columns[later] - columns[earlier]) / MINUTE_MS


_STATUSES = ("available", "busy", "offline")

EVENT_TYPES: dict[str, EventType] = {
    t.topic: t
    for t in (
        EventType("order_placed", OrderPlaced, "restaurant_id", "placed_at", {}, _Anything()),
        EventType(
            "order_ready",
            OrderReady,
            "restaurant_id",
            "ready_at",
            {"prep_minutes": _minutes("ready_at", "placed_at")},
            _After("ready_at", "placed_at", "the preparation time"),
        ),
        EventType(
            "order_delivered",
            OrderDelivered,
            "restaurant_id",
            "delivered_at",
            {"delivery_minutes": _minutes("delivered_at", "placed_at")},
            _After("delivered_at", "placed_at", "the delivery time"),
        ),
        EventType(
            "courier_status", CourierStatus, "courier_id", "at", {}, _OneOf("status", _STATUSES), {"status": _STATUSES}
        ),
    )
}
"""Every topic that features are made from."""

PREDICTIONS = "eta_predictions"
ARCHIVED = {**EVENT_TYPES, PREDICTIONS: EventType(PREDICTIONS, EtaPrediction, "restaurant_id", "at", {}, _Anything())}
"""Every topic that is archived: predictions are broadcast too, by the server alone."""

TOPICS = (*ARCHIVED, DEAD_LETTERS)
"""Every topic there is."""

DECODERS = {topic: msgspec.json.Decoder(t.schema) for topic, t in ARCHIVED.items()}
_ANY_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MOMENTS = {topic: t.moments for topic, t in ARCHIVED.items()}
_FIELDS = {topic: t.schema.__struct_fields__ for topic, t in ARCHIVED.items()}
NAMES = {
    topic: tuple(name for name, hint in t.schema.__annotations__.items() if hint is Name)
    for topic, t in ARCHIVED.items()
}
_SHOWN = 200  # bytes of an unreadable record that are shown
MIN_MS, MAX_MS = -62_135_596_800_000, 253_402_300_799_999  # what a datetime can hold: years 1 to 9999


def event_type(topic: str) -> EventType:
    """The type of `topic`'s events. Raises BadEvent for a topic that has none."""
    try:
        return ARCHIVED[topic]
    except KeyError:
        raise BadEvent("topic", topic, f"not one of {', '.join(ARCHIVED)}: nothing would read it") from None


def parse(topic: str, value: bytes, append_ms: int) -> Event:
    """The event in `value`, a record of `topic` appended at `append_ms` (ms since the epoch).

    Raises BadEvent, naming the field, for a record that is too long, nested too deeply, not JSON in UTF-8, misses a
    field, holds a wrong type, says the impossible, or is stamped more than 60 s ahead of its append time.
    """
    kind = ARCHIVED.get(topic) or event_type(topic)
    if len(value) > MAX_BYTES:
        raise BadEvent("event", f"{len(value)} bytes", f"more than {MAX_BYTES} bytes: it would fit nowhere else")
    fault = json_fault(value)
    if fault is not None:
        raise BadEvent("event", _shown(value), f"{fault}: not every reader could read it")
    try:
        decoded = DECODERS[topic].decode(value)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _explained(error, value) from None
    columns: dict[str, Any] = msgspec.structs.asdict(decoded)
    for name in _MOMENTS[topic]:
        moment = columns[name]
        if type(moment) is not int or not MIN_MS <= moment <= MAX_MS:
            columns[name] = milliseconds(name, moment)
    for name in NAMES[topic]:
        if type(columns[name]) is not str:
            columns[name] = str(columns[name])
    kind.check(columns)
    for name, derive in kind.derived.items():
        columns[name] = derive(columns)
        if columns[name] > MAX_MAGNITUDE:
            raise BadEvent(name, columns[name], f"more than {MAX_MAGNITUDE}: no window could hold it")
    own = columns[kind.time_field]
    if own > append_ms + MAX_AHEAD_MS:
        raise BadEvent(
            kind.time_field,
            iso(own),
            f"{(own - append_ms) / 1000:.1f} s ahead of its arrival at {iso(append_ms)} (60 s are allowed): "
            "it would count before it happens",
        )
    return Event(topic, columns["event_id"], own if own < append_ms else append_ms, columns)


def extras(topic: str, value: bytes) -> str | None:
    """The fields of a parsed event that its schema does not know, as JSON text; None if there are none."""
    raw: dict[str, msgspec.Raw] = _ANY_OBJECT.decode(value)
    unknown = {name: content for name, content in raw.items() if name not in _FIELDS[topic]}
    return msgspec.json.encode(unknown).decode() if unknown else None


def column_kinds(topic: str) -> dict[str, str]:
    """Of each column of a topic's events: ``id`` (int), ``text``, ``instant``, or ``number`` (can be aggregated)."""
    kind = event_type(topic)
    kinds = {Id: "id", Id | None: "id", Name: "text", str: "text", str | None: "text", Moment: "instant"}
    found = {name: kinds.get(hint, "number") for name, hint in kind.schema.__annotations__.items()}
    return found | dict.fromkeys(kind.derived, "number")


def nullable_columns(topic: str) -> frozenset[str]:
    """The columns of a topic's events that may be null."""
    hints = event_type(topic).schema.__annotations__
    return frozenset(name for name, hint in hints.items() if type(None) in get_args(hint))


def event_key(topic: str, columns: Mapping[str, Scalar]) -> bytes:
    """The record key of an event: events of one entity share a partition."""
    return str(columns[ARCHIVED[topic].key]).encode()


def arrow_schema(topic: str) -> pa.Schema:
    """The archived event log's columns: where the record lay, its event time, the event's fields, derived columns."""
    kind = event_type(topic)
    instant = pa.timestamp("us", tz="UTC")
    types: dict[object, pa.DataType] = {Moment: instant}
    types |= dict.fromkeys((Id, Id | None), pa.int64()) | dict.fromkeys((Name, str, str | None), pa.string())
    fields = [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("append_time", instant, nullable=False),
        pa.field("event_time", instant, nullable=False),
    ]
    for name, hint in kind.schema.__annotations__.items():
        whole = name == "item_count"
        fields.append(pa.field(name, types.get(hint, pa.int64() if whole else pa.float64())))
    fields += [pa.field(name, pa.float64()) for name in kind.derived]
    return pa.schema([*fields, pa.field("extra", pa.string())])


def _shown(value: bytes) -> str:
    return value[:_SHOWN].decode("utf-8", "replace")


def milliseconds(field: str, moment: datetime | int) -> int:
    """An instant of an event in ms since the epoch. Raises BadEvent, naming `field`, for one beyond years 1 to 9999."""
    instant = to_ms(moment) if isinstance(moment, datetime) else moment
    if not MIN_MS <= instant <= MAX_MS:
        raise BadEvent(field, str(moment), "no instant of the years 1 to 9999, UTC: it could not be kept")
    return instant


def _explained(error: Exception, value: bytes) -> BadEvent:
    """What msgspec says, as a field, the value that stood there and a reason."""
    text = str(error)
    try:
        document = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return BadEvent("event", _shown(value), f"not JSON ({text}): it cannot be read")
    if not isinstance(document, dict):
        return BadEvent("event", document, "not a JSON object: it has no fields to read")
    reason, _, path = text.partition(" - at `$.")
    if path:
        field = path.rstrip("`")
        return BadEvent(field, document.get(field), f"{reason}: the event cannot be counted")
    if "missing required field" in text:
        field = text.rsplit("`", 2)[1]
        return BadEvent(field, None, "missing: the event cannot be counted without it")
    return BadEvent("event", document, f"{text}: the event cannot be counted")
