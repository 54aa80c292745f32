"""Events by entity and hop: what a fold adds to each tile, made of whole columns.

Folding an entity's group is the same as `Tiles.fold` of its events one after the other. Where that cannot be known
beforehand, because some of them may be late or were folded before, they are folded one after the other.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
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
_FEW = 48  # events: for fewer, columns cost more than they save


@dataclass(frozen=True, slots=True)
class _Groups:
    """Events in the order of (entity, hop, offset), and where each group of one entity and hop begins."""

    order: NDArray[np.intp]
    begins: NDArray[np.intp]
    hops: Sequence[int]
    """Of each group."""


@dataclass(frozen=True, slots=True)
class Few:
    """The events of one entity in the order of their offsets, to be folded one after the other."""

    layout: Layout
    events: Iterable[Observation]

    def fold(self, tiles: Tiles, folded: int) -> tuple[int, int]:
        """Fold what lies beyond the offset `folded` into `tiles`: the offset folded by then, and how many were late."""
        late, last = 0, folded
        for event in self.events:
            if event.offset > folded:
                if tiles.fold(self.layout, event):
                    last = event.offset
                else:
                    late += 1
        return last, late


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
            return Few(layout, self.batch.observed(self.places)).fold(tiles, folded)
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

    def __init__(self, layout: Layout, few: int = _FEW) -> None:
        """Fewer events than `few` are grouped to be folded one after the other."""
        self._layout, self._few_are = layout, few
        kinds = enumerate(part.kind for part in layout.parts)
        self._merging = [(i, "" if kind in _ADDED else kind) for i, kind in kinds]

    def __call__(
        self, partition: int, events: EventColumns, ids: Sequence[Who]
    ) -> Iterator[tuple[Who, "Entity | Few"]]:
        """Each of whom there are events (of each event one of `ids`, in no order), and what there is of them."""
        if len(ids) < self._few_are:
            return self._few(partition, events, ids)
        numbers = {who: i for i, who in enumerate(dict.fromkeys(ids))}
        groups, owners = self._grouped(np.array(list(map(numbers.__getitem__, ids)), np.int64), events.times)
        columns = _PartColumns(partition, events, groups, self._layout.parts)
        values = list(zip(*[columns.of(part) for part in self._layout.parts], strict=True))
        batch = _Batch(self._layout, self._merging, groups.hops, values, columns.observed)
        tiles = _changes(owners[1:] != owners[:-1])
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

    def _few(self, partition: int, events: EventColumns, ids: Sequence[Who]) -> Iterator[tuple[Who, "Entity | Few"]]:
        places: dict[Who, list[int]] = {}
        for i, who in enumerate(ids):
            places.setdefault(who, []).append(i)
        observer = _Observer(partition, events, self._layout.parts)
        return ((who, Few(self._layout, [observer.observed(i) for i in own])) for who, own in places.items())

    def _grouped(self, owners: Ints, times: Ints) -> tuple[_Groups, Ints]:
        """The groups, and the owner of each."""
        hops = times // self._layout.hop
        low, high = int(hops.min()), int(hops.max())
        if (int(owners.max()) + 1) * (high - low + 1) < _SAFE:
            order = np.argsort(owners * (high - low + 1) + (hops - low), kind="stable")
        else:
            order = np.lexsort((hops, owners))
        owners, hops = owners[order], hops[order]
        begins = _changes((owners[1:] != owners[:-1]) | (hops[1:] != hops[:-1]))
        return _Groups(order, begins, hops[begins].tolist()), owners[begins]


class _Observer:
    """What is observed of single events, by their place among `events`."""

    def __init__(self, partition: int, events: EventColumns, parts: Sequence[Part]) -> None:
        self._partition, self._columns, self._parts = partition, events.columns, parts
        self._times, self._offsets = events.times.tolist(), events.offsets.tolist()

    def observed(self, i: int) -> Observation:
        """One event."""
        values = tuple([self.value(part, i) for part in self._parts])
        return Observation(self._times[i], self._partition, self._offsets[i], values)

    def value(self, part: Part, i: int) -> PartValue:
        """The value of a part over that event."""
        value = self._columns[part.column][i]
        hashed = digest(repr(value or 0)) if part.kind == DISTINCT else 0  # -0.0 is 0.0
        return observe(part, value, hashed, self._times[i], self._partition, self._offsets[i])


class _PartColumns:
    """The values of parts over each group."""

    def __init__(self, partition: int, events: EventColumns, groups: _Groups, parts: Sequence[Part]) -> None:
        self._events, self._groups = events, groups
        self._observer = _Observer(partition, events, parts)
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
        return map(self._observer.observed, np.sort(self._groups.order[places]).tolist())

    def _merged(self, part: Part) -> list[PartValue]:
        values = [self._observer.value(part, i) for i in self._groups.order.tolist()]
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


def _changes(differ: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Where something begins; `differ` says of each place but the first whether it differs from the one before."""
    found = np.flatnonzero(differ) + 1
    return np.concatenate([np.zeros(1, np.intp), found])


def _slices(begins: NDArray[np.intp], end: int) -> list[slice]:
    bounds = [*begins.tolist(), end]
    return [slice(begin, after) for begin, after in pairwise(bounds)]


def _listed(column: NDArray[Any]) -> list[PartValue]:
    found: list[PartValue] = column.tolist()
    return found
