"""The features of entity rows: each view's query is run, and its answer put into the rows' order."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from feast.value_type import ValueType

from feature_repo.stores.duckdb_client import Connection
from feature_repo.stores.joins import Join, Span
from feature_repo.stores.log_facts import Facts, again, full_columns, place_of, record, recorded
from feature_repo.stores.offline_sql import batch_sql, moments_sql
from feature_repo.stores.stream_sql import EVENT_ID, all_ids_sql, extent_sql, files_of, ids_sql, stream_sql
from feature_repo.stores.windows_sql import zeros
from feature_repo.views import BatchView, WindowView

HASHES_AT_ONCE = 16_000_000
"""So many rows of a source are looked through at a time for what is there again; sixteen bytes are held each."""


def features_of(connection: Connection, joins: Sequence[Join], span: Span, rows: int) -> dict[str, pa.ChunkedArray]:
    """{output name: a value a row of ``entity_rows``, in their order}; the table must hold rows 0 to `rows` - 1."""
    features: dict[str, pa.ChunkedArray] = {}
    for join in joins:
        query, nothing = _query(connection, join, span)
        found = _fetched(connection, query)
        features |= _in_order(found, rows) if nothing is None else _filled(found, rows, nothing)
    return features


def find_moments(connection: Connection, join: Join, span: Span) -> int | None:
    """Make the table that `batch_sql` asks for; how many moments it holds. None, and no table, where it is of no use.

    By arrival a row is the newest from when it is known on, whatever its event time.
    """
    repeated = None if span.arrival else _find(connection, moments_sql(join, span))
    if repeated is None:
        return None
    _keep(connection, repeated, 0)
    return len(repeated)


def _query(connection: Connection, join: Join, span: Span) -> tuple[str, Mapping[str, int] | None]:
    """The view's query, told what is there again: to sort all of history for the little that is would cost most.

    With it, what the rows have that it does not answer, by output, unless null; None if it answers all that are not.
    """
    if isinstance(join.view, BatchView):
        join = replace(join, short=_short_keys(connection, join))
        return batch_sql(join, span, repeated=find_moments(connection, join, span)), None
    facts = [_facts(connection, join, topic, span) for topic in range(len(join.sources))]
    for topic, known in enumerate(facts):
        if known is not None:
            _keep(connection, known.repeated, topic)
    if not isinstance(join.view, WindowView) or _lacking(connection, join):
        return stream_sql(join, span, facts), None
    join = replace(join, short=_short_keys(connection, join))
    return stream_sql(join, span, facts, all_rows=False), zeros(join)


def _lacking(connection: Connection, join: Join) -> bool:
    """Whether a row lacks one of the view's keys: then it has no features, instead of those of no events."""
    return bool(connection.execute(f"FROM entity_rows WHERE NOT ({join.whole}) LIMIT 1").fetchall())


def _short_keys(connection: Connection, join: Join) -> frozenset[str]:
    described = connection.execute("SELECT column_name, column_type FROM (DESCRIBE entity_rows)").fetchall()
    short = {name for name, kind in described if kind == "INTEGER"}
    return frozenset(column for column, kind in join.kinds.items() if column in short and kind == ValueType.INT64)


def _facts(connection: Connection, join: Join, topic: int, span: Span) -> Facts | None:
    """What is known of one topic's records; None without files.

    Where most of what is in the files can matter, all of it is looked through, and what was found is kept.
    """
    files = files_of(join, topic, span)
    if not files:
        return None
    source = join.sources[topic]
    place = place_of(connection, source.path, files, EVENT_ID)
    if (facts := recorded(place)) is not None:
        return facts
    ((mattering, rows),) = connection.execute(extent_sql(join, topic, span)).fetchall()
    if 2 * mattering < rows:
        repeated = _find(connection, ids_sql(join, topic, span))
        assert repeated is not None
        return Facts(repeated)
    repeated = _find(connection, all_ids_sql(files))
    facts = Facts(repeated, full_columns(connection, files))
    if place == place_of(connection, source.path, files, EVENT_ID):
        record(place, facts)
    return facts


def _find(connection: Connection, hashes: str | None) -> Any:
    """The hashes that come again, as a NumPy array; None without a query, which is without files.

    Hashes that are equal by chance do no harm: the queries decide by what was hashed.
    """
    if hashes is None:
        return None
    connection.execute(f"CREATE OR REPLACE TEMP TABLE hashes AS {hashes}")
    ((rows,),) = connection.execute("SELECT count(*) FROM hashes").fetchall()
    parts = 1 + rows // HASHES_AT_ONCE
    repeated = [_again(connection, parts, part) for part in range(parts)]
    connection.execute("DROP TABLE hashes")
    return np.concatenate(repeated)


def _keep(connection: Connection, repeated: Any, number: int) -> None:
    """Make the table ``repeated_<number>`` of hashes."""
    connection.register("again", pa.table({"hash": pa.array(repeated, pa.uint64())}))
    connection.execute(f"CREATE OR REPLACE TEMP TABLE repeated_{number} AS FROM again")
    connection.unregister("again")


def _again(connection: Connection, parts: int, part: int) -> Any:
    """Of one part of the hashes those that come again, as a NumPy array; sorting them here is ten times a GROUP BY."""
    where = f" WHERE hash % {parts} = {part}" if parts > 1 else ""
    return again(connection.execute(f"FROM hashes{where}").to_arrow_table()["hash"].to_numpy())


def _in_order(found: pa.Table, rows: int) -> dict[str, pa.ChunkedArray]:
    """The answers in the order of the rows that ``__row`` says they are of; null for a row without one."""
    places = np.full(rows, -1, np.int64)
    places[found["__row"].to_numpy()] = np.arange(len(found))
    answers = found.drop_columns("__row").combine_chunks().take(pa.array(places, mask=places < 0))
    return dict(zip(answers.column_names, answers.columns, strict=True))


def _filled(found: pa.Table, rows: int, nothing: Mapping[str, int]) -> dict[str, pa.ChunkedArray]:
    """The same of windows, whose outputs are numbers: those in `nothing` are that without an answer, and never null."""
    places, answers = found["__row"].to_numpy(), {}
    for name in found.column_names[1:]:
        values = found[name]
        filled = np.full(rows, nothing.get(name, 0), values.type.to_pandas_dtype())
        filled[places] = values.to_numpy()
        null = None
        if name not in nothing:
            null = np.ones(rows, bool)
            null[places] = values.is_null().to_numpy()
        answers[name] = pa.chunked_array([pa.array(filled, mask=null)])
    return answers


def _fetched(connection: Connection, query: str) -> pa.Table:
    """The result of a query. Fetched from the query itself, the last of its steps would run on one thread alone."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE found AS {query}")
    table = connection.execute("FROM found").to_arrow_table()
    connection.execute("DROP TABLE found")
    return table
