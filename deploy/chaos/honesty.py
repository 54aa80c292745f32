"""Whether what was served during the drill was true: compared, once the log is known, with what could be true.

The criterion. A value served as computed (PRESENT or NULL_VALUE) to a reader that asked at `asked` (ms) says that all
events appended up to `asked - max_lag` are folded, and nothing can be folded that was appended after the answer came.
So it must be the value over some prefix of the log, in each partition of the view's topics, that holds every record
appended before ``asked - max_lag - SLACK_MS`` and none appended after ``answered + SLACK_MS``. Where the prefixes that
differ for the entity are few, each is tried, all the features of the view that were read at once together: one must
give them all. Where they are too many, only what a greater prefix moves one way is held: counts and greatest values lie
between those of the least and the greatest prefix, least values the other way round; means, deviations and last values
are left undecided. A presence count lies between the sums of what each member contributes at least and at most.

It gives no false alarm as long as broker, worker and reader share one clock, which steps back by less than the slack,
and a broker that has stamped a record lets it be read within the slack. A prefix by appending is one by offsets: the
bounds are taken where stamps that are out of order only make them wider.
"""

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, prod
from typing import NamedTuple

import numpy as np

from deploy.chaos.reader import FeatureReader, entities_of
from deploy.chaos.truth import Ids, Truth
from feature_repo.clock import Clock
from feature_repo.stores.redis_client import STORE_DOWN
from feature_repo.views import PresenceView, StreamView, WindowView
from ingestion.log import Record
from ingestion.parity.compare import Number, close
from ingestion.parity.oracle import Row, value

SLACK_MS = 1000
READ_EVERY_S = 0.25
ENTITIES_A_READ = 8
_PREFIXES = 64
_GROWING, _SHRINKING = ("count", "count_distinct", "max"), ("min",)


class Sighting(NamedTuple):
    """What was served of one entity. Instants in ms: asked before the request, answered after the reply."""

    view: StreamView
    ids: Ids
    asked: int
    answered: int
    instant: int
    values: Mapping[str, Number]


class Watcher(threading.Thread):
    """Reads random entities until `finish`, and keeps what was served as computed."""

    def __init__(self, reader: FeatureReader, views: Sequence[StreamView], clock: Clock, seed: int) -> None:
        super().__init__(name="watcher", daemon=True)
        self._reader, self._views, self._clock = reader, views, clock
        self._dice, self._finish = random.Random(seed), threading.Event()
        self.sightings: list[Sighting] = []
        self.reads = self.unavailable = 0

    def run(self) -> None:
        """Read now and then."""
        while not self._finish.wait(READ_EVERY_S):
            view = self._dice.choice(self._views)
            # Counts of several groups may be taken at slightly different instants: one is asked for at a time.
            count = 1 if isinstance(view, PresenceView) else ENTITIES_A_READ
            entities, asked = self._dice.sample(entities_of(view), count), self._clock()
            self.reads += 1
            try:
                served = self._reader.read(view, entities, asked)
            except STORE_DOWN:
                self.unavailable += 1
                continue
            answered = self._clock()
            for ids in entities:
                values = served.values(ids)
                if values:
                    self.sightings.append(Sighting(view, ids, asked, answered, served.instant, values))

    def finish(self) -> None:
        """Read no more."""
        self.abandon()
        self.join()

    def abandon(self) -> None:
        """Stop, sooner or later."""
        self._finish.set()


class Verdict(NamedTuple):
    """Of the sightings: how many were served as no prefix gives it, and of how many all features could be decided."""

    dishonest: list[Sighting]
    decided: int


