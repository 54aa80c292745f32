"""The writing side of the online store's streams: fenced tile fields, progress by compare-and-set, seen ids, presence.

Used by the worker alone. Holds no state: what a field is, is what the store says.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from feature_repo.stores import layout, scripts
from feature_repo.stores.progress import Progress
from feature_repo.stores.redis_client import Redis
from feature_repo.views import PresenceView

_SEEN = struct.Struct(">QQ")
_REGISTER = struct.Struct(">QIQQ")
_BIAS = 2**63
_SEEN_EXPIRES_S = 7 * 86_400  # for what nobody is left to forget: buckets of epochs gone by
_PRESENCE_CHUNK = 500  # events a script call: Redis answers nobody else meanwhile
_SCAN_CHUNK = 1000


class FieldWrite(NamedTuple):
    """A field to write, if its stored header is still `expected` (b"" if there was no field)."""

    key: bytes
    field: bytes
    expected: bytes
    value: bytes


class PresenceEvent(NamedTuple):
    """A member's state in a group at a time, with the event's place in the log."""

    member: str
    time: int
    offset: int
    state: str
    group: str


class StreamStore:
    """The stream side of one project's online store. Every method raises one of `redis_client.STORE_DOWN`."""

    def __init__(self, client: Redis, project: str) -> None:
        self._client, self._project = client, project
        self._fenced_write = client.register_script(scripts.FENCED_WRITE)
        self._swap_field = client.register_script(scripts.SWAP_FIELD)
        self._presence_apply = client.register_script(scripts.PRESENCE_APPLY)
        self._presence_purge = client.register_script(scripts.PRESENCE_PURGE)

    def progress(self, topic: str, partition: int) -> Progress | None:
        """A partition's progress as stored."""
        data: Any = self._client.hget(layout.progress_key(self._project, topic), str(partition))  # type: ignore[arg-type]
        return None if data is None else Progress.unpack(data)

    def swap_progress(self, topic: str, partition: int, expected: Progress | None, new: Progress) -> Progress | None:
        """Store `new` if `expected` is what is stored. Returns None if it was, else what is stored instead."""
        answer: Any = self._swap_field(
            keys=[layout.progress_key(self._project, topic)],
            args=[str(partition), expected.pack() if expected else b"", new.pack()],
        )
        if answer[0]:
            return None
        return Progress.unpack(answer[1]) if answer[1] else _NOTHING

    def describe_topic(self, topic: str, partitions: int, views: int, hashes: Sequence[str]) -> None:
        """Say how many partitions must be fresh before a feature of the topic is, and what a progress' `views` means.

        `hashes` are the `tiles_hash`es of the views that are folded under it.
        """
        said: Any = {layout.PARTITION_COUNT: str(partitions), layout.views_field(views): " ".join(hashes)}
        self._client.hset(str(layout.progress_key(self._project, topic), "utf-8"), mapping=said)

    def read_fields(
        self, topic: str, partition: int, wanted: Sequence[tuple[bytes, bytes]]
    ) -> tuple[Progress | None, list[bytes | None]]:
        """A partition's progress, then the bytes of (key, field) pairs, in their order; of one run of the server."""
        pipe = self._client.pipeline(transaction=False)
        pipe.hget(layout.progress_key(self._project, topic), str(partition))  # type: ignore[arg-type]
        for key, field in wanted:
            pipe.hget(key, field)  # type: ignore[arg-type]  # redis-py types names as text
        progress, *fields = pipe.execute()
        return None if progress is None else Progress.unpack(progress), fields

    def write_fields(self, writes: Sequence[FieldWrite]) -> list[bool]:
        """Write each field unless its header changed meanwhile: which were written."""
        pipe = self._client.pipeline(transaction=False)
        for write in writes:
            self._fenced_write(keys=[write.key], args=[write.field, write.expected, write.value], client=pipe)
        return [bool(answer[0]) for answer in pipe.execute()]

    def note_seen(self, topic: str, partition: int, epoch: int, seen: Mapping[int, Sequence[tuple[int, int]]]) -> None:
        """Append (id hash, offset) pairs to their buckets. Facts about the log: repeating them changes nothing."""
        pipe = self._client.pipeline(transaction=False)
        for bucket, pairs in seen.items():
            key = layout.seen_key(self._project, topic, partition, epoch, bucket)
            pipe.append(key, b"".join(_SEEN.pack(*pair) for pair in pairs))
            pipe.expire(key, _SEEN_EXPIRES_S)
        pipe.execute()

    def forget_seen(self, topic: str, partition: int, epoch: int, buckets: Sequence[int]) -> None:
        """Drop whole buckets."""
        if buckets:
            self._client.unlink(*(layout.seen_key(self._project, topic, partition, epoch, b) for b in buckets))

    def seen(self, topic: str, partition: int, epoch: int, buckets: Iterable[int]) -> dict[int, list[tuple[int, int]]]:
        """The (id hash, offset) pairs of each of the buckets."""
        wanted = list(buckets)
        pipe = self._client.pipeline(transaction=False)
        for bucket in wanted:
            pipe.get(layout.seen_key(self._project, topic, partition, epoch, bucket))
        found = zip(wanted, pipe.execute(), strict=True)
        return {bucket: [(pair[0], pair[1]) for pair in _SEEN.iter_unpack(data)] for bucket, data in found if data}

    def apply_presence(
        self, view: PresenceView, topic: str, partition: int, epoch: int, events: Sequence[PresenceEvent]
    ) -> None:
        """Move members to where their latest events put them; in any order, any number of times."""
        number = layout.log_number(view, topic, partition)
        base = layout.presence_base(self._project, view)
        iterator = iter(events)
        while chunk := list(islice(iterator, _PRESENCE_CHUNK)):
            newest, last = max(e.time for e in chunk), max(e.offset for e in chunk)
            args: list[Any] = [number, epoch.to_bytes(8, "big"), last.to_bytes(8, "big"), newest, view.ttl]
            for e in chunk:
                register = _REGISTER.pack(e.time + _BIAS, number, e.offset, epoch)
                state, group = e.state.encode(), e.group.encode()
                args += [e.member, register + state + b"\0" + group, e.time, state, group]
            self._presence_apply(keys=[base], args=args)

    def purge_presence(self, view: PresenceView, topic: str, partition: int, epoch: int) -> None:
        """Forget the members whose state comes from this partition's log of an earlier epoch, and its newest time."""
        number = layout.log_number(view, topic, partition)
        base = layout.presence_base(self._project, view)
        members = (name for name, _ in self._client.hscan_iter(base + b":m", count=_SCAN_CHUNK))  # type: ignore[arg-type]
        head: list[Any] = [number, epoch.to_bytes(8, "big")]
        self._presence_purge(keys=[base], args=head)
        while chunk := list(islice(members, _SCAN_CHUNK)):
            self._presence_purge(keys=[base], args=[*head, *chunk])


_NOTHING = Progress(0, 0, 0, 0, 0, 0, 0)
"""What `swap_progress` returns where a progress was expected and none is stored: of an epoch older than any."""
