"""The SQL of windows over events: what counts at which instant, and what each feature is made of.

What a window means is said in `feature_repo.windows`, which events there are in `feature_repo.stores.stream_sql`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from feature_repo.stores.duckdb_client import identifier
from feature_repo.stores.joins import Join
from feature_repo.stores.sources import Source, null_of
from feature_repo.views import PresenceView, WindowView
from feature_repo.windows import DISTINCT_BOUND, SCALE, Aggregate


class Way(NamedTuple):
    """A way to count: what is put behind the features' names, and which events ``e`` count for an entity row ``a``."""

    suffix: str = ""
    counts: str = "true"


class Told(NamedTuple):
    """What else is told of a feature: the suffix of its column, and an aggregate over the pairs of ``a`` and ``e``."""

    suffix: str
    aggregate: str
    where: str = "true"


def columns_of(join: Join) -> list[str]:
    """SQL for what a window view's aggregates read of an event, each once."""
    return list(dict.fromkeys(column_of(join.source, a) for a, _ in aggregates_of(join)))


def column_of(source: Source, a: Aggregate) -> str:
    """SQL for what one aggregate reads of an event."""
    raw = source.column(a.column)
    if a.function == "count":  # its text, if it is one, need not be carried along
        return f"CASE WHEN {raw} IS NOT NULL THEN true END"
    return raw if a.function == "count_distinct" else f"CAST({raw} AS DOUBLE)"


def aggregates_of(join: Join) -> list[tuple[Aggregate, str]]:
    """The features wanted of a window view, with their output names."""
    assert isinstance(join.view, WindowView)
    by_name = {a.name: a for a in join.view.aggregates}
    return [(by_name[feature], output) for feature, output in join.features]


def windows_sql(
    view: WindowView,
    join: Join,
    events: str,
    ways: Sequence[Way] = (Way(),),
    told: Sequence[Told] = (),
    full: frozenset[str] = frozenset(),
    all_rows: bool = True,
) -> str:
    """An event counts at the instants from when it is known to the end of the last hop whose window reaches it.

    So windows are a join of instants with such intervals, and plain aggregates over it, which is right for every
    function and for events that come late; frames over the events' order are neither. Both lie in stretches of time as
    long as an interval can be: an instant meets the intervals that begin in its own stretch, or in the one before. What
    is looked at is about twice what counts, however long the history, and DuckDB spills what its memory does not hold.

    Each of the `ways` gives each feature once, and all that is `told` is told of the events that any way may count.
    What is `full` is null in no event. Unless `all_rows` are asked for, those that nothing counts for are missing.
    """
    aggregates, columns = aggregates_of(join), columns_of(join)
    hop, longest = view.layout.hop, max(a.window for a, _ in aggregates)
    stretch = longest + hop
    parts: dict[str, str] = {}
    results = []
    for a, output in aggregates:
        column = column_of(join.source, a)
        value = f"e.v{columns.index(column)}"
        within = "true" if a.window == longest else f"e.t >= a.floor - {a.window}"
        for suffix, counts in ways:
            sums = _parts(a.function, value, _all([within, counts]), column in full)
            names = {name: parts.setdefault(sql, f"x{len(parts)}") for name, sql in sums.items()}
            results.append(f"{result_sql(a.function, **names)} AS {identifier(output + suffix)}")
        for suffix, aggregate, where in told:
            sql = f"{aggregate} FILTER (WHERE {value} IS NOT NULL AND {within} AND {where})"
            results.append(f"{parts.setdefault(sql, f'x{len(parts)}')} AS {identifier(output + suffix)}")
    met = " AND ".join([*join.equal("a", "e"), "a.stretch = e.stretch", "e.known <= a.__ms"])
    met += f" AND e.t >= a.floor - {longest} AND (e.gone IS NULL OR a.__ms < e.gone)"
    summed = ", ".join(f"{sql} AS {name}" for sql, name in parts.items())
    return (
        f"WITH events AS ({events}), "
        f"counting AS (SELECT *, {_stretch('known', stretch)} AS stretch FROM events), "
        f"asked AS (SELECT *, {_floor('__ms', hop)} AS floor FROM entity_rows WHERE {join.whole}), "
        f"placed AS (SELECT *, {_stretch('__ms', stretch)} AS stretch FROM asked "
        f"UNION ALL SELECT *, {_stretch(f'__ms - {stretch}', stretch)} FROM asked), "
        f"parts AS (SELECT a.__row, {summed} FROM placed a JOIN counting e ON {met} GROUP BY a.__row) "
        f"SELECT __row, {', '.join(results)} FROM {'asked LEFT JOIN parts USING (__row)' if all_rows else 'parts'}"
    )


def _parts(function: str, value: str, where: str, full: bool) -> dict[str, str]:
    """SQL for what a feature is computed from, by the names that `result_sql` has for it; nulls are skipped.

    Numbers are whole millionths, as in the tiles; made so only of what counts, which may be little of history.
    """
    only = "" if where == "true" else f" FILTER (WHERE {where})"  # a filter that lets all through costs, too
    known = f" FILTER (WHERE {value} IS NOT NULL AND {where})"
    if function not in ("count", "count_distinct"):
        value = f"CAST(floor({value} * {SCALE} + 0.5) AS BIGINT)"
    count, total = f"count({'*' if full else value}){only}", f"sum({value}){only}"
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


def zeros(join: Join) -> dict[str, int]:
    """The outputs of a window view that are a number where there are no events, with that number."""
    return {output: 0 for a, output in aggregates_of(join) if a.function in ("count", "count_distinct", "sum")}


def nothing_sql(join: Join) -> str:
    """No files: windows and presence are what they are over no events."""
    empty = {"count": "CAST(0 AS BIGINT)", "count_distinct": "CAST(0 AS BIGINT)", "sum": "CAST(0 AS DOUBLE)"}
    if isinstance(join.view, PresenceView):
        values = [(empty["count"], output) for _, output in join.features]
    else:
        values = [(empty.get(a.function, null_of(join.view.features[a.name])), o) for a, o in aggregates_of(join)]
    features = ", ".join(f"{value} AS {identifier(output)}" for value, output in values)
    return f"SELECT __row, {features} FROM entity_rows WHERE {join.whole}"


def _all(conditions: Sequence[str]) -> str:
    """SQL for all of the conditions, without those that are always true."""
    return " AND ".join(condition for condition in conditions if condition != "true") or "true"


def _floor(instant: str, hop: int) -> str:
    """SQL for the start of the hop that an instant lies in; DuckDB's remainder has the dividend's sign."""
    return f"({instant} - ({instant} % {hop} + {hop}) % {hop})"


def _stretch(instant: str, length: int) -> str:
    """SQL for the stretch of time that an instant lies in, in 32 bits, which are joined faster.

    Stretches too far apart to be met may have the same number.
    """
    return f"CAST(({instant}) // {length} % {2**31} AS INTEGER)"
