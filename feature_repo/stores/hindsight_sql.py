"""The SQL of stream features by a prefix of the log, and as known now, and of why they differ.

A prefix is, of each partition, the offset below which everything counts. Entity rows bring one each, of each topic k of
a view: ``h<k>``, the home of the log that it is of (`feature_repo.stores.log_homes`), and ``u<k>``, the offsets. They
also bring ``__now`` (ms), the reader's clock, and ``__own``, the order that was asked about. An event of history lies
in no partition, and in no prefix. Repeats have higher offsets than what they repeat, so whatever the prefix, an event
in it that is first of all is first in it.

Of each feature these queries give ``<output>_then`` by the prefix, ``<output>_now``, and ``<output>_why``: the union of
the bits of `WHY` over the events that make, or may make, a difference; in detail ``<output>_events`` names them.
"""

from feature_repo.stores.duckdb_client import identifier, literal
from feature_repo.stores.joins import Join, Span
from feature_repo.stores.log_homes import SQL_HOME
from feature_repo.stores.stream_sql import is_first, logged, reached, records_sql
from feature_repo.stores.windows_sql import Told, Way, windows_sql
from feature_repo.views import PresenceView, StreamView, WindowView

LATE, LAG, HISTORY, OWN = 1, 2, 4, 8
"""An event was appended after the reader's clock; was appended by then and not folded; is of no partition of the log
that was read; is of the order itself, and in the prefix."""

_NEVER = 2**62  # later than any position
_THEN, _NOW, _WHY, _EVENTS = "_then", "_now", "_why", "_events"


def events_sql(join: Join, span: Span, own: str) -> str | None:
    """Every topic's events, each once a partition of a log; None if there are no files.

    As for `stream_sql`, and: ``part``, ``home``, ``topic``, ``id``, ``appended``, ``own`` (the column `own`, null where
    a topic has none), and ``now``, whether it counts by what is known now.
    """
    assert isinstance(join.view, StreamView)
    since, until = reached(join, span)
    logs = []
    for topic, (source, memory) in enumerate(zip(join.sources, join.memories, strict=True)):
        column = source.column(own) if source.has(own) else "NULL"
        records = records_sql(join, topic, span, [f"{SQL_HOME} AS home", f"CAST({column} AS VARCHAR) AS own"])
        if records is not None:
            logs.append(
                "SELECT * EXCLUDE (place, logged, original), "
                "original AND (part >= 0 OR logged IS NULL) AS now, t AS known, "
                f"CAST(NULL AS BIGINT) AS gone, {topic << 16} + part AS p, {topic} AS topic FROM ("
                f"SELECT *, {is_first('part', memory)} AS original, {logged(memory)} AS logged FROM ({records}) "
                f"QUALIFY {is_first('home, part', memory, 'o')}) WHERE t BETWEEN {since} AND {until}"
            )
    return " UNION ALL ".join(logs) or None


def windows_told_sql(view: WindowView, join: Join, events: str, detail: bool) -> str:
    """The query for a window view."""
    elsewhere = "(e.part < 0 OR e.home <> a.h0)"
    then = f"coalesce(NOT {elsewhere} AND e.o < a.u0[e.part + 1], false)"
    why = _why(then, elsewhere)
    told = [Told(_WHY, f"bit_or({why})")]
    if detail:
        told.append(Told(_EVENTS, _named("e.id", "e.appended", why), f"{why} > 0"))
    return windows_sql(view, join, events, [Way(_THEN, then), Way(_NOW, "e.now")], told)


def placed_sql(view: PresenceView) -> str:
    """The tables ``events`` and ``chains``, brought together: where each event counts in each chain.

    A chain is a sequence of readings, of which each has at least the prefix and the instant of the one before. So what
    is true of time for one reader is true of the position in a chain: an event is in the prefix from ``folded`` on, has
    happened from ``begins`` on, and is too old from ``old`` on; null: never. ``elsewhere``: it is in no prefix of it.
    """
    return (
        "WITH met AS (SELECT e.*, c.chain, e.part < 0 OR e.home <> c.home AS elsewhere "
        "FROM events e JOIN chains c USING (topic)) "
        "SELECT m.*, CASE WHEN NOT elsewhere THEN f.pos END AS folded, b.pos AS begins, o.pos AS old FROM met m "
        "ASOF LEFT JOIN borders f ON m.chain = f.chain AND m.p = f.p AND m.o < f.upto "
        "ASOF LEFT JOIN instants b ON m.chain = b.chain AND m.t <= b.ms "
        f"ASOF LEFT JOIN instants o ON m.chain = o.chain AND m.t + {view.ttl} < o.ms"
    )


def counted_sql(view: PresenceView) -> tuple[str, str]:
    """Events for `presence_sql`: those known now, by time, and those in prefixes, by the position in chains."""
    now = f"SELECT *, t + {view.ttl} AS last FROM events WHERE now"
    then = (
        f"SELECT * REPLACE (greatest(folded, begins) AS known), coalesce(old, {_NEVER}) - 1 AS last "
        "FROM placed WHERE folded IS NOT NULL AND begins IS NOT NULL"
    )
    return now, then


