"""The SQL of point-in-time joins: batch rows, stream windows, presence. Each gives ``__row`` and the view's features.

All work on a table ``entity_rows`` with the entity columns, ``__row`` (its number) and ``__us`` (its instant in
microseconds since the epoch). What a window means is said in `feature_repo.windows`, what a presence in
`feature_repo.views`; here the same is computed from the event log alone, never from tiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from feature_repo.stores.duckdb_client import identifier, literal
from feature_repo.stores.sources import Source, null_of, relation
from feature_repo.views import TOPIC_STATE, BatchView, PresenceView, StreamView, View, WindowView
from feature_repo.windows import DISTINCT_BOUND, MAX_AHEAD_MS, SCALE, Aggregate


@dataclass(frozen=True)
class Join:
    """What to join: a view, its source, the features wanted under their output names, and the entity columns."""

    view: View
    source: Source
    features: tuple[tuple[str, str], ...]
    """(feature, output name) pairs"""
    columns: tuple[str, ...]
    """entity row columns of the view's join keys, in their order"""
    ttl_us: int = 0
    more: tuple[Source, ...] = ()
    """the sources of a presence view's further topics, in their order"""


@dataclass(frozen=True)
class Span:
    """The instants of the entity rows, in ms: the first and the last."""

    first: int
    last: int


def join_sql(join: Join, span: Span) -> str:
    """The query for one view."""
    if isinstance(join.view, BatchView):
        return _batch(join)
    since = span.first - join.view.reach - MAX_AHEAD_MS  # a repeat's event time may differ by as much
    logs = [(rank, source, source.files(_day(since))) for rank, source in enumerate((join.source, *join.more))]
    events = [_events(join.view, rank, source, files, since, span.last) for rank, source, files in logs if files]
    if not events:
        return _nothing(join)
    if isinstance(join.view, WindowView):
        return _windows(join.view, join, events[0])
    return _presence(join.view, join, " UNION ALL ".join(f"({body})" for body in events))


def newest_rows_sql(source: Source, view: BatchView, files: Sequence[Path], first_us: int, last_us: int) -> str:
    """The newest row of each entity with an event time in [first, last]: ids, features, ``__event``, ``__created``.

    Newest is by (event time, created time), then by the order of writing.
    """
    keys = [f"{source.column(key)} AS {identifier(key)}" for key in view.join_keys]
    values = [f"{source.column(name)} AS {identifier(name)}" for name in view.features]
    created = source.micros(source.created) if source.created else "0"
    partition = ", ".join(source.column(key) for key in view.join_keys)
    return (
        f"SELECT {', '.join(keys + values)}, {source.micros(source.time)} AS __event, {created} AS __created "
        f"FROM {relation(files)} WHERE __event BETWEEN {first_us} AND {last_us} "
        f"QUALIFY row_number() OVER (PARTITION BY {partition} "
        f"ORDER BY __event DESC, __created DESC, filename DESC, file_row_number DESC) = 1"
    )


def _batch(join: Join) -> str:
    assert isinstance(join.view, BatchView)
    files = join.source.files()
    if not files:
        return _nothing(join)
    source = join.source
    keys = [f"{source.column(k)} AS k{i}" for i, k in enumerate(join.view.join_keys)]
    values = [f"{source.column(feature)} AS f{i}" for i, (feature, _) in enumerate(join.features)]
    created = source.micros(source.created) if source.created else "0"
    partition = ", ".join(["__event", *(f"k{i}" for i in range(len(keys)))])
    rows = (
        f"SELECT {', '.join(keys + values)}, {source.micros(source.time)} AS __event FROM {relation(files)} "
        f"QUALIFY row_number() OVER (PARTITION BY {partition} "
        f"ORDER BY {created} DESC, filename DESC, file_row_number DESC) = 1"
    )
    alive = f"r.__event >= e.__us - {join.ttl_us}" if join.ttl_us else "true"
    features = [f"CASE WHEN {alive} THEN r.f{i} END AS {identifier(o)}" for i, (_, o) in enumerate(join.features)]
    equal = [f"e.{identifier(c)} = r.k{i}" for i, c in enumerate(join.columns)]
    return (
        f"SELECT e.__row, {', '.join(features)} FROM entity_rows e ASOF LEFT JOIN ({rows}) r "
        f"ON {' AND '.join([*equal, 'e.__us >= r.__event'])}"
    )


def _events(view: StreamView, rank: int, source: Source, files: Sequence[Path], since: int, until: int) -> str:
    """One topic's events that can matter, each once (the lowest offset's), with ``t`` in ms: a CTE's body."""
    columns = [f"{source.column(k)} AS k{i}" for i, k in enumerate(view.join_keys)]
    if isinstance(view, WindowView):
        columns += [f"{source.column(name)} AS {identifier('c_' + name)}" for name in view.layout.columns]
        keep = " AND ".join(f"{source.column(k)} IS NOT NULL" for k in view.join_keys)
    else:
        state = literal(view.topics[rank]) if view.state == TOPIC_STATE else source.column(view.state)
        columns += [f"{source.column(view.member)} AS member", f"{state} AS state"]
        keep = "true"
    time = f"epoch_ms({source.column(source.time)})"
    return (
        f'SELECT {", ".join(columns)}, {time} AS t, {rank << 16} + "partition" AS p, "offset" AS o '
        f"FROM {relation(files)} WHERE {time} BETWEEN {since} AND {until} AND {keep} "
        'QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY append_time, "partition", "offset") = 1'
    )


