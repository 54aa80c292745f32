"""The SQL of stream features over the event log: windows, and what counts. Each query gives ``__row`` and the features.

What a window means is said in `feature_repo.windows`, what a presence in `feature_repo.views`; here the same is
computed from the event log alone, never from tiles. `feature_repo.stores.joins` says what it works on; presence is in
`feature_repo.stores.presence_sql`, what a prefix of the log says in `feature_repo.stores.hindsight_sql`.

**Once.** An event counts once a partition: the same ``event_id`` there at a higher offset is a repeat, and so is one in
the same partition of a log that the topic had later (`feature_repo.stores.log_homes`). If its event
time is later than that of every one before by more than the topic's memory (the longest reach of its views and
`REPEAT_SLACK_MS`), it is another event that was given an old id. The same id in another partition is another event. An
event of history (imported or simulated, partition -1) that lies in a partition of the log too, no further away in time
than that memory, counts there alone.

**Known.** By event time an event is known at every instant that it happened by. By arrival it is known from its append
time on, and one of history until the log's own comes. Append times are taken not to go back within a partition, so a
repeat is never known before its original.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from feature_repo.clock import from_ms
from feature_repo.stores.duckdb_client import identifier, literal
from feature_repo.stores.joins import Join, Span
from feature_repo.stores.log_homes import SQL_HOME, home_of
from feature_repo.stores.presence_sql import presence_sql
from feature_repo.stores.sources import Source, null_of, relation
from feature_repo.views import TOPIC_STATE, PresenceView, StreamView, WindowView
from feature_repo.windows import DISTINCT_BOUND, SCALE, Aggregate

_HASH = "hash(id)"


class Way(NamedTuple):
    """A way to count: what is put behind the features' names, and which events ``e`` count for an entity row ``a``."""

    suffix: str = ""
    counts: str = "true"


class Told(NamedTuple):
    """What else is told of a feature: the suffix of its column, and an aggregate over the pairs of ``a`` and ``e``."""

    suffix: str
    aggregate: str
    where: str = "true"


def stream_sql(join: Join, span: Span, repeated: Sequence[int | None] = ()) -> str:
    """The query for a window or presence view.

    `repeated` says, of each topic k, how many ids the table ``repeated_<k>`` holds (`ids_sql`); None: that was not
    looked for, and there is no such table.
    """
    assert isinstance(join.view, StreamView)
    known = repeated or [None] * len(join.sources)
    logs = [events for topic, ids in enumerate(known) if (events := _events(join, topic, span, ids))]
    if not logs:
        return nothing_sql(join)
    if isinstance(join.view, WindowView):
        return windows_sql(join.view, join, logs[0])
    events = " UNION ALL ".join(f"({events})" for events in logs)
    return presence_sql(join.view, join, f"SELECT *, t + {join.view.ttl} AS last FROM ({events})")


def ids_sql(join: Join, topic: int, span: Span) -> str | None:
    """A hash of the ``event_id`` of each of one topic's records that can matter, as ``hash``; None without files."""
    records = records_sql(join, topic, span)
    return f"SELECT {_HASH} AS hash FROM ({records})" if records else None


def records_sql(join: Join, topic: int, span: Span, more: Sequence[str] = ()) -> str | None:
    """One topic's records that can matter, repeats and all; None if it has no files.

    ``t``: event time, ``appended``: append time, both in ms; ``part``, ``o``: where it lies; ``place``: what orders the
    partition's records over all logs of the topic; ``id``; and `more`.
    """
    assert isinstance(join.view, StreamView)
    source, memory = join.sources[topic], join.memories[topic]
    since, until = reached(join, span)
    files = source.files(from_ms(since - memory).date(), from_ms(until).date() if span.arrival else None)
    if not files:
        return None
    time, appended = _ms(source, source.time), _ms(source, source.created or source.time)
    read = source.within(source.time, (since - memory) * 1000, None)
    if span.arrival and source.created:
        read += f" AND {source.within(source.created, None, span.last)}"
    else:
        matter = source.within(source.time, since * 1000, until * 1000)
        last = f"SELECT max({appended}) FROM {relation(files)} WHERE {matter}"  # later ones are no originals of these
        read += f" AND {time} <= greatest({until + memory}, ({last}))"
    return (
        f"SELECT {', '.join([*join.keys_of(source), *_values(join, topic), *more])}, {time} AS t, "
        f'{appended} AS appended, "partition" AS part, "offset" AS o, '
        f"{_place(files, appended)} AS place, event_id AS id "
        f"FROM {relation(files)} WHERE {read}"
    )


def reached(join: Join, span: Span) -> tuple[int, int]:
    """The first and the last event time (ms) that can count for a stream view in a span."""
    assert isinstance(join.view, StreamView)
    return span.first_ms - join.view.reach, span.last_ms


def is_first(within: str, memory: int, place: str = "place") -> str:
    """The condition that a record is no repeat; ids are repeated `within` these columns, in the order of `place`."""
    return (
        f"{place} = min({place}) OVER (PARTITION BY {within}, id ORDER BY t "
        f"RANGE BETWEEN {memory} PRECEDING AND UNBOUNDED FOLLOWING)"
    )


