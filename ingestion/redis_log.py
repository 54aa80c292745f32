"""The event log as Redis streams, in the online store's own server: `EventLog` where no Kafka is named."""

import platform
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress

from feature_repo.stores.redis_client import Redis
from ingestion.log import LogUnavailable, Message, PositionGone, Record, Released, StartAt, TopicPartition
from ingestion.partitioner import partition_of
from ingestion.redis_leases import Leases
from ingestion.redis_streams import Streams, answering, append_ms_of, offset_of

DAY_MS = 86_400_000
_LONGEST_BLOCK_MS = 1000


class RedisLog:
    """`EventLog` over Redis streams. Acknowledged records are as durable as the server's append-only file.

    Records older than `retention_ms` are trimmed as new ones come (None: never). A consumer of a group holds its
    partitions by leases of `lease_ms`; `worker_id` begins its name, for people who look into the server.
    """

    def __init__(
        self,
        client: Redis,
        prefix: str = "",
        worker_id: str | None = None,
        retention_ms: int | None = DAY_MS,
        lease_ms: int = 10_000,
    ) -> None:
        self._client, self._prefix, self._lease_ms = client, prefix, lease_ms
        self._worker_id = worker_id or platform.node()
        self._streams = Streams(client, prefix, retention_ms)

    def create_topics(self, topics: Sequence[str], partitions: int) -> None:
        """See `EventLog`."""
        for topic in topics:
            self._streams.create(topic, partitions)

    def topic_identity(self, topic: str) -> str:
        """See `EventLog`."""
        return self._streams.identity(topic)

    def partitions(self, topic: str) -> int:
        """See `EventLog`."""
        return len(self._streams.partitions([topic]))

    def publish(self, topic: str, messages: Sequence[Message], append_ms: int | None = None) -> list[TopicPartition]:
        """See `EventLog`. Where a partition's newest record is later than `append_ms`, that record's time is taken."""
        count = self.partitions(topic)
        placed = [TopicPartition(topic, partition_of(message.key, count)) for message in messages]
        by_partition: dict[TopicPartition, list[Message]] = {}
        for message, where in zip(messages, placed, strict=True):
            by_partition.setdefault(where, []).append(message)
        self._streams.append(by_partition, append_ms)
        return placed

    def begins(self, topic: str) -> dict[TopicPartition, int]:
        """See `EventLog`."""
        gone = self._streams.gone(self._streams.partitions([topic]))
        return {where: last_gone + 1 for where, last_gone in gone.items()}

    def offset_at(self, where: TopicPartition, append_ms: int) -> int:
        """See `EventLog`."""
        found = self._streams.first_since(where, append_ms)
        return self._streams.bounds([where])[where][1] if found is None else found

    def consumer(
        self,
        topics: Sequence[str],
        group: str | None,
        start_at: StartAt,
        released: Released = lambda gone: None,
    ) -> "RedisConsumer":
        """See `EventLog`. A member that dies loses its partitions when its leases end."""
        every = self._streams.partitions(topics)
        timeout_s = self._client.get_connection_kwargs().get("socket_timeout") or 2.0
        block_ms = int(
            min(_LONGEST_BLOCK_MS, timeout_s * 500)
        )  # the socket must not time out before the server answers
        shared = None
        if group is not None:
            member = f"{self._worker_id}-{uuid.uuid4().hex[:12]}"
            shared = Leases(self._client, self._prefix, group, member, every, self._lease_ms)
        return RedisConsumer(self._streams, every, group, shared, start_at, released, block_ms)

    def close(self) -> None:
        """See `EventLog`. Idle connections are dropped; the client, which may be shared, stays usable."""
        self._client.close()


