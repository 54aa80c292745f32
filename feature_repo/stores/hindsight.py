"""What was served, computed again from the archive: by the part of the log that it was read from, and as known now.

Set-based: questions about one view go in together, a few thousand at a time, near to each other in time; of a question
that lies far from the others all history between would be read. Needs a connection of its own: it makes tables there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from feast import FeatureStore
from feast.value_type import ValueType

from feature_repo.stores.duckdb_client import Connection
from feature_repo.stores.hindsight_sql import (
    counted_sql,
    events_sql,
    placed_sql,
    presence_told_sql,
    presence_why_sql,
    served_rows_sql,
    windows_told_sql,
)
from feature_repo.stores.joins import Join, Span, joins_of
from feature_repo.stores.log_homes import homes
from feature_repo.stores.offline_sql import batch_sql
from feature_repo.stores.presence_sql import presence_sql
from feature_repo.stores.retrieval import find_moments
from feature_repo.stores.sources import BadSource, relation
from feature_repo.stores.windows_sql import nothing_sql
from feature_repo.views import BadDefinition, PresenceView, WindowView, compile_view, features_hash

MOST = 5
"""Events that are named, of a feature."""

_KEYS = {ValueType.INT64: pa.int64(), ValueType.INT32: pa.int64(), ValueType.STRING: pa.string()}


class Definition(NamedTuple):
    """A view as the registry defines it: all of its features, and the hash of what they mean."""

    join: Join
    meaning: str


def definitions_of(store: FeatureStore) -> dict[str, Definition]:
    """Every view of the registry that history can be asked about, by name."""
    found = {}
    tables = [*store.list_feature_views(), *store.list_stream_feature_views()]
    for table in tables:
        try:
            view = compile_view(table)
            refs = [f"{table.name}:{feature}" for feature in view.features]
            ((join,), _) = joins_of(store.config, store.registry, [table], refs, full=True)
        except (BadDefinition, BadSource):  # nothing serves it, or nothing is kept of it
            continue
        found[view.name] = Definition(join, features_hash([(view, tuple(view.features))]))
    return found


@dataclass(frozen=True)
class Prefix:
    """A part of a topic's log: the digest of its identity (None where nothing was read), and of each partition the
    offset below which everything counts.
    """

    log: int | None
    upto: Sequence[int]


@dataclass(frozen=True)
class StreamQuestion:
    """What a stream view said of an entity (`keys`) at an instant, read by a reader whose clock showed `now` (ms).

    `prefixes` are those of the view's topics, in their order; `own` is the order that was asked about, if it had an id.
    """

    keys: Mapping[str, object]
    instant: int
    now: int
    own: str | None
    prefixes: Sequence[Prefix]


@dataclass(frozen=True)
class BatchQuestion:
    """What a batch view said of an entity at an instant (ms): the row of this event and created time (µs).

    Without `event_us` no row was found; without `created_us` it is any of the event time.
    """

    keys: Mapping[str, object]
    instant: int
    event_us: int | None
    created_us: int | None


class Event(NamedTuple):
    """An event that makes, or may make, a difference. `appended` in ms, `why` one of `hindsight_sql`'s bits."""

    id: str
    appended: int
    why: int


class StreamAnswer(NamedTuple):
    """A feature by its prefix (`then`) and as known `now`; `why` unites the bits of the events that differ.

    `events` are the first of them, if they were asked for.
    """

    then: Any
    now: Any
    why: int
    events: Sequence[Event]


class BatchAnswer(NamedTuple):
    """A batch row: whether what was served is in the archive, its values by feature, and those of the `newest` row.

    `now` has nulls where the newest row, as known now, is older than the TTL; `newest` is its (event, created) in µs.
    """

    found: bool
    then: Mapping[str, Any]
    now: Mapping[str, Any]
    newest: tuple[int, int | None] | None


def names_entity(join: Join, keys: Mapping[str, object]) -> bool:
    """Whether keys are those of an entity of the view: each is there, and of its type."""
    return all(_fitting(kind, keys.get(column)) is not None for column, kind in join.kinds.items())


