"""The commands behind the Redis event log: streams as partitions, a hash a topic, and what they answer as offsets.

An offset is the stream id as one integer, ``milliseconds << 20 | sequence``; the milliseconds are the append time. A
topic's hash holds its identity, and how far each partition was trimmed. One server, no Redis Cluster: a read waits on
several streams at once.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from feature_repo.stores.redis_client import Redis, RedisError
from ingestion.events import PREDICTIONS
from ingestion.log import LogUnavailable, Message, TopicPartition

PREDICTIONS_KEPT_MS = 3_600_000
"""Predictions are kept for an hour at most, here in the server's memory: nothing is folded from them, and each is as
long as ten events. The archive has them within minutes."""

_SEQUENCE_BITS = 20
_MAX_SEQUENCE = (1 << _SEQUENCE_BITS) - 1
_CHUNK = 500  # messages a script call: a few milliseconds in which the server answers nobody else

_APPEND = """
-- KEYS: stream, topic hash. ARGV: append ms or '', retention ms or '', partition, then key and value by turns.
local clock = redis.call('TIME')
local ms = tonumber(ARGV[1]) or (clock[1] * 1000 + math.floor(clock[2] / 1000))
local seq, first_ms = -1, nil
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local last_ms, last_seq = string.match(info[i + 1], '(%d+)-(%d+)')
      if tonumber(last_ms) >= ms then ms, seq = tonumber(last_ms), tonumber(last_seq) end
    elseif info[i] == 'first-entry' and info[i + 1] then
      first_ms = tonumber(string.match(info[i + 1][1], '%d+'))
    end
  end
end
for i = 4, #ARGV, 2 do
  seq = seq + 1
  if seq > 1048575 then ms, seq = ms + 1, 0 end
  redis.call('XADD', KEYS[1], string.format('%.0f-%.0f', ms, seq), 'k', ARGV[i], 'v', ARGV[i + 1])
end
local keep = ARGV[2] ~= '' and ms - ARGV[2]
if keep and first_ms and first_ms < keep - ARGV[2] / 20 then
  local bound = string.format('%.0f', keep)
  local last_gone = redis.call('XREVRANGE', KEYS[1], '(' .. bound .. '-0', '-', 'COUNT', 1)
  redis.call('HSET', KEYS[2], 'gone:' .. ARGV[3], last_gone[1][1])
  redis.call('XTRIM', KEYS[1], 'MINID', bound)
