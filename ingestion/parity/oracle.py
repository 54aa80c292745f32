"""What a stream feature is, in plain Python: the definition itself, slow and exact, that everything else is held to.

It looks at events alone. It shares no arithmetic with the tiles and no SQL with the offline store.
"""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

from feature_repo.views import TOPIC_STATE, PresenceView, StreamView, WindowView
from feature_repo.windows import DISTINCT_BOUND
from ingestion.events import BadEvent, Event, parse
from ingestion.log import Record


class Row(NamedTuple):
    """An event and its place in the log."""

    partition: int
    offset: int
    event: Event


def once(records: Iterable[Record]) -> list[Row]:
    """The events among the records of one topic, in the order of their offsets; bad records and repeats left out.

    A repeat is an `event_id` that the partition has at a lower offset.
    """
    rows: dict[tuple[int, str], Row] = {}
    for record in sorted(records, key=lambda r: (r.partition, r.offset)):
        try:
            event = parse(record.topic, record.value, record.append_ms)
        except BadEvent:
            continue
        rows.setdefault((record.partition, event.event_id), Row(record.partition, record.offset, event))
    return list(rows.values())


def value(
    view: StreamView, feature: str, rows: Iterable[Row], ids: Sequence[object], instant: int
) -> int | float | None:
    """A feature of the entity with the join key values `ids` at `instant` (ms), over `rows` of the view's topics."""
    if isinstance(view, PresenceView):
        return _presence(view, feature, rows, ids, instant)
    return _window(view, feature, rows, ids, instant)


def _window(
    view: WindowView, feature: str, rows: Iterable[Row], ids: Sequence[object], instant: int
) -> int | float | None:
    aggregate = next(a for a in view.aggregates if a.name == feature)
    first = instant - instant % view.layout.hop - aggregate.window
    inside = sorted(
        (row.event.time, row.partition, row.offset, row.event.columns[aggregate.column])
        for row in rows
        if [row.event.columns[key] for key in view.join_keys] == list(ids)
        and first <= row.event.time <= instant
        and row.event.columns[aggregate.column] is not None
    )
    if aggregate.function == "count":
        return len(inside)
    if aggregate.function == "count_distinct":
        return min(len({found for *_, found in inside}), DISTINCT_BOUND)
    numbers = [Fraction(math.floor(found * 10**6 + 0.5), 10**6) for *_, found in inside]  # type: ignore[operator]
    if not numbers:
        return 0.0 if aggregate.function == "sum" else None
    mean = sum(numbers, Fraction(0)) / len(numbers)
    if aggregate.function == "std":
        return math.sqrt(sum((n - mean) ** 2 for n in numbers) / len(numbers))
    exact = {"sum": mean * len(numbers), "mean": mean, "min": min(numbers), "max": max(numbers), "last": numbers[-1]}
    return float(exact[aggregate.function])


def _presence(view: PresenceView, feature: str, rows: Iterable[Row], ids: Sequence[object], instant: int) -> int:
    def place(row: Row) -> tuple[int, int, int, int]:
        return row.event.time, view.topics.index(row.event.topic), row.partition, row.offset

    latest = {row.event.columns[view.member]: row.event for row in sorted(rows, key=place) if row.event.time <= instant}
    return sum(
        [event.columns[key] for key in view.join_keys] == list(ids)
        and (event.topic if view.state == TOPIC_STATE else event.columns[view.state]) == view.counts[feature]
        and event.time >= instant - view.ttl
        for event in latest.values()
    )
