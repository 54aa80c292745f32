"""Folding a partition's events into the online store, under the fence.

The fold of a field is a function of the log's prefix alone, so it does not matter who does it, or how often: events at
or below the header's offset are skipped, and a write is accepted only over the header that it was folded from.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from feature_repo.stores import layout, tile_codec
from feature_repo.stores.progress import Progress, digest
from feature_repo.stores.stream_store import FieldWrite, PresenceEvent, StreamStore
from feature_repo.stores.tile_codec import Header
from feature_repo.views import TOPIC_STATE, PresenceView, StreamView, WindowView
from feature_repo.windows import COUNT, DISTINCT, SQUARES, SUM, PartValue, Tiles, merge, observe
from ingestion.events import Event, Scalar

_TRIES = 5
_NO_OFFSET = -1
_NEVER = -(2**63)  # a hop before any
_KEYS_KEPT = 100_000

Placed = tuple[int, Event]
"""An event and its offset."""

Seen = tuple[int, int, list[PartValue]]
"""What a fold takes of an event: its time, its offset, and its value of each part."""


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


class WindowFolder:
    """Folds events into one window view's fields."""

    def __init__(self, view: WindowView, store: StreamStore) -> None:
        self.view, self._store = view, store
        self._key = layout.key_builder(store.project, view.join_keys, view.key_types)
        self._keys: dict[tuple[Scalar, ...], bytes] = {}
        parts = view.layout.parts
        self._parts = [(part, part.column, part.kind == COUNT) for part in parts]
        self._merging = [(i, "" if part.kind in (COUNT, SUM, SQUARES) else part.kind) for i, part in enumerate(parts)]

    def fold(self, partition: int, stored: Progress, cache: FieldCache, events: Sequence[Placed]) -> int:
        """Fold events (in offset order) into their entities' fields; how many were late.

        `stored` is the progress that the events follow on. Raises LostPartition if another is in the store when fields
        are read (they may lack events before these), or the fence refuses again and again.
        """
        epoch = stored.epoch
        field = layout.tiles_field(self.view, partition)
        waiting = self._by_entity(partition, events)
        late: dict[bytes, int] = {}  # by entity, so that one that is folded again is counted again
        for _ in range(_TRIES):
            fields = self._fields(cache, field, partition, stored, list(waiting))
            writes: list[tuple[bytes, FieldWrite, _Field]] = []
            for key, observations in waiting.items():
                folded, late[key] = self._fold_one(fields[key], observations)
                if folded is not None:
                    value = tile_codec.pack(Header(epoch, folded.offset), self.view.layout, folded.tiles)
                    writes.append((key, FieldWrite(key, field, folded.stored, value), folded))
            accepted = self._store.write_fields([write for _, write, _ in writes]) if writes else []
            refused = []
            for (key, write, folded), ok in zip(writes, accepted, strict=True):
                if ok:
                    folded.stored = write.value[: tile_codec.HEADER.size]
                else:
                    cache.drop((key, field))
                    refused.append(key)
            if not refused:
                return sum(late.values())
            waiting = {key: waiting[key] for key in refused}
        raise LostPartition(f"{self.view.name}: {len(waiting)} fields of partition {partition} keep changing under us")

    def _by_entity(self, partition: int, events: Sequence[Placed]) -> dict[bytes, list[Seen]]:
        by_entity: defaultdict[bytes, list[Seen]] = defaultdict(list)
        names, keys = self.view.join_keys, self._keys
        for offset, (_, _, time, columns) in events:
            ids = tuple([columns[name] for name in names])
            key = keys.get(ids)
            if key is None:
                if None in ids:  # an event of nobody, as far as this view goes
                    continue
                key = self._remembered(ids)
            by_entity[key].append((time, offset, self._values(columns, time, partition, offset)))
        return by_entity

    def _remembered(self, ids: tuple[Scalar, ...]) -> bytes:
        if len(self._keys) >= _KEYS_KEPT:
            self._keys.clear()
        key = self._keys[ids] = self._key(ids)
        return key

    def _values(self, columns: Mapping[str, Scalar], time: int, partition: int, offset: int) -> list[PartValue]:
        values: list[PartValue] = []
        for part, column, counts in self._parts:
            value = columns[column]
            if counts:
                values.append(0 if value is None else 1)
            else:
                hashed = digest(repr(value or 0)) if part.kind == DISTINCT else 0  # -0.0 is 0.0
                values.append(observe(part, value, hashed, time, partition, offset))
        return values

    def _fold_one(self, field: _Field, seen: Sequence[Seen]) -> tuple[_Field | None, int]:
        """Fold into `field`, in place: the field if it has to be written, and how many events were late.

        What `Tiles.fold` does with one event after the other, but that old tiles are dropped once, at the end.
        """
        folded, tiles, layout = field.offset, field.tiles, self.view.layout
        by_hop, hop, newest = tiles.by_hop, layout.hop, tiles.newest
        oldest = _NEVER if newest is None else newest // hop - layout.hops_kept
        late = 0
        for time, offset, values in seen:
            if offset <= field.offset:
                continue
            number = time // hop
            if number < oldest:
                late += 1
                continue
            folded = offset
            tile = by_hop.get(number)
            if tile is None:
                by_hop[number] = values
            else:
                for i, kind in self._merging:
                    if kind:
                        tile[i] = merge(kind, tile[i], values[i])
                    else:
                        tile[i] += values[i]  # type: ignore[operator, assignment]  # whole numbers
            if newest is None or time > newest:
                newest, oldest = time, number - layout.hops_kept
        if folded == field.offset:
            return None, late
        field.offset, tiles.newest = folded, newest
        if min(by_hop) < oldest:
            for gone in [number for number in by_hop if number < oldest]:
                del by_hop[gone]
        return field, late

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

    def fold(self, partition: int, stored: Progress, cache: FieldCache, events: Sequence[Placed]) -> int:
        """Apply events of one topic in any order; none is ever late. `cache` is not used: the store compares.

        They are sent only: whoever folds has the store `settle` before anything is said about it.
        """
        if not events:
            return 0
        moves: list[PresenceEvent] = []
        names, member, state = self.view.join_keys, self.view.member, self.view.state
        for offset, (topic, _, time, columns) in events:
            ids = tuple([columns[name] for name in names])
            group = self._groups.get(ids) or self._remembered(ids)
            said = topic if state == TOPIC_STATE else str(columns[state])
            moves.append(PresenceEvent(str(columns[member]), time, offset, said, group))
        self._store.send_presence(self.view, events[0][1].topic, partition, stored.epoch, moves)
        return 0

    def _remembered(self, ids: tuple[Scalar, ...]) -> str:
        if len(self._groups) >= _KEYS_KEPT:
            self._groups.clear()
        group = self._groups[ids] = layout.group_name(ids)
        return group


Folder = WindowFolder | PresenceFolder


def folder_of(view: StreamView, store: StreamStore) -> Folder:
    """The folder for a view."""
    return WindowFolder(view, store) if isinstance(view, WindowView) else PresenceFolder(view, store)
