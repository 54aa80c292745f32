"""How far a view is folded from a partition: what a worker resumes from, and what freshness is judged by."""

import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

import mmh3

from feature_repo.stores.layout import PARTITION_COUNT
from feature_repo.views import StreamView

_FORM = struct.Struct(">QQqqqQ")
UNKNOWN = -(2**62)
"""As `newest`: no event was folded yet."""


class Progress(NamedTuple):
    """The progress of one view in one partition. Times in ms since the epoch."""

    epoch: int
    """Counts the times that the windows were folded anew; fields of an older epoch count as absent."""
    offset: int
    """Every record below it is folded."""
    covered_from: int
    """The earliest instant from which on all events are folded."""
    complete_until: int
    """Events appended before this instant are folded."""
    newest: int
    """The newest event time of the partition: ids of much older events are forgotten."""
    log: int
    """Hash of the topic's identity: a topic made anew begins a new epoch."""

    def pack(self) -> bytes:
        """The bytes in the store."""
        return _FORM.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> "Progress":
        """Raises ValueError for bytes that are no progress."""
        try:
            return cls(*_FORM.unpack(data))
        except struct.error as error:
            raise ValueError(f"{len(data)} bytes are no progress: {error}") from None

    def covers(self, now: int, window_start: int, max_lag: int) -> bool:
        """Whether what is folded is enough for a window from `window_start` on, read at `now`."""
        return now - self.complete_until <= max_lag and self.covered_from <= window_start


def digest(text: str) -> int:
    """64 bits that stand for `text`."""
    return int(mmh3.hash64(text, signed=False)[0])


class TopicProgress(NamedTuple):
    """The progress of a topic: how many partitions it has, and how far each view (by `tiles_hash`) is in them."""

    partitions: int
    by_view: Mapping[str, Mapping[int, Progress]]

    def of(self, view: StreamView) -> list[Progress | None]:
        """The progress of each partition; an empty list where nothing is known of the topic."""
        found = self.by_view.get(view.tiles_hash, {})
        return [found.get(partition) for partition in range(self.partitions)]

    def covers(self, view: StreamView, now: int, window_start: int) -> bool:
        """Whether every partition is folded far enough for a window from `window_start` on, read at `now`."""
        known = self.of(view)
        return bool(known) and all(p is not None and p.covers(now, window_start, view.max_lag) for p in known)

    def complete_until(self, view: StreamView) -> int | None:
        """The instant up to which every partition is folded; None if one is not folded at all."""
        known = self.of(view)
        folded = [progress.complete_until for progress in known if progress is not None]
        return min(folded) if known and len(folded) == len(known) else None


def topic_progress(fields: Iterable[tuple[bytes, bytes]]) -> TopicProgress:
    """The progress in the fields of a topic's hash; what cannot be read is none."""
    by_view: dict[str, dict[int, Progress]] = {}
    partitions = 0
    for name, data in fields:
        if name == PARTITION_COUNT:
            partitions = int(data) if data.isdigit() else 0
            continue
        partition, colon, tiles_hash = name.decode(errors="replace").partition(":")
        if colon:
            with suppress(ValueError):
                by_view.setdefault(tiles_hash, {})[int(partition)] = Progress.unpack(data)
    return TopicProgress(partitions, by_view)


@lru_cache(256)
def known_progress(reply: tuple[bytes, ...]) -> TopicProgress:
    """The same from the store's answer, which has fields and values by turns.

    It is remembered by the bytes read: between two writes of progress every reader reads the same.
    """
    return topic_progress(zip(reply[::2], reply[1::2], strict=True))