def logged(memory: int) -> str:
    """When an event of history was appended to the log, too; null if it never was."""
    return (
        "min(appended) FILTER (WHERE part >= 0) OVER (PARTITION BY id ORDER BY t "
        f"RANGE BETWEEN {memory} PRECEDING AND {memory} FOLLOWING)"
    )


def _events(join: Join, topic: int, span: Span, repeated: int | None) -> str | None:
    """One topic's events that can matter, each once; None if it has no files.

    ``t``: event time, ``known``: when it becomes known, ``gone``: from when it counts no more, or null; all in ms.
    ``p``, ``o``: where it lies, partitions of later topics being the higher.
    """
    records = records_sql(join, topic, span)
    if records is None:
        return None
    memory, (since, until) = join.memories[topic], reached(join, span)
    known, also_logged, gone = "t", "logged IS NULL", "CAST(NULL AS BIGINT)"
    if span.arrival and join.sources[topic].created:
        known, also_logged, gone = "greatest(t, appended)", "coalesce(logged > appended, true)", "logged"
    once = _once(records, memory, f"repeated_{topic}", repeated)
    return (
        f"SELECT * EXCLUDE (appended, part, place, id, logged), {known} AS known, {topic << 16} + part AS p, "
        f"CASE WHEN part < 0 THEN {gone} END AS gone FROM ({once}) "
        f"WHERE t BETWEEN {since} AND {until} AND (part >= 0 OR {also_logged})"
    )


def _place(files: Sequence[Path], appended: str) -> str:
    """SQL for where a record lies in its partition: its offset, after those of the logs that the topic had before.

    Logs have offsets of their own, so what was appended first comes first. One log's records are in the order of their
    offsets whatever their append times say.
    """
    if len({home_of(file) for file in files}) <= 1:
        return '"offset"'
    return f"""row({appended}, {SQL_HOME}, "offset")"""


def _once(records: str, memory: int, table: str, repeated: int | None) -> str:
    """Records that are no repeats, with when they were ``logged``, too: only ids that come again are compared."""
    compared, alone = records, ""
    if repeated is not None:
        alone = f"SELECT *, CAST(NULL AS BIGINT) AS logged FROM ({records})"
        if not repeated:
            return alone
        alone += f" WHERE {_HASH} NOT IN (FROM {table}) UNION ALL "
        compared = f"FROM ({records}) WHERE {_HASH} IN (FROM {table})"
    return f"{alone}(SELECT *, {logged(memory)} AS logged FROM ({compared}) QUALIFY {is_first('part', memory)})"


def _values(join: Join, topic: int) -> list[str]:
    """SQL that selects what a view's features are made of from a topic's events."""
    source, view = join.sources[topic], join.view
    if isinstance(view, PresenceView):
        state = literal(view.topics[topic]) if view.state == TOPIC_STATE else source.column(view.state)
        return [f"{source.column(view.member)} AS member", f"{state} AS state"]
    return [f"{column} AS v{i}" for i, column in enumerate(_columns(join))]


def _columns(join: Join) -> list[str]:
    """SQL for what a window view's aggregates read of an event, each once."""
    return list(dict.fromkeys(_column(join.source, a) for a, _ in _aggregates(join)))


def _column(source: Source, a: Aggregate) -> str:
    raw = source.column(a.column)
    if a.function == "count":  # its text, if it is one, need not be carried along
        return f"CASE WHEN {raw} IS NOT NULL THEN true END"
    return raw if a.function == "count_distinct" else f"CAST({raw} AS DOUBLE)"


def _aggregates(join: Join) -> list[tuple[Aggregate, str]]:
    """The features wanted of a window view, with their output names."""
    assert isinstance(join.view, WindowView)
    by_name = {a.name: a for a in join.view.aggregates}
    return [(by_name[feature], output) for feature, output in join.features]


