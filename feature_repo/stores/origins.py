"""What the features of an answer were read from, precisely enough to compute them again from the log.

Instants are ms since the epoch, UTC, unless their names say µs. Pure: what was read is given.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from msgspec import Struct

from feature_repo.stores import layout, tile_codec
from feature_repo.stores.batch_rows import unpack_version
from feature_repo.stores.features import window_start
from feature_repo.stores.progress import Progress, TopicProgress
from feature_repo.stores.values import timestamp_micros
from feature_repo.views import BatchView, PresenceView, StreamView, View, WindowView


class TopicRead(Struct, frozen=True):
    """How much of a topic was in what was read, each list by partition.

    Every record below `progress` was folded when the read began. `applied` is the offset of the last event in the field
    that was read, or, of presence, in the view; None if there was none. `log` is the hash of the topic's identity:
    offsets of two logs have nothing to do with each other.
    """

    epochs: list[int | None]
    progress: list[int | None]
    applied: list[int | None]
    log: list[int | None]

    @property
    def prefix(self) -> list[int]:
        """Of each partition the offset below which every event counted; 0 where nothing was folded."""
        pairs = zip(self.progress, self.applied, strict=True)
        return [max(done or 0, 0 if last is None else last + 1) for done, last in pairs]


class BatchRead(Struct, frozen=True, tag="batch"):
    """A batch row. Both times are None if it was never written, `created_us` also if Feast itself wrote it.

    `definition` is `views.features_hash` of the view with all of its features, here as of a stream view.
    """

    definition: str
    event_us: int | None
    created_us: int | None


class StreamRead(Struct, frozen=True, tag="stream"):
    """Fields or members of a stream view, by topic. Its features hold at `instant`.

    `tiles` is the view's ``tiles_hash``; `complete_until` the instant up to which every partition was folded.
    """

    definition: str
    tiles: str
    instant: int
    topics: dict[str, TopicRead]
    complete_until: int | None


Read = BatchRead | StreamRead


class Origin(NamedTuple):
    """A view as it was read, and what of it. `since` is where the windows that were read begin, by full name."""

    view: View
    read: Read
    since: Mapping[str, int]


class Origins:
    """What is told of one view in one request: all but an entity's own part is found once, for all of them."""

    def __init__(self, view: View, definition: str, instant: int, progress: Mapping[str, TopicProgress]) -> None:
        self._view, self._definition, self._instant = view, definition, instant
        self._since = _window_starts(view, instant)
        self._presence: tuple[Sequence[Any] | None, Origin] | None = None
        self._topics: list[_Topic] = []
        self._until: int | None = None
        if not isinstance(view, BatchView):
            found = {topic: progress.get(topic, TopicProgress(0, {})) for topic in view.topics}
            until = [found[topic].complete_until(view) for topic in view.topics]
            folded = [instant for instant in until if instant is not None]
            self._until = min(folded) if folded and len(folded) == len(until) else None
            self._topics = [_Topic.of(topic, known.of(view)) for topic, known in found.items()]

    def of(self, reply: Sequence[Any] | None) -> Origin:
        """Of one entity, by its reply; None for an id of no entity.

        A batch row's reply ends with its event time and its version; a window view's has a field a partition; that of
        presence is the script's answer, which is one for all groups.
        """
        view = self._view
        if isinstance(view, BatchView):
            stamp, version = (None, None) if reply is None else reply[-2:]
            return Origin(view, batch_read(self._definition, stamp, version), self._since)
        if isinstance(view, PresenceView):
            if self._presence is None or self._presence[0] is not reply:
                noted = {} if reply is None else _noted(reply)
                found = [
                    [noted.get(layout.log_number(view, topic.name, p)) for p in range(len(topic.epochs))]
                    for topic in self._topics
                ]
                self._presence = reply, self._of_stream(view, found)
            return self._presence[1]
        return self._of_stream(view, [[_header(data) for data in reply or ()]])

    def _of_stream(self, view: StreamView, headers: Sequence[Sequence[tile_codec.Header | None]]) -> Origin:
        topics = {t.name: t.read(found) for t, found in zip(self._topics, headers, strict=True)}
        read = StreamRead(self._definition, view.tiles_hash, self._instant, topics, self._until)
        return Origin(view, read, self._since)


class _Topic(NamedTuple):
    """How far a view is folded from a topic, by partition."""

    name: str
    epochs: list[int | None]
    progress: list[int | None]
    logs: list[int | None]

    @classmethod
    def of(cls, name: str, folded: Sequence[Progress | None]) -> "_Topic":
        return cls(
            name,
            [known and known.epoch for known in folded],
            [known and known.offset for known in folded],
            [known and known.log for known in folded],
        )

    def read(self, headers: Sequence[tile_codec.Header | None]) -> TopicRead:
        """With the last offset in what was read: of fields of the epoch that the progress names alone."""
        applied = [
            header.offset if header is not None and header.epoch == epoch else None
            for header, epoch in zip(headers, self.epochs, strict=False)
        ]
        applied += [None] * (len(self.epochs) - len(applied))
        return TopicRead(self.epochs, self.progress, applied, self.logs)


@lru_cache(4096)
def batch_read(definition: str, stamp: bytes | None, version: bytes | None) -> BatchRead:
    """Of a batch row's event time and version; rows that were computed together have them in common."""
    if stamp is None:
        return BatchRead(definition, None, None)
    event_us, created_us = timestamp_micros(stamp), None
    if version is not None:
        versioned_us, created = unpack_version(version)
        created_us = created if versioned_us == event_us else None  # Feast wrote over a row of ours
    return BatchRead(definition, event_us, created_us)


def _window_starts(view: View, instant: int) -> dict[str, int]:
    """Where the windows of a stream view begin at an instant, by feature's full name."""
    if isinstance(view, WindowView):
        return {f"{view.name}__{a.name}": window_start(view, a, instant) for a in view.aggregates}
    if isinstance(view, PresenceView):
        return {f"{view.name}__{feature}": instant - view.ttl for feature in view.features}
    return {}


def _header(data: bytes | None) -> tile_codec.Header | None:
    return tile_codec.unpack_header(data) if data is not None and len(data) >= tile_codec.HEADER.size else None


def _noted(reply: Sequence[Any]) -> dict[int, tile_codec.Header]:
    """What was applied to a presence view, by the number of the partition's log."""
    names, values = reply[1][::2], reply[1][1::2]
    return {int(name): tile_codec.unpack_header(value) for name, value in zip(names, values, strict=True)}