class RedisConsumer:
    """`LogConsumer` over `streams`. Its callbacks run on the caller's thread.

    `leases` None: it holds all of `every`, and nobody takes them away.
    """

    def __init__(
        self,
        streams: Streams,
        every: Sequence[TopicPartition],
        group: str | None,
        leases: Leases | None,
        start_at: StartAt,
        released: Released,
        block_ms: int,
    ) -> None:
        self._streams, self._every, self._group, self._leases = streams, every, group, leases
        self._start_at, self._released, self._block_ms = start_at, released, block_ms
        self._positions: dict[TopicPartition, int] = {}  # of the partitions held for which `start_at` has answered
        self._unchecked: set[TopicPartition] = set()
        self._closed = False

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Record]]:
        """See `LogConsumer`. Raises PositionGone where records at the position were trimmed unread."""
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            self._settle()
            left_ms = max(0, int((deadline - time.monotonic()) * 1000))
            records = self._read(min(left_ms, self._block_ms), max_records)
            if self._leases is not None and self._leases.may_have_ended():
                continue  # this process was paused: what it read may be another's by now
            self._check(records)
            for where, batch in records.items():
                self._positions[where] = batch[-1].offset + 1
            if records or left_ms == 0:
                return records

    def assignment(self) -> frozenset[TopicPartition]:
        """See `LogConsumer`."""
        return frozenset(self._positions)

    def seek(self, where: TopicPartition, offset: int) -> None:
        """See `LogConsumer`."""
        self._must_hold(where)
        self._positions[where] = offset
        self._unchecked.add(where)

    def ends(self) -> dict[TopicPartition, int]:
        """See `LogConsumer`."""
        return {where: end for where, (_, end) in self._streams.bounds(sorted(self._positions)).items()}

    def position(self, where: TopicPartition) -> int:
        """See `LogConsumer`."""
        self._must_hold(where)
        return self._positions[where]

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """See `LogConsumer`. Without a group there is nothing to tell."""
        if self._group is not None and positions:
            self._streams.note(self._group, positions)

    def close(self) -> None:
        """See `LogConsumer`."""
        if self._closed:
            return
        self._closed = True
        try:
            self._release(sorted(self._positions))
        finally:
            if self._leases is not None:
                with suppress(LogUnavailable), answering("leaving the group", "the leases end by themselves"):
                    self._leases.leave()

    def _settle(self) -> None:
        """Renew, give up and take partitions where that is due, and learn where to read those that are new."""
        held: Sequence[TopicPartition] = self._every
        if self._leases is not None:
            if self._leases.due():
                self._share(self._leases)
            held = sorted(self._leases.held)
        gained = [where for where in held if where not in self._positions]
        if gained:
            starts = self._start_at(gained)
            for where in gained:
                self._positions[where] = starts[where]
            self._unchecked.update(gained)

    def _share(self, leases: Leases) -> None:
        with answering("renewing leases", "another consumer may take the partitions over"):
            lost = leases.renew()
        self._release([where for where in sorted(lost) if where in self._positions])
        leases.held -= lost
        surplus = leases.surplus()
        self._release([where for where in surplus if where in self._positions])
        with answering("sharing partitions", "they stay as they are until it answers"):
            leases.give_up(surplus)
            leases.claim()

    def _release(self, partitions: Sequence[TopicPartition]) -> None:
        if partitions:
            self._released(partitions)
            for where in partitions:
                del self._positions[where]
                self._unchecked.discard(where)

    def _read(self, block_ms: int, max_records: int) -> dict[TopicPartition, list[Record]]:
        """Up to `max_records`, shared evenly among the partitions that have any."""
        if not self._positions:
            waiting_ms = block_ms if self._leases is None else min(block_ms, self._leases.wait_ms())
            time.sleep(waiting_ms / 1000)
            return {}
        records: dict[TopicPartition, list[Record]] = {}
        positions, left = dict(self._positions), max_records
        while positions and left > 0:
            count = -(-left // len(positions))
            more = {}
            for where, entries in self._streams.read(positions, 0 if records else block_ms, count):
                batch = [_record(where, *entry) for entry in entries[:left]]
                if batch:
                    records.setdefault(where, []).extend(batch)
                    left -= len(batch)
                if len(entries) == count:
                    more[where] = batch[-1].offset + 1 if batch else positions[where]
            positions = more
        return records

    def _check(self, records: Mapping[TopicPartition, list[Record]]) -> None:
        """Raise PositionGone if anything between a position and what was read after it has been trimmed unread."""
        suspects = sorted(self._unchecked | records.keys())
        if not suspects:
            return
        for where, last_gone in self._streams.gone(suspects).items():
            if self._positions[where] <= last_gone:
                raise PositionGone(where, self._positions[where], last_gone + 1)
        self._unchecked.clear()

    def _must_hold(self, where: TopicPartition) -> None:
        if where not in self._positions:
            raise ValueError(f"{where.topic}/{where.partition} is not held by this consumer")


def _record(where: TopicPartition, stream_id: bytes, fields: Mapping[bytes, bytes]) -> Record:
    offset = offset_of(stream_id)
    return Record(*where, offset, append_ms_of(offset), fields[b"k"], fields[b"v"])