end
return #ARGV
"""


def offset_of(stream_id: bytes) -> int:
    """The offset of a stream id. Raises LogUnavailable for one that our own writer does not make."""
    ms, _, sequence = stream_id.partition(b"-")
    if int(sequence) > _MAX_SEQUENCE:
        raise LogUnavailable(f"stream id {stream_id.decode()} does not fit an offset: something else writes this log")
    return int(ms) << _SEQUENCE_BITS | int(sequence)


def stream_id_of(offset: int) -> str:
    """The stream id of an offset."""
    return f"{offset >> _SEQUENCE_BITS}-{offset & _MAX_SEQUENCE}"


def append_ms_of(offset: int) -> int:
    """When the record at `offset` was appended."""
    return offset >> _SEQUENCE_BITS


@contextmanager
def answering(doing: str, so: str) -> Iterator[None]:
    """Turn what the Redis client raises into LogUnavailable: what failed, and what follows."""
    try:
        yield
    except RedisError as error:
        raise LogUnavailable(f"the event log in Redis failed at {doing} ({error}): {so}") from error


class Streams:
    """The streams of one prefix on one server. Every call raises LogUnavailable where the server does not answer."""

    def __init__(self, client: Redis, prefix: str, retention_ms: int | None) -> None:
        self._client, self._prefix = client, prefix
        self._retention_ms = retention_ms

    def create(self, topic: str, partitions: int) -> None:
        """Make the topic unless it is there: one field, so that count and identity come into being together."""
        with answering(f"creating topic {topic}", "it may not be there"):
            self._client.hsetnx(self._topic_key(topic), "identity", f"{uuid.uuid4().hex}:{partitions}")

    def identity(self, topic: str) -> str:
        """What `create` wrote: random text, a colon, the number of partitions."""
        with answering(f"reading about topic {topic}", "nothing is known of it"):
            identity: Any = self._client.hget(self._topic_key(topic), "identity")
        if identity is None:
            raise LogUnavailable(f"topic {topic} is not in the event log: create it before it is used")
        return str(identity, "ascii")

    def partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        """Every partition of `topics`."""
        counts = {topic: int(self.identity(topic).rpartition(":")[2]) for topic in topics}
        return [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]

    def append(self, messages: Mapping[TopicPartition, Sequence[Message]], append_ms: int | None) -> None:
        """Append to each partition, in order, each chunk at once; trims what is older than the retention."""
        stamp = "" if append_ms is None else str(append_ms)
        kept = {topic: self._retention_of(topic) for topic in {where.topic for where in messages}}
        with answering("publishing", "some of the messages may be in the log, the others are not"):
            pipe = self._client.pipeline(transaction=False)
            for where, each in messages.items():
                keys = (self._stream_key(where), self._topic_key(where.topic))
                head = (*keys, stamp, kept[where.topic], where.partition)
                for at in range(0, len(each), _CHUNK):
                    words = [word for message in each[at : at + _CHUNK] for word in message]
                    pipe.eval(_APPEND, 2, *head, *words)
            pipe.execute()

    def _retention_of(self, topic: str) -> str:
        if self._retention_ms is None:
            return ""
        return str(min(self._retention_ms, PREDICTIONS_KEPT_MS) if topic == PREDICTIONS else self._retention_ms)

    def read(
        self, positions: Mapping[TopicPartition, int], block_ms: int, count: int
    ) -> list[tuple[TopicPartition, list[tuple[bytes, dict[bytes, bytes]]]]]:
        """Up to `count` entries of each partition from its position on, waiting up to `block_ms` if there are none."""
        after: Any = {self._stream_key(p): stream_id_of(max(0, offset - 1)) for p, offset in positions.items()}
        with answering("reading", "nothing is consumed until it answers"):
            answer: Any = self._client.xread(after, count=count, block=block_ms or None)
        by_key = {self._stream_key(p).encode(): p for p in positions}
        return [(by_key[key], entries) for key, entries in answer]

    def first_since(self, where: TopicPartition, append_ms: int) -> int | None:
        """The lowest offset appended at or after `append_ms`; None if there is none."""
        with answering(f"searching {where.topic}", "where its time begins is not known"):
            found: Any = self._client.xrange(self._stream_key(where), min=str(max(0, append_ms)), count=1)
        return offset_of(found[0][0]) if found else None

    def bounds(self, where: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """The lowest offset there and the offset above the last ever appended, of each partition; (0, 0) if none."""
        with answering("reading the log's ends", "how much is unread is not known"):
            pipe = self._client.pipeline(transaction=False)
            for partition in where:
                pipe.xinfo_stream(self._stream_key(partition))
            answers = pipe.execute(raise_on_error=False)
            return {p: _bounds(answer) for p, answer in zip(where, answers, strict=True)}

    def gone(self, where: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The last offset trimmed, of each partition; -1 where nothing was."""
        with answering("reading what was trimmed", "records might be passed over unseen"):
            pipe = self._client.pipeline(transaction=False)
            for topic, number in where:
                pipe.hget(self._topic_key(topic), f"gone:{number}")
            answers = pipe.execute()
        return {p: offset_of(answer) if answer else -1 for p, answer in zip(where, answers, strict=True)}

    def note(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """Keep a group's positions, for monitoring."""
        with answering("noting positions", "monitoring shows old ones; nothing else depends on them"):
            fields: Any = {f"{p.topic}:{p.partition}": offset for p, offset in positions.items()}
            self._client.hset(f"{self._prefix}group:{group}", mapping=fields)

    def _topic_key(self, topic: str) -> str:
        return f"{self._prefix}log:{topic}"

    def _stream_key(self, where: TopicPartition) -> str:
        return f"{self._prefix}log:{where.topic}:{where.partition}"


def _bounds(answer: Any) -> tuple[int, int]:
    if isinstance(answer, RedisError):
        if "no such key" in str(answer):
            return 0, 0
        raise answer
    last = offset_of(answer["last-generated-id"])
    end = last + 1 if last else 0
    first = answer["first-entry"]
    return (offset_of(first[0]) if first else end), end
