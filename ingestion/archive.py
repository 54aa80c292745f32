"""The archive: the log as Parquet, for training sets and batch features, and for refolding what the log has dropped.

It needs no memory of its own: where it goes on is what its newest file of a partition covers. Any number of archivers
may run; files are published under a name that only one of them can take, and the others go on behind it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from feature_repo.clock import Clock, iso
from feature_repo.settings import Settings
from ingestion.event_files import DAY_MS, covered, events_table, log_home, publish_events
from ingestion.events import BadEvent, Event, arrow_schema, extras, parse
from ingestion.log import EventLog, LogConsumer, LogUnavailable, PositionGone, Record, TopicPartition

POLL_MS = 200
MAX_RECORDS = 5000
_CHECK_EVERY_MS = 60_000
_SILENT_POLLS = 50
_BACKOFF_S = (0.1, 0.3, 1.0, 2.0, 5.0)

logger = structlog.get_logger(__name__)


@dataclass
class _Buffer:
    """Events of one partition and append date that are not in a file yet, in offset order."""

    since: int
    """When its first event came, in ms of the archiver's clock."""
    begin: int
    """Everything from this offset on was read."""
    events: list[tuple[Record, Event]] = field(default_factory=list)
    last_offset: int = -1
    """The highest offset read, of records that did not parse too."""

    @property
    def day(self) -> int:
        return self.events[0][0].append_ms // DAY_MS

    @property
    def first_offset(self) -> int:
        return self.events[0][0].offset


