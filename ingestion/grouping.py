"""Events by entity and hop: what a fold adds to each tile, made of whole columns.

Folding an entity's group is the same as `Tiles.fold` of its events one after the other. Where that cannot be known
beforehand, because some of them may be late or were folded before, they are folded one after the other.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from feature_repo.stores.progress import digest
from feature_repo.windows import (
    COUNT,
    DISTINCT,
    LAST,
    MAX_MAGNITUDE,
    MIN,
    SCALE,
    SQUARES,
    SUM,
    Layout,
    Observation,
    Part,
    PartValue,
    Tiles,
    merge,
    observe,
)
from ingestion.event_columns import EventColumns

Ints = NDArray[np.int64]
Who = TypeVar("Who", bound=Hashable)

_ADDED = (COUNT, SUM, SQUARES)
_SAFE = 2**62


@dataclass(frozen=True, slots=True)
class _Groups:
    """Events in the order of (entity, hop, offset), and where each group of one entity and hop begins."""

    order: NDArray[np.intp]
    begins: NDArray[np.intp]
    hops: Sequence[int]
    """Of each group."""


@dataclass(frozen=True, slots=True)
class Entity:
    """The events of one entity, in the order of their offsets, at these places of `batch`; its groups are `tiles`."""

    batch: "_Batch"
    places: slice
    tiles: slice
    first: int
    """Its lowest offset."""
    last: int
    newest: int
    """Its newest event time."""

    def fold(self, tiles: Tiles, folded: int) -> tuple[int, int]:
        """Fold what lies beyond the offset `folded` into `tiles`: the offset folded by then, and how many were late."""
        hops, layout = self.batch.hops[self.tiles], self.batch.layout
        newest = self.newest if tiles.newest is None else max(self.newest, tiles.newest)
        oldest = newest // layout.hop - layout.hops_kept
        if self.first <= folded or hops[0] < oldest:
            return self._one_by_one(tiles, folded)
        by_hop, merging = tiles.by_hop, self.batch.merging
        for hop, values in zip(hops, self.batch.values[self.tiles], strict=True):
            tile = by_hop.get(hop)
            if tile is None:
                by_hop[hop] = list(values)
            else:
                for i, kind in merging:
                    if kind:
                        tile[i] = merge(kind, tile[i], values[i])
                    else:
                        tile[i] += values[i]  # type: ignore[operator, assignment]  # whole numbers
        tiles.newest = newest
        if min(by_hop) < oldest:
            for gone in [hop for hop in by_hop if hop < oldest]:
                del by_hop[gone]
        return self.last, 0

    def _one_by_one(self, tiles: Tiles, folded: int) -> tuple[int, int]:
        late, last = 0, folded
        for event in self.batch.observed(self.places):
            if event.offset > folded:
                if tiles.fold(self.batch.layout, event):
                    last = event.offset
                else:
                    late += 1
        return last, late


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the entities of one batch share. `observed` gives the events at some places of `groups.order` by offset."""

    layout: Layout
    merging: Sequence[tuple[int, str]]
    hops: Sequence[int]
    values: Sequence[Sequence[PartValue]]
    """Of each group a value a part."""
    observed: Callable[[slice], Iterator[Observation]]


