"""The truth: what lies in the log, and what the definitions make of it; and how the archive compares with it."""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from deploy.chaos import ChaosError
from feature_repo.settings import Settings
from feature_repo.views import StreamView, WindowView
from ingestion.event_files import log_folder
from ingestion.events import DEAD_LETTERS, EVENT_TYPES, BadEvent, Event, arrow_schema, parse
from ingestion.log import EventLog, Record
from ingestion.parity.compare import Number
from ingestion.parity.oracle import Row, once, value

_EMPTY_POLLS = 100

Ids = tuple[object, ...]


def read_log(log: EventLog, topics: Sequence[str]) -> dict[str, list[Record]]:
    """Every record of the topics, from offset 0, by topic. Raises LogUnavailable, or ChaosError if some never come."""
    consumer = log.consumer(topics, None, lambda gained: dict.fromkeys(gained, 0))
    found: dict[str, list[Record]] = {topic: [] for topic in topics}
    silent = 0
    try:
        while silent < _EMPTY_POLLS:
            batches = consumer.poll(200, 5000)
            for where, batch in batches.items():
                found[where.topic] += batch
            silent = 0 if batches else silent + 1
            if not batches and all(consumer.position(where) >= end for where, end in consumer.ends().items()):
                return found
        raise ChaosError(f"the log gives no more records, but ends at {consumer.ends()}")
    finally:
        consumer.close()


class Entity(NamedTuple):
    """The events that can count for one entity of a view, in order of their time."""

    times: list[int]
    rows: list[Row]

    def near(self, instant: int, reach: int) -> list[Row]:
        """Those not after `instant` and at most `reach` before it: no others can count."""
        return self.rows[bisect_left(self.times, instant - reach) : bisect_right(self.times, instant)]


_NOBODY = Entity([], [])


@dataclass
class Truth:
    """The log's records by topic, and what follows from them."""

    records: Mapping[str, Sequence[Record]]
    _entities: dict[str, dict[Ids, Entity]] = field(default_factory=dict)
    _values: dict[tuple[str, str, Ids, int], Number] = field(default_factory=dict)

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """The distinct events of each topic."""
        return {topic: once(self.records[topic]) for topic in EVENT_TYPES}

    @property
    def events(self) -> int:
        """How many distinct events there are."""
        return sum(map(len, self.rows.values()))

    def entity(self, view: StreamView, ids: Ids) -> Entity:
        """The events that can count for an entity; of a presence view, all those of every member ever seen there."""
        if view.name not in self._entities:
            self._entities[view.name] = self._by_entity(view)
        return self._entities[view.name].get(ids, _NOBODY)

    def value(self, view: StreamView, feature: str, ids: Ids, instant: int) -> Number:
        """A feature at `instant` (ms), which must not come before the newest event."""
        asked = (view.name, feature, ids, instant)
        if asked not in self._values:
            self._values[asked] = value(view, feature, self.entity(view, ids).near(instant, view.reach), ids, instant)
        return self._values[asked]

    def lost_of(self, sent: Iterable[tuple[str, bytes]]) -> int:
        """How many of the (topic, bytes) are not in the log."""
        there = {(topic, record.value) for topic in EVENT_TYPES for record in self.records[topic]}
        return len(set(sent) - there)

    def dead_letters_missing(self) -> int:
        """How many records that do not parse have no dead letter."""
        letters = {msgspec.json.decode(record.value)["event_id"] for record in self.records[DEAD_LETTERS]}
        broken = (r for t in EVENT_TYPES for r in self.records[t] if _parsed(r) is None)
        return sum(f"{r.topic}:{r.partition}:{r.offset}" not in letters for r in broken)

    def _by_entity(self, view: StreamView) -> dict[Ids, Entity]:
        rows = sorted((row for t in view.topics for row in self.rows[t]), key=lambda row: row.event.time)
        ids_of = {id(row): tuple(row.event.columns[key] for key in view.join_keys) for row in rows}
        found: dict[Ids, list[Row]] = defaultdict(list)
        if isinstance(view, WindowView):
            for row in rows:
                found[ids_of[id(row)]].append(row)
        else:
            groups: dict[object, set[Ids]] = defaultdict(set)
            for row in rows:
                groups[row.event.columns[view.member]].add(ids_of[id(row)])
            for row in rows:
                for ids in groups[row.event.columns[view.member]]:
                    found[ids].append(row)
        return {ids: Entity([row.event.time for row in its], its) for ids, its in found.items()}


def _parsed(record: Record) -> Event | None:
    try:
        return parse(record.topic, record.value, record.append_ms)
    except BadEvent:
        return None


@dataclass
class Archived:
    """How the archive differs from the log: records that no file has, that several have, and rows that are wrong."""

    rows: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0


def compare_archive(given: Settings, records: Mapping[str, Sequence[Record]]) -> Archived:
    """Hold every row of the archived Parquet against the log's records that parse."""
    result = Archived()
    for topic in EVENT_TYPES:
        due = {(r.partition, r.offset): (r, event) for r in records[topic] if (event := _parsed(r)) is not None}
        times: Counter[object] = Counter()
        for row in _archived_rows(given, topic):
            place = (row["partition"], row["offset"])
            times[place] += 1
            taken = due.get(place)
            result.wrong += taken is None or row != _archived_form(*taken)
        result.rows += times.total()
        result.lost += len(due.keys() - times.keys())
        result.duplicated += sum(count > 1 for count in times.values())
    return result


def archived_count(given: Settings) -> int:
    """How many rows the archive has."""
    files = (path for topic in EVENT_TYPES for path in log_folder(given, topic).rglob("date=*/*.parquet"))
    return sum(pq.read_metadata(path).num_rows for path in files)


def parsing_count(records: Mapping[str, Sequence[Record]]) -> int:
    """How many of the records parse."""
    return sum(_parsed(record) is not None for topic in EVENT_TYPES for record in records[topic])


def _archived_rows(given: Settings, topic: str) -> Iterable[dict[str, Any]]:
    """Every row of every file, instants in ms."""
    for path in sorted(log_folder(given, topic).rglob("date=*/*.parquet")):
        with path.open("rb") as file:
            table = pq.ParquetFile(file).read()
        for name in arrow_schema(topic).names:
            place = table.schema.get_field_index(name)
            if pa.types.is_timestamp(table.schema.field(place).type):
                milliseconds = table.column(place).cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64())
                table = table.set_column(place, name, milliseconds)
        yield from table.to_pylist()


def _archived_form(record: Record, event: Event) -> dict[str, object]:
    place = {"partition": record.partition, "offset": record.offset, "append_time": record.append_ms}
    return {**place, "event_time": event.time, **event.columns, "extra": None}
