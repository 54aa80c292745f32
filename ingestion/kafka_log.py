"""The event log on Apache Kafka: the only module that imports its client."""

import socket
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from kafka import (
    ConsumerRebalanceListener,
    IsolationLevel,
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    OffsetAndMetadata,
    OffsetSpec,
)
from kafka import TopicPartition as KafkaPartition
from kafka.codec import has_lz4
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.errors import (
    CorruptRecordError,
    KafkaError,
    LogTruncationError,
    OffsetOutOfRangeError,
    TopicAlreadyExistsError,
)
from kafka.net.compat import KafkaNetClient
from kafka.structs import MemberState

from ingestion.kafka_records import plain_records
from ingestion.log import LogUnavailable, Message, PositionGone, Record, Records, Released, StartAt, TopicPartition
from ingestion.partitioner import partition_of

_ANSWER_MS = 5_000
_PUBLISH_S = 10.0
_SLICE_MS = 100  # how long a consumer may sit on partitions that it has just been given
_CLIENT = {
    "bootstrap_timeout_ms": _ANSWER_MS,
    "request_timeout_ms": _ANSWER_MS,
    "reconnect_backoff_max_ms": 1_000,  # a broker that comes back is found within a second
}
FETCHING = {
    "isolation_level": "read_committed",  # others may write here in transactions
    "fetch_max_wait_ms": 50,
    "max_poll_records": 20_000,
    "max_partition_fetch_bytes": 4 * 1024 * 1024,  # a backlog in large batches: each entity is written once a batch
    "metrics_enabled": False,
}
"""How consumers read, in the client's own terms."""


@contextmanager
def _answering(doing: str, so: str) -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError) as error:
        raise LogUnavailable(f"Kafka failed at {doing} ({type(error).__name__}: {error}): {so}") from error


def _connected(kind: Callable[..., Any], servers: Sequence[str], **config: Any) -> Any:
    """A client of `kind`, connected. Where it cannot connect, its thread and sockets are ended, then it raises."""
    _knock(servers)
    made: list[Any] = []

    def client(**settings: Any) -> Any:
        made.append(KafkaNetClient(**settings))
        return made[-1]

    try:
        return kind(kafka_client=client, bootstrap_servers=list(servers), **_CLIENT, **config)
    except KafkaError:
        for each in made:
            each.close()
        raise


def _knock(servers: Sequence[str]) -> None:
    """Raise OSError where no server takes a connection: the client would go on trying for seconds, leaking sockets."""
    for at, server in enumerate(servers, start=1):
        address = urlsplit(server if "://" in server else f"//{server}")
        try:
            socket.create_connection((address.hostname, address.port or 9092), _ANSWER_MS / 1000 / len(servers)).close()
        except OSError:
            if at == len(servers):
                raise
        else:
            return


