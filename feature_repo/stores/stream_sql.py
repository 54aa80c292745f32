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

from feature_repo.clock import from_ms
from feature_repo.stores.duckdb_client import literal
from feature_repo.stores.joins import Join, Span
from feature_repo.stores.log_facts import Facts
from feature_repo.stores.log_homes import SQL_HOME, home_of
from feature_repo.stores.presence_sql import presence_sql
from feature_repo.stores.sources import Source, relation
from feature_repo.stores.windows_sql import aggregates_of, column_of, columns_of, nothing_sql, windows_sql
from feature_repo.views import TOPIC_STATE, PresenceView, StreamView, WindowView

EVENT_ID = "event_id"
"""The column of the log's files that says which events are one."""

_HASH = "hash(id)"


def stream_sql(join: Join, span: Span, facts: Sequence[Facts | None] = (), all_rows: bool = True) -> str:
    """The query for a window or presence view.

    `facts` says what is known of each topic's records, of which the table ``repeated_<k>`` holds those ids of topic k
    that come again; None: that was not looked for, and there is no such table. Unless `all_rows` are asked for, those
    whose windows hold no events may be missing.
    """
    assert isinstance(join.view, StreamView)
    known = facts or [None] * len(join.sources)
    logs = [events for topic, fact in enumerate(known) if (events := _events(join, topic, span, fact))]
    if not logs:
        return nothing_sql(join)
    if isinstance(join.view, WindowView):
        return windows_sql(join.view, join, logs[0], full=_full(join, known[0]), all_rows=all_rows)
    events = " UNION ALL ".join(f"({events})" for events in logs)
    return presence_sql(join.view, join, f"SELECT *, t + {join.view.ttl} AS last FROM ({events})")


def ids_sql(join: Join, topic: int, span: Span) -> str | None:
    """A hash of the ``event_id`` of each of one topic's records that can matter, as ``hash``; None without files."""
    records = records_sql(join, topic, span)
    return f"SELECT {_HASH} AS hash FROM ({records})" if records else None


def all_ids_sql(files: Sequence[Path]) -> str:
    """The same of all records in the files."""
    return f"SELECT {_HASH} AS hash FROM (SELECT {EVENT_ID} AS id FROM {relation(files)})"


def extent_sql(join: Join, topic: int, span: Span) -> str:
    """How many records of one topic can matter, by their event times, and how many there are in all; it has files."""
    source, since = join.sources[topic], reached(join, span)[0] - join.memories[topic]
    until = span.last if span.arrival else None
    matter = source.within(source.time, since * 1000, until)
    return f"SELECT count(*) FILTER (WHERE {matter}), count(*) FROM {relation(files_of(join, topic, span))}"


def files_of(join: Join, topic: int, span: Span) -> list[Path]:
    """The files of one topic that can hold records that matter."""
    since = reached(join, span)[0] - join.memories[topic]
    return join.sources[topic].files(from_ms(since).date(), from_ms(span.last_ms).date() if span.arrival else None)


def records_sql(join: Join, topic: int, span: Span, more: Sequence[str] = (), once: bool = False) -> str | None:
    """One topic's records that can matter, repeats and all; None if it has no files.

    ``t``: event time, ``appended``: append time, both in ms; ``part``, ``o``: where it lies; ``place``: what orders the
    partition's records over all logs of the topic; ``id``; and `more`. If all are there
    `once`, none matters to another: then only those within the span are read.
    """
    assert isinstance(join.view, StreamView)
    source, memory = join.sources[topic], join.memories[topic]
    since, until = reached(join, span)
    files = files_of(join, topic, span)
    if not files:
        return None
    time, appended = _ms(source, source.time), _ms(source, source.created or source.time)
    read = source.within(source.time, (since if once else since - memory) * 1000, until * 1000 + 999 if once else None)
    if span.arrival and source.created:
        read += f" AND {source.within(source.created, None, span.last)}"
    elif not once:
        matter = source.within(source.time, since * 1000, until * 1000)
        last = f"SELECT max({appended}) FROM {relation(files)} WHERE {matter}"  # later ones are no originals of these
        read += f" AND {time} <= greatest({until + memory}, ({last}))"
    return (
        f"SELECT {', '.join([*join.keys_of(source), *_values(join, topic), *more])}, {time} AS t, "
        f'{appended} AS appended, "partition" AS part, "offset" AS o, '
        f"{_place(files, appended)} AS place, {EVENT_ID} AS id "
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


def _events(join: Join, topic: int, span: Span, facts: Facts | None) -> str | None:
    """One topic's events that can matter, each once; None if it has no files.

    ``t``: event time, ``known``: when it becomes known, ``gone``: from when it counts no more, or null; all in ms.
    ``p``, ``o``: where it lies, partitions of later topics being the higher.
    """
    once = facts is not None and not len(facts.repeated)
    records = records_sql(join, topic, span, once=once)
    if records is None:
        return None
    memory, (since, until) = join.memories[topic], reached(join, span)
    known, also_logged, gone = "t", "logged IS NULL", "CAST(NULL AS BIGINT)"
    if span.arrival and join.sources[topic].created:
        known, also_logged, gone = "greatest(t, appended)", "coalesce(logged > appended, true)", "logged"
    found = f"{known} AS known, {topic << 16} + part AS p"
    if once:
        return f"SELECT * EXCLUDE (appended, part, place, id), {found}, CAST(NULL AS BIGINT) AS gone FROM ({records})"
    originals = _once(records, memory, f"repeated_{topic}", facts is not None)
    return (
        f"SELECT * EXCLUDE (appended, part, place, id, logged), {found}, "
        f"CASE WHEN part < 0 THEN {gone} END AS gone FROM ({originals}) "
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


def _once(records: str, memory: int, table: str, looked_for: bool) -> str:
    """Records that are no repeats, with when they were ``logged``, too: only ids that come again are compared."""
    compared, alone = records, ""
    if looked_for:
        alone = (
            f"SELECT *, CAST(NULL AS BIGINT) AS logged FROM ({records}) WHERE {_HASH} NOT IN (FROM {table}) UNION ALL "
        )
        compared = f"FROM ({records}) WHERE {_HASH} IN (FROM {table})"
    return f"{alone}(SELECT *, {logged(memory)} AS logged FROM ({compared}) QUALIFY {is_first('part', memory)})"


def _values(join: Join, topic: int) -> list[str]:
    """SQL that selects what a view's features are made of from a topic's events."""
    source, view = join.sources[topic], join.view
    if isinstance(view, PresenceView):
        state = literal(view.topics[topic]) if view.state == TOPIC_STATE else source.column(view.state)
        return [f"{source.column(view.member)} AS member", f"{state} AS state"]
    return [f"{column} AS v{i}" for i, column in enumerate(columns_of(join))]


def _full(join: Join, facts: Facts | None) -> frozenset[str]:
    """SQL for what a window view's aggregates read of an event that is never null."""
    if facts is None:
        return frozenset()
    source = join.source
    named = [(column_of(source, a), source.mapping.get(a.column, a.column)) for a, _ in aggregates_of(join)]
    return frozenset(sql for sql, name in named if name in facts.full)


def _ms(source: Source, column: str) -> str:
    """SQL for a time column in ms since the epoch, rounded down."""
    return f"epoch_ms(CAST({source.column(column)} AS TIMESTAMPTZ))"
