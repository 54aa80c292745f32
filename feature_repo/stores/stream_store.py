"""The writing side of the online store's streams: fenced tile fields, progress by compare-and-set, seen ids, presence,
and which definitions are served.

Used by what writes: workers, a backfill, the parity run. Holds no state: what a field is, is what the store says.
"""

import struct
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_repo.settings import Settings
from feature_repo.stores import layout, scripts
from feature_repo.stores.progress import Progress
from feature_repo.stores.redis_client import Redis, ServerRun, StoreGone, connect
from feature_repo.stores.served import Served, Switch, served_from, served_hash
from feature_repo.views import PresenceView, StreamView

Ints = NDArray[np.int64]

_SEEN = struct.Struct(">QQ")
_REGISTER = struct.Struct(">QIQQ")
_BIAS = 2**63
_PRESENCE_MEMBERS = 1000  # at most, a script call: Redis answers nobody else meanwhile
_PRESENCE_STEP = 100
_SCAN_CHUNK = 1000
_SENT_AT_ONCE = 64 * 1024  # bytes: each time costs a call, and wakes the server
_WRITE_CHUNK = 200


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


class PresenceCall(NamedTuple):
    """Of some events the latest of each member; the newest time and the highest offset of all of them."""

    moves: Sequence[PresenceEvent]
    newest: int
    offset: int


class Swap(NamedTuple):
    """A view's progress to store, if `expected` (None: nothing) is what is stored."""

    tiles_hash: str
    expected: Progress | None
    new: Progress


class SeenPlace(NamedTuple):
    """Of which log's partition ids are kept. Those kept at the `side` are no worker's of the group to forget."""

    topic: str
    log: int
    partition: int
    side: bool


class SeenNote(NamedTuple):
    """Ids to keep: of buckets the (id hash, offset) pairs, for so many seconds at most.

    A pair is two whole numbers without sign of 8 bytes, big-endian; pairs stand one behind the other.
    """

    place: SeenPlace
    seen: Mapping[int, bytes]
    expires_s: int


