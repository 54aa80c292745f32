"""Events by column: many records of a topic parsed in one go, without an object an event.

What is taken, refused and said of an event is what `events.parse` says: records are looked at together, and where
anything about some of them is out of the ordinary, these are parsed one by one.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.windows import MAX_AHEAD_MS, MAX_MAGNITUDE
from ingestion.events import (
    DECODERS,
    MAX_BYTES,
    MAX_MS,
    MIN_MS,
    NAMES,
    BadEvent,
    Event,
    event_type,
    milliseconds,
    parse,
)
from ingestion.json_form import MAX_DEPTH
from ingestion.log import Record, Records

_CHUNK = 500  # records that are parsed one by one if one of them is bad

Placed = tuple[int, Event]
"""An event and its offset."""

Ints = NDArray[np.int64]
Refused = list[tuple[Record, BadEvent]]


@dataclass(frozen=True, slots=True)
class EventColumns(Sequence[Placed]):
    """Events of one topic and partition in the order of their offsets. `times` are event times in ms.

    `columns` has those that somebody wants, each as in `Event.columns`.
    """

    topic: str
    offsets: Ints
    ids: Sequence[str]
    times: Ints
    columns: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, events: Sequence[Placed], wanted: Iterable[str]) -> "EventColumns":
        """The same events by column; of them the columns `wanted`, which every one has."""
        if isinstance(events, EventColumns):
            return events
        topic = events[0][1].topic if events else ""
        offsets = np.array([offset for offset, _ in events], np.int64)
        times = np.array([event.time for _, event in events], np.int64)
        columns = {name: [event.columns[name] for _, event in events] for name in wanted}
        return cls(topic, offsets, [event.event_id for _, event in events], times, columns)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, at: int) -> Placed: ...

    @overload
    def __getitem__(self, at: slice) -> "EventColumns": ...

    def __getitem__(self, at: int | slice) -> "Placed | EventColumns":
        if isinstance(at, slice):
            columns = {name: column[at] for name, column in self.columns.items()}
            return EventColumns(self.topic, self.offsets[at], self.ids[at], self.times[at], columns)
        own = {name: column[at] for name, column in self.columns.items()}
        return int(self.offsets[at]), Event(self.topic, self.ids[at], int(self.times[at]), own)

    def only(self, places: Sequence[int]) -> "EventColumns":
        """Those at these places alone."""
        columns = {name: [column[i] for i in places] for name, column in self.columns.items()}
        at = np.array(places, np.intp)
        return EventColumns(self.topic, self.offsets[at], [self.ids[i] for i in places], self.times[at], columns)


def parse_records(records: Records, wanted: Collection[str]) -> tuple[EventColumns, Refused]:
    """The events in records, with the columns `wanted` (of the topic's declared and derived ones), and what is none."""
    offsets, times, ids = list[int](), list[Ints](), list[str]()
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    refused: Refused = []
    for at in range(0, len(records), _CHUNK):
        chunk = records[at : at + _CHUNK]
        found = _at_once(chunk, columns)
        if found is None:
            found, bad = _one_by_one(chunk, wanted)
            refused += bad
            offsets += found.offsets.tolist()
        else:
            offsets += chunk.offsets
        ids += found.ids
        times.append(found.times)
        for name, column in columns.items():
            column.extend(found.columns[name])
    time = np.concatenate(times) if times else np.empty(0, np.int64)
    return EventColumns(records.topic, np.array(offsets, np.int64), ids, time, columns), refused


def _one_by_one(records: Records, wanted: Collection[str]) -> tuple[EventColumns, Refused]:
    events: list[Placed] = []
    refused: Refused = []
    for record in records:
        try:
            events.append((record.offset, parse(record.topic, record.value, record.append_ms)))
        except BadEvent as error:
            refused.append((record, error))
    return EventColumns.of(events, wanted), refused


def _at_once(records: Records, wanted: Collection[str]) -> EventColumns | None:
    """The events of all these records; None where one has to be looked at by itself."""
    topic, kind = records.topic, event_type(records.topic)
    decoded = _decoded(topic, records.values)
    if decoded is None:
        return None
    try:
        known: dict[str, Any] = {name: _instants(name, decoded) for name in kind.moments}
    except BadEvent:
        return None
    own, append_ms = known[kind.time_field], np.array(records.append_ms, np.int64)
    known["event_id"] = _column("event_id", decoded, topic)
    known |= {name: _column(name, decoded, topic) for name in kind.choices}
    if not kind.check.holds(known) or (own > append_ms + MAX_AHEAD_MS).any():
        return None
    for name, derive in kind.derived.items():
        known[name] = derive(known)
        if known[name].max() > MAX_MAGNITUDE:
            return None
    columns = {name: _listed(known[name]) if name in known else _column(name, decoded, topic) for name in wanted}
    return EventColumns(
        topic, np.array(records.offsets, np.int64), known["event_id"], np.minimum(own, append_ms), columns
    )


def _decoded(topic: str, values: Sequence[bytes]) -> list[msgspec.Struct] | None:
    """The records as `DECODERS` read them; None if one may be too long, too deep or not UTF-8, or cannot be read."""
    text = b",".join(values)  # a comma is part of no other character
    if len(text) > MAX_BYTES and max(map(len, values)) > MAX_BYTES:
        return None
    if text.count(b"{") + text.count(b"[") >= len(values) + MAX_DEPTH:  # each event has a bracket, if it is one
        return None
    try:
        if not text.isascii():
            text.decode()
        return list(map(DECODERS[topic].decode, values))
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _instants(name: str, decoded: Sequence[msgspec.Struct]) -> Ints:
    moments = list(map(attrgetter(name), decoded))
    try:
        found = np.array(moments, np.int64)
    except (TypeError, OverflowError):
        return np.array([milliseconds(name, moment) for moment in moments], np.int64)
    if int(found.min()) < MIN_MS or int(found.max()) > MAX_MS:
        raise BadEvent(name, None, "no instant of the years 1 to 9999, UTC: it could not be kept")
    return found


def _column(name: str, decoded: Sequence[msgspec.Struct], topic: str) -> list[Any]:
    found = list(map(attrgetter(name), decoded))
    return list(map(str, found)) if name in NAMES[topic] and set(map(type, found)) != {str} else found


def _listed(column: Any) -> list[Any]:
    found: list[Any] = column.tolist() if isinstance(column, np.ndarray) else column
    return found
