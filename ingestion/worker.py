"""The worker: reads the log, folds events into tiles and presence, writes them, and says how far it is.

It resumes at the progress in the online store, never at the log's committed offsets. Whatever goes wrong, it forgets
what it holds, reads the progress again and goes on from there; the fence makes doing things twice harmless.
"""

import gc
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
import structlog

from feature_repo.clock import Clock
from feature_repo.stores.redis_client import STORE_DOWN
from feature_repo.stores.stream_store import StreamStore
from feature_repo.stores.tile_codec import CorruptField
from feature_repo.views import StreamView, WindowView
from ingestion.archive_reader import Archived, ArchivedLog
from ingestion.dead_letters import dead_letter
from ingestion.definition_checks import check_views
from ingestion.event_columns import EventColumns, parse_records
from ingestion.events import DEAD_LETTERS
from ingestion.folding import Folder, LostPartition, Settled, folder_of
from ingestion.log import EventLog, LogConsumer, LogUnavailable, PositionGone, Record, Records, TopicPartition
from ingestion.partitions import Partition, PartitionOpener, store_progress, store_seen

GROUP = "tiffin-worker"
_NEW_OBJECTS = 50_000
PROGRESS_EVERY_MS = 1000
SAY_EVERY_S = 60.0
POLL_MS = 50
MAX_RECORDS = 20_000
_BACKOFF_S = (0.1, 0.3, 1.0, 2.0)

_Done = tuple[Partition, int, int]
"""A partition, the offset below which all is folded, and the instant before which all that was appended is."""

_Sent = tuple[TopicPartition, StreamView, Settled]
"""What was sent of a view in a partition, and is to be seen to when the store has settled."""

logger = structlog.get_logger(__name__)


def spare_the_collector() -> None:
    """Let Python look for garbage less often: a batch's thousands of objects live on for a moment, and then all go."""
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, 20, 20)


@dataclass
class Counts:
    """What a worker has done since it began. `late` counts an event once a view that it is too old for."""

    events: int = 0
    repeats: int = 0
    late: int = 0
    dead: int = 0
    recoveries: int = 0