class KafkaLog:
    """`EventLog` over Kafka. Topics are `prefix` + name on the broker; records carry the name alone.

    A record's append time is its timestamp: the broker's, in the topics that we create. With `producer_clock` they are
    created to keep the producer's instead, for drills that run on a clock of their own.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        prefix: str = "",
        producer_clock: bool = False,
        session_timeout_ms: int = 10_000,
    ) -> None:
        self._servers, self._prefix = bootstrap_servers.split(","), prefix
        self._timestamps = "CreateTime" if producer_clock else "LogAppendTime"
        self._session_timeout_ms = session_timeout_ms
        self._lock = threading.Lock()
        self._known: set[str] = set()  # topics that were there: the producer would wait long for one that is not
        self._admin_client: Any = None
        self._producer_client: Any = None

    def create_topics(self, topics: Sequence[str], partitions: int) -> None:
        """See `EventLog`. Three replicas where there are brokers for them."""
        names = [self._prefix + topic for topic in topics]
        with _answering("creating topics", "they may not be there"):
            admin = self._admin()
            replicas = min(3, len(admin.describe_cluster()["brokers"]))
            plan = {
                "num_partitions": partitions,
                "replication_factor": replicas,
                "configs": {"message.timestamp.type": self._timestamps},
            }
            for name in names:
                try:
                    admin.create_topics({name: plan}, timeout_ms=_ANSWER_MS)
                except TopicAlreadyExistsError:
                    continue
            admin.wait_for_topics(names, timeout_ms=_ANSWER_MS)

    def topic_identity(self, topic: str) -> str:
        """See `EventLog`. The topic's id on the broker, and the number of partitions."""
        about = self._described(topic)
        return f"{about['topic_id']}:{len(about['partitions'])}"

    def partitions(self, topic: str) -> int:
        """See `EventLog`."""
        return len(self._described(topic)["partitions"])

    def publish(self, topic: str, messages: Sequence[Message], append_ms: int | None = None) -> list[TopicPartition]:
        """See `EventLog`. Returns or raises within ten seconds; `append_ms` counts in topics with producers' clocks."""
        deadline, name = time.monotonic() + _PUBLISH_S, self._prefix + topic
        so = "some of the messages may be in the log, the others are not"
        with _answering(f"publishing to {topic}", so), self._producing() as producer:
            if topic not in self._known:
                self._described(topic)
                self._known.add(topic)
            count = len(producer.partitions_for(name))
            placed = [partition_of(message.key, count) for message in messages]
            waiting = [
                producer.send(name, message.value, message.key, partition=partition, timestamp_ms=append_ms)
                for message, partition in zip(messages, placed, strict=True)
            ]
            producer.flush(max(0.0, deadline - time.monotonic()))
            for each in waiting:
                each.get(max(0.0, deadline - time.monotonic()))
        return [TopicPartition(topic, partition) for partition in placed]

    def begins(self, topic: str) -> dict[TopicPartition, int]:
        """See `EventLog`."""
        every = self._every([topic])
        found = self._offsets(dict.fromkeys(every, OffsetSpec.EARLIEST))
        return {self._ours(where): found[where] for where in every}

    def offset_at(self, where: TopicPartition, append_ms: int) -> int:
        """See `EventLog`."""
        there = KafkaPartition(self._prefix + where.topic, where.partition)
        found = self._offsets({there: max(0, append_ms)})[there]  # negative instants are commands to the broker
        return self._offsets({there: OffsetSpec.LATEST})[there] if found < 0 else found

    def consumer(
        self,
        topics: Sequence[str],
        group: str | None,
        start_at: StartAt,
        released: Released = lambda gone: None,
    ) -> "KafkaLogConsumer":
        """See `EventLog`. Raises LogUnavailable if the broker does not answer."""
        with _answering("connecting a consumer", "nothing is consumed"):
            every = self._every(topics)
            client = _connected(
                KafkaConsumer,
                self._servers,
                group_id=None if group is None else self._prefix + group,
                auto_offset_reset="none",
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                **FETCHING,
                session_timeout_ms=self._session_timeout_ms,
                heartbeat_interval_ms=self._session_timeout_ms // 4,
                partition_assignment_strategy=[RoundRobinPartitionAssignor],  # even over topics with few partitions
            )
        return KafkaLogConsumer(client, self._prefix, every, group, start_at, released)

    def close(self) -> None:
        """See `EventLog`."""
        with self._lock:
            if self._producer_client is not None:
                _end(self._producer_client)
            if self._admin_client is not None:
                self._admin_client.close()
            self._producer_client = self._admin_client = None

    def _admin(self) -> Any:
        with self._lock:
            if self._admin_client is None:
                self._admin_client = _connected(KafkaAdminClient, self._servers)
            return self._admin_client

    @contextmanager
    def _producing(self) -> Iterator[Any]:
        """The producer, given up if it fails: one whose batch has run out of time never sends to that partition again.

        What other threads have under way in it fails too.
        """
        producer = self._producer()
        try:
            yield producer
        except KafkaError:
            with self._lock:
                if self._producer_client is producer:
                    self._producer_client = None
            _end(producer)
            raise

    def _producer(self) -> Any:
        with self._lock:
            if self._producer_client is None:
                self._producer_client = _connected(
                    KafkaProducer,
                    self._servers,
                    enable_idempotence=True,
                    acks="all",
                    compression_type="lz4" if has_lz4() else None,
                    batch_size=262_144,
                    linger_ms=200,  # `publish` says when a batch is complete, by flushing
                    max_block_ms=_ANSWER_MS,
                    delivery_timeout_ms=int(_PUBLISH_S * 900),  # before we stop waiting for it
                    allow_auto_create_topics=False,
                    metrics_enabled=False,
                )
            return self._producer_client

    def _described(self, topic: str) -> Any:
        with _answering(f"reading about topic {topic}", "nothing is known of it"):
            (about,) = self._admin().describe_topics([self._prefix + topic])
        if about["error_code"] != 0 or not about["partitions"]:
            raise LogUnavailable(f"topic {self._prefix + topic} is not in Kafka: create it before it is used")
        return about

    def _every(self, topics: Sequence[str]) -> list[KafkaPartition]:
        return [KafkaPartition(self._prefix + t, number) for t in topics for number in range(self.partitions(t))]

    def _offsets(self, wanted: Mapping[KafkaPartition, Any]) -> dict[KafkaPartition, int]:
        with _answering("looking up offsets", "where to read is not known"):
            found = self._admin().list_partition_offsets(wanted, IsolationLevel.READ_COMMITTED, _ANSWER_MS)
        return {where: found[where].offset for where in wanted}

    def _ours(self, where: KafkaPartition) -> TopicPartition:
        return TopicPartition(where.topic.removeprefix(self._prefix), where.partition)


