"""Your own order history as events: a CSV or Parquet file, one row an order, and a YAML mapping of its columns.

Event ids are made of the source's name and the order's id, so importing a file again adds only what is new. A row that
cannot be right is refused whole, counted by reason, and kept with its reason in ``data/imported``: none goes silently.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import connect, literal, parquet_files
from feature_repo.stores.parquet_files import replace_file
from ingestion.event_files import append_history, log_folder
from ingestion.events import EVENT_TYPES, MINUTE_MS, BadEvent, Event, extras, parse
from ingestion.import_mapping import (
    SHORT_NAMES,
    Constant,
    Couriers,
    Mapping,
    Refused,
    Row,
    instant,
    kept_value,
    order_of,
    read_mapping,
    wanted,
)

_NO_ARRIVAL = 2**62  # imported events never arrived: their time is their own, however late it is
Interval = tuple[int, int, int]
"""When a courier was busy (ms, from and until) and in which zone."""


@dataclass
class Report:
    """What an import did. `refused` counts rows by reason, `written` events by topic."""

    source: str
    rows: int = 0
    kept: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    written: dict[str, int] = field(default_factory=dict)
    already_there: int = 0
    refused_file: Path | None = None


@dataclass
class _Source:
    """A source file read and judged: its events in time order, and the rows refused."""

    mapping: Mapping
    rows: int
    events: list[tuple[Event, bytes]]
    refused: pa.Table


def import_orders(
    settings: Settings, path: Path, mapping_path: Path, until_ms: int | None = None, after_ms: int | None = None
) -> Report:
    """Add the events of `path` with `after_ms` <= time < `until_ms` to the event log's history.

    Raises ValueError, naming the field, for a mapping that is wrong or names a column that the file lacks; then
    nothing is written. Events that are in the log already are counted and left alone.
    """
    source = _read_source(settings, path, mapping_path)
    report = Report(source.mapping.source, rows=source.rows, kept=source.rows - source.refused.num_rows)
    report.refused.update(source.refused["refused_because"].to_pylist())
    report.refused_file = settings.data / "imported" / f"refused-{source.mapping.source}.parquet"
    replace_file(report.refused_file, source.refused)
    by_topic: dict[str, list[tuple[Event, bytes]]] = {topic: [] for topic in EVENT_TYPES}
    for event, value in _between(source.events, after_ms, until_ms):
        by_topic[event.topic].append((event, value))
    for topic, events in by_topic.items():
        there = _ids_there(settings, topic, source.mapping.source)
        new = [(event, value) for event, value in events if event.event_id not in there]
        report.already_there += len(events) - len(new)
        report.written[topic] = _write(settings, topic, new)
    return report


def events_of(
    settings: Settings, path: Path, mapping_path: Path, after_ms: int | None = None, until_ms: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of `path` with `after_ms` <= time < `until_ms` as (topic, event), in time order, for a replay.

    Their ids are those of `import_orders`, so what is both imported and replayed counts once. Raises ValueError as it.
    """
    for event, value in _between(_read_source(settings, path, mapping_path).events, after_ms, until_ms):
        yield event.topic, msgspec.json.decode(value)


def _read_source(settings: Settings, path: Path, mapping_path: Path) -> _Source:
    mapping = read_mapping(mapping_path)
    table = _read_table(path)
    missing = sorted(mapping.columns() - set(table.column_names))
    if missing:
        raise ValueError(f"{path.name} has no column {', '.join(missing)}, which {mapping_path.name} names: no events")
    dense = {name: _dense_ids(settings, name, _column(mapping, name, table)) for name in mapping.ids}
    events: list[tuple[Event, bytes]] = []
    busy: dict[int, list[Interval]] = {}
    refused: list[int] = []
    reasons: list[str] = []
    seen: set[str] = set()
    for i, row in enumerate(table.to_pylist()):
        try:
            order = order_of(mapping, row, dense, seen)
            made = _events(mapping, row, order)
        except (Refused, BadEvent) as error:
            refused.append(i)
            reasons.append(str(error))
            continue
        seen.add(str(order["order_id"]))
        events += made
        if mapping.couriers and order.get("courier_id") is not None:
            busy.setdefault(order["courier_id"], []).append(_interval(mapping, mapping.couriers, row, order))
    if mapping.couriers:
        events += _courier_events(mapping.source, busy, int(mapping.couriers.idle_minutes * MINUTE_MS))
    events.sort(key=lambda pair: pair[0].time)
    why = pa.array(reasons, pa.string())
    return _Source(
        mapping, len(table), events, table.take(pa.array(refused, pa.int64())).append_column("refused_because", why)
    )