class StreamStore:
    """The stream side of one project's online store. Every method raises one of `redis_client.STORE_DOWN`.

    `run` is that of `client`: within it all that is written goes to one run of the server, or raises.
    """

    def __init__(self, client: Redis, project: str, run: ServerRun | None = None) -> None:
        self._client, self.project = client, project
        self.run = run or ServerRun()
        self._replace_hash = client.register_script(scripts.REPLACE_HASH)
        self._line: Any = None  # a connection on which is sent first, and read later
        self._outgoing = bytearray()
        self._unanswered: deque[list[bool]] = deque()
        self._given_up = False  # something that was sent since `ready`
        self._presence_purge = client.register_script(scripts.PRESENCE_PURGE)

    def served(self) -> Served:
        """The definitions that are served."""
        reply: Any = self._client.hgetall(str(layout.served_key(self.project), "utf-8"))
        return served_from(reply)

    def served_digest(self) -> bytes:
        """What changes with them; b"" if there are none."""
        digest: Any = self._client.hget(layout.served_key(self.project), layout.SERVED_DIGEST)  # type: ignore[arg-type]
        return digest or b""

    def serve(self, views: Iterable[StreamView], switches: Mapping[str, Switch], expected: bytes = b"") -> bool:
        """Serve `views` and nothing else from now on; False if what is served by now has not the digest `expected`."""
        said = served_hash(views, switches)
        flat = [word for pair in said.items() for word in pair]
        args: list[Any] = [layout.SERVED_DIGEST, expected, *flat]
        return bool(self._replace_hash(keys=[layout.served_key(self.project)], args=args))

    def progress(self, topic: str, partition: int, tiles_hash: str) -> Progress | None:
        """A view's progress in a partition, as stored."""
        place = layout.progress_field(tiles_hash, partition)
        data: Any = self._client.hget(layout.progress_key(self.project, topic), place)  # type: ignore[arg-type]
        return None if data is None else Progress.unpack(data)

    def swap_progress(self, topic: str, partition: int, swaps: Sequence[Swap]) -> list[Progress | None]:
        """Store each new progress if its expected one is what is stored: of each None if it was, else what is."""
        return self.swap_all([(topic, partition, swap) for swap in swaps])

    def swap_all(self, swaps: Sequence[tuple[str, int, Swap]]) -> list[Progress | None]:
        """The same, of several topics and partitions."""
        pipe = self._client.pipeline(transaction=False)
        for topic, partition, swap in swaps:
            key, expected = layout.progress_key(self.project, topic), swap.expected.pack() if swap.expected else b""
            args = [layout.progress_field(swap.tiles_hash, partition), expected, swap.new.pack()]
            pipe.eval(scripts.SWAP_FIELD, 1, key, *args)
        answers = pipe.execute()
        return [None if done else Progress.unpack(stored[0]) if stored[0] else _NOTHING for done, *stored in answers]

    def describe_topic(self, topic: str, partitions: int) -> None:
        """Say how many partitions must be fresh before a feature of the topic is."""
        name: Any = layout.PARTITION_COUNT
        self._client.hset(str(layout.progress_key(self.project, topic), "utf-8"), name, str(partitions))

    def read_fields(
        self, topic: str, partition: int, tiles_hash: str, wanted: Sequence[tuple[bytes, bytes]]
    ) -> tuple[Progress | None, list[bytes | None]]:
        """A view's progress in a partition, then the bytes of (key, field) pairs, in their order; of one server run."""
        pipe = self._client.pipeline(transaction=False)
        place = layout.progress_field(tiles_hash, partition)
        pipe.hget(layout.progress_key(self.project, topic), place)  # type: ignore[arg-type]
        for key, field in wanted:
            pipe.hget(key, field)  # type: ignore[arg-type]  # redis-py types names as text
        progress, *fields = pipe.execute()
        return None if progress is None else Progress.unpack(progress), fields

    def write_fields(self, writes: Sequence[FieldWrite]) -> list[bool]:
        """Write each field unless its header changed meanwhile: which were written."""
        self.ready()
        answers = self.send_fields(writes)
        self.settle()
        return answers

    def send_fields(self, writes: Sequence[FieldWrite]) -> list[bool]:
        """What `write_fields` does, but that it does not wait: the answers are in the list when `settle` is done."""
        commands: list[tuple[Any, ...]] = []
        for at in range(0, len(writes), _WRITE_CHUNK):
            chunk = writes[at : at + _WRITE_CHUNK]
            keys = [write.key for write in chunk]
            args = chain.from_iterable([write[1:] for write in chunk])
            commands.append(("EVAL", scripts.FENCED_WRITE, len(chunk), *keys, *args))
        answers: list[bool] = []
        self._send(commands, answers)
        return answers

    def note_seen(self, notes: Sequence[SeenNote]) -> None:
        """Append ids to their buckets. Facts about the log: repeating them changes nothing."""
        pipe = self._client.pipeline(transaction=False)
        for place, seen, expires_s in notes:
            for bucket, pairs in seen.items():
                key = self._seen_key(place, bucket)
                pipe.append(key, pairs)
                pipe.expire(key, expires_s)
        pipe.execute()

    def forget_seen(self, place: SeenPlace, buckets: Sequence[int]) -> None:
        """Drop whole buckets."""
        if buckets:
            self._client.unlink(*(self._seen_key(place, bucket) for bucket in buckets))

    def seen(self, place: SeenPlace, buckets: Iterable[int]) -> list[tuple[int, list[tuple[int, int]]]]:
        """Of each of the buckets, the (id hash, offset) pairs kept there, and of those kept at the side too."""
        wanted = [(bucket, side) for bucket in buckets for side in (False, True)]
        pipe = self._client.pipeline(transaction=False)
        for bucket, side in wanted:
            pipe.get(self._seen_key(place._replace(side=side), bucket))
        found = zip(wanted, pipe.execute(), strict=True)
        return [(bucket, list(_SEEN.iter_unpack(data))) for (bucket, _), data in found if data]

    def _seen_key(self, place: SeenPlace, bucket: int) -> bytes:
        return layout.seen_key(self.project, place.topic, place.log, place.partition, bucket, place.side)

    def apply_presence(
        self, view: PresenceView, topic: str, partition: int, epoch: int, events: Sequence[PresenceEvent]
    ) -> None:
        """Move members to where their latest events put them; in any order, any number of times."""
        members = [event.member for event in events]
        times, offsets = np.array([e.time for e in events], np.int64), np.array([e.offset for e in events], np.int64)
        self.ready()
        calls = presence_calls(members, times, offsets, events.__getitem__)
        self.send_presence(view, topic, partition, epoch, calls)
        self.settle()

    def ready(self) -> None:
        """Connect for what is sent and waited for later, if need be."""
        if self._line is None:
            self._line = self._client.connection_pool.get_connection()
            self._client.ping()  # so that there is another for what is asked meanwhile
        self._line.connect()
        self._given_up = False

    def send_presence(
        self, view: PresenceView, topic: str, partition: int, epoch: int, calls: Iterable[PresenceCall]
    ) -> None:
        """What `apply_presence` does, but that it does not wait until it is done: `settle` does."""
        number = layout.log_number(view, topic, partition)
        base = layout.presence_base(self.project, view)
        head = [number, epoch.to_bytes(8, "big")]
        tails: dict[tuple[str, str], bytes] = {}
        commands: list[tuple[Any, ...]] = []
        for moves, newest, last in calls:
            args: list[Any] = [*head, last.to_bytes(8, "big"), newest, view.ttl]
            for member, time, offset, state, group in moves:
                tail = tails.get((state, group))
                if tail is None:
                    tail = tails[state, group] = state.encode() + b"\0" + group.encode()
                args += (member, _REGISTER.pack(time + _BIAS, number, offset, epoch) + tail, time)
            commands.append(("EVAL", scripts.PRESENCE_APPLY, 1, base, *args))
        self._send(commands, [])

    def _send(self, commands: Sequence[tuple[Any, ...]], answers: list[bool]) -> None:
        self._unanswered += repeat(answers, len(commands))
        for packed in self._line.pack_commands(commands):
            self._outgoing += packed
        if len(self._outgoing) >= _SENT_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        try:
            if self._outgoing:
                self._line.send_packed_command([bytes(self._outgoing)])
            self._outgoing.clear()
        except BaseException:
            self.hang_up()
            raise

    def settle(self) -> None:
        """Wait until all that was sent is done. Raises what the store answers to any of it.

        Raises StoreGone where some of it was given up, whoever did that.
        """
        if self._given_up:
            raise StoreGone("what was sent to the online store was given up: nobody knows whether it is there")
        self._flush()
        try:
            while self._unanswered:
                answer = self._line.read_response()
                answers = self._unanswered.popleft()
                if isinstance(answer, list):
                    answers += map(bool, answer)
        except BaseException:
            self.hang_up()
            raise

    def hang_up(self) -> None:
        """Wait for nothing of what was sent; it may be done or not."""
        self._given_up = self._given_up or bool(self._unanswered)
        self._unanswered.clear()
        self._outgoing.clear()
        if self._line is not None:
            self._line.disconnect()

    def purge_presence(self, view: PresenceView, topic: str, partition: int, epoch: int) -> None:
        """Forget the members whose state comes from this partition's log of an earlier epoch, and its newest time."""
        number = layout.log_number(view, topic, partition)
        base = layout.presence_base(self.project, view)
        members = (name for name, _ in self._client.hscan_iter(base + b":m", count=_SCAN_CHUNK))  # type: ignore[arg-type]
        head: list[Any] = [number, epoch.to_bytes(8, "big")]
        self._presence_purge(keys=[base], args=head)
        while chunk := list(islice(members, _SCAN_CHUNK)):
            self._presence_purge(keys=[base], args=[*head, *chunk])


