"""From what the online store holds of an entity to features: values, statuses and the instants that they speak of.

What a status means, and whether a stream feature is fresh enough to be served, is decided here and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from feature_repo.stores import tile_codec
from feature_repo.stores.progress import Progress, TopicProgress
from feature_repo.stores.values import Form, stamp_ms
from feature_repo.views import BatchView, PresenceView, StreamView, View, WindowView
from feature_repo.windows import Aggregate, Columns, Number, floor_hop, window_reader


class Status(IntEnum):
    """What a feature's value is worth; the numbers are those of Feast's ``FieldStatus``."""

    PRESENT = 1
    NULL_VALUE = 2  # computed, and empty
    NOT_FOUND = 3  # a batch row never written, or an id that can be no key
    OUTSIDE_MAX_AGE = 4  # a batch row beyond its TTL, or a stream that is not fresh


PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE = Status


class Feature(NamedTuple):
    """A feature as it was read. `event_ms` is the instant it speaks of (ms since the epoch); None if there is none."""

    value: Any
    status: Status
    event_ms: int | None


Tiles = list[Columns] | None
"""The tiles of an entity, a partition each; None if they cannot be trusted."""

FIELDS_REMEMBERED = 2048
"""Of so many fields of a view it is remembered what their bytes say, and of so many sets of them what windows hold.

The busiest entities are read all the time."""

LARGE_REMEMBERED = 32
"""The same where tiles hold more than numbers that are added up: a field of distinct values may take two megabytes."""


def window_start(view: WindowView, aggregate: Aggregate, instant: int) -> int:
    """Where an aggregate's window begins at an instant."""
    return floor_hop(instant, view.layout.hop) - aggregate.window


@dataclass(frozen=True)
class Reading:
    """What was read beside the entities: the reader's clock, the instant the answer holds at, and the progress."""

    now: int
    instant: int
    progress: Mapping[str, TopicProgress]
    _judged: dict[tuple[str, int], bool] = field(default_factory=dict)
    _known: dict[str, int | None] = field(default_factory=dict)

    def fresh(self, view: StreamView, window_start: int) -> bool:
        """Whether a stream is folded far enough for a window from `window_start` on."""
        fresh = self._judged.get((view.name, window_start))  # asked for every entity, and always the same
        if fresh is None:
            fresh = all(self.progress[topic].covers(view, self.now, window_start) for topic in view.topics)
            self._judged[view.name, window_start] = fresh
        return fresh

    def known_until(self, view: StreamView) -> int | None:
        """The instant up to which a stream is folded; None if a partition of it is not folded at all."""
        if view.name not in self._known:
            known = [self.progress[topic].complete_until(view) for topic in view.topics]
            self._known[view.name] = None if None in known else min(until for until in known if until is not None)
        return self._known[view.name]


class Decoder:
    """Features of one view from the replies that were read for it: compiled once, for many entities."""

    def __init__(self, view: View, names: Sequence[str], form: Form) -> None:
        self.view = view
        self._nulls = [form.computed(view.features[name], None) for name in names]
        self.not_found = self._all(NOT_FOUND, None)
        """The features of an id that can be no key."""
        self.outside = self._all(OUTSIDE_MAX_AGE, None)
        """The features, where they are not served."""

    def _all(self, status: Status, event_ms: int | None) -> list[Feature]:
        return [Feature(null, status, event_ms) for null in self._nulls]

    def decode(self, reading: Reading, found: Sequence[Any]) -> list[list[Feature]]:
        """Of each entity its features."""
        raise NotImplementedError


class BatchDecoder(Decoder):
    """Batch rows: values, then the event time, then perhaps the version."""

    def __init__(self, view: BatchView, names: Sequence[str], form: Form) -> None:
        super().__init__(view, names, form)
        self._ttl, self._count, self._form = view.ttl, len(names), form

    def decode(self, reading: Reading, found: Sequence[Sequence[bytes | None]]) -> list[list[Feature]]:
        """Of each entity its features."""
        return [self._readable(reading, reply) for reply in found]

    def _readable(self, reading: Reading, reply: Sequence[bytes | None]) -> list[Feature]:
        """A row; one that is damaged cannot be trusted."""
        try:
            return self._row(reading, reply)
        except DecodeError:
            return self.outside

    def _row(self, reading: Reading, reply: Sequence[bytes | None]) -> list[Feature]:
        stamp, stored, is_null = reply[self._count], self._form.stored, self._form.is_null
        if stamp is None:
            return self.not_found
        event_ms = stamp_ms(stamp)
        if self._ttl and reading.instant - event_ms > self._ttl:
            return self._all(OUTSIDE_MAX_AGE, event_ms)
        features = []
        for data, null in zip(reply[: self._count], self._nulls, strict=True):
            value = null if data is None else stored(data)
            features.append(Feature(value, NULL_VALUE if is_null(value) else PRESENT, event_ms))
        return features