def windows_sql(
    view: WindowView, join: Join, events: str, ways: Sequence[Way] = (Way(),), told: Sequence[Told] = ()
) -> str:
    """An event counts at the instants from when it is known to the end of the last hop whose window reaches it.

    So windows are a join of instants with such intervals, and plain aggregates over it, which is right for every
    function and for events that come late; frames over the events' order are neither. Both lie in stretches of time as
    long as an interval can be: an instant meets the intervals that begin in its own stretch, or in the one before. What
    is looked at is about twice what counts, however long the history, and DuckDB spills what its memory does not hold.

    Each of the `ways` gives each feature once, and all that is `told` is told of the events that any way may count.
    """
    aggregates, columns = _aggregates(join), _columns(join)
    hop, longest = view.layout.hop, max(a.window for a, _ in aggregates)
    stretch = longest + hop
    parts: dict[str, str] = {}
    results = []
    for a, output in aggregates:
        value = f"e.v{columns.index(_column(join.source, a))}"
        within = "true" if a.window == longest else f"e.t >= a.floor - {a.window}"
        for suffix, counts in ways:
            sums = _parts(a.function, value, f"{within} AND {counts}")
            names = {name: parts.setdefault(sql, f"x{len(parts)}") for name, sql in sums.items()}
            results.append(f"{result_sql(a.function, **names)} AS {identifier(output + suffix)}")
        for suffix, aggregate, where in told:
            sql = f"{aggregate} FILTER (WHERE {value} IS NOT NULL AND {within} AND {where})"
            results.append(f"{parts.setdefault(sql, f'x{len(parts)}')} AS {identifier(output + suffix)}")
    met = " AND ".join([*join.equal("a", "e"), "a.stretch = e.stretch", "e.known <= a.__ms", "a.__ms < e.stop"])
    summed = ", ".join(f"{sql} AS {name}" for sql, name in parts.items())
    return (
        f"WITH events AS ({events}), "
        f"counting AS (SELECT *, least({_floor('t', hop)} + {stretch}, gone) AS stop, "
        f"known // {stretch} AS stretch FROM events), "
        f"asked AS (SELECT *, {_floor('__ms', hop)} AS floor FROM entity_rows WHERE {join.whole}), "
        f"placed AS (SELECT *, __ms // {stretch} AS stretch FROM asked "
        f"UNION ALL SELECT *, __ms // {stretch} - 1 FROM asked), "
        f"parts AS (SELECT a.__row, {summed} FROM placed a JOIN counting e ON {met} GROUP BY a.__row) "
        f"SELECT __row, {', '.join(results)} FROM asked LEFT JOIN parts USING (__row)"
    )


def _parts(function: str, value: str, where: str) -> dict[str, str]:
    """SQL for what a feature is computed from, by the names that `result_sql` has for it; nulls are skipped.

    Numbers are whole millionths, as in the tiles; made so only of what counts, which may be little of history.
    """
    only, known = f" FILTER (WHERE {where})", f" FILTER (WHERE {value} IS NOT NULL AND {where})"
    if function not in ("count", "count_distinct"):
        value = f"CAST(floor({value} * {SCALE} + 0.5) AS BIGINT)"
    count, total = f"count({value}){only}", f"sum({value}){only}"
    return {
        "count": {"n": count},
        "count_distinct": {"n": f"count(DISTINCT {value}){only}"},
        "sum": {"x": total},
        "mean": {"n": count, "x": total},
        "std": {"n": count, "x": total, "q": f"sum(CAST({value} AS HUGEINT) * {value}){only}"},
        "min": {"x": f"min({value}){only}"},
        "max": {"x": f"max({value}){only}"},
        "last": {"x": f"max_by({value}, (e.t, e.p, e.o)){known}"},
    }[function]


def result_sql(function: str, n: str = "n", x: str = "x", q: str = "q") -> str:
    """The feature of its parts: their count, their sum (or the one that was chosen) and the sum of their squares.

    The standard deviation is taken of the deviations d from the whole number m nearest to the mean, by whole numbers
    alone: ``sum(d²) = q - 2·m·x + n·m²`` and ``sum(d) = x - n·m``. So it is right to a few units in the last place, and
    the 128 bits of a HUGEINT are enough for 80 million values of the greatest magnitude; more are refused by DuckDB.
    """
    mean = f"CAST(round({x} / {n}) AS HUGEINT)"
    squares, rest = f"({q} - 2 * {mean} * {x} + {n} * {mean} * {mean}) / {n}", f"({x} - {n} * {mean}) / {n}"
    whole = f"CAST({x} AS DOUBLE)"
    return {
        "count": f"coalesce({n}, 0)",
        "count_distinct": f"least(coalesce({n}, 0), {DISTINCT_BOUND})",
        "sum": f"coalesce({whole}, 0) / {SCALE}",
        "mean": f"{whole} / ({n} * {SCALE}.0)",
        "std": f"CASE WHEN {n} > 0 THEN sqrt({squares} - ({rest}) ** 2) / {SCALE} END",
    }.get(function, f"{whole} / {SCALE}")


def nothing_sql(join: Join) -> str:
    """No files: windows and presence are what they are over no events."""
    empty = {"count": "CAST(0 AS BIGINT)", "count_distinct": "CAST(0 AS BIGINT)", "sum": "CAST(0 AS DOUBLE)"}
    if isinstance(join.view, PresenceView):
        values = [(empty["count"], output) for _, output in join.features]
    else:
        values = [(empty.get(a.function, null_of(join.view.features[a.name])), o) for a, o in _aggregates(join)]
    features = ", ".join(f"{value} AS {identifier(output)}" for value, output in values)
    return f"SELECT __row, {features} FROM entity_rows WHERE {join.whole}"


def _ms(source: Source, column: str) -> str:
    """SQL for a time column in ms since the epoch, rounded down."""
    return f"epoch_ms(CAST({source.column(column)} AS TIMESTAMPTZ))"


def _floor(instant: str, hop: int) -> str:
    """SQL for the start of the hop that an instant lies in; DuckDB's remainder has the dividend's sign."""
    return f"({instant} - ({instant} % {hop} + {hop}) % {hop})"
