"""One partition in a worker's hands: where to resume, what is held, and when to fold anew."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from feature_repo.clock import Clock
from feature_repo.stores.progress import UNKNOWN, Progress, digest
from feature_repo.stores.stream_store import StreamStore
from feature_repo.views import PresenceView, StreamView
from feature_repo.windows import MAX_AHEAD_MS
from ingestion.folding import FieldCache, LostPartition
from ingestion.log import EventLog, TopicPartition
from ingestion.seen import BUCKET_MS, SeenIds

CACHED_FIELDS = 50_000
_END_OF_TIME = 2**52  # later than any append time
_TRIES = 5

logger = structlog.get_logger(__name__)


@dataclass
class Partition:
    """A partition that a worker folds. `stored` is the progress as it was last written or read."""

    where: TopicPartition
    stored: Progress
    seen: SeenIds
    offset: int
    complete_until: int
    cache: FieldCache = field(default_factory=lambda: FieldCache(CACHED_FIELDS))
    _new_ids: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The epoch that its fields are written under."""
        return self.stored.epoch

    def progress(self) -> Progress:
        """How far it is now."""
        newest = UNKNOWN if self.seen.newest is None else self.seen.newest
        return self.stored._replace(offset=self.offset, complete_until=self.complete_until, newest=newest)

    def is_repeat(self, hashed: int, offset: int, time: int) -> bool:
        """Whether an event repeats one of a lower offset; an event that does not is noted for `store_seen`."""
        if self.seen.is_repeat(hashed, offset, time):
            return True
        self._new_ids.setdefault(time // BUCKET_MS, []).append((hashed, offset))
        return False

    def store_seen(self, store: StreamStore) -> None:
        """Write the ids noted since the last call, before any progress speaks for them, and drop old ones."""
        topic, partition = self.where
        if self._new_ids:
            store.note_seen(topic, partition, self.epoch, self._new_ids)
            self._new_ids = {}
        store.forget_seen(topic, partition, self.epoch, self.seen.prune())


class PartitionOpener:
    """Opens partitions: at their stored progress, or in a new epoch where that cannot be trusted."""

    def __init__(self, log: EventLog, store: StreamStore, views: Sequence[StreamView], clock: Clock) -> None:
        self._log, self._store, self._clock = log, store, clock
        self.damaged: set[TopicPartition] = set()
        """Partitions in whose fields something unreadable was found; they are folded anew when they are opened."""
        topics = {topic for view in views for topic in view.topics}
        self._views = {topic: [view for view in views if topic in view.topics] for topic in topics}

    def open(self, where: TopicPartition) -> Partition:
        """The partition, ready to be read from its `offset`. Raises LogUnavailable, LostPartition or `STORE_DOWN`."""
        topic, partition = where
        hashes = sorted(view.tiles_hash for view in self._views[topic])
        self._store.describe_topic(topic, self._log.partitions(topic), self._views_hash(topic), hashes)
        found = self._store.progress(topic, partition)
        for _ in range(_TRIES):
            reason = self._distrust(where, found)
            if reason is None:
                assert found is not None
                return self._resumed(where, found)
            new = self._new_epoch(where, found)
            other = self._store.swap_progress(topic, partition, found, new)
            if other is None:
                logger.info(
                    "new epoch", topic=topic, partition=partition, epoch=new.epoch, offset=new.offset, why=reason
                )
                self.damaged.discard(where)
                return self._resumed(where, new)
            found = other if other.epoch else None
        raise LostPartition(f"{topic}[{partition}]: its progress keeps changing under us")

    def _distrust(self, where: TopicPartition, found: Progress | None) -> str | None:
        """Why the stored progress cannot be resumed from; None if it can."""
        if found is None:
            return "no progress is stored"
        if where in self.damaged:
            return "a field of it is damaged"
        if found.log != self._log_hash(where.topic):
            return "the topic was made anew or repartitioned"
        if found.views != self._views_hash(where.topic):
            return "the topic's views are defined otherwise"
        begin, end = self._log.begins(where.topic)[where], self._log.offset_at(where, _END_OF_TIME)
        if not begin <= found.offset <= end:
            return f"the log has offsets {begin} to {end}, not {found.offset}"
        return None

    def _new_epoch(self, where: TopicPartition, found: Progress | None) -> Progress:
        """Progress that folds every event a window can still reach: those appended in the last reach + 60 s."""
        now = self._clock()
        since = now - max(view.reach for view in self._views[where.topic]) - MAX_AHEAD_MS
        offset, begin = self._log.offset_at(where, since), self._log.begins(where.topic)[where]
        # Whole if nothing was ever dropped, or something older than `since` is still there.
        whole = begin == 0 or offset > self._log.offset_at(where, 0)
        return Progress(
            epoch=max(now, found.epoch + 1 if found else 0),
            offset=offset,
            covered_from=since if whole else now,
            complete_until=since,
            newest=UNKNOWN,
            log=self._log_hash(where.topic),
            views=self._views_hash(where.topic),
        )

    def _resumed(self, where: TopicPartition, progress: Progress) -> Partition:
        seen = SeenIds(max(view.reach for view in self._views[where.topic]))
        if progress.newest == UNKNOWN:  # a new epoch, whose first worker may have died before it could purge
            self._purge(where, progress.epoch)
        else:
            kept = seen.buckets_kept(progress.newest)
            seen.load(progress.newest, self._store.seen(where.topic, where.partition, progress.epoch, kept))
        return Partition(where, progress, seen, progress.offset, progress.complete_until)

    def _purge(self, where: TopicPartition, epoch: int) -> None:
        for view in self._views[where.topic]:
            if isinstance(view, PresenceView):
                self._store.purge_presence(view, where.topic, where.partition, epoch)

    def _log_hash(self, topic: str) -> int:
        return digest(self._log.topic_identity(topic))

    def _views_hash(self, topic: str) -> int:
        return digest(" ".join(sorted(f"{v.name}:{v.tiles_hash}:{v.reach}" for v in self._views[topic])))
