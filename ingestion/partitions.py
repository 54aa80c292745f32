"""One partition in a worker's hands: how far each view is folded, where to go on, and when to fold anew."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import structlog

from feature_repo.clock import Clock
from feature_repo.stores.progress import UNKNOWN, Progress, digest
from feature_repo.stores.stream_store import SeenNote, SeenPlace, StreamStore, Swap
from feature_repo.views import PresenceView, StreamView
from feature_repo.windows import MAX_AHEAD_MS
from ingestion.archive_reader import Archived, ArchivedLog
from ingestion.event_columns import EventColumns
from ingestion.folding import FieldCache, LostPartition
from ingestion.log import EventLog, TopicPartition
from ingestion.seen import SeenIds, by_bucket, digests

CACHED_FIELDS = 50_000
_END_OF_TIME = 2**52  # later than any append time
_TRIES = 5

logger = structlog.get_logger(__name__)


@dataclass
class ViewFold:
    """How far a view is folded from a partition. `stored` is its progress as it was last written or read."""

    view: StreamView
    stored: Progress
    offset: int
    complete_until: int

    def progress(self, newest: int | None) -> Progress:
        """How far it is now; `newest` is the newest event time of the partition."""
        return self.stored._replace(
            offset=self.offset, complete_until=self.complete_until, newest=UNKNOWN if newest is None else newest
        )


@dataclass
class Partition:
    """A partition that a worker folds into some views."""

    where: TopicPartition
    folds: Sequence[ViewFold]
    seen: SeenIds
    place: SeenPlace
    archived: Iterator[list[Archived]] | None
    """What has to be folded out of the archive first: the log has dropped it."""
    archived_to: int
    """Where the log goes on from there."""
    cache: FieldCache = field(default_factory=lambda: FieldCache(CACHED_FIELDS))
    _new_ids: defaultdict[int, bytearray] = field(default_factory=lambda: defaultdict(bytearray))

    @property
    def start(self) -> int:
        """Where the log has to be read from."""
        return self.offset if self.archived is None else self.archived_to

    @property
    def offset(self) -> int:
        """Every view is folded up to here at least."""
        return min(fold.offset for fold in self.folds)

    def complete(self, until: int) -> None:
        """There is nothing more in the log that was appended before `until`."""
        for fold in self.folds:
            fold.complete_until = max(fold.complete_until, until)

    def advance(self, offset: int, complete_until: int) -> None:
        """All below `offset` is folded into every view, and all that was appended before `complete_until`."""
        for fold in self.folds:
            if fold.offset <= offset:
                fold.offset = offset
                fold.complete_until = max(fold.complete_until, complete_until)

    def fresh(self, events: EventColumns) -> EventColumns:
        """The events that do not repeat one of a lower offset; they are noted for `store_seen`."""
        hashed = digests(events.ids)
        places = self.seen.fresh(hashed, events.offsets, events.times)
        if places is not None:
            events, hashed = events.only(places), hashed[places]
        facts = np.stack([hashed, events.offsets.astype(np.uint64)], axis=1).astype(">u8")
        for bucket, at in by_bucket(events.times):
            self._new_ids[bucket] += facts[at].tobytes()
        return events

    def take_notes(self) -> SeenNote:
        """The ids noted since the last call, to be written before any progress speaks for them."""
        taken, self._new_ids = self._new_ids, defaultdict(bytearray)
        return SeenNote(self.place, {bucket: bytes(facts) for bucket, facts in taken.items()}, self.seen.expires_s)

    def forget_old(self, store: StreamStore) -> None:
        """Drop the ids that no window reaches any more."""
        gone = self.seen.prune()
        if not self.place.side:  # the others rely on longer reaches, maybe
            store.forget_seen(self.place, gone)

    def swaps(self) -> list[Swap]:
        """How far every view is, to be written over what was written last."""
        return [Swap(f.view.tiles_hash, f.stored, f.progress(self.seen.newest)) for f in self.folds]

    def swapped(self, swaps: Sequence[Swap], found: Sequence[Progress | None]) -> bool:
        """Take note of what was written; False if another than was written last is stored of a view."""
        for fold, swap, other in zip(self.folds, swaps, found, strict=True):
            if other is None:
                fold.stored = swap.new
            else:
                said = {"view": fold.view.name, "topic": self.where.topic, "partition": self.where.partition}
                logger.warning(
                    "progress is not what was written last", found=other.offset, written=swap.new.offset, **said
                )
        return all(other is None for other in found)


def store_seen(partitions: Sequence[Partition], store: StreamStore) -> None:
    """Write the ids that were noted in these partitions, and drop old ones."""
    notes = [note for each in partitions if (note := each.take_notes()).seen]
    if notes:
        store.note_seen(notes)
    for each in partitions:
        each.forget_old(store)


def store_progress(partitions: Sequence[Partition], store: StreamStore) -> list[Partition]:
    """Write the progress of these partitions; those of which another than was written last is stored."""
    swaps = [each.swaps() for each in partitions]
    placed = [(*each.where, swap) for each, own in zip(partitions, swaps, strict=True) for swap in own]
    found = iter(store.swap_all(placed) if placed else [])
    stored = zip(partitions, swaps, strict=True)
    return [each for each, own in stored if not each.swapped(own, list(islice(found, len(own))))]


class PartitionOpener:
    """Opens partitions: each view at its stored progress, or in a new epoch where that cannot be trusted.

    A `side` worker keeps its ids apart.
    """

    def __init__(
        self, log: EventLog, store: StreamStore, clock: Clock, archive: ArchivedLog | None, side: bool
    ) -> None:
        self._log, self._store, self._clock, self._archive, self._side = log, store, clock, archive, side
        self.damaged: set[tuple[TopicPartition, str]] = set()
        """Partitions and views in whose fields something unreadable was found: folded anew when they are opened."""

    def open(self, where: TopicPartition, views: Sequence[StreamView]) -> Partition:
        """The partition, ready to be read. Raises LogUnavailable, LostPartition or `STORE_DOWN`."""
        topic, partition = where
        self._store.describe_topic(topic, self._log.partitions(topic))
        identity = self._log.topic_identity(topic)
        begin = self._log.begins(topic)[where]
        # A log that has dropped nothing needs no archive, whose files would all have to be looked at.
        stretch = self._archive.stretch(where, identity) if self._archive and begin else None
        first = begin if stretch is None or stretch.end < begin else min(begin, stretch.begin)
        there = _There(where, digest(identity), begin, first, self._log.offset_at(where, _END_OF_TIME))
        folds = [self._fold(there, view, identity) for view in views]
        reach = max(view.reach for view in views)
        place = SeenPlace(topic, there.log, partition, self._side)
        seen = SeenIds(reach)
        newest = max(fold.stored.newest for fold in folds)
        if newest != UNKNOWN:
            seen.load(newest, self._store.seen(place, seen.buckets_kept(newest)))
        offset = min(fold.offset for fold in folds)
        if self._archive is None or stretch is None or offset >= begin:
            return Partition(where, folds, seen, place, None, offset)
        return Partition(where, folds, seen, place, self._archive.read(where, identity, offset), stretch.end)

    def _fold(self, there: "_There", view: StreamView, identity: str) -> ViewFold:
        topic, partition = there.where
        found = self._store.progress(topic, partition, view.tiles_hash)
        for _ in range(_TRIES):
            reason = self._distrust(there, view, found)
            if reason is None:
                assert found is not None
                return self._resumed(there.where, view, found)
            new = self._new_epoch(there, view, found, identity)
            (other,) = self._store.swap_progress(topic, partition, [Swap(view.tiles_hash, found, new)])
            if other is None:
                said = {"view": view.name, "topic": topic, "partition": partition, "covered_from": new.covered_from}
                logger.warning("new epoch: folding anew", epoch=new.epoch, offset=new.offset, why=reason, **said)
                self.damaged.discard((there.where, view.tiles_hash))
                return self._resumed(there.where, view, new)
            found = other if other.epoch else None
        raise LostPartition(f"{topic}[{partition}]: the progress of {view.name} keeps changing under us")

    def _distrust(self, there: "_There", view: StreamView, found: Progress | None) -> str | None:
        """Why the stored progress cannot be resumed from; None if it can."""
        if found is None:
            return "no progress is stored"
        if (there.where, view.tiles_hash) in self.damaged:
            return "a field of it is damaged"
        if found.log != there.log:
            return "the topic was made anew or repartitioned"
        if not there.first <= found.offset <= there.end:
            return f"log and archive have offsets {there.first} to {there.end}, not {found.offset}"
        return None

    def _new_epoch(self, there: "_There", view: StreamView, found: Progress | None, identity: str) -> Progress:
        """Progress that folds every event a window can still reach: those appended in the last reach + 60 s."""
        now = self._clock()
        since = now - view.reach - MAX_AHEAD_MS
        offset, covered_from = self._log.offset_at(there.where, since), now
        # Whole if nothing was ever dropped, or something older than `since` is still there.
        if there.begin == 0 or offset > self._log.offset_at(there.where, 0):
            covered_from = since
        elif self._archive and there.first < there.begin:
            offset, covered_from = self._archive.since(there.where, identity, since)
        return Progress(
            epoch=max(now, found.epoch + 1 if found else 0),
            offset=offset,
            covered_from=covered_from,
            complete_until=since,
            newest=UNKNOWN,
            log=there.log,
        )

    def _resumed(self, where: TopicPartition, view: StreamView, progress: Progress) -> ViewFold:
        # A new epoch, whose first worker may have died before it could purge.
        if progress.newest == UNKNOWN and isinstance(view, PresenceView):
            self._store.purge_presence(view, where.topic, where.partition, progress.epoch)
        return ViewFold(view, progress, progress.offset, progress.complete_until)


@dataclass(frozen=True)
class _There:
    """What there is of a partition: the hash of its log, the offsets of the log, and the first of log and archive."""

    where: TopicPartition
    log: int
    begin: int
    first: int
    end: int
