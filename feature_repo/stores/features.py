"""From what the online store holds of an entity to features: values, statuses and the instants that they speak of.

What a status means, and whether a stream feature is fresh enough to be served, is decided here and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from feature_repo.stores import tile_codec
from feature_repo.stores.progress import TopicProgress
from feature_repo.stores.values import Form, timestamp_micros
from feature_repo.views import BatchView, PresenceView, StreamView, View, WindowView
from feature_repo.windows import Aggregate, Tiles, floor_hop, read_window


class Status(IntEnum):
    """What a feature's value is worth; the numbers are those of Feast's ``FieldStatus``."""

    PRESENT = 1
    NULL_VALUE = 2  # computed, and empty
    NOT_FOUND = 3  # a batch row never written, or an id that can be no key
    OUTSIDE_MAX_AGE = 4  # a batch row beyond its TTL, or a stream that is not fresh


class Feature(NamedTuple):
    """A feature as it was read. `event_ms` is the instant it speaks of (ms since the epoch); None if there is none."""

    value: Any
    status: Status
    event_ms: int | None


def window_start(view: WindowView, aggregate: Aggregate, instant: int) -> int:
    """Where an aggregate's window begins at an instant."""
    return floor_hop(instant, view.layout.hop) - aggregate.window


def entity_tiles(view: WindowView, progress: TopicProgress, reply: Sequence[bytes | None]) -> list[Tiles] | None:
    """The tiles of an entity, from its field of each partition.

    None if they cannot be trusted: a field is of a newer epoch than the progress read, or damaged.
    """
    found: list[Tiles] = []
    for partition, (data, known) in enumerate(zip(reply, progress.of(view), strict=False)):
        if data is None or known is None:
            continue
        try:
            epoch = tile_codec.unpack_header(data).epoch
            if epoch == known.epoch:
                found.append(tile_codec.unpack(view.layout, partition, data))
        except tile_codec.CorruptField:
            return None
        if epoch > known.epoch:
            return None
    return found


@dataclass(frozen=True)
class Reading:
    """What was read beside the entities: the reader's clock, the instant the answer holds at, and the progress."""

    now: int
    instant: int
    progress: Mapping[str, TopicProgress]
    form: Form
    _judged: dict[tuple[str, int], bool] = field(default_factory=dict)
    _known: dict[str, int | None] = field(default_factory=dict)

    def not_found(self, view: View, names: Sequence[str]) -> list[Feature]:
        """The features of an id that can be no key."""
        return [Feature(self.form.computed(view.features[name], None), Status.NOT_FOUND, None) for name in names]

    def outside(self, view: View, name: str) -> Feature:
        """A feature that is not served."""
        return Feature(self.form.computed(view.features[name], None), Status.OUTSIDE_MAX_AGE, None)

    def batch(self, view: BatchView, names: Sequence[str], reply: Sequence[bytes | None]) -> list[Feature]:
        """Features of a batch row: its values, then its event time, then perhaps its version."""
        values, stamp = reply[: len(names)], reply[len(names)]
        nulls = [self.form.computed(view.features[name], None) for name in names]
        if stamp is None:
            return [Feature(null, Status.NOT_FOUND, None) for null in nulls]
        event_ms = timestamp_micros(stamp) // 1000
        if view.ttl and self.instant - event_ms > view.ttl:
            return [Feature(null, Status.OUTSIDE_MAX_AGE, event_ms) for null in nulls]
        features = []
        for data, null in zip(values, nulls, strict=True):
            value = null if data is None else self.form.stored(data)
            status = Status.NULL_VALUE if self.form.is_null(value) else Status.PRESENT
            features.append(Feature(value, status, event_ms))
        return features

    def window(self, view: WindowView, names: Sequence[str], tiles: list[Tiles] | None) -> list[Feature]:
        """Features of windows, from the tiles of `entity_tiles`."""
        aggregates = {a.name: a for a in view.aggregates}
        known_until = self._known_until(view)
        newest = max((t.newest for t in tiles or () if t.newest is not None), default=None)
        features = []
        for name in names:
            aggregate, kind = aggregates[name], view.features[name]
            start = window_start(view, aggregate, self.instant)
            if tiles is None or not self._fresh(view, start):
                features.append(Feature(self.form.computed(kind, None), Status.OUTSIDE_MAX_AGE, known_until))
                continue
            value = read_window(view.layout, aggregate, tiles, self.instant)
            status = Status.NULL_VALUE if value is None else Status.PRESENT
            # A window without events speaks of the instant up to which silence is known.
            spoken_of = newest if newest is not None and newest >= start else known_until
            features.append(Feature(self.form.computed(kind, value), status, spoken_of))
        return features

    def presence(self, view: PresenceView, names: Sequence[str], reply: Sequence[Any]) -> list[Feature]:
        """Features of presence, from the answer of the script that counts."""
        fresh, known_until = self._fresh(view, self.instant - view.ttl), self._known_until(view)
        features = []
        for name, count in zip(names, reply[2:], strict=True):
            value = self.form.computed(view.features[name], int(count) if fresh else None)
            features.append(Feature(value, Status.PRESENT if fresh else Status.OUTSIDE_MAX_AGE, known_until))
        return features

    def _fresh(self, view: StreamView, window_start: int) -> bool:
        fresh = self._judged.get((view.name, window_start))  # asked for every entity, and always the same
        if fresh is None:
            fresh = all(self.progress[topic].covers(view, self.now, window_start) for topic in view.topics)
            self._judged[view.name, window_start] = fresh
        return fresh

    def _known_until(self, view: StreamView) -> int | None:
        if view.name not in self._known:
            known = [self.progress[topic].complete_until(view) for topic in view.topics]
            self._known[view.name] = None if None in known else min(until for until in known if until is not None)
        return self._known[view.name]
