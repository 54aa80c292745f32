"""The features of entity rows: each view's query is run, and its answer put into the rows' order."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from feature_repo.stores.duckdb_client import Connection
from feature_repo.stores.joins import Join, Span
from feature_repo.stores.offline_sql import batch_sql, moments_sql, written_rows_sql
from feature_repo.stores.stream_sql import stream_sql
from feature_repo.views import BatchView

MOMENTS_AT_ONCE = 16_000_000
"""So many rows of a batch source are looked through at a time for what was written again; eight bytes are held each."""


def features_of(connection: Connection, joins: Sequence[Join], span: Span, rows: int) -> dict[str, pa.ChunkedArray]:
    """{output name: a value a row of ``entity_rows``, in their order}; the table must hold rows 0 to `rows` - 1."""
    features: dict[str, pa.ChunkedArray] = {}
    for join in joins:
        if isinstance(join.view, BatchView):
            query = batch_sql(join, span, repeated=_find_repeated(connection, join, span))
        else:
            query = stream_sql(join, span)
        found = _fetched(connection, query)
        in_order = found.drop_columns("__row").combine_chunks().take(_places(found["__row"], rows))
        features |= dict(zip(in_order.column_names, in_order.columns, strict=True))
    return features


def _find_repeated(connection: Connection, join: Join, span: Span) -> int | None:
    """Make the table ``repeated`` of the moments of which a batch source has several rows; their number.

    None if that was not looked for: by arrival a row is the newest from when it is known on, not from its event time.
    Moments that are equal by chance do no harm: `batch_sql` decides by keys and times.
    """
    if span.arrival or not (counted := written_rows_sql(join)):
        return None
    ((rows,),) = connection.execute(counted).fetchall()
    parts = 1 + rows // MOMENTS_AT_ONCE
    found = []
    for part in range(parts):
        moments = np.sort(_fetched(connection, moments_sql(join, span, parts, part))["moment"].to_numpy())
        found.append(np.unique(moments[1:][moments[1:] == moments[:-1]]))
    repeated = pa.table({"moment": pa.array(np.concatenate(found), pa.uint64())})
    connection.register("repeatedly", repeated)
    connection.execute("CREATE OR REPLACE TEMP TABLE repeated AS FROM repeatedly")
    connection.unregister("repeatedly")
    return repeated.num_rows


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