def _windows(view: WindowView, join: Join, events: str) -> str:
    wanted = {a.name: a for a in view.aggregates}
    columns = view.layout.columns
    keys = [f"k{i}" for i in range(len(view.join_keys))]
    ids = [f"{identifier(c)} AS k{i}" for i, c in enumerate(join.columns)]
    values = ", ".join(identifier("c_" + column) for column in columns)
    nulls = ", ".join("NULL" for _ in columns)
    hop = view.layout.hop
    windows = sorted({wanted[feature].window for feature, _ in join.features})
    frames = ", ".join(
        f"w{w} AS (PARTITION BY {', '.join(keys)} ORDER BY t "
        f"RANGE BETWEEN ((t % {hop} + {hop}) % {hop} + {w}) PRECEDING AND CURRENT ROW)"
        for w in windows
    )
    features = ", ".join(f"{_aggregate(wanted[feature])} AS {identifier(o)}" for feature, o in join.features)
    return (
        f"WITH events AS ({events}), timeline AS ("
        f"SELECT {', '.join(keys)}, t, p, o, {values}, NULL AS __row FROM events "
        f"UNION ALL SELECT {', '.join(ids)}, {_instant()}, NULL, NULL, {nulls}, __row FROM entity_rows) "
        f"SELECT __row, {features} FROM timeline WINDOW {frames} QUALIFY __row IS NOT NULL"
    )


def _aggregate(a: Aggregate) -> str:
    """SQL for a window function over frame ``w<window>``; whole millionths, as in the tiles, so sums are exact."""
    raw, frame = identifier("c_" + a.column), f"OVER w{a.window}"
    whole = f"CAST(floor({raw} * {SCALE} + 0.5) AS HUGEINT)"
    count, total = f"count({raw}) {frame}", f"sum({whole}) {frame}"
    squares = f"sum({whole} * {whole}) {frame}"
    present = f"FILTER (WHERE {raw} IS NOT NULL)"
    sql = {
        "count": count,
        "count_distinct": f"least(count(DISTINCT {raw}) {frame}, {DISTINCT_BOUND})",
        "sum": f"coalesce(CAST({total} AS DOUBLE), 0) / {SCALE}",
        "mean": f"CAST({total} AS DOUBLE) / ({count} * {SCALE}.0)",
        "std": f"sqrt(CAST({count} * {squares} - {total} * {total} AS DOUBLE)) / ({count} * {SCALE}.0)",
        "min": f"CAST(min({whole}) {frame} AS DOUBLE) / {SCALE}",
        "max": f"CAST(max({whole}) {frame} AS DOUBLE) / {SCALE}",
        "last": f"CAST(max_by({whole}, (t, p, o)) {present} {frame} AS DOUBLE) / {SCALE}",
    }
    return sql[a.function]


def _presence(view: PresenceView, join: Join, events: str) -> str:
    """A member's latest event holds until the member's next one, or for the TTL; counts are running sums."""
    keys = ", ".join(f"k{i}" for i in range(len(view.join_keys)))
    equal = " AND ".join(f"e.{identifier(c)} = r.k{i}" for i, c in enumerate(join.columns))
    ctes = [
        f"events AS ({events})",
        f"spells AS (SELECT {keys}, state, t AS since, least(t + {view.ttl}, "
        f"coalesce(lead(t) OVER (PARTITION BY member ORDER BY t, p, o) - 1, t + {view.ttl})) AS until FROM events)",
        f"steps AS (SELECT {keys}, state, moment, sum(step) AS step FROM ("
        f"SELECT {keys}, state, since AS moment, 1 AS step FROM spells WHERE until >= since UNION ALL "
        f"SELECT {keys}, state, until + 1, -1 FROM spells WHERE until >= since) GROUP BY ALL)",
        f"counts AS (SELECT {keys}, state, moment, "
        f"sum(step) OVER (PARTITION BY {keys}, state ORDER BY moment) AS n FROM steps)",
    ]
    joined, features = [], []
    for i, (feature, output) in enumerate(join.features):
        ctes.append(
            f"f{i} AS (SELECT e.__row, r.n FROM entity_rows e ASOF LEFT JOIN "
            f"(SELECT * FROM counts WHERE state = {literal(view.counts[feature])}) r "
            f"ON {equal} AND {_instant('e.')} >= r.moment)"
        )
        joined.append(f"JOIN f{i} USING (__row)" if i else "f0")
        features.append(f"CAST(coalesce(f{i}.n, 0) AS BIGINT) AS {identifier(output)}")
    return f"WITH {', '.join(ctes)} SELECT __row, {', '.join(features)} FROM {' '.join(joined)}"


def _nothing(join: Join) -> str:
    """No files: batch features are null, windows and presence are what they are over no events."""
    features = []
    for feature, output in join.features:
        value = null_of(join.view.features[feature])
        if isinstance(join.view, PresenceView):
            value = "CAST(0 AS BIGINT)"
        elif isinstance(join.view, WindowView):
            function = next(a.function for a in join.view.aggregates if a.name == feature)
            zero = {"count": "CAST(0 AS BIGINT)", "count_distinct": "CAST(0 AS BIGINT)", "sum": "CAST(0 AS DOUBLE)"}
            value = zero.get(function, value)
        features.append(f"{value} AS {identifier(output)}")
    return f"SELECT __row, {', '.join(features)} FROM entity_rows"


def _instant(prefix: str = "") -> str:
    return f"CAST(floor({prefix}__us / 1000.0) AS BIGINT)"


def _day(ms: int) -> date:
    return date.fromordinal(date(1970, 1, 1).toordinal() + ms // 86_400_000)
