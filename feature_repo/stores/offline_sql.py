"""The SQL of point-in-time joins over batch rows. Each query gives ``__row`` and the view's features.

`feature_repo.stores.joins` says what it works on; stream views are in `feature_repo.stores.stream_sql`.
"""

from collections.abc import Sequence
from pathlib import Path

from feature_repo.stores.duckdb_client import identifier
from feature_repo.stores.joins import Join, Span, partitioned
from feature_repo.stores.sources import Source, null_of, relation
from feature_repo.stores.stream_sql import stream_sql
from feature_repo.views import BatchView

_VERSION = ("__event", "__created")


def join_sql(join: Join, span: Span) -> str:
    """The query for one view."""
    return batch_sql(join, span) if isinstance(join.view, BatchView) else stream_sql(join, span)


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
        f"FROM {relation(files)} WHERE {source.within(source.time, first_us, last_us)} "
        f"QUALIFY row_number() OVER (PARTITION BY {partition} "
        f"ORDER BY __event DESC, __created DESC, filename DESC, file_row_number DESC) = 1"
    )


def batch_sql(join: Join, span: Span, versions: bool = False) -> str:
    """The newest row that was known and not after the instant, unless it is older than the TTL.

    With `versions` also the row's ``__event`` and ``__created`` (µs), whatever its age; null if there is none.

    A row is known from its event time on or, by arrival, from its created time if that is later. In the order of
    becoming known only those rows matter that are newer than every one before: each is the answer until the next.
    """
    source = join.source
    files = source.files()
    if not files:
        nulls = [f"{null_of(join.view.features[f])} AS {identifier(output)}" for f, output in join.features]
        nulls += [f"CAST(NULL AS BIGINT) AS {name}" for name in (_VERSION if versions else ())]
        return f"SELECT __row, {', '.join(nulls)} FROM entity_rows"
    values = [f"{source.column(feature)} AS f{i}" for i, (feature, _) in enumerate(join.features)]
    event = source.micros(source.time)
    created = source.micros(source.created) if source.created else "0"
    known, written = event, source.within(source.time, span.first - join.ttl_us if join.ttl_us else None, span.last)
    if span.arrival and source.created:
        known = f"greatest({event}, {created})"
        written += f" AND {source.within(source.created, None, span.last)}"
    read = (
        f"SELECT {', '.join([*join.keys_of(source), *values])}, {event} AS __event, {created} AS __created, "
        f"{known} AS known, filename, file_row_number FROM {relation(files)} WHERE {written}"
    )
    newest = f"{partitioned(join.key_names)} ORDER BY __event, __created NULLS FIRST, filename, file_row_number"
    placed = f"SELECT *, row_number() OVER ({newest}) AS place FROM ({read})"
    answers = f"FROM ({placed}) QUALIFY place = max(place) OVER ({partitioned(join.key_names)} ORDER BY known)"
    alive = f"r.__event >= e.__us - {join.ttl_us}" if join.ttl_us else "true"
    features = [f"CASE WHEN {alive} THEN r.f{i} END AS {identifier(o)}" for i, (_, o) in enumerate(join.features)]
    features += [f"r.{name}" for name in (_VERSION if versions else ())]
    return (
        f"SELECT e.__row, {', '.join(features)} FROM entity_rows e ASOF LEFT JOIN ({answers}) r "
        f"ON {' AND '.join([*join.equal('e', 'r'), 'e.__us >= r.known'])}"
    )
