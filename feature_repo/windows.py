"""The arithmetic of stream windows: tiles, fold, merge, result. Pure: no clock, no client, no Feast.

Times are integer milliseconds since the Unix epoch, UTC. A *hop* is ``hop`` milliseconds long and starts at a multiple
of it; ``floor(x)`` is the start of the hop that ``x`` lies in. At instant ``t`` a window of length ``W`` (a multiple of
the hop) holds the events with ``floor(t) - W <= time <= t``.

        floor(t)-W                                floor(t)   t
            |----hop----|----hop----|----hop----|----|
    ....o...[.....o.........o...............o......o.]        o: events; in brackets: counted

A *tile* aggregates one hop of one entity. Every part of a tile is made of whole numbers (values are decimals scaled by
10**6), so that merging is exact and commutative, and history summed by SQL gives the same number to the last bit.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

SCALE = 1_000_000
"""Values are kept as whole millionths."""

MAX_MAGNITUDE = 1_000_000_000
"""Greatest absolute value of an aggregated column: its scaled form stays below 2**53, exact as a float."""

MAX_AHEAD_MS = 60_000
"""An event stamped further ahead of its append time is refused: its producer's clock cannot be trusted."""

REPEAT_SLACK_MS = 120_000
"""The same `event_id` again is a repeat if its event time differs by no more than a topic's longest reach and this.

A repeat's stamp may be ahead by as much as any, and ids are kept by the minute.
"""

DISTINCT_BOUND = 1000
"""``count_distinct`` is exact up to this many values; a result of 1000 reads "1000 or more"."""

COUNT, SUM, SQUARES, MIN, MAX, LAST, DISTINCT = "count", "sum", "squares", "min", "max", "last", "distinct"

_ADDED = (COUNT, SUM, SQUARES)

Number = int | float
Last = tuple[int, int, int, int]
"""(time, partition, offset, scaled value): compared in this order, so ties in time go to the later event of the log."""

PartValue = int | Last | frozenset[int] | None

_PARTS_OF = {
    "count": (COUNT,),
    "sum": (SUM,),
    "mean": (COUNT, SUM),
    "std": (COUNT, SUM, SQUARES),
    "min": (MIN,),
    "max": (MAX,),
    "last": (LAST,),
    "count_distinct": (DISTINCT,),
}
FUNCTIONS = tuple(_PARTS_OF)
"""The aggregation functions that a definition may name."""


def floor_hop(time: int, hop: int) -> int:
    """The start of the hop that `time` lies in (mathematical floor, so it holds before 1970 too).

    >>> floor_hop(125_000, 60_000), floor_hop(-1, 60_000)
    (120000, -60000)
    """
    return time - time % hop


def scaled(value: Number) -> int:
    """`value` in whole millionths, half rounded up; the same arithmetic as ``floor(x * 1e6 + 0.5)`` in SQL.

    >>> scaled(12.34), scaled(3), scaled(-0.0000005)
    (12340000, 3000000, 0)
    """
    return value * SCALE if isinstance(value, int) else math.floor(value * SCALE + 0.5)


@dataclass(frozen=True, order=True)
class Part:
    """One whole-number aggregate of one column within a tile; several features may share it."""

    column: str
    kind: str


@dataclass(frozen=True)
class Aggregate:
    """One feature of a stream view: `function` of `column` over the last `window` milliseconds."""

    name: str
    column: str
    function: str
    window: int

    def parts(self) -> tuple[Part, ...]:
        """The parts that the feature's value is made of, in the order that `result` takes them."""
        return tuple(Part(self.column, kind) for kind in _PARTS_OF[self.function])


