"""Folding a partition's events into the online store, under the fence.

The fold of a field is a function of the log's prefix alone, so it does not matter who does it, or how often: events at
or below the header's offset are skipped, and a write is accepted only over the header that it was folded from.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from feature_repo.stores import layout, tile_codec
from feature_repo.stores.progress import Progress
from feature_repo.stores.stream_store import FieldWrite, PresenceEvent, StreamStore, presence_calls
from feature_repo.stores.tile_codec import Header
from feature_repo.views import TOPIC_STATE, PresenceView, StreamView, WindowView
from feature_repo.windows import Tiles
from ingestion.event_columns import EventColumns, Placed
from ingestion.events import Scalar
from ingestion.grouping import Entity, Few, Grouper

__all__ = ["FieldCache", "Folder", "LostPartition", "Placed", "PresenceFolder", "WindowFolder", "folder_of"]

_TRIES = 5
_NO_OFFSET = -1
_KEYS_KEPT = 100_000


Settled = Callable[[], int]
"""Sees to what the store has refused, and says how many events were late."""


class LostPartition(RuntimeError):
    """Somebody else folds this partition by now, or keeps winning the fence: what we hold is out of date."""


@dataclass
class _Field:
    """A field as last read or written: its header bytes (b"" if absent), the offset folded so far, its tiles."""

    stored: bytes
    offset: int
    tiles: Tiles


class FieldCache:
    """The fields of one partition that were used last, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._fields: OrderedDict[tuple[bytes, bytes], _Field] = OrderedDict()

    def get(self, place: tuple[bytes, bytes]) -> _Field | None:
        """The field at (key, field), if it is held."""
        field = self._fields.get(place)
        if field is not None:
            self._fields.move_to_end(place)
        return field

    def put(self, place: tuple[bytes, bytes], field: _Field) -> None:
        """Hold a field; the one that was not used for longest goes if there are too many."""
        self._fields[place] = field
        self._fields.move_to_end(place)
        if len(self._fields) > self._limit:
            self._fields.popitem(last=False)

    def drop(self, place: tuple[bytes, bytes]) -> None:
        """Hold it no longer."""
        self._fields.pop(place, None)

    def __len__(self) -> int:
        return len(self._fields)


@dataclass
class _Sent:
    """Writes of fields, and what the store says of each when it has settled."""

    writes: Sequence[FieldWrite]
    fields: Sequence[_Field]
    accepted: Sequence[bool]

    def refused(self, cache: FieldCache) -> list[bytes]:
        """The keys of those that were not written; they are held no longer."""
        keys = []
        for write, held, ok in zip(self.writes, self.fields, self.accepted, strict=True):
            if ok:
                held.stored = write.value[: tile_codec.HEADER.size]
            else:
                cache.drop((write.key, write.field))
                keys.append(write.key)
        return keys