def presence_why_sql(view: PresenceView, join: Join, detail: bool) -> str:
    """Of each row and state that an event may make a difference for: ``__row``, ``state``, ``why`` and ``named``.

    An event that is known now and not in the prefix can move its member out of, or into, each place that the member was
    in. An event of the row's own order that is in the prefix counts where it is itself.
    """
    keys = ", ".join(f"s.{key}" for key in join.key_names)
    ours = f"{', '.join(join.key_names)}{', ' if join.keys else ''}"
    differs = " AND ".join(["a.chain = m.chain", *join.equal("a", "m"), "a.pos >= m.begins", "a.pos < m.until"])
    counts = " AND ".join(["a.chain = m.chain", *join.equal("a", "m"), "a.__own = m.own"])
    until = f"least(coalesce(folded, {_NEVER}), coalesce(old, {_NEVER}))"
    named = _named("id", "appended", "why") if detail else "NULL"
    return (
        f"WITH asked AS (FROM entity_rows WHERE {join.whole}), "
        f"touched AS (SELECT DISTINCT member, {ours}state FROM events), "
        f"moved AS (SELECT m.* EXCLUDE ({ours}state), {keys}{', ' if join.keys else ''}s.state, "
        f"{until} AS until FROM placed m JOIN touched s USING (member) WHERE now AND begins < {until}), "
        "found AS ("
        f"SELECT a.__row, m.state, m.id, m.appended, {_cause('m.elsewhere', 'm.appended')} AS why "
        f"FROM asked a JOIN moved m ON {differs} UNION "
        f"SELECT a.__row, m.state, m.id, m.appended, {OWN} FROM asked a JOIN placed m ON {counts} "
        f"WHERE a.pos >= m.folded AND a.pos >= m.begins AND a.pos < coalesce(m.old, {_NEVER})) "
        f"SELECT __row, state, bit_or(why) AS why, {named} AS named FROM found GROUP BY __row, state"
    )


def presence_told_sql(view: PresenceView, join: Join) -> str:
    """The tables ``then_counts``, ``now_counts`` and ``whys`` as one, named as for windows."""
    columns = []
    for feature, output in join.features:
        state = literal(view.counts[feature])
        columns += [f"t.{identifier(output)} AS {identifier(output + _THEN)}"]
        columns += [f"n.{identifier(output)} AS {identifier(output + _NOW)}"]
        for suffix, aggregate in ((_WHY, "bit_or(w.why)"), (_EVENTS, "first(w.named)")):
            columns.append(
                f"(SELECT {aggregate} FROM whys w WHERE w.__row = n.__row AND w.state = {state}) "
                f"AS {identifier(output + suffix)}"
            )
    return f"SELECT __row, {', '.join(columns)} FROM now_counts n JOIN then_counts t USING (__row)"


def served_rows_sql(join: Join, read: str) -> str:
    """The batch rows that were served: of each entity row the one of its ``event`` and ``created`` (µs; null: any).

    `read` is the relation of the files, narrowed down. A row that is not there has no line.
    """
    source = join.source
    event = source.micros(source.time)
    created = source.micros(source.created) if source.created else "CAST(NULL AS BIGINT)"
    values = [f"{source.column(feature)} AS {identifier(output)}" for feature, output in join.features]
    rows = (
        f"SELECT {', '.join([*join.keys_of(source), *values])}, {event} AS __event, {created} AS __created, "
        f"filename, file_row_number FROM {read}"
    )
    outputs = ", ".join(f"r.{identifier(output)}" for _, output in join.features)
    met = " AND ".join([*join.equal("e", "r"), "r.__event = e.event", "coalesce(r.__created = e.created, true)"])
    return (
        f"SELECT e.__row, {outputs} FROM entity_rows e JOIN ({rows}) r ON {met} QUALIFY row_number() OVER "
        "(PARTITION BY e.__row ORDER BY r.__created DESC, r.filename DESC, r.file_row_number DESC) = 1"
    )


def _why(then: str, elsewhere: str) -> str:
    own = f"CASE WHEN e.own = a.__own THEN {OWN} ELSE 0 END"
    other = f"CASE WHEN e.now THEN 0 ELSE {HISTORY} END"  # a repeat, but of another log's event
    return f"(CASE WHEN {then} THEN {own} + {other} WHEN NOT e.now THEN 0 ELSE {_cause(elsewhere, 'e.appended')} END)"


def _cause(elsewhere: str, appended: str) -> str:
    return f"CASE WHEN {elsewhere} THEN {HISTORY} WHEN {appended} > a.__now THEN {LATE} ELSE {LAG} END"


def _named(event: str, appended: str, why: str) -> str:
    return f"list({{'id': {event}, 'appended': {appended}, 'why': {why}}} ORDER BY {appended}, {event})"