@dataclass(frozen=True)
class Layout:
    """What the tiles of a view hold. Two definitions with equal layouts share tiles."""

    hop: int
    parts: tuple[Part, ...]
    hops_kept: int
    """Tiles this many hops before the newest event's are the oldest that a window can reach."""

    @classmethod
    def of(cls, hop: int, aggregates: Sequence[Aggregate]) -> "Layout":
        """The layout that serves `aggregates`.

        Raises ValueError, naming the feature, for an unknown function or a window that the hop does not divide.
        """
        if hop <= 0:
            raise ValueError(f"hop {hop} ms is not positive: no tile would hold anything")
        for a in aggregates:
            if a.function not in _PARTS_OF:
                raise ValueError(
                    f"{a.name}: function {a.function!r} is not one of {', '.join(FUNCTIONS)}: nothing would compute it"
                )
            if a.window <= 0 or a.window % hop:
                raise ValueError(
                    f"{a.name}: hop {hop} ms does not divide window {a.window} ms: the trailing edge would jump"
                )
        parts = tuple(sorted({part for a in aggregates for part in a.parts()}))
        return cls(hop=hop, parts=parts, hops_kept=max(a.window for a in aggregates) // hop)

    @property
    def columns(self) -> tuple[str, ...]:
        """The event columns that are read, sorted."""
        return tuple(sorted({part.column for part in self.parts}))

    @cached_property
    def plain(self) -> bool:
        """Whether every part is a number that is added up."""
        return all(part.kind in _ADDED for part in self.parts)

    @property
    def horizon(self) -> int:
        """The longest window, in milliseconds."""
        return self.hops_kept * self.hop


@dataclass(frozen=True)
class Observation:
    """What a fold takes of one event: its place in time and in the log, and a value a part of the layout."""

    time: int
    partition: int
    offset: int
    values: tuple[PartValue, ...]


def empty(kind: str) -> PartValue:
    """The value of a part over no events; it is the neutral element of `merge`."""
    if kind in _ADDED:
        return 0
    return frozenset() if kind == DISTINCT else None


def observe(part: Part, value: Number | str | None, hashed: int, time: int, partition: int, offset: int) -> PartValue:
    """The value of `part` over the one event with `value` in its column; `hashed` stands for the value in DISTINCT.

    A null contributes nothing. Raises TypeError for text in a part that needs a number.
    """
    if value is None:
        return empty(part.kind)
    if part.kind == COUNT:
        return 1
    if part.kind == DISTINCT:
        return frozenset((hashed,))
    if isinstance(value, str):
        raise TypeError(f"column {part.column!r} holds text ({value!r}): {part.kind} needs a number")
    number = scaled(value)
    if part.kind == SQUARES:
        return number * number
    return (time, partition, offset, number) if part.kind == LAST else number


def merge(kind: str, a: PartValue, b: PartValue) -> PartValue:
    """The part over the union of two disjoint sets of events. Commutative, associative, with `empty` as neutral."""
    if kind in _ADDED:
        return a + b  # type: ignore[operator, return-value]  # whole numbers, by `empty` and `observe`
    if kind == DISTINCT:
        if len(a) >= DISTINCT_BOUND:  # type: ignore[arg-type]  # sets, by `empty` and `observe`
            return a
        return a | b if len(b) < DISTINCT_BOUND else b  # type: ignore[operator, arg-type]
    if a is None or b is None:
        return b if a is None else a
    return min(a, b) if kind == MIN else max(a, b)  # both whole numbers, or both Last


def result(aggregate: Aggregate, parts: Sequence[PartValue]) -> Number | None:
    """The feature's value from its merged parts (in the order of `Aggregate.parts`).

    Over no events count, sum and count_distinct are 0 and the others None. `std` is the population's:
    sqrt(n * sum(x^2) - sum(x)^2) / n.
    """
    head = parts[0]
    if aggregate.function == "count_distinct":
        return min(len(head), DISTINCT_BOUND)  # type: ignore[arg-type]  # a set
    if aggregate.function == "last":
        return None if head is None else head[3] / SCALE  # type: ignore[index]  # a Last
    numbers: list[int | None] = list(parts)  # type: ignore[arg-type]  # every other part is a whole number
    match aggregate.function, numbers:
        case "count", [n]:
            return n
        case "mean", [n, total]:
            return total / (n * SCALE) if n else None  # type: ignore[operator]  # no sum is None
        case "std", [n, total, squares]:
            return math.sqrt(n * squares - total * total) / (n * SCALE) if n else None  # type: ignore[operator]
        case _, [number]:  # sum, min, max
            return None if number is None else number / SCALE
    raise AssertionError(f"{aggregate.function} takes {len(aggregate.parts())} parts, not {len(parts)}")


@dataclass
class Tiles:
    """The tiles of one entity (and partition) of one view: {hop number: a value a part}, and the newest event time."""

    newest: int | None = None
    by_hop: dict[int, list[PartValue]] = field(default_factory=dict)

    def fold(self, layout: Layout, event: Observation) -> bool:
        """Add one event; drop the tiles that no window can reach any more.

        Returns False, changing nothing, for an event older than the tiles kept ("late").
        """
        number = event.time // layout.hop
        if self.newest is not None and number < self.newest // layout.hop - layout.hops_kept:
            return False
        tile = self.by_hop.get(number)
        if tile is None:
            self.by_hop[number] = list(event.values)
        else:
            for i, part in enumerate(layout.parts):
                tile[i] = merge(part.kind, tile[i], event.values[i])
        if self.newest is None or event.time > self.newest:
            before, self.newest = self.newest, event.time
            if before is None or number > before // layout.hop:
                oldest = number - layout.hops_kept
                for gone in [hop for hop in self.by_hop if hop < oldest]:
                    del self.by_hop[gone]
        return True


def read_window(layout: Layout, aggregate: Aggregate, tiles: Iterable[Tiles], instant: int) -> Number | None:
    """The feature's value at `instant`, from the tiles of the entity in every partition.

    `instant` must not lie before any `newest` of `tiles`: tiles do not remember where within a hop their events lie.
    """
    oldest = instant // layout.hop - aggregate.window // layout.hop
    wanted = aggregate.parts()
    places = [layout.parts.index(part) for part in wanted]
    merged = [empty(part.kind) for part in wanted]
    for one in tiles:
        for number, tile in one.by_hop.items():
            if number >= oldest:
                for i, place in enumerate(places):
                    merged[i] = merge(wanted[i].kind, merged[i], tile[place])
    return result(aggregate, merged)


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """The tiles of one entity (and partition) by column: a reader looks at nothing but the end of each.

    Equal to itself alone, so that what was computed of it is found again quickly.
    """

    newest: int
    first: int
    """The number of the first hop."""
    steps: Sequence[int]
    """Of each tile how far behind the first hop it is, ascending."""
    parts: Sequence[Sequence[PartValue]]
    """Of each part of the layout its value a tile."""


def window_reader(layout: Layout, aggregate: Aggregate) -> Callable[[Sequence[Columns], int], Number | None]:
    """`read_window` of one aggregate from `Columns`, compiled: a function of them and the instant."""
    hop, hops, wanted = layout.hop, aggregate.window // layout.hop, aggregate.parts()
    parts = [(layout.parts.index(part), part.kind) for part in wanted]
    if aggregate.function == "count":
        ((place, _),) = parts

        def count(found: Sequence[Columns], instant: int) -> Number | None:
            oldest, total = instant // hop - hops, 0
            for one in found:
                total += sum(one.parts[place][bisect_left(one.steps, oldest - one.first) :])  # type: ignore[arg-type]
            return total

        return count

    def read(found: Sequence[Columns], instant: int) -> Number | None:
        oldest = instant // hop - hops
        merged = [empty(kind) for _, kind in parts]
        for one in found:
            start = bisect_left(one.steps, oldest - one.first)
            for i, (place, kind) in enumerate(parts):
                values = one.parts[place][start:]
                if kind in _ADDED:
                    merged[i] += sum(values)  # type: ignore[arg-type, operator]  # whole numbers
                else:
                    for value in values:
                        merged[i] = merge(kind, merged[i], value)
        return result(aggregate, merged)

    return read