def _end(producer: Any) -> None:
    """Close a producer without sending what it still has."""
    producer._sender.force_close()  # its own close would first wait for batches that may never be done, and fail
    producer.close(timeout=_ANSWER_MS / 1000)


class _Joined:
    """The result of a join that has ended, in the shape of one that the client's next poll can wait for."""

    is_done = False

    def __init__(self, assignment: bytes) -> None:
        self._assignment = assignment

    def add_callback(self, callback: Callable[[bytes], None]) -> None:
        """Answers at once."""
        callback(self._assignment)

    def add_errback(self, errback: Callable[[Exception], None]) -> None:
        """There is no error."""


class _Runs:
    """Runs of records as the client passes them on: as many as they hold, yet handed over run by run."""

    def __init__(self) -> None:
        self._runs: list[Records] = []
        self._count = 0

    def add(self, run: Records) -> None:
        """One more."""
        self._runs.append(run)
        self._count += len(run)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Records]:
        return iter(self._runs)


class _Records(Fetcher.PartitionRecords):  # type: ignore[misc]  # the client has no types
    """Takes the place of the client's own class for the records of one answer and partition; gives `Records`.

    Checksums, transactions and the marks that end them are seen to as the client does: what it makes of a batch is
    overruled only where the batch holds plain records. Keys and values are given as they are, and no headers.
    """

    def __init__(self, prefix: str, *args: Any, **kwargs: Any) -> None:
        self._prefix = prefix
        self._rest: Records | None = None  # of a run that was begun
        super().__init__(*args, **kwargs)

    def __bool__(self) -> bool:
        return bool(self._rest or self.record_iterator)

    def drain(self) -> None:
        """Give up what is left."""
        self._rest = None
        super().drain()

    def take(self, n: int | None = None) -> _Runs:
        """The next `n` records, or as many as there are; an error behind some of them is raised by the next call."""
        self._maybe_raise_next_inline_exception()
        taken = _Runs()
        try:
            while n is None or len(taken) < n:
                run = self._next_run()
                if run is None:
                    self.drain()
                    break
                end = len(run) if n is None else min(len(run), n - len(taken))
                self._rest = run[end:] if end < len(run) else None
                taken.add(run[:end])
                self.bytes_read += sum(map(len, run.values[:end]))
                self.next_fetch_offset = run.offsets[end - 1] + 1
        except Exception as error:
            if not len(taken):
                raise
            self._next_inline_exception = error
        return taken

    def _next_run(self) -> Records | None:
        run = self._rest or next(self.record_iterator or iter(()), None)
        if run is None or run.offsets[0] >= self.fetch_offset:
            return run
        # A batch is sent whole, though what was asked for begins within it.
        return run[bisect_left(run.offsets, self.fetch_offset) :]

    def _maybe_skip_record(self, run: Records) -> bool:
        return bool(run.offsets[-1] < self.fetch_offset)

    def _unpack_records(self, tp: KafkaPartition, records: Any, *deserializers: Any) -> Iterator[Records]:
        topic = tp.topic.removeprefix(self._prefix)
        if self.aborted_transactions:
            for each in super()._unpack_records(tp, records, *deserializers):
                one = Record(topic, tp.partition, each.offset, each.timestamp, each.key, each.value or b"")
                yield Records.of([one])
            return
        while (batch := records.next_batch()) is not None:
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError(f"the batch of {tp} at offset {batch.base_offset} fails its checksum")
            if batch.magic != 2:
                raise CorruptRecordError(f"the batch of {tp} at offset {batch.base_offset} is of a format before 2")
            self.leader_epoch = batch.leader_epoch
            if not batch.is_control_batch and batch.records_count:
                yield _plain(batch, topic, tp.partition)
            self.next_fetch_offset = batch.next_offset  # what compaction took from its end is passed too
        self.drain()