def ask_stream(
    connection: Connection, join: Join, questions: Sequence[StreamQuestion], own: str, detail: bool = False
) -> list[dict[str, StreamAnswer] | None]:
    """Of each question every feature of the view; None if no file says that it is of the question's log.

    `own` is the events' column that says whose order they are of. An entity that lacks a key has nulls.
    """
    known = [homes(source.path) for source in join.sources]
    answers: list[dict[str, StreamAnswer] | None] = [None] * len(questions)
    asked = [(i, q, h) for i, q in enumerate(questions) if (h := _homes(known, q)) is not None]
    if not asked:
        return answers
    rows: dict[str, Any] = {
        "__row": [i for i, _, _ in asked],
        "__us": [q.instant * 1000 for _, q, _ in asked],
        "__ms": [q.instant for _, q, _ in asked],
        "__now": [q.now for _, q, _ in asked],
        "__own": pa.array([q.own for _, q, _ in asked], pa.string()),
        **_keys(join, [q.keys for _, q, _ in asked]),
    }
    for k in range(len(join.sources)):
        rows[f"h{k}"] = pa.array([h[k] for _, _, h in asked], pa.string())
        rows[f"u{k}"] = pa.array([list(q.prefixes[k].upto) for _, q, _ in asked], pa.list_(pa.int64()))
    span = Span(min(rows["__us"]), max(rows["__us"]))
    events = events_sql(join, span, own)
    if isinstance(join.view, PresenceView):
        rows["chain"], rows["pos"] = _chains([q for _, q, _ in asked], [h for _, _, h in asked])
        _replace(connection, "entity_rows", pa.table(rows))
        found = _presence(connection, join, join.view, events, detail)
    else:
        assert isinstance(join.view, WindowView)
        _replace(connection, "entity_rows", pa.table(rows))
        query = nothing_sql(join) if events is None else windows_told_sql(join.view, join, events, detail)
        found = connection.execute(query).to_arrow_table()
    columns = {name: found[name].to_pylist() for name in found.column_names}
    for i, _, _ in asked:
        answers[i] = {feature: StreamAnswer(None, None, 0, ()) for feature, _ in join.features}  # lacks a key
    rows_told = columns["__row"]
    for feature, output in join.features:
        nothing = columns.get(output, [])  # there are no files
        then, now = columns.get(f"{output}_then", nothing), columns.get(f"{output}_now", nothing)
        why = columns.get(f"{output}_why", [0] * len(rows_told))
        events = columns.get(f"{output}_events", [None] * len(rows_told))
        for row, before, known, bits, named in zip(rows_told, then, now, why, events, strict=True):
            told = StreamAnswer(before, known, bits or 0, [Event(**event) for event in (named or ())[:MOST]])
            answers[row][feature] = told
    return answers


def ask_batch(connection: Connection, join: Join, questions: Sequence[BatchQuestion]) -> list[BatchAnswer]:
    """Of each question the row that was served, and the newest one as known now."""
    rows: dict[str, Any] = {
        "__row": range(len(questions)),
        "__us": [q.instant * 1000 for q in questions],
        "__ms": [q.instant for q in questions],
        "event": pa.array([q.event_us for q in questions], pa.int64()),
        "created": pa.array([q.created_us for q in questions], pa.int64()),
        **_keys(join, [q.keys for q in questions]),
    }
    _replace(connection, "entity_rows", pa.table(rows))
    names = {output: feature for feature, output in join.features}
    files = join.source.files()
    then: dict[int, dict[str, Any]] = {}
    if files:
        events = [q.event_us for q in questions if q.event_us is not None]
        within = join.source.within(join.source.time, min(events, default=0), max(events, default=0))
        query = served_rows_sql(join, f"{relation(files)} WHERE {within}")
        then = {line.pop("__row"): line for line in connection.execute(query).to_arrow_table().to_pylist()}
    span = Span(min(rows["__us"]), max(rows["__us"]))
    newest = batch_sql(join, span, versions=True, repeated=find_moments(connection, join, span))
    found = connection.execute(newest).to_arrow_table().to_pylist()
    answers = [BatchAnswer(False, {}, {}, None)] * len(questions)
    for line in found:
        row = line["__row"]
        version = None if line["__event"] is None else (line["__event"], line["__created"])
        answers[row] = BatchAnswer(
            row in then,
            {names[output]: value for output, value in then.get(row, {}).items()},
            {feature: line[output] for output, feature in names.items()},
            version,
        )
    return answers


