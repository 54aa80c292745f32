"""The SQL of point-in-time joins over batch rows. Each query gives ``__row`` and the view's features.

`feature_repo.stores.joins` says what it works on; stream views are in `feature_repo.stores.stream_sql`. A *moment* is a
hash of a row's keys and its event time.
"""

from collections.abc import Sequence
from pathlib import Path

from feature_repo.stores.duckdb_client import identifier
from feature_repo.stores.joins import Join, Span, partitioned
from feature_repo.stores.sources import Source, null_of, relation
from feature_repo.views import BatchView

_VERSION = ("__event", "__created")


def newest_rows_sql(source: Source, view: BatchView, files: Sequence[Path], first_us: int, last_us: int) -> str:
    """The newest row of each entity with an event time in [first, last]: ids, features, ``__event``, ``__created``.

    Newest is by (event time, created time), then by the order of writing.
    """
    keys = [f"{source.column(key)} AS {identifier(key)}" for key in view.join_keys]
    values = [f"{source.column(name)} AS {identifier(name)}" for name in view.features]
    created = source.micros(source.created) if source.created else "0"
    whose = ", ".join(identifier(key) for key in view.join_keys)
    read = (
        f"SELECT {', '.join(keys + values)}, {source.micros(source.time)} AS __event, {created} AS __created, "
        f"filename, file_row_number FROM {relation(files)} WHERE {source.within(source.time, first_us, last_us)}"
    )
    return (  # the few rows of the newest times are sorted, not all
        f"SELECT * EXCLUDE (filename, file_row_number) FROM ({read}) "
        f"JOIN (SELECT {whose}, max(__event) AS __event FROM ({read}) GROUP BY {whose}) USING ({whose}, __event) "
        f"QUALIFY row_number() OVER (PARTITION BY {whose} "
        "ORDER BY __created DESC, filename DESC, file_row_number DESC) = 1"
    )


def batch_sql(join: Join, span: Span, versions: bool = False, repeated: int | None = None) -> str:
    """The newest row that was known and not after the instant, unless it is older than the TTL.

    With `versions` also the row's ``__event`` and ``__created`` (µs), whatever its age; null if there is none.

    `repeated` says how many moments the table ``repeated_0`` holds: those of which there are several rows, so that
    all other rows are the only ones of theirs. None: that was not looked for, and there is no such table.
    """
    source = join.source
    files = source.files()
    if not files:
        nulls = [f"{null_of(join.view.features[f])} AS {identifier(output)}" for f, output in join.features]
        nulls += [f"CAST(NULL AS BIGINT) AS {name}" for name in (_VERSION if versions else ())]
        return f"SELECT __row, {', '.join(nulls)} FROM entity_rows"
    read, written = f"SELECT {', '.join(_columns(join, span))} FROM {relation(files)}", _written(join, span)
    if repeated is None or span.arrival:
        answers = _newest_as_known(join, f"{read} WHERE {written}")
    else:
        answers = _newest_of_moments(join, read, written, repeated)
    alive = f"r.__event >= e.__us - {join.ttl_us}" if join.ttl_us else "true"
    features = [f"CASE WHEN {alive} THEN r.f{i} END AS {identifier(o)}" for i, (_, o) in enumerate(join.features)]
    features += [f"r.{name}" for name in (_VERSION if versions else ())]
    return (
        f"SELECT e.__row, {', '.join(features)} FROM entity_rows e ASOF LEFT JOIN ({answers}) r "
        f"ON {' AND '.join([*join.equal('e', 'r'), 'e.__us >= r.known'])}"
    )


def moments_sql(join: Join, span: Span) -> str | None:
    """The moment of each row that can matter, as ``hash``; None if there are no files."""
    files = join.source.files()
    return f"SELECT {_moment(join)} AS hash FROM {relation(files)} WHERE {_written(join, span)}" if files else None


def _columns(join: Join, span: Span) -> list[str]:
    """SQL that selects what a batch row is made of; it is ``known`` from its event time on, by arrival once written."""
    source = join.source
    values = [f"{source.column(feature)} AS f{i}" for i, (feature, _) in enumerate(join.features)]
    event = source.micros(source.time)
    created = source.micros(source.created) if source.created else "0"
    known = f"greatest({event}, {created})" if span.arrival and source.created else event
    version = [f"{event} AS __event", f"{created} AS __created", f"{known} AS known"]
    return [*join.keys_of(source), *values, *version, "filename", "file_row_number"]


def _written(join: Join, span: Span) -> str:
    """The condition that a batch row can matter to an instant of the span."""
    source = join.source
    written = source.within(source.time, span.first - join.ttl_us if join.ttl_us else None, span.last)
    if span.arrival and source.created:
        written += f" AND {source.within(source.created, None, span.last)}"
    return written


def _moment(join: Join) -> str:
    keys = [join.source.column(key) for key, _ in join.keys]
    return f"hash({', '.join([*keys, join.source.micros(join.source.time)])})"


def _newest_as_known(join: Join, read: str) -> str:
    """In the order of becoming known, the rows that are newer than every one before: each answers until the next."""
    newest = f"{partitioned(join.key_names)} ORDER BY __event, __created NULLS FIRST, filename, file_row_number"
    placed = f"SELECT *, row_number() OVER ({newest}) AS place FROM ({read})"
    return f"FROM ({placed}) QUALIFY place = max(place) OVER ({partitioned(join.key_names)} ORDER BY known)"


def _newest_of_moments(join: Join, read: str, written: str, repeated: int) -> str:
    """All rows but those that were written again, of which the newest: seldom are there many of them to be sorted."""
    if not repeated:
        return f"{read} WHERE {written}"
    moment, of_one = _moment(join), partitioned([*join.key_names, "__event"])
    return (
        f"{read} WHERE {written} AND {moment} NOT IN (FROM repeated_0) UNION ALL "
        f"(FROM ({read} WHERE {written} AND {moment} IN (FROM repeated_0)) QUALIFY row_number() OVER "
        f"({of_one} ORDER BY __created DESC NULLS LAST, filename DESC, file_row_number DESC) = 1)"
    )
