"""The `EventLog` port: an append-only log of records in topics and partitions, in whichever home it lives.

Homes: `ingestion.redis_log` (streams of the embedded server) and `ingestion.kafka_log`. Offsets grow within a
partition; gaps in them are legal. `open_log` picks the home that the settings name.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol, overload

import structlog

from feature_repo.settings import Settings
from ingestion.events import TOPICS

_RETRY_S = 0.5
logger = structlog.get_logger(__name__)


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


class Record(NamedTuple):
    """One record as it lies in the log. `append_ms` is when the log took it, in ms since the epoch."""

    topic: str
    partition: int
    offset: int
    append_ms: int
    key: bytes | None
    value: bytes


@dataclass(frozen=True, slots=True)
class Records(Sequence[Record]):
    """Records of one partition in offset order, by column: a `Record` is made of one where it is asked for."""

    topic: str
    partition: int
    offsets: Sequence[int]
    append_ms: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes]

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Records":
        """The same records by column; there must be one."""
        if isinstance(records, Records):
            return records
        _, _, offsets, append_ms, keys, values = zip(*records, strict=True)
        return cls(records[0].topic, records[0].partition, offsets, append_ms, keys, values)

    @classmethod
    def joined(cls, runs: Sequence["Records"]) -> "Records":
        """What follows one upon the other, as one; there must be something."""
        first = runs[0]
        if len(runs) == 1:
            return first
        return cls(
            first.topic,
            first.partition,
            list(chain.from_iterable(run.offsets for run in runs)),
            list(chain.from_iterable(run.append_ms for run in runs)),
            list(chain.from_iterable(run.keys for run in runs)),
            list(chain.from_iterable(run.values for run in runs)),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, at: int) -> Record: ...

    @overload
    def __getitem__(self, at: slice) -> "Records": ...

    def __getitem__(self, at: int | slice) -> "Record | Records":
        offsets, append_ms, keys, values = self.offsets[at], self.append_ms[at], self.keys[at], self.values[at]
        kind = Record if isinstance(at, int) else Records
        return kind(self.topic, self.partition, offsets, append_ms, keys, values)  # type: ignore[arg-type]  # as `at` is


class Message(NamedTuple):
    """A record before it is in the log. Messages with equal keys go to one partition and keep their order."""

    key: bytes
    value: bytes


class LogUnavailable(RuntimeError):
    """The log cannot be reached or did not answer in time; says which and what follows."""


class PositionGone(LogUnavailable):
    """A consumer stands where the log has no records any more (or not yet): reading on would skip some in silence.

    `begin` is the lowest offset that can be read. The consumer raises it again until it is told to `seek` elsewhere.
    """

    def __init__(self, where: TopicPartition, position: int, begin: int) -> None:
        super().__init__(
            f"{where.topic}/{where.partition} cannot be read at offset {position}: the log begins at {begin}; "
            "records between would be skipped, so the consumer must be told where to go on"
        )
        self.where, self.position, self.begin = where, position, begin


class LogConsumer(Protocol):
    """A reader of some partitions. Not thread-safe. Positions are where it reads next."""

    def poll(self, timeout_ms: int, max_records: int) -> Mapping[TopicPartition, Sequence[Record]]:
        """The next records of the partitions held, in offset order within each; empty if none came in time.

        Also where partitions are gained and lost: `released` is called before a partition goes to another consumer,
        then `start_at` for those gained. Raises LogUnavailable.
        """
        ...

    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions held now."""
        ...

    def seek(self, where: TopicPartition, offset: int) -> None:
        """Read `where` from `offset` on (or the first record after it)."""
        ...

    def ends(self) -> dict[TopicPartition, int]:
        """Asks the log, now: of each partition held, an offset above every record in it (0 while it is empty)."""
        ...

    def position(self, where: TopicPartition) -> int:
        """Every record below this offset has been given by `poll`, or was passed over by `seek`."""
        ...

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Tell the log how far this group is. For monitoring alone: nothing resumes from it."""
        ...

    def close(self) -> None:
        """Give up the partitions and the connection. Calls `released` for what is held."""
        ...


StartAt = Callable[[Sequence[TopicPartition]], Mapping[TopicPartition, int]]
"""Asked when partitions are gained: the offset to read each from. May seek elsewhere later."""

Released = Callable[[Sequence[TopicPartition]], None]
"""Told before partitions go to somebody else; everything about them must be written when it returns."""


class EventLog(Protocol):
    """The log. Thread-safe but for its consumers."""

    def create_topics(self, topics: Sequence[str], partitions: int) -> None:
        """Make the topics that are not there; those that are keep their partitions. Raises LogUnavailable."""
        ...

    def topic_identity(self, topic: str) -> str:
        """Text that changes when the topic is deleted and made again, or gets another number of partitions."""
        ...

    def partitions(self, topic: str) -> int:
        """How many partitions `topic` has. Raises LogUnavailable if it is not there."""
        ...

    def publish(self, topic: str, messages: Sequence[Message], append_ms: int | None = None) -> list[TopicPartition]:
        """Append, and return once all are durable: where each went. Raises LogUnavailable; then some may be in the log.

        `append_ms` is a drill's clock; without it the log stamps the records itself.
        """
        ...

    def begins(self, topic: str) -> dict[TopicPartition, int]:
        """Of each partition the offset from which on nothing was dropped: 0 as long as nothing ever was."""
        ...

    def offset_at(self, where: TopicPartition, append_ms: int) -> int:
        """The lowest offset appended at or after `append_ms`; the end, if there is none."""
        ...

    def consumer(
        self,
        topics: Sequence[str],
        group: str | None,
        start_at: StartAt,
        released: Released = lambda gone: None,
    ) -> LogConsumer:
        """A consumer of `topics`: all their partitions without a `group`, else its share of them."""
        ...

    def close(self) -> None:
        """End the connections that `publish` holds."""
        ...


def ready_log(log: EventLog, partitions: int, stop: Callable[[], bool]) -> bool:
    """Make every topic, as soon as the log answers; False if `stop()` came first. A log may start after its readers."""
    said = False
    while not stop():
        try:
            log.create_topics(TOPICS, partitions)
        except LogUnavailable as error:
            if not said:
                logger.warning("waiting for the event log", error=str(error))
            said = True
            time.sleep(_RETRY_S)
        else:
            return True
    return False


def open_log(settings: Settings) -> EventLog:
    """The event log that the settings name: Kafka if ``KAFKA_BOOTSTRAP_SERVERS`` is set, else the embedded one.

    Connects nowhere yet. Imports the home that is used and no other.
    """
    if settings.kafka_bootstrap_servers:
        from ingestion.kafka_log import KafkaLog  # noqa: PLC0415  # only the home that is used is loaded

        drill = settings.clock_start is not None  # then records bear the drill's time, not the broker's
        return KafkaLog(
            settings.kafka_bootstrap_servers,
            prefix=settings.topic_prefix,
            producer_clock=drill,
            session_timeout_ms=settings.session_timeout_ms,
        )
    from feature_repo.stores.redis_client import connect  # noqa: PLC0415  # see above
    from ingestion.redis_log import RedisLog  # noqa: PLC0415  # see above

    return RedisLog(connect(settings), prefix=settings.topic_prefix)
