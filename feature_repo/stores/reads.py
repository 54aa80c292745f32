"""What the features of an answer were read from, as it is told later: enough to compute them again from the log.

Instants are ms since the epoch, UTC, unless their names say µs. Pure, and light: receipts are made of it in a process
that knows neither Feast nor the online store.
"""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from feature_repo.stores import tile_codec


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

Trace = BatchRead | list[bytes | None] | None
"""What one row of a request read of a view beside what all rows did: a batch row; of a window view the beginning of its
field of each partition, which says of what epoch it is and what was applied to it; of presence nothing."""


class ViewRead(Struct, frozen=True, array_like=True):
    """A view as it was read by all rows of a request.

    `since` is where its windows begin, by feature's full name. `read` is a stream view's, of a window view without what
    was applied to a row's fields.
    """

    name: str
    since: dict[str, int]
    read: StreamRead | None

    def of(self, trace: Trace) -> Read:
        """What a row read."""
        if isinstance(trace, BatchRead):
            return trace
        assert self.read is not None, "a trace of another view"
        if trace is None:
            return self.read
        topics = {name: _applied(topic, trace) for name, topic in self.read.topics.items()}
        return replace(self.read, topics=topics)


def _applied(topic: TopicRead, fields: Sequence[bytes | None]) -> TopicRead:
    """With the last offset in what was read: of fields of the epoch that the progress names alone."""
    headers = [None if data is None else tile_codec.unpack_header(data) for data in fields]
    applied = [
        header.offset if header is not None and header.epoch == epoch else None
        for header, epoch in zip(headers, topic.epochs, strict=False)
    ]
    applied += [None] * (len(topic.epochs) - len(applied))
    return replace(topic, applied=applied)
