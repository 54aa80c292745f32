"""How far a partition is folded into the online store: what a worker resumes from, and what freshness is judged by."""

import struct
from typing import NamedTuple

import mmh3

_FORM = struct.Struct(">QQqqqQQ")
UNKNOWN = -(2**62)
"""As `newest`: no event was folded yet."""


class Progress(NamedTuple):
    """The progress of one partition. Times in ms since the epoch."""

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
    views: int
    """Hash of what the topic's views keep: another definition begins a new epoch."""

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
