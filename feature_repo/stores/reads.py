"""What the features of an answer were read from, as it is told later: enough to compute them again from the log.

Instants are ms since the epoch, UTC, unless their names say µs. Pure, and light: receipts are made of it in a process
that knows neither Feast nor the online store.
"""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

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

Folded = tuple[int, int, int, int, int, int] | None
"""A partition's `progress.Progress`; None if it is not folded at all."""


class StreamSort(Struct, frozen=True, array_like=True):
    """A stream view: the hash of its definition, that of its tiles, its hop, and its windows by feature's full name.

    A window begins its length before the hop that an instant lies in. All in ms.
    """

    definition: str
    tiles: str
    hop: int
    windows: dict[str, int]


class ViewRead(Struct, frozen=True, array_like=True):
    """A view as all rows of a request read it at `instant`.

    `folded` is, of a stream view, how far each partition of its topics is; `applied`, of a presence view, what was
    applied to it: the header of each of them.
    """

    name: str
    instant: int
    sort: StreamSort | None
    folded: dict[str, list[Folded]]
    applied: dict[str, list[bytes | None]]

    @property
    def since(self) -> dict[str, int]:
        """Where windows begin, by feature's full name."""
        if (sort := self.sort) is None:
            return {}
        hop_start = self.instant - self.instant % sort.hop
        return {name: hop_start - window for name, window in sort.windows.items()}

    def teller(self) -> Callable[[Trace], Read]:
        """What says what a row read."""
        sort, folded = self.sort, self.folded
        until = [None if one is None else one[_COMPLETE] for partitions in folded.values() for one in partitions]
        whole = [instant for instant in until if instant is not None]
        complete = min(whole) if whole and len(whole) == len(until) and all(folded.values()) else None
        topics = [(name, *_columns(partitions)) for name, partitions in folded.items()]

        def stream(headers: Mapping[str, Sequence[bytes | None]]) -> StreamRead:
            assert sort is not None, "a trace of another view"
            told = {
                name: TopicRead(epochs, offsets, _applied(epochs, headers.get(name, ())), logs)
                for name, epochs, offsets, logs in topics
            }
            return StreamRead(sort.definition, sort.tiles, self.instant, told, complete)

        shared = None if sort is None else stream(self.applied)

        def tell(trace: Trace) -> Read:
            if isinstance(trace, list):
                return stream(dict.fromkeys(folded, trace))
            assert trace is not None or shared is not None, "a trace of another view"
            return shared if trace is None else trace  # type: ignore[return-value]  # by the line above

        return tell


_EPOCH, _OFFSET, _COMPLETE, _LOG = 0, 1, 3, 5  # in Folded
_OF_HEADER = tile_codec.HEADER.unpack


def _columns(folded: Sequence[Folded]) -> tuple[list[int | None], list[int | None], list[int | None]]:
    """The epochs, offsets and logs of partitions."""
    epochs, offsets, logs = ([one and one[place] for one in folded] for place in (_EPOCH, _OFFSET, _LOG))
    return epochs, offsets, logs


def _applied(epochs: Sequence[int | None], headers: Sequence[bytes | None]) -> list[int | None]:
    """The last offset in what was read: of fields of the epoch that the progress names alone."""
    found: list[int | None] = [None] * len(epochs)
    for place, (epoch, data) in enumerate(zip(epochs, headers, strict=False)):
        if data is not None:
            of, offset = _OF_HEADER(data)
            if of == epoch:
                found[place] = offset
    return found