class Grouper:
    """Groups events of one partition as one layout has them."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        kinds = enumerate(part.kind for part in layout.parts)
        self._merging = [(i, "" if kind in _ADDED else kind) for i, kind in kinds]

    def __call__(self, partition: int, events: EventColumns, ids: Sequence[Who]) -> Iterator[tuple[Who, Entity]]:
        """Each of whom there are events (of each event one of `ids`, in no order), and what there is of them."""
        numbers = {who: i for i, who in enumerate(dict.fromkeys(ids))}
        groups, owners = self._grouped(np.array(list(map(numbers.__getitem__, ids)), np.int64), events.times)
        columns = _PartColumns(partition, events, groups, self._layout.parts)
        values = list(zip(*[columns.of(part) for part in self._layout.parts], strict=True))
        batch = _Batch(self._layout, self._merging, groups.hops, values, columns.observed)
        tiles = np.flatnonzero(np.diff(owners, prepend=-1))
        begins = groups.begins[tiles]
        offsets, times = events.offsets[groups.order], events.times[groups.order]
        rows = zip(
            _slices(begins, len(offsets)),
            _slices(tiles, len(owners)),
            np.minimum.reduceat(offsets, begins).tolist(),
            np.maximum.reduceat(offsets, begins).tolist(),
            np.maximum.reduceat(times, begins).tolist(),
            strict=True,
        )
        return ((who, Entity(batch, *row)) for who, row in zip(numbers, rows, strict=True))

    def _grouped(self, owners: Ints, times: Ints) -> tuple[_Groups, Ints]:
        """The groups, and the owner of each."""
        hops = times // self._layout.hop
        low, high = int(hops.min()), int(hops.max())
        if (int(owners.max()) + 1) * (high - low + 1) < _SAFE:
            order = np.argsort(owners * (high - low + 1) + (hops - low), kind="stable")
        else:
            order = np.lexsort((hops, owners))
        owners, hops = owners[order], hops[order]
        begins = np.flatnonzero(np.diff(owners, prepend=-1) | np.diff(hops, prepend=low - 1))
        return _Groups(order, begins, hops[begins].tolist()), owners[begins]


class _PartColumns:
    """The values of parts over each group."""

    def __init__(self, partition: int, events: EventColumns, groups: _Groups, parts: Sequence[Part]) -> None:
        self._partition, self._events, self._groups, self._parts = partition, events, groups, parts
        self._numbers: dict[str, Ints | None] = {}

    def of(self, part: Part) -> Sequence[PartValue]:
        """Of each group the value of `part`."""
        groups, column = self._groups, self._events.columns[part.column]
        whole = None not in column
        if part.kind == COUNT and whole:
            return _listed(np.diff(groups.begins, append=len(column)))
        if part.kind == COUNT:
            return self._added(np.array([value is not None for value in column], np.int64))
        numbers = self._numbers_of(part.column) if whole and part.kind not in (LAST, DISTINCT) else None
        if numbers is None:
            return self._merged(part)
        if part.kind in _ADDED:
            return self._added(numbers, squared=part.kind == SQUARES)
        least = np.minimum if part.kind == MIN else np.maximum
        return _listed(least.reduceat(numbers[groups.order], groups.begins))

    def observed(self, places: slice) -> Iterator[Observation]:
        """The events at these places, by offset."""
        events = self._events
        for i in np.sort(self._groups.order[places]).tolist():
            time, offset = int(events.times[i]), int(events.offsets[i])
            values = tuple([self._observe(part, i, time, offset) for part in self._parts])
            yield Observation(time, self._partition, offset, values)

    def _observe(self, part: Part, i: int, time: int, offset: int) -> PartValue:
        value = self._events.columns[part.column][i]
        hashed = digest(repr(value or 0)) if part.kind == DISTINCT else 0  # -0.0 is 0.0
        return observe(part, value, hashed, time, self._partition, offset)

    def _merged(self, part: Part) -> list[PartValue]:
        times, offsets = self._events.times.tolist(), self._events.offsets.tolist()
        values = [self._observe(part, i, times[i], offsets[i]) for i in self._groups.order.tolist()]
        both = partial(merge, part.kind)
        return [reduce(both, values[group]) for group in _slices(self._groups.begins, len(values))]

    def _numbers_of(self, column: str) -> Ints | None:
        """The numbers of a column in whole millionths; None if that would not be exact."""
        if column not in self._numbers:
            found = np.array(self._events.columns[column])
            fine = found.dtype.kind in "if" and (np.abs(found) <= MAX_MAGNITUDE).all()
            self._numbers[column] = np.floor(found * float(SCALE) + 0.5).astype(np.int64) if fine else None
        return self._numbers[column]

    def _added(self, numbers: Ints, squared: bool = False) -> list[PartValue]:
        greatest = int(np.abs(numbers).max())
        if (greatest * greatest if squared else greatest) * len(numbers) < _SAFE:
            whole: NDArray[Any] = numbers
        else:
            whole = numbers.astype(object)  # Python's own numbers have no bound
        return _listed(np.add.reduceat((whole * whole if squared else whole)[self._groups.order], self._groups.begins))


def _slices(begins: NDArray[np.intp], end: int) -> list[slice]:
    bounds = [*begins.tolist(), end]
    return [slice(begin, after) for begin, after in pairwise(bounds)]


def _listed(column: NDArray[Any]) -> list[PartValue]:
    found: list[PartValue] = column.tolist()
    return found