def _presence(connection: Connection, join: Join, view: PresenceView, events: str | None, detail: bool) -> pa.Table:
    if events is None:
        return connection.execute(nothing_sql(join)).to_arrow_table()
    partitions = " UNION ALL ".join(
        f"SELECT chain, pos, {k} AS topic, h{k} AS home, "
        f"{k << 16} + generate_subscripts(u{k}, 1) - 1 AS p, unnest(u{k}) AS upto FROM entity_rows"
        for k in range(len(join.sources))
    )
    homes_of = " UNION ALL ".join(
        f"SELECT chain, {k} AS topic, any_value(h{k}) AS home FROM entity_rows GROUP BY chain"
        for k in range(len(join.sources))
    )
    now, then = counted_sql(view)
    for name, query in {
        "events": events,
        "chains": homes_of,
        "borders": f"SELECT chain, p, upto, min(pos) AS pos FROM ({partitions}) GROUP BY chain, p, upto",
        "instants": "SELECT chain, __ms AS ms, min(pos) AS pos FROM entity_rows GROUP BY chain, __ms",
        "placed": placed_sql(view),
        "now_counts": presence_sql(view, join, now),
        "then_counts": presence_sql(view, join, then, "pos", ["chain"]),
        "whys": presence_why_sql(view, join, detail),
    }.items():
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}")
    return connection.execute(presence_told_sql(view, join)).to_arrow_table()


def _homes(known: Sequence[Mapping[int, str]], question: StreamQuestion) -> list[str] | None:
    """The home of each topic's log; None if one is not known."""
    found = ["" if p.log is None else k.get(p.log) for k, p in zip(known, question.prefixes, strict=True)]
    return None if None in found else [home for home in found if home is not None]


def _chains(questions: Sequence[StreamQuestion], homes_of: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
    """Of each question its chain, and its position in it: see `hindsight_sql.placed_sql`.

    Readings of one store follow each other, so there are as many chains as readers at a time, about.
    """
    ends: dict[tuple[Any, ...], list[tuple[int, list[int]]]] = {}
    chains, positions = [0] * len(questions), [0] * len(questions)
    readings = [[q.instant, *(upto for prefix in q.prefixes for upto in prefix.upto)] for q in questions]
    count = 0
    for pos, i in enumerate(sorted(range(len(questions)), key=readings.__getitem__)):
        reading = readings[i]
        kind = (*homes_of[i], *(len(prefix.upto) for prefix in questions[i].prefixes))
        open_chains = ends.setdefault(kind, [])
        for place, (chain, last) in enumerate(open_chains):
            if all(a <= b for a, b in zip(last, reading, strict=True)):
                open_chains[place] = (chain, reading)
                break
        else:
            chain, count = count, count + 1
            open_chains.append((chain, reading))
        chains[i], positions[i] = chain, pos
    return chains, positions


def _keys(join: Join, entities: Sequence[Mapping[str, object]]) -> dict[str, pa.Array]:
    """The join keys as columns; an id that can be no key is null."""
    return {
        column: pa.array([_fitting(kind, keys.get(column)) for keys in entities], _KEYS.get(kind, pa.string()))
        for column, kind in join.kinds.items()
    }


def _fitting(kind: ValueType, key: object) -> object:
    whole = _KEYS.get(kind) == pa.int64()
    return key if isinstance(key, int if whole else str) and not isinstance(key, bool) else None


def _replace(connection: Connection, name: str, table: pa.Table) -> None:
    connection.register("given", table)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS FROM given")
    connection.unregister("given")