def _plain(batch: Any, topic: str, partition: int) -> Records:
    try:
        return plain_records(batch, topic, partition)
    except ValueError as error:
        raise CorruptRecordError(str(error)) from None


class KafkaLogConsumer(ConsumerRebalanceListener):  # type: ignore[misc]  # the client has no types
    """`LogConsumer` over a connected Kafka `client`, and the listener of its group's rebalances.

    `start_at` runs on the caller's thread. `released` runs, while the caller waits in `poll`, on the client's own
    thread (on the caller's in `close`): there it may ask for positions and commit, but not for `ends`, and must be done
    within the session's timeout. A rebalance takes all partitions away and gives each member its new share.
    """

    def __init__(
        self,
        client: Any,
        prefix: str,
        every: Sequence[KafkaPartition],
        group: str | None,
        start_at: StartAt,
        released: Released,
    ) -> None:
        self._client, self._prefix, self._group = client, prefix, group
        self._start_at, self._released = start_at, released
        self._positions: dict[TopicPartition, int] = {}  # of the partitions held for which `start_at` has answered
        self._gained: list[TopicPartition] = []
        self._failure: Exception | None = None
        self._closed = False
        client._fetcher.PartitionRecords = partial(_Records, prefix)
        if group is None:
            client.assign(every)
            self.on_partitions_assigned(every)
        else:
            client.subscribe(topics=sorted({where.topic for where in every}), listener=self)

    def poll(self, timeout_ms: int, max_records: int) -> Mapping[TopicPartition, Sequence[Record]]:
        """See `LogConsumer`. A broker that is gone shows as silence here, and as LogUnavailable from `ends`."""
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            self._place()
            left_ms = max(0, int((deadline - time.monotonic()) * 1000))
            found = {self._ours(where): runs for where, runs in self._fetch(left_ms, max_records).items()}
            if found:
                return {where: self._taken(where, runs) for where, runs in found.items()}
            if left_ms == 0:
                self._place()
                self._catch_up()
                return {}

    def assignment(self) -> frozenset[TopicPartition]:
        """See `LogConsumer`."""
        return frozenset(self._positions)

    def seek(self, where: TopicPartition, offset: int) -> None:
        """See `LogConsumer`."""
        self._must_hold(where)
        self._client.seek(self._theirs(where), offset)
        self._positions[where] = offset

    def ends(self) -> dict[TopicPartition, int]:
        """See `LogConsumer`."""
        with _answering("reading the log's ends", "how much is unread is not known"):
            found = self._client.end_offsets([self._theirs(where) for where in self._positions], timeout_ms=_ANSWER_MS)
        return {self._ours(where): offset for where, offset in found.items()}

    def position(self, where: TopicPartition) -> int:
        """See `LogConsumer`."""
        self._must_hold(where)
        return self._positions[where]

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """See `LogConsumer`. Sent without waiting for the answer; without a group there is nothing to tell."""
        if self._group is not None and positions:
            offsets = {self._theirs(where): OffsetAndMetadata(offset, "", -1) for where, offset in positions.items()}
            self._client.commit_async(offsets)

    def close(self) -> None:
        """See `LogConsumer`."""
        if self._closed:
            return
        self._closed = True
        try:
            self._release(sorted(self._positions))
        finally:
            with suppress(KafkaError, OSError):  # its partitions go to others when the session times out
                self._client.close(autocommit=False, timeout_ms=_ANSWER_MS)

    def on_partitions_assigned(self, assigned: Sequence[KafkaPartition]) -> None:
        """The client's call: nothing is fetched of these until `start_at` has said from where."""
        for where in assigned:
            self._client.seek(where, 0)  # else the client would look for a committed offset, and fail
            self._client.pause(where)
        self._gained = sorted(self._ours(where) for where in assigned)

    def on_partitions_revoked(self, revoked: Sequence[KafkaPartition]) -> None:
        """The client's call, before the group goes on (or, after it went on without us, before we join again)."""
        self._gained = []
        try:
            self._release(sorted({self._ours(where) for where in revoked} & self._positions.keys()))
        except Exception as error:
            self._failure = error  # the client wraps what it gets; `poll` raises what was meant
            raise

    def _release(self, partitions: Sequence[TopicPartition]) -> None:
        if partitions:
            self._released(partitions)
            for where in partitions:
                del self._positions[where]

    def _place(self) -> None:
        if self._gained:
            starts = self._start_at(self._gained)
            for where in self._gained:
                self._positions[where] = starts[where]
                self._client.seek(self._theirs(where), starts[where])
                self._client.resume(self._theirs(where))
            self._gained = []

    def _fetch(self, left_ms: int, max_records: int) -> Any:
        try:
            self._keep_joining()
            return self._client.poll(timeout_ms=min(left_ms, _SLICE_MS), max_records=max_records)
        except OffsetOutOfRangeError as error:
            raise self._out_of_range(dict(error.args[0])) from error
        except LogTruncationError as error:
            there = {where: self._positions[self._ours(where)] for where in error.divergent_offsets}
            raise self._out_of_range(there) from error
        except (KafkaError, OSError) as error:
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure from None
            raise LogUnavailable(f"Kafka failed at reading ({type(error).__name__}: {error}): nothing comes") from error

    def _keep_joining(self) -> None:
        """See through a join that outlasted the last poll: kafka-python 3.0 mishandles one that ends between polls.

        If its reason was new metadata it is forgotten, and the consumer holds nothing, without heartbeats, for ever;
        otherwise its result is thrown away and the whole group is made to join again, which can go on for ever too.
        """
        if self._group is not None and self._client.group_metadata().state == MemberState.REBALANCING:
            coordinator = self._client._coordinator
            coordinator.request_rejoin()
            task = coordinator._join_task
            if task is not None and task.is_done and task.succeeded():
                coordinator._join_task = _Joined(task.value)

    def _out_of_range(self, positions: Mapping[KafkaPartition, int]) -> LogUnavailable:
        (where, position), *_ = positions.items()
        with _answering("reading where the log begins", "the consumer stands where it cannot read on"):
            begin = self._client.beginning_offsets([where], timeout_ms=_ANSWER_MS)[where]
        return PositionGone(self._ours(where), position, begin)

    def _taken(self, where: TopicPartition, runs: Sequence[Records]) -> Records:
        self._positions[where] = runs[-1].offsets[-1] + 1
        return Records.joined(runs)

    def _catch_up(self) -> None:
        """Count what is no record to us (the marks that end transactions) as passed, so that positions reach ends."""
        with _answering("reading positions", "they may lag behind the ends"):
            for where, position in self._positions.items():
                passed = self._client.position(self._theirs(where), timeout_ms=0)
                self._positions[where] = max(position, passed or 0)

    def _ours(self, where: KafkaPartition) -> TopicPartition:
        return TopicPartition(where.topic.removeprefix(self._prefix), where.partition)

    def _theirs(self, where: TopicPartition) -> KafkaPartition:
        return KafkaPartition(self._prefix + where.topic, where.partition)

    def _must_hold(self, where: TopicPartition) -> None:
        if where not in self._positions:
            raise ValueError(f"{where.topic}/{where.partition} is not held by this consumer")