def presence_calls(
    members: Sequence[Hashable], times: Ints, offsets: Ints, event: Callable[[int], PresenceEvent]
) -> Iterator[PresenceCall]:
    """Events of these members, times and offsets, in their order, as calls of not too many members each.

    `event` makes those that count: of each member the latest of a call, for nobody could see the others.
    """
    begin = 0
    while begin < len(members):
        found: set[Hashable] = set()
        end = begin
        while end < len(members) and len(found) + _PRESENCE_STEP <= _PRESENCE_MEMBERS:
            found.update(members[end : end + _PRESENCE_STEP])
            end = min(end + _PRESENCE_STEP, len(members))
        order = np.lexsort((offsets[begin:end], times[begin:end])) + begin
        latest = {members[i]: i for i in order.tolist()}
        newest, last = int(times[begin:end].max()), int(offsets[begin:end].max())
        yield PresenceCall([event(i) for i in latest.values()], newest, last)
        begin = end


def open_stream_store(settings: Settings, project: str) -> StreamStore:
    """The store that the settings name, with a client of its own. Connects at the first call."""
    run = ServerRun()
    return StreamStore(connect(settings, run=run), project, run)


_NOTHING = Progress(0, 0, 0, 0, 0, 0)
"""What `swap_progress` returns where a progress was expected and none is stored: of an epoch older than any."""
