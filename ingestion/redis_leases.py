"""How consumers of a group share the partitions of a Redis event log: a lease each, renewed while its holder lives."""

import time
from collections.abc import Sequence
from typing import Any

from feature_repo.stores.redis_client import Redis
from ingestion.log import TopicPartition

_BEAT = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], 10 * ARGV[2])
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_GIVE_UP = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
_EAGER_MS = 200


class Leases:
    """One member's view of a group: what it holds, and what it should. The store's errors pass through.

    Members of a group read the same topics. A lease ends `lease_ms` after its last renewal, by the server's clock, so
    a member that was paused learns here, before it reads on, that its partitions went to others.
    """

    def __init__(
        self, client: Redis, prefix: str, group: str, member: str, partitions: Sequence[TopicPartition], lease_ms: int
    ) -> None:
        self._client, self._member, self._lease_ms = client, member, lease_ms
        self._members = f"{prefix}group:{group}:members"
        self._keys = {p: f"{prefix}group:{group}:lease:{p.topic}:{p.partition}" for p in sorted(partitions)}
        self._due = 0.0
        self._renewed = 0.0
        self._rank, self._share = 0, 0
        self.held: set[TopicPartition] = set()

    def due(self) -> bool:
        """Whether it is time to renew: every third of a lease, and oftener while this member holds too little."""
        return time.monotonic() >= self._due

    def wait_ms(self) -> int:
        """How long until it is time."""
        return max(0, int((self._due - time.monotonic()) * 1000))

    def may_have_ended(self) -> bool:
        """Whether so long has passed since the last renewal that others may hold what this member thinks it holds."""
        return (time.monotonic() - self._renewed) * 1000 >= self._lease_ms

    def renew(self) -> set[TopicPartition]:
        """Say that this member lives, renew what it holds and reckon its share. Returns what it holds no longer."""
        started = time.monotonic()
        pipe = self._client.pipeline(transaction=False)
        pipe.eval(_BEAT, 1, self._members, self._member, self._lease_ms)
        held = sorted(self.held)
        for partition in held:
            pipe.eval(_RENEW, 1, self._keys[partition], self._member, self._lease_ms)
        members, *renewed = pipe.execute()
        self._renewed = started
        ranked = sorted(members)
        self._rank = ranked.index(self._member.encode())
        whole, rest = divmod(len(self._keys), len(ranked))
        self._share = whole + (self._rank < rest)
        return {partition for partition, alive in zip(held, renewed, strict=True) if not alive}

    def surplus(self) -> list[TopicPartition]:
        """What this member must give up so that the others get their share."""
        return sorted(self.held)[self._share :]

    def give_up(self, partitions: Sequence[TopicPartition]) -> None:
        """Let others have `partitions`."""
        if partitions:
            pipe = self._client.pipeline(transaction=False)
            for partition in partitions:
                pipe.eval(_GIVE_UP, 1, self._keys[partition], self._member)
            pipe.execute()
            self.held -= set(partitions)

    def claim(self) -> None:
        """Take free partitions up to this member's share."""
        missing = self._share - len(self.held)
        if missing > 0:
            names = list(self._keys)
            start = self._rank * self._share % len(names)  # members that start together try different ones first
            wanted = [p for p in names[start:] + names[:start] if p not in self.held]
            owners: Any = self._client.mget([self._keys[p] for p in wanted])
            for partition in [p for p, owner in zip(wanted, owners, strict=True) if owner is None][:missing]:
                if self._client.set(self._keys[partition], self._member, nx=True, px=self._lease_ms):
                    self.held.add(partition)
        short = len(self.held) < self._share
        wait_ms = min(self._lease_ms / 3, _EAGER_MS if short else self._lease_ms)
        self._due = self._renewed + wait_ms / 1000

    def leave(self) -> None:
        """Give up everything and the membership."""
        self.give_up(sorted(self.held))
        self._client.zrem(self._members, self._member)