def _read_table(path: Path) -> pa.Table:
    """The file's rows, instants in microseconds; a CSV's columns are all text, since a dirty value spoils a guess."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            types = dict.fromkeys(next(csv.reader(file), []), pa.string())
        return pacsv.read_csv(path, convert_options=pacsv.ConvertOptions(column_types=types, strings_can_be_null=True))
    if path.suffix != ".parquet":
        raise ValueError(f"{path.name} is neither .csv nor .parquet: its columns cannot be read")
    table = pq.read_table(path)
    for i, column in enumerate(table.schema):
        if pa.types.is_timestamp(column.type):
            instants = table[column.name].cast(pa.timestamp("us", tz=column.type.tz), safe=False)
            table = table.set_column(i, column.name, instants)
    return table


def _events(mapping: Mapping, row: Row, order: Row) -> list[tuple[Event, bytes]]:
    """The events of one order. Raises BadEvent if one of them would be refused by every consumer."""
    kept = {name: kept_value(row[name]) for name in mapping.keep}
    made = []
    for topic, short in SHORT_NAMES.items():
        kind = EVENT_TYPES[topic]
        if order.get(kind.time_field) is None or not wanted(mapping, topic, row):
            continue
        fields = {name: order.get(name) for name in kind.schema.__struct_fields__}
        fields["event_id"] = f"{mapping.source}-{short}-{order['order_id']}"
        made.append(_parsed(topic, {**kept, **fields}))
    return made


def _parsed(topic: str, fields: Row) -> tuple[Event, bytes]:
    value = msgspec.json.encode(fields)
    return parse(topic, value, _NO_ARRIVAL), value


def _interval(mapping: Mapping, couriers: Couriers, row: Row, order: Row) -> Interval:
    """When the order's courier was busy with it: at most `max_minutes`, for an order may be placed days ahead."""
    until: int = order["delivered_at"]
    raw = row[couriers.busy_from] if couriers.busy_from else None
    try:
        since = order["placed_at"] if raw is None else instant(raw, mapping.zone_of(couriers.busy_from or ""))
    except (ValueError, TypeError):
        since = order["placed_at"]
    since = max(since, until - int(mapping.max_minutes * MINUTE_MS))
    return min(since, until), until, order["zone_id"]


def _courier_events(source: str, busy: dict[int, list[Interval]], idle_ms: int) -> list[tuple[Event, bytes]]:
    """Busy while any order is under way, available after the last, offline if none follows within `idle_ms`."""
    events = []

    def status(courier: int, zone: int, state: str, at: int) -> None:
        fields = {"event_id": f"{source}-courier-{courier}-{state}-{at}", "courier_id": courier, "zone_id": zone}
        events.append(_parsed("courier_status", {**fields, "status": state, "at": at}))

    for courier, intervals in sorted(busy.items()):
        shifts = _merged(sorted(intervals))
        for i, (since, until, zone_then, zone_after) in enumerate(shifts):
            status(courier, zone_then, "busy", since)
            following = shifts[i + 1][0] if i + 1 < len(shifts) else None
            status(courier, zone_after, "available", until)
            if following is None or following > until + idle_ms:
                status(courier, zone_after, "offline", until + idle_ms)
    return events


def _merged(intervals: Sequence[Interval]) -> list[tuple[int, int, int, int]]:
    """Intervals in order, those that touch made one: (from, until, zone at first, zone at last)."""
    merged: list[tuple[int, int, int, int]] = []
    for since, until, zone in intervals:
        if merged and since <= merged[-1][1]:
            first, last, zone_then, zone_after = merged[-1]
            merged[-1] = (first, max(last, until), zone_then, zone if until >= last else zone_after)
        else:
            merged.append((since, until, zone, zone))
    return merged


def _column(mapping: Mapping, name: str, table: pa.Table) -> list[str]:
    where = mapping.fields[name]
    values = [where.constant] if isinstance(where, Constant) else table[where].unique().to_pylist()
    return [str(value) for value in values if value is not None and value != ""]


def _dense_ids(settings: Settings, name: str, texts: list[str]) -> dict[str, int]:
    """Whole numbers from 1 for `texts`, the same in every import: kept in ``data/imported/<field>.parquet``."""
    path = settings.data / "imported" / f"{name}.parquet"
    known = {row["text"]: row["id"] for row in pq.read_table(path).to_pylist()} if path.exists() else {}
    new = [text for text in texts if text not in known]
    if new:
        known |= {text: number for number, text in enumerate(new, start=max(known.values(), default=0) + 1)}
        replace_file(path, pa.table({"text": list(known), "id": pa.array(known.values(), pa.int64())}))
    return known


def _between(
    events: list[tuple[Event, bytes]], after_ms: int | None, until_ms: int | None
) -> Iterator[tuple[Event, bytes]]:
    for event, value in events:
        if (after_ms is None or event.time >= after_ms) and (until_ms is None or event.time < until_ms):
            yield event, value


def _ids_there(settings: Settings, topic: str, source: str) -> set[str]:
    """The source's event ids that are in the log's files."""
    files = parquet_files(log_folder(settings, topic))
    if not files:
        return set()
    paths = ", ".join(literal(str(file)) for file in files)
    with connect(settings) as db:
        query = f"SELECT event_id FROM read_parquet([{paths}]) WHERE starts_with(event_id, $prefix)"
        return {event_id for (event_id,) in db.execute(query, {"prefix": f"{source}-"}).fetchall()}


def _write(settings: Settings, topic: str, events: list[tuple[Event, bytes]]) -> int:
    columns: dict[str, list[Any]] = {"event_time": [event.time for event, _ in events]}
    columns["extra"] = [extras(topic, value) for _, value in events]
    if events:
        columns |= {name: [event.columns[name] for event, _ in events] for name in events[0][0].columns}
    return append_history(settings, topic, columns)