class Archiver:
    """Copies `topics` into the event log's files. Not thread-safe. Connects at the first `step`.

    A file is published when it has `max_rows`, or its first event has waited for `max_seconds` of `clock`, or the
    append date changes. Records that do not parse are left out (the worker puts them to the dead letters).
    """

    def __init__(
        self,
        log: EventLog,
        settings: Settings,
        clock: Clock,
        topics: Sequence[str],
        max_rows: int = 50_000,
        max_seconds: float = 300,
    ) -> None:
        self._log, self._settings, self._clock, self._topics = log, settings, clock, tuple(topics)
        self._max_rows, self._max_ms = max_rows, max_seconds * 1000
        self._consumer: LogConsumer | None = None
        self._buffers: dict[TopicPartition, _Buffer] = {}
        self._astray: set[TopicPartition] = set()  # the consumer stands past records that are in no file or buffer
        self._homes: dict[str, Path] = {}
        self._next: dict[TopicPartition, int] = {}  # all below was read, since where the partition was resumed
        self._check_due = 0

    def step(self, timeout_ms: int = POLL_MS) -> int:
        """Read once, and publish what is full or old; the count of records read.

        Raises LogUnavailable, or OSError if a file cannot be written; nothing is lost then, and the next step goes on.
        """
        consumer = self._connected()
        for where in list(self._astray):
            consumer.seek(where, self._resume(where))
            self._astray.discard(where)
        try:
            records = consumer.poll(timeout_ms, MAX_RECORDS)
        except PositionGone as gone:
            self._skip_gap(consumer, gone)
            return 0
        pending = set(records)
        try:
            for where, batch in records.items():
                self._take_all(where, batch)
                pending.discard(where)
        finally:
            for where in pending:  # an error came between: what was read of these is read again
                self._lose(where)
        self._publish_old()
        self._check_ahead(consumer)
        return sum(map(len, records.values()))

    def flush(self) -> None:
        """Publish everything read so far. Raises OSError if a file cannot be written."""
        for where in list(self._buffers):
            self._publish(where)

    def close(self) -> None:
        """Give the connection up; what is not flushed is read again by the next archiver."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        self._buffers.clear()
        self._astray.clear()
        self._homes.clear()

    def catch_up(self, timeout_ms: int = POLL_MS) -> None:
        """Archive all that is in the log by now, and publish it.

        Raises LogUnavailable if the log does not give what it says it has, OSError if a file cannot be written.
        """
        ends: Mapping[TopicPartition, int] = {}
        silent = 0
        while silent < _SILENT_POLLS:
            read = self.step(timeout_ms)
            consumer = self._connected()
            ends = ends or consumer.ends()
            if ends and not self._astray and all(consumer.position(where) >= end for where, end in ends.items()):
                self.flush()
                if not self._astray:  # else another archiver came first, maybe not as far: read again
                    return
            silent = 0 if read else silent + 1
        raise LogUnavailable(f"the log gave nothing more of {', '.join(self._topics)}, and has not given all it has")

    def run(self, stop: Callable[[], bool], timeout_ms: int = POLL_MS) -> None:
        """Archive until `stop()`, then flush and close. While the log or the disk fails it waits and tries again."""
        failures = 0
        try:
            while not stop():
                try:
                    self.step(timeout_ms)
                    failures = 0
                except (LogUnavailable, OSError) as error:
                    logger.warning("archive interrupted", error=str(error), failures=failures)
                    if isinstance(error, PositionGone):
                        self.close()  # the topic may be another by now: look again
                    time.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                    failures += 1
            self.flush()
        finally:
            self.close()

    def _connected(self) -> LogConsumer:
        if self._consumer is None:
            self._consumer = self._log.consumer(self._topics, None, self._start_at)
        return self._consumer

    def _start_at(self, gained: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {where: self._resume(where) for where in gained}

    def _resume(self, where: TopicPartition) -> int:
        """Behind what the partition's files cover; without any, where the log begins."""
        last = covered(self._settings, where.topic, self._home(where.topic)).get(where.partition)
        self._next[where] = self._log.begins(where.topic)[where] if last is None else last + 1
        return self._next[where]

    def _home(self, topic: str) -> Path:
        if topic not in self._homes:
            self._homes[topic] = log_home(self._settings, topic, self._log.topic_identity(topic))
        return self._homes[topic]

    def _take_all(self, where: TopicPartition, batch: Sequence[Record]) -> None:
        """Buffer `batch`, and publish whenever a file is complete; stop where another archiver came first."""
        for record in batch:
            try:
                event = parse(record.topic, record.value, record.append_ms)
            except BadEvent:
                event = None
            buffer = self._buffers.get(where)
            if event and buffer and buffer.events and record.append_ms // DAY_MS != buffer.day:
                if not self._publish(where):
                    return
                buffer = None
            if buffer is None:
                buffer = self._buffers[where] = _Buffer(self._clock(), self._next.get(where, record.offset))
            if event:
                buffer.since = buffer.since if buffer.events else self._clock()
                buffer.events.append((record, event))
            buffer.last_offset = record.offset
            self._next[where] = record.offset + 1
            if len(buffer.events) >= self._max_rows and not self._publish(where):
                return

    def _publish_old(self) -> None:
        now = self._clock()
        for where, buffer in list(self._buffers.items()):
            if now - buffer.since >= self._max_ms:
                self._publish(where)

    def _publish(self, where: TopicPartition) -> bool:
        """Make a file of the partition's buffer. False if another archiver's file was there first: then read anew."""
        buffer = self._buffers[where]
        if not buffer.events:  # nothing but bad records: a file's name and date are those of events
            return True
        try:
            home = self._home(where.topic)
            if covered(self._settings, where.topic, home).get(where.partition, -1) >= buffer.first_offset:
                raise FileExistsError(f"{where.topic}/{where.partition}: {buffer.first_offset} is in a file already")
            publish_events(
                self._settings, where.topic, _table(where, buffer.events), buffer.last_offset, home, buffer.begin
            )
        except FileExistsError as error:
            logger.info("another archiver was first", topic=where.topic, partition=where.partition, error=str(error))
            self._lose(where)
            return False
        del self._buffers[where]
        return True

    def _lose(self, where: TopicPartition) -> None:
        self._buffers.pop(where, None)
        self._astray.add(where)

    def _skip_gap(self, consumer: LogConsumer, gone: PositionGone) -> None:
        """Go on where the log begins, if it has dropped records that no file has; raise `gone` if it lies before us."""
        topic, partition = gone.where
        if gone.begin < gone.position:
            logger.error("the log lies before its archive: was the topic made anew?", topic=topic, error=str(gone))
            raise gone
        lost = {"first_lost": gone.position, "last_lost": gone.begin - 1}
        logger.error("the log dropped records before they were archived", topic=topic, partition=partition, **lost)
        self._next[gone.where] = gone.begin
        consumer.seek(gone.where, gone.begin)

    def _check_ahead(self, consumer: LogConsumer) -> None:
        """Say so, every minute, where the log ends before its archive: its records would never be read."""
        now = self._clock()
        if now < self._check_due:
            return
        self._check_due = now + _CHECK_EVERY_MS
        for where, end in consumer.ends().items():
            if 0 < end < consumer.position(where) and where not in self._astray:
                logger.error(
                    "the log ends before its archive: nothing of this partition is archived until it has caught up",
                    topic=where.topic,
                    partition=where.partition,
                    log_ends=end,
                    archived_below=consumer.position(where),
                    at=iso(now),
                )


def catch_up(log: EventLog, settings: Settings, clock: Clock, topics: Sequence[str]) -> None:
    """Bring the archive of `topics` up to the log's end, beside any other archiver. Raises LogUnavailable, OSError."""
    archiver = Archiver(log, settings, clock, topics)
    try:
        archiver.catch_up()
    finally:
        archiver.close()


def _table(where: TopicPartition, taken: Sequence[tuple[Record, Event]]) -> object:
    columns: dict[str, list[object]] = {
        "partition": [where.partition] * len(taken),
        "offset": [record.offset for record, _ in taken],
        "append_time": [record.append_ms for record, _ in taken],
        "event_time": [event.time for _, event in taken],
        "extra": [extras(where.topic, record.value) for record, _ in taken],
    }
    for name in arrow_schema(where.topic).names:
        if name not in columns:
            columns[name] = [event.columns[name] for _, event in taken]
    return events_table(where.topic, columns)