@dataclass
class Worker:
    """One member of the group of workers. Not thread-safe; run one a process. Connects at its first step.

    It folds the views that the online store says are served; `views` are served where nothing is yet. A worker at the
    `side` has no group: it folds `views`, whatever is served, and leaves the dead letters to the others.
    """

    log: EventLog
    store: StreamStore
    views: Sequence[StreamView]
    clock: Clock
    group: str | None = GROUP
    archive: ArchivedLog | None = None
    side: bool = False
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._opener = PartitionOpener(self.log, self.store, self.clock, self.archive, self.side)
        self._held: dict[TopicPartition, Partition] = {}
        self._digest: bytes | None = None
        self._progress_at: int | None = None
        self._say_at = 0.0
        self._consumer: LogConsumer | None = None
        self._take(self.views)

    def step(self, timeout_ms: int = POLL_MS, max_records: int = MAX_RECORDS) -> int:
        """Read once, fold what came, write progress if it is due; the count of records.

        Raises LogUnavailable, LostPartition or one of `STORE_DOWN`; then call `recover` before the next step. Raises
        BadDefinition if what is served cannot be computed from the events there are.
        """
        due = self._progress_at is None or abs(self.clock() - self._progress_at) >= PROGRESS_EVERY_MS
        if due:  # a clock that was set back must not silence it
            self._agree()
        if self._consumer is None:
            self._consumer = self.log.consumer(self.topics, self.group, self._start_at, self._released)
        self._open_missing(self._consumer)
        records = self._fold_archived(self._consumer)
        if polled := self._consumer.poll(timeout_ms, max_records):
            records += self._fold_polled(polled)
        if due:
            self.write_progress()
        return records

    def run(self, stop: Callable[[], bool]) -> None:
        """Work until `stop()`; then write progress and hand the partitions over."""
        failures = 0
        try:
            while not stop():
                try:
                    self.step()
                    failures = 0
                    self._say_counts()
                except (LogUnavailable, LostPartition, *STORE_DOWN) as error:
                    logger.warning("worker interrupted", error=str(error), failures=failures)
                    self.recover(error)
                    time.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                    failures += 1
        finally:
            self.close()

    def _say_counts(self) -> None:
        if time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + SAY_EVERY_S
            logger.info("worker works", partitions=len(self._held), **asdict(self.counts))

    def recover(self, error: Exception) -> None:
        """Forget what is held, so that the next step resumes from what is stored."""
        self.counts.recoveries += 1
        if isinstance(error, PositionGone):
            logger.error("the log no longer has what comes next: folding anew", where=error.where, error=str(error))
        self._held.clear()
        self._progress_at = None

    def write_progress(self) -> None:
        """Store how far each partition is, after the features it speaks for."""
        asked = self.clock()
        consumer = self._consumer
        if consumer is None:
            return
        ends = consumer.ends() if self._held else {}
        known = [held for where, held in self._held.items() if where in ends]
        for held in known:
            if held.archived is None and consumer.position(held.where) >= ends[held.where]:
                held.complete(asked)
        self._store_progress(known)
        done = {held.where: held.offset for held in known if held.where in self._held}
        self._progress_at = asked
        consumer.commit(done)

    def held(self) -> Mapping[TopicPartition, Partition]:
        """The partitions that it folds now."""
        return self._held

    def close(self) -> None:
        """Hand the partitions over and leave the group."""
        logger.info("worker ends", **asdict(self.counts))
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _take(self, views: Sequence[StreamView]) -> None:
        check_views(views)
        self.views = views
        self._views: dict[str, list[StreamView]] = {}
        # What presence sends, the store does while windows are folded.
        for view in sorted(views, key=lambda view: isinstance(view, WindowView)):
            for topic in view.topics:
                self._views.setdefault(topic, []).append(view)
        self._folders: dict[str, Folder] = {view.tiles_hash: folder_of(view, self.store) for view in views}
        self._columns = {
            topic: frozenset[str]().union(*(self._folders[view.tiles_hash].columns for view in of_topic))
            for topic, of_topic in self._views.items()
        }
        self.topics = sorted(self._views)

    def _agree(self) -> None:
        """Fold what is served; serve what we fold where nothing is, for the store is new, or was emptied."""
        if self.side or (self._digest is not None and self.store.served_digest() == self._digest):
            return
        if self.store.serve(self.views, {}):
            logger.warning("nothing was served: serving the definitions at hand", views=[v.name for v in self.views])
        served = self.store.served()
        self._digest = served.digest
        views = sorted(served.views.values(), key=lambda view: view.name)
        if views == sorted(self.views, key=lambda view: view.name):
            return
        logger.warning("folding the definitions that are served", views=[view.name for view in views])
        topics = self.topics
        self._held.clear()
        self._take(views)
        if topics != self.topics and self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _open_missing(self, consumer: LogConsumer) -> None:
        for where in consumer.assignment():
            if where not in self._held:
                self._held[where] = self._opener.open(where, self._views[where.topic])
                consumer.seek(where, self._held[where].start)

    def _start_at(self, gained: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        for where in gained:
            self._held[where] = self._opener.open(where, self._views[where.topic])
        return {where: self._held[where].start for where in gained}

    def _released(self, lost: Sequence[TopicPartition]) -> None:
        for where in lost:
            held = self._held.pop(where, None)
            if held is None:
                continue
            try:
                store_progress([held], self.store)
            except STORE_DOWN as error:  # whoever comes next folds a little again
                logger.warning("progress not written on hand-over", where=where, error=str(error))

    def _store_progress(self, partitions: Sequence[Partition]) -> None:
        # Not what we wrote last: the store came back without its last second, or somebody else folds by now.
        for lost in store_progress(partitions, self.store):
            self._held.pop(lost.where, None)

    def _fold_archived(self, consumer: LogConsumer) -> int:
        """A chunk of each partition that has to be folded out of the archive first: how many events there were."""
        count = 0
        for held in [held for held in self._held.values() if held.archived is not None]:
            chunk: list[Archived] | None = next(held.archived, None) if held.archived else None
            if chunk:
                events = [(offset, event) for offset, _, event in chunk]
                with self._writing():
                    sent = self._begin(held, EventColumns.of(events, self._columns[held.where.topic]))
                    self._finish([(held, chunk[-1].offset + 1, chunk[-1].append_ms)], sent)
                count += len(chunk)
            elif chunk is None:
                held.archived = None
                held.advance(max(held.offset, held.archived_to), 0)
                consumer.seek(held.where, held.offset)
        return count

    def _fold_polled(self, polled: Mapping[TopicPartition, Sequence[Record]]) -> int:
        """Fold what was polled, one partition's records while the store writes those of others: how many records."""
        count, done, sent = 0, list[_Done](), list[_Sent]()
        with self._writing():
            for where, batch in polled.items():
                held = self._held.get(where)
                if held is not None and held.archived is None:
                    sent += self._begin(held, self._parsed(held, batch))
                    # A producer's clock may stamp records in the future: they do not make the stream fresh for longer.
                    done.append((held, batch[-1].offset + 1, min(batch[-1].append_ms, self.clock())))
                    count += len(batch)
            self._finish(done, sent)
        return count

    def _parsed(self, held: Partition, batch: Sequence[Record]) -> EventColumns:
        records = Records.of(batch)
        new = records[bisect_left(records.offsets, held.offset) :]
        events, refused = parse_records(new, self._columns[held.where.topic])
        if refused and not self.side:
            self.log.publish(DEAD_LETTERS, [dead_letter(record, error) for record, error in refused])
        self.counts.dead += len(refused)
        return events

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What is written within goes to one run of the server, and what is still under way is given up if it fails."""
        self.store.ready()
        try:
            with self.store.run.unbroken():
                yield
        except BaseException:
            self.store.hang_up()
            raise

    def _begin(self, held: Partition, given: EventColumns) -> list[_Sent]:
        """Fold events into every view of the partition. What is sent of it need not be written yet."""
        events = held.fresh(given)
        self.counts.repeats += len(given) - len(events)
        self.counts.events += len(events)
        sent = list[_Sent]()
        for fold in held.folds:
            new = events[int(np.searchsorted(events.offsets, fold.offset)) :]
            folder = self._folders[fold.view.tiles_hash]
            with self._reading(held.where, fold.view):
                sent.append((held.where, fold.view, folder.begin(held.where.partition, fold.stored, held.cache, new)))
        return sent

    @contextmanager
    def _reading(self, where: TopicPartition, view: StreamView) -> Iterator[None]:
        """Where fields of a view are read: of one that is damaged the whole partition is folded anew."""
        try:
            yield
        except CorruptField as error:
            self._opener.damaged.add((where, view.tiles_hash))
            raise LostPartition(f"{where}: a field of {view.name} is damaged ({error})") from error

    def _finish(self, done: Sequence[_Done], sent: Sequence[_Sent]) -> None:
        """Wait until all of it is written, and only then say how far each partition is."""
        self.store.settle()
        for where, view, settled in sent:
            with self._reading(where, view):
                self.counts.late += settled()
        store_seen([held for held, _, _ in done], self.store)
        for held, end, complete_until in done:
            held.advance(max(end, held.offset), complete_until)
        # The last write of each batch: where it is stored, all before it is.
        self._store_progress([held for held, _, _ in done])