class WindowFolder:
    """Folds events into one window view's fields."""

    def __init__(self, view: WindowView, store: StreamStore) -> None:
        self.view, self._store = view, store
        self._group = Grouper(view.layout)
        self._key = layout.key_builder(store.project, view.join_keys, view.key_types)
        self._keys: dict[tuple[Scalar, ...], bytes] = {}
        self.columns = frozenset(view.join_keys) | frozenset(view.layout.columns)
        """The columns of events that it looks at."""

    def fold(self, partition: int, stored: Progress, cache: FieldCache, events: Sequence[Placed]) -> int:
        """Fold events (in offset order) into their entities' fields; how many were late.

        `stored` is the progress that the events follow on. Raises LostPartition if another is in the store when fields
        are read (they may lack events before these), or the fence refuses again and again.
        """
        self._store.ready()
        done = self.begin(partition, stored, cache, events)
        self._store.settle()
        return done()

    def begin(self, partition: int, stored: Progress, cache: FieldCache, events: Sequence[Placed]) -> Settled:
        """The same, but the fields are sent only: to be called when the store has settled is what is returned.

        Until then no other events may be folded into the same partition.
        """
        field = layout.tiles_field(self.view, partition)
        waiting = self._by_entity(partition, EventColumns.of(events, self.columns))
        late: dict[bytes, int] = {}  # by entity, so that one that is folded again is counted again
        sent = self._send(cache, field, partition, stored, waiting, late)

        def done() -> int:
            nonlocal sent
            for _ in range(_TRIES):
                refused = sent.refused(cache)
                if not refused:
                    return sum(late.values())
                self._store.ready()
                sent = self._send(cache, field, partition, stored, {key: waiting[key] for key in refused}, late)
                self._store.settle()
            raise LostPartition(
                f"{self.view.name}: {len(refused)} fields of partition {partition} keep changing under us"
            )

        return done

    def _send(
        self,
        cache: FieldCache,
        field: bytes,
        partition: int,
        stored: Progress,
        waiting: Mapping[bytes, Entity | Few],
        late: dict[bytes, int],
    ) -> "_Sent":
        fields = self._fields(cache, field, partition, stored, list(waiting))
        writes: list[FieldWrite] = []
        written: list[_Field] = []
        for key, entity in waiting.items():
            held = fields[key]
            folded, late[key] = entity.fold(held.tiles, held.offset)
            if folded > held.offset:
                held.offset = folded
                value = tile_codec.pack(Header(stored.epoch, folded), self.view.layout, held.tiles)
                writes.append(FieldWrite(key, field, held.stored, value))
                written.append(held)
        return _Sent(writes, written, self._store.send_fields(writes) if writes else [])

    def _by_entity(self, partition: int, events: EventColumns) -> dict[bytes, Entity | Few]:
        if not events:
            return {}
        names, keys = self.view.join_keys, self._keys
        ids = list(zip(*[events.columns[name] for name in names], strict=True))
        if any(None in events.columns[name] for name in names):  # events of nobody, as far as this view goes
            somebody = [i for i, each in enumerate(ids) if None not in each]
            return self._by_entity(partition, events.only(somebody))
        entities = self._group(partition, events, ids)
        return {keys.get(own) or self._remembered(own): entity for own, entity in entities}

    def _remembered(self, ids: tuple[Scalar, ...]) -> bytes:
        if len(self._keys) >= _KEYS_KEPT:
            self._keys.clear()
        key = self._keys[ids] = self._key(ids)
        return key

    def _fields(
        self, cache: FieldCache, field: bytes, partition: int, stored: Progress, keys: Sequence[bytes]
    ) -> dict[bytes, _Field]:
        found = {key: cached for key in keys if (cached := cache.get((key, field))) is not None}
        missing = [key for key in keys if key not in found]
        if missing:
            places = [(key, field) for key in missing]
            progress, fields = self._store.read_fields(self.view.topic, partition, self.view.tiles_hash, places)
            if progress != stored:
                raise LostPartition(f"{self.view.name}: partition {partition} is not where it was left: {progress}")
            for key, data in zip(missing, fields, strict=True):
                found[key] = self._read(partition, stored.epoch, data)
                cache.put((key, field), found[key])
        return found

    def _read(self, partition: int, epoch: int, data: bytes | None) -> _Field:
        if data is None:
            return _Field(b"", _NO_OFFSET, Tiles())
        header, stored = tile_codec.unpack_header(data), data[: tile_codec.HEADER.size]
        if header.epoch > epoch:
            raise LostPartition(f"{self.view.name}: partition {partition} is folded under epoch {header.epoch} by now")
        if header.epoch < epoch:
            return _Field(stored, _NO_OFFSET, Tiles())
        return _Field(stored, header.offset, tile_codec.unpack(self.view.layout, partition, data))


class PresenceFolder:
    """Moves one presence view's members."""

    def __init__(self, view: PresenceView, store: StreamStore) -> None:
        self.view, self._store = view, store
        self._groups: dict[tuple[Scalar, ...], str] = {}
        self.columns = frozenset({view.member, view.state, *view.join_keys} - {TOPIC_STATE})
        """The columns of events that it looks at."""

    def begin(self, partition: int, stored: Progress, cache: FieldCache, events: Sequence[Placed]) -> Settled:
        """Apply events of one topic in any order; none is ever late. `cache` is not used: the store compares.

        They are sent only: whoever folds has the store `settle` before anything is said about it.
        """
        if not events:
            return _none_late
        given, view, groups = EventColumns.of(events, self.columns), self.view, self._groups
        members, topic = given.columns[view.member], given.topic
        states = None if view.state == TOPIC_STATE else given.columns[view.state]
        times, offsets = given.times.tolist(), given.offsets.tolist()
        keys = [given.columns[name] for name in view.join_keys]

        def move(i: int) -> PresenceEvent:
            ids = tuple([key[i] for key in keys])
            group = groups.get(ids) or self._remembered(ids)
            return PresenceEvent(str(members[i]), times[i], offsets[i], str(states[i]) if states else topic, group)

        calls = presence_calls(members, given.times, given.offsets, move)
        self._store.send_presence(view, topic, partition, stored.epoch, calls)
        return _none_late

    def _remembered(self, ids: tuple[Scalar, ...]) -> str:
        if len(self._groups) >= _KEYS_KEPT:
            self._groups.clear()
        group = self._groups[ids] = layout.group_name(ids)
        return group


def _none_late() -> int:
    return 0


Folder = WindowFolder | PresenceFolder


def folder_of(view: StreamView, store: StreamStore) -> Folder:
    """The folder for a view."""
    return WindowFolder(view, store) if isinstance(view, WindowView) else PresenceFolder(view, store)