class WindowDecoder(Decoder):
    """Windows, from the tiles of `entity_tiles`."""

    def __init__(self, view: WindowView, names: Sequence[str], form: Form) -> None:
        super().__init__(view, names, form)
        by_name = {a.name: a for a in view.aggregates}
        self.stream, self._computed = view, form.computed
        self._features = [
            (by_name[name], window_reader(view.layout, by_name[name]), view.features[name]) for name in names
        ]
        # By the bytes themselves, which were read just now: what is remembered cannot be out of date.
        remembered = FIELDS_REMEMBERED if view.layout.plain else LARGE_REMEMBERED
        self._unpacked = lru_cache(remembered)(self._unpack)
        self._values = lru_cache(remembered)(self._read)

    def tiles(self, known: Sequence[Progress | None], reply: Sequence[bytes | None]) -> Tiles:
        """The tiles of an entity, from its field of each partition, whose progress is `known`.

        None if they cannot be trusted: a field is of a newer epoch than the progress read, or damaged.
        """
        found: list[Columns] = []
        for partition, (data, progress) in enumerate(zip(reply, known, strict=False)):
            if data is None or progress is None:
                continue
            unpacked = self._unpacked(partition, data)
            if unpacked is None:
                return None
            epoch, columns = unpacked
            if epoch == progress.epoch:
                found.append(columns)
            elif epoch > progress.epoch:
                return None
        return found

    def _unpack(self, partition: int, data: bytes) -> tuple[int, Columns] | None:
        """The epoch of a field and its tiles; None for damaged bytes."""
        try:
            columns = tile_codec.unpack_columns(self.stream.layout, partition, data)
            return tile_codec.unpack_header(data).epoch, columns
        except tile_codec.CorruptField:
            return None

    def decode(self, reading: Reading, found: Sequence[Tiles]) -> list[list[Feature]]:
        """Of each entity its features."""
        view, instant, computed = self.stream, reading.instant, self._computed
        known_until = reading.known_until(view)
        starts = [window_start(view, aggregate, instant) for aggregate, _, _ in self._features]
        outside = self._all(OUTSIDE_MAX_AGE, known_until)
        windows = [
            (kind, start, reading.fresh(view, start), late)
            for (_, _, kind), start, late in zip(self._features, starts, outside, strict=True)
        ]
        hop = instant // view.layout.hop
        rows = []
        for tiles in found:
            if tiles is None:
                rows.append(outside)
                continue
            newest, values = self._values(hop, *tiles)
            features = []
            for value, (kind, start, fresh, late) in zip(values, windows, strict=True):
                if not fresh:
                    features.append(late)
                    continue
                # A window without events speaks of the instant up to which silence is known.
                spoken_of = newest if newest is not None and newest >= start else known_until
                features.append(Feature(computed(kind, value), NULL_VALUE if value is None else PRESENT, spoken_of))
            rows.append(features)
        return rows

    def _read(self, hop: int, *tiles: Columns) -> tuple[int | None, list[Number | None]]:
        """The newest event time of tiles, and what each window holds at any instant of a hop."""
        instant = hop * self.stream.layout.hop
        return max([one.newest for one in tiles], default=None), [read(tiles, instant) for _, read, _ in self._features]


class PresenceDecoder(Decoder):
    """Presence, from the counts of each state."""

    def __init__(self, view: PresenceView, names: Sequence[str], form: Form) -> None:
        super().__init__(view, names, form)
        self._stream, self._computed = view, form.computed
        self._kinds = [view.features[name] for name in names]

    def decode(self, reading: Reading, found: Sequence[Sequence[int]]) -> list[list[Feature]]:
        """Of each group its features."""
        view, known_until = self._stream, reading.known_until(self._stream)
        if not reading.fresh(view, reading.instant - view.ttl):
            return [self._all(OUTSIDE_MAX_AGE, known_until)] * len(found)
        return [
            [
                Feature(self._computed(kind, count), PRESENT, known_until)
                for kind, count in zip(self._kinds, counts, strict=True)
            ]
            for counts in found
        ]


def decoder(view: View, names: Sequence[str], form: Form) -> Decoder:
    """The decoder of a view's features."""
    if isinstance(view, BatchView):
        return BatchDecoder(view, names, form)
    return WindowDecoder(view, names, form) if isinstance(view, WindowView) else PresenceDecoder(view, names, form)
