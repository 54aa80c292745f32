"""Which events are repeats: the same `event_id` again on a partition counts once, the lowest offset's."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import mmh3
import numpy as np
from numpy.typing import NDArray

from feature_repo.windows import REPEAT_SLACK_MS

BUCKET_MS = 60_000

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]


def digests(texts: Sequence[str]) -> Hashes:
    """Of each text what `progress.digest` makes of it."""
    halves = np.frombuffer(b"".join(map(mmh3.hash_bytes, texts)), "<u8")
    return halves[::2]


def by_bucket(times: Ints) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """The buckets of events with these times, each with the places of its own among them."""
    buckets = times // BUCKET_MS
    if len(buckets) and buckets.min() == buckets.max():  # mostly
        yield int(buckets[0]), np.arange(len(buckets))
        return
    for bucket in np.unique(buckets).tolist():
        yield bucket, np.flatnonzero(buckets == bucket)


class SeenIds:
    """The ids of one partition's recent events, as facts (id hash, lowest offset), by minute of event time."""

    def __init__(self, reach_ms: int) -> None:
        self._reach = reach_ms + REPEAT_SLACK_MS
        self._offsets: dict[int, int] = {}
        self._buckets: defaultdict[int, list[int]] = defaultdict(list)
        self.newest: int | None = None

    @property
    def expires_s(self) -> int:
        """Seconds after which stored ids may go though nobody has forgotten them: none are that old any more."""
        return 3 * self._reach // 1000 + 3600

    def buckets_kept(self, newest: int) -> range:
        """The buckets that are kept when the partition's newest event time is `newest`."""
        return range((newest - self._reach) // BUCKET_MS, newest // BUCKET_MS + 1)

    def load(self, newest: int, facts: Iterable[tuple[int, Iterable[tuple[int, int]]]]) -> None:
        """Take over what is stored: of buckets the (id hash, offset) pairs."""
        self.newest = newest
        for bucket, pairs in facts:
            for hashed, offset in pairs:
                self._note(hashed, offset, bucket)

    def is_repeat(self, hashed: int, offset: int, time: int) -> bool:
        """Whether the event at `offset` repeats one at a lower offset; notes it if it does not."""
        known = self._offsets.get(hashed)
        if known is None:
            self._offsets[hashed] = offset
            self._buckets[time // BUCKET_MS].append(hashed)
        elif known < offset:
            return True
        elif offset < known:
            self._offsets[hashed] = offset
        if self.newest is None or time > self.newest:
            self.newest = time
        return False

    def fresh(self, hashed: Hashes, offsets: Ints, times: Ints) -> list[int] | None:
        """The places of those that are no repeats, which are noted; None if none is one."""
        ids, places = hashed.tolist(), offsets.tolist()
        new = dict(zip(ids, places, strict=True))
        if len(new) < len(ids) or not self._offsets.keys().isdisjoint(new):
            events = enumerate(zip(ids, places, times.tolist(), strict=True))
            return [i for i, event in events if not self.is_repeat(*event)]
        self._offsets.update(new)
        for bucket, at in by_bucket(times):
            self._buckets[bucket] += hashed[at].tolist()
        if ids:
            newest = int(times.max())
            self.newest = newest if self.newest is None else max(newest, self.newest)
        return None

    def prune(self) -> list[int]:
        """Forget ids that no window reaches any more; the buckets that were dropped."""
        if self.newest is None:
            return []
        oldest = self.buckets_kept(self.newest).start
        gone = [bucket for bucket in self._buckets if bucket < oldest]
        for bucket in gone:
            for hashed in self._buckets.pop(bucket):
                self._offsets.pop(hashed, None)
        return gone

    def __len__(self) -> int:
        return len(self._offsets)

    def _note(self, hashed: int, offset: int, bucket: int) -> None:
        known = self._offsets.get(hashed)
        if known is None:
            self._buckets[bucket].append(hashed)
        if known is None or offset < known:
            self._offsets[hashed] = offset
