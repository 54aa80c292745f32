"""What the features of an answer were read from, precisely enough to compute them again from the log.

Instants are ms since the epoch, UTC, unless their names say µs. Pure: what was read is given.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from feature_repo.stores import layout, tile_codec
from feature_repo.stores.batch_rows import unpack_version
from feature_repo.stores.progress import Progress, TopicProgress
from feature_repo.stores.values import timestamp_micros
from feature_repo.views import BatchView, PresenceView, StreamView, View


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
    """A view as it was read, and what of it."""

    view: View
    read: Read


def batch_read(definition: str, reply: Sequence[bytes | None] | None) -> BatchRead:
    """Of a batch row's reply, which ends with its event time and its version."""
    stamp, version = (None, None) if reply is None else reply[-2:]
    if stamp is None:
        return BatchRead(definition, None, None)
    event_us, created_us = timestamp_micros(stamp), None
    if version is not None:
        versioned_us, created = unpack_version(version)
        created_us = created if versioned_us == event_us else None  # Feast wrote over a row of ours
    return BatchRead(definition, event_us, created_us)


def stream_read(
    definition: str, view: StreamView, instant: int, progress: Mapping[str, TopicProgress], reply: Sequence[Any] | None
) -> StreamRead:
    """Of a stream view's reply: a field a partition, or the presence script's answer; None for an id of no entity."""
    found = {topic: progress.get(topic, TopicProgress(0, {})) for topic in view.topics}
    until = [found[topic].complete_until(view) for topic in view.topics]
    folded = [instant for instant in until if instant is not None]
    return StreamRead(
        definition,
        view.tiles_hash,
        instant,
        {topic: _topic_read(view, topic, known.of(view), reply) for topic, known in found.items()},
        min(folded) if folded and len(folded) == len(until) else None,
    )


def read_of(view: View, definition: str, instant: int, progress: Mapping[str, TopicProgress], reply: Any) -> Read:
    """What a view's features were read from."""
    if isinstance(view, BatchView):
        return batch_read(definition, reply)
    return stream_read(definition, view, instant, progress, reply)


def _topic_read(
    view: StreamView, topic: str, folded: Sequence[Progress | None], reply: Sequence[Any] | None
) -> TopicRead:
    applied = _applied(view, topic, folded, reply)
    return TopicRead(
        [known and known.epoch for known in folded],
        [known and known.offset for known in folded],
        [applied.get(partition) for partition in range(len(folded))],
        [known and known.log for known in folded],
    )


def _applied(
    view: StreamView, topic: str, folded: Sequence[Progress | None], reply: Sequence[Any] | None
) -> dict[int, int]:
    """The last offset in what was read, by partition: of fields of the epoch that the progress names alone."""
    if reply is None:
        return {}
    headers: dict[int, tile_codec.Header] = {}
    if isinstance(view, PresenceView):
        names, values = reply[1][::2], reply[1][1::2]
        noted = {int(name): tile_codec.unpack_header(value) for name, value in zip(names, values, strict=True)}
        headers = {p: noted[n] for p in range(len(folded)) if (n := layout.log_number(view, topic, p)) in noted}
    else:
        for partition, data in enumerate(reply):
            if data is not None and len(data) >= tile_codec.HEADER.size:
                headers[partition] = tile_codec.unpack_header(data)
    known = {p: progress.epoch for p, progress in enumerate(folded) if progress is not None}
    return {p: header.offset for p, header in headers.items() if known.get(p) == header.epoch}
