"""The features of entity rows: each view's query is run, and its answer put into the rows' order."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from feast.value_type import ValueType

from feature_repo.stores.duckdb_client import Connection
from feature_repo.stores.joins import Join, Span
from feature_repo.stores.offline_sql import batch_sql, moments_sql
from feature_repo.stores.stream_sql import ids_sql, stream_sql
from feature_repo.views import BatchView

HASHES_AT_ONCE = 16_000_000
"""So many rows of a source are looked through at a time for what is there again; sixteen bytes are held each."""


def features_of(connection: Connection, joins: Sequence[Join], span: Span, rows: int) -> dict[str, pa.ChunkedArray]:
    """{output name: a value a row of ``entity_rows``, in their order}; the table must hold rows 0 to `rows` - 1."""
    features: dict[str, pa.ChunkedArray] = {}
    for join in joins:
        found = _fetched(connection, _query(connection, join, span))
        in_order = found.drop_columns("__row").combine_chunks().take(_places(found["__row"], rows))
        features |= dict(zip(in_order.column_names, in_order.columns, strict=True))
    return features


def _query(connection: Connection, join: Join, span: Span) -> str:
    """The view's query, told what is there again: to sort all of history for the little that is would cost most."""
    if isinstance(join.view, BatchView):
        join = replace(join, short=_short_keys(connection, join))
        # By arrival a row is the newest from when it is known on, whatever its event time.
        return batch_sql(join, span, repeated=None if span.arrival else _find(connection, moments_sql(join, span), 0))
    topics = range(len(join.sources))
    return stream_sql(join, span, [_find(connection, ids_sql(join, topic, span), topic) for topic in topics])


def _short_keys(connection: Connection, join: Join) -> frozenset[str]:
    described = connection.execute("SELECT column_name, column_type FROM (DESCRIBE entity_rows)").fetchall()
    short = {name for name, kind in described if kind == "INTEGER"}
    return frozenset(column for column, kind in join.kinds.items() if column in short and kind == ValueType.INT64)


def _find(connection: Connection, hashes: str | None, number: int) -> int | None:
    """Make the table ``repeated_<number>`` of the hashes that come again; how many. None, and no table, without files.

    Hashes that are equal by chance do no harm: the queries decide by what was hashed.
    """
    if hashes is None:
        return None
    connection.execute(f"CREATE OR REPLACE TEMP TABLE hashes AS {hashes}")
    ((rows,),) = connection.execute("SELECT count(*) FROM hashes").fetchall()
    parts = 1 + rows // HASHES_AT_ONCE
    repeated = [_again(connection, parts, part) for part in range(parts)]
    connection.execute("DROP TABLE hashes")
    connection.register("again", pa.table({"hash": pa.array(np.concatenate(repeated), pa.uint64())}))
    connection.execute(f"CREATE OR REPLACE TEMP TABLE repeated_{number} AS FROM again")
    connection.unregister("again")
    return sum(map(len, repeated))


def _again(connection: Connection, parts: int, part: int) -> Any:
    """Of one part of the hashes those that come again, as a NumPy array; sorting them here is ten times a GROUP BY."""
    where = f" WHERE hash % {parts} = {part}" if parts > 1 else ""
    hashes = np.sort(connection.execute(f"FROM hashes{where}").to_arrow_table()["hash"].to_numpy())
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _places(numbers: pa.ChunkedArray, rows: int) -> pa.Array:
    """Where the answer of each row lies, null for a row without one; `numbers` are the rows that answers are of."""
    places = np.full(rows, -1, np.int64)
    places[numbers.to_numpy()] = np.arange(len(numbers))
    return pa.array(places, mask=places < 0)


def _fetched(connection: Connection, query: str) -> pa.Table:
    """The result of a query. Fetched from the query itself, the last of its steps would run on one thread alone."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE found AS {query}")
    table = connection.execute("FROM found").to_arrow_table()
    connection.execute("DROP TABLE found")
    return table
