"""The worker: reads the log, folds events into tiles and presence, writes them, and says how far it is.

It resumes at the progress in the online store, never at the log's committed offsets. Whatever goes wrong, it forgets
what it holds, reads the progress again and goes on from there; the fence makes doing things twice harmless.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import structlog

from feature_repo.clock import Clock
from feature_repo.stores.progress import digest
from feature_repo.stores.redis_client import STORE_DOWN
from feature_repo.stores.stream_store import StreamStore
from feature_repo.stores.tile_codec import CorruptField
from feature_repo.views import StreamView
from ingestion.dead_letters import dead_letter
from ingestion.definition_checks import check_views
from ingestion.events import DEAD_LETTERS, BadEvent, parse
from ingestion.folding import Folder, LostPartition, Placed, folder_of
from ingestion.log import EventLog, LogUnavailable, Message, PositionGone, Record, TopicPartition
from ingestion.partitions import Partition, PartitionOpener

GROUP = "tiffin-worker"
PROGRESS_EVERY_MS = 1000
SAY_EVERY_S = 60.0
POLL_MS = 50
MAX_RECORDS = 5000
_BACKOFF_S = (0.1, 0.3, 1.0, 2.0)

logger = structlog.get_logger(__name__)


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
    """One member of the group of workers. Not thread-safe; run one a process."""

    log: EventLog
    store: StreamStore
    views: Sequence[StreamView]
    project: str
    clock: Clock
    group: str | None = GROUP
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        check_views(self.views)
        self._folders: dict[str, list[Folder]] = {}
        for view in self.views:
            folder = folder_of(view, self.store, self.project)
            for topic in view.topics:
                self._folders.setdefault(topic, []).append(folder)
        self.topics = sorted(self._folders)
        self._opener = PartitionOpener(self.log, self.store, self.views, self.clock)
        self._held: dict[TopicPartition, Partition] = {}
        self._progress_at: int | None = None
        self._say_at = 0.0
        self._consumer = self.log.consumer(self.topics, self.group, self._start_at, self._released)

    def step(self, timeout_ms: int = POLL_MS, max_records: int = MAX_RECORDS) -> int:
        """Read once, fold what came, write progress if it is due; the count of records.

        Raises LogUnavailable or one of `STORE_DOWN`; then call `recover` before the next step.
        """
        self._open_missing()
        records = 0
        for where, batch in self._consumer.poll(timeout_ms, max_records).items():
            held = self._held.get(where)
            if held is not None:
                self._fold(held, batch)
                records += len(batch)
        if self._progress_at is None or abs(self.clock() - self._progress_at) >= PROGRESS_EVERY_MS:
            self.write_progress()  # a clock that was set back must not silence it
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

    def write_progress(self) -> None:
        """Store how far each partition is, after the features it speaks for."""
        asked = self.clock()
        ends = self._consumer.ends() if self._held else {}
        done: dict[TopicPartition, int] = {}
        for where, held in list(self._held.items()):
            if where not in ends:
                continue
            if self._consumer.position(where) >= ends[where]:
                held.complete_until = max(held.complete_until, asked)
            self._store_progress(held)
            if where in self._held:
                done[where] = held.offset
        self._progress_at = asked
        self._consumer.commit(done)

    def close(self) -> None:
        """Hand the partitions over and leave the group."""
        logger.info("worker ends", **asdict(self.counts))
        self._consumer.close()

    def _open_missing(self) -> None:
        for where in self._consumer.assignment():
            if where not in self._held:
                self._held[where] = self._opener.open(where)
                self._consumer.seek(where, self._held[where].offset)

    def _start_at(self, gained: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        for where in gained:
            self._held[where] = self._opener.open(where)
        return {where: self._held[where].offset for where in gained}

    def _released(self, lost: Sequence[TopicPartition]) -> None:
        for where in lost:
            held = self._held.pop(where, None)
            if held is None:
                continue
            try:
                self._store_progress(held)
            except STORE_DOWN as error:  # whoever comes next folds a little again
                logger.warning("progress not written on hand-over", where=where, error=str(error))

    def _store_progress(self, held: Partition) -> None:
        new = held.progress()
        found = self.store.swap_progress(held.where.topic, held.where.partition, held.stored, new)
        if found is None:
            held.stored = new
            return
        # Not what we wrote last: the store came back without its last second, or somebody else folds by now.
        logger.warning("progress is not what was written last: resuming from it", where=held.where, found=found.offset)
        self._held.pop(held.where, None)

    def _fold(self, held: Partition, batch: Sequence[Record]) -> None:
        events, dead = self._parse(held, batch)
        try:
            for folder in self._folders[held.where.topic]:
                self.counts.late += folder.fold(held.where.partition, held.stored, held.cache, events)
        except CorruptField as error:
            self._opener.damaged.add(held.where)
            raise LostPartition(f"{held.where}: a field is damaged ({error}): all of it is folded anew") from error
        held.store_seen(self.store)
        if dead:
            self.log.publish(DEAD_LETTERS, dead)
        self.counts.events += len(events)
        self.counts.dead += len(dead)
        held.offset = max(held.offset, batch[-1].offset + 1)
        # A producer's clock may stamp records in the future: they do not make the stream fresh for longer.
        held.complete_until = max(held.complete_until, min(batch[-1].append_ms, self.clock()))
        self._store_progress(held)  # the last write of each batch: where it is stored, all before it is

    def _parse(self, held: Partition, batch: Sequence[Record]) -> tuple[list[Placed], list[Message]]:
        events: list[Placed] = []
        dead: list[Message] = []
        for record in batch:
            if record.offset < held.offset:
                continue
            try:
                event = parse(record.topic, record.value, record.append_ms)
            except BadEvent as error:
                dead.append(dead_letter(record, error))
                continue
            if held.is_repeat(digest(event.event_id), record.offset, event.time):
                self.counts.repeats += 1
            else:
                events.append((record.offset, event))
        return events, dead