class Judge:
    """Compares sightings with the log."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._appended = {topic: _Appended(records) for topic, records in truth.records.items()}

    def verdict(self, sightings: Sequence[Sighting]) -> Verdict:
        """Judge all of them."""
        dishonest, decided = [], 0
        for sighting in sightings:
            possible, all_decided = self._judge(sighting)
            decided += all_decided
            if not possible:
                dishonest.append(sighting)
        return Verdict(dishonest, decided)

    def _judge(self, seen: Sighting) -> tuple[bool, bool]:
        """Whether it can be true, and whether every feature was decided."""
        split = self._split(seen)
        if isinstance(seen.view, PresenceView):
            return self._presence(seen, *split.by_member(seen.view.member)), True
        if split.prefixes <= _PREFIXES:
            return any(self._gives(seen, rows) for rows in split.each()), True
        return self._between(seen, seen.view, split), False

    def _gives(self, seen: Sighting, rows: Sequence[Row]) -> bool:
        return all(close(v, value(seen.view, name, rows, seen.ids, seen.instant)) for name, v in seen.values.items())

    def _between(self, seen: Sighting, view: WindowView, split: "_Split") -> bool:
        functions = {aggregate.name: aggregate.function for aggregate in view.aggregates}
        for name, served in seen.values.items():
            least, most = (value(view, name, rows, seen.ids, seen.instant) for rows in (split.sure, split.all()))
            if functions[name] in _GROWING and not _in_order(least, served, most, absent=-inf):
                return False
            if functions[name] in _SHRINKING and not _in_order(most, served, least, absent=inf):
                return False
        return True

    def _presence(self, seen: Sighting, settled: Sequence[Row], parts: Sequence["_Split"]) -> bool:
        for name, served in seen.values.items():
            least = most = value(seen.view, name, settled, seen.ids, seen.instant) or 0
            for part in parts:
                each = part.each() if part.prefixes <= _PREFIXES else ()
                counts = [value(seen.view, name, rows, seen.ids, seen.instant) or 0 for rows in each] or [0, 1]
                least, most = least + min(counts), most + max(counts)
            if not _in_order(least, served, most, absent=0):
                return False
        return True

    def _split(self, seen: Sighting) -> "_Split":
        sure: list[Row] = []
        perhaps: dict[tuple[str, int], list[Row]] = {}
        bounds = {
            topic: self._appended[topic].bounds(
                seen.asked - seen.view.max_lag - SLACK_MS,
                seen.answered + SLACK_MS,
            )
            for topic in seen.view.topics
        }
        for row in self._truth.entity(seen.view, seen.ids).near(seen.instant, seen.view.reach):
            surely, possibly = bounds[row.event.topic][row.partition]
            if row.offset < surely:
                sure.append(row)
            elif row.offset < possibly:
                perhaps.setdefault((row.event.topic, row.partition), []).append(row)
        return _Split(sure, [sorted(rows, key=lambda row: row.offset) for rows in perhaps.values()])


class _Appended:
    """When the records of one topic were appended."""

    def __init__(self, records: Sequence[Record]) -> None:
        by_partition: dict[int, list[Record]] = {}
        for record in sorted(records, key=lambda record: record.offset):
            by_partition.setdefault(record.partition, []).append(record)
        self._partitions = {
            partition: (
                np.array([record.offset for record in its]),
                np.maximum.accumulate([record.append_ms for record in its]),
                np.minimum.accumulate([record.append_ms for record in its][::-1])[::-1],
            )
            for partition, its in by_partition.items()
        }

    def bounds(self, before: int, after: int) -> dict[int, tuple[int, int]]:
        """Of each partition: the offset below which all was appended before `before`, that below which lies all that
        was not appended after `after`.
        """
        found = {}
        for partition, (offsets, latest, earliest) in self._partitions.items():
            ends = np.append(offsets, offsets[-1] + 1)
            sure, possible = np.searchsorted(latest, before, "left"), np.searchsorted(earliest, after, "right")
            found[partition] = (int(ends[sure]), int(ends[possible]))
        return found


@dataclass(frozen=True)
class _Split:
    """An entity's events that are surely in what was read, and in each partition those that perhaps are, by offset."""

    sure: list[Row]
    perhaps: list[list[Row]]

    @property
    def prefixes(self) -> int:
        """How many prefixes of the log differ for the entity."""
        return prod(len(rows) + 1 for rows in self.perhaps)

    def each(self) -> Iterator[list[Row]]:
        """The events in each of these prefixes."""
        for cuts in product(*(range(len(rows) + 1) for rows in self.perhaps)):
            chosen = [row for rows, cut in zip(self.perhaps, cuts, strict=True) for row in rows[:cut]]
            yield self.sure + chosen

    def all(self) -> list[Row]:
        """The events in the greatest prefix."""
        return [*self.sure, *(row for rows in self.perhaps for row in rows)]

    def by_member(self, column: str) -> tuple[list[Row], list["_Split"]]:
        """The events of members of whom all are sure, and one split for each other member."""
        others: dict[object, _Split] = {}
        for rows in self.perhaps:
            its: dict[object, list[Row]] = {}
            for row in rows:
                its.setdefault(row.event.columns[column], []).append(row)
            for member, found in its.items():
                others.setdefault(member, _Split([], [])).perhaps.append(found)
        settled: list[Row] = []
        for row in self.sure:
            other = others.get(row.event.columns[column])
            (settled if other is None else other.sure).append(row)
        return settled, list(others.values())


def _in_order(low: Number, middle: Number, high: Number, absent: float) -> bool:
    low, middle, high = (absent if number is None else number for number in (low, middle, high))
    return low <= middle <= high
