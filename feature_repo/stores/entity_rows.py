"""Entity rows: pandas, Arrow, SQL text or a range of time, made into what joins work on.

The rows themselves stay outside of the database, whatever their columns hold: it is given their instants and the join
keys that are asked by. Instants without an offset are UTC; they count to the microsecond.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.errors import EntityTimestampInferenceException, FeastEntityDFMissingColumnsError
from feast.value_type import ValueType

from feature_repo.stores.duckdb_client import Connection, DuckDBError, identifier, literal
from feature_repo.stores.joins import Join, Span
from feature_repo.stores.sources import Source, null_of, relation
from feature_repo.stores.values import micros

STAMP = "event_timestamp"
"""The column of the instants; without it, the only column of timestamps is taken, as Feast does."""

_INSTANT = pa.timestamp("us", tz="UTC")
_WHOLE = (ValueType.INT64, ValueType.INT32)
_READ_AS_WHOLE = tuple(
    getattr(pa.types, f"is_{kind}") for kind in ("integer", "floating", "decimal", "string", "large_string", "null")
)


class BadEntityRows(ValueError):
    """Entity rows that cannot be answered; says the column, what it holds and what is expected."""


class EntityRows(NamedTuple):
    """The rows as they were given, and which column holds their instants (µs, UTC)."""

    table: pa.Table
    stamp: str

    @property
    def keys(self) -> list[str]:
        """The columns other than the instants."""
        return [name for name in self.table.column_names if name != self.stamp]

    def span(self, arrival: bool = False) -> Span:
        """From the first instant to the last; of no rows, the epoch."""
        edges = pc.min_max(self.table[self.stamp].cast(pa.int64())).as_py()
        return Span(edges["min"] or 0, edges["max"] or 0, arrival)


def read_entity_rows(connection: Connection, given: Any, folder: Path | str | None) -> EntityRows:
    """The rows; `given` as text is SQL, whose relative paths are below `folder`. Raises BadEntityRows."""
    table = _table(connection, given, folder)
    if repeated := {name for name in table.column_names if table.column_names.count(name) > 1}:
        raise BadEntityRows(f"entity rows have two columns {min(repeated)!r}: which is meant would be a guess")
    stamp = _stamp(table)
    return EntityRows(
        table.set_column(table.column_names.index(stamp), stamp, _instants(connection, table, stamp)), stamp
    )


def register(connection: Connection, rows: EntityRows, keys: Mapping[str, ValueType]) -> None:
    """Make the table ``entity_rows`` with these join keys. Raises FeastEntityDFMissingColumnsError, BadEntityRows."""
    missing = set(keys) - set(rows.keys)
    if missing:
        raise FeastEntityDFMissingColumnsError({*keys, rows.stamp}, missing)  # type: ignore[no-untyped-call] # Feast left it untyped
    columns = {
        "__row": pa.array(np.arange(rows.table.num_rows)),
        "__us": rows.table[rows.stamp].cast(pa.int64()),
    }
    columns |= {name: _short(_ids(name, rows.table[name], kind)) for name, kind in keys.items()}
    connection.register("entity_input", pa.table(columns))
    connection.execute(
        "CREATE TEMP TABLE entity_rows AS "
        "SELECT *, (__us - (__us % 1000 + 1000) % 1000) // 1000 AS __ms FROM entity_input"
    )
    connection.unregister("entity_input")


def rows_in_range(joins: Sequence[Join], start: datetime, end: datetime) -> str:
    """SQL for a row at each instant in [start, end] at which a source says something of an entity.

    For batch views these are the event times of their rows, for stream views those of their events. Where views have
    different join keys, the rows come of the views that have them all. Raises BadEntityRows if there is none.
    """
    kinds = {column: join.kinds[column] for join in joins for _, column in join.keys}
    wide = [join for join in joins if len(join.keys) == len(kinds)]
    if not wide:
        raise BadEntityRows(
            f"no view has all of the join keys {', '.join(sorted(kinds))}: which of them belong together is not said "
            "by a range of time; give entity rows"
        )
    columns = [identifier(name) for name in [*sorted(kinds), STAMP]]
    nothing = [f"{null_of(kinds[name])} AS {identifier(name)}" for name in sorted(kinds)]
    found = [f"SELECT {', '.join([*nothing, f'CAST(NULL AS TIMESTAMPTZ) AS {identifier(STAMP)}'])} WHERE false"]
    for join in wide:
        found += [sql for source in join.sources if (sql := _said(join, source, micros(start), micros(end)))]
    whole = " AND ".join(f"{column} IS NOT NULL" for column in columns)
    return (
        f"SELECT DISTINCT {', '.join(columns)} FROM ({' UNION ALL BY NAME '.join(found)}) WHERE {whole} "
        f"ORDER BY {', '.join(reversed(columns))}"
    )


def _said(join: Join, source: Source, first_us: int, last_us: int) -> str | None:
    files = source.files()
    if not files:
        return None
    keys = [f"{source.column(key)} AS {identifier(column)}" for key, column in join.keys]
    stamp = f"CAST({source.column(source.time)} AS TIMESTAMPTZ) AS {identifier(STAMP)}"
    within = source.within(source.time, first_us, last_us)
    return f"SELECT {', '.join([*keys, stamp])} FROM {relation(files)} WHERE {within}"


def _table(connection: Connection, given: Any, folder: Path | str | None) -> pa.Table:
    if isinstance(given, pa.Table):
        return given
    if isinstance(given, pd.DataFrame):
        try:
            return pa.Table.from_pandas(given, preserve_index=False).replace_schema_metadata()
        except pa.ArrowException as error:
            raise BadEntityRows(f"entity rows: {'; '.join(map(str, error.args))}") from error
    if not isinstance(given, str):
        raise BadEntityRows(
            f"entity rows are a {type(given).__name__}: a pandas frame, an Arrow table or SQL is expected"
        )
    connection.execute(f"SET file_search_path = {literal(str(folder or ''))}")
    try:
        return connection.execute(given).to_arrow_table()
    except DuckDBError as error:
        raise BadEntityRows(f"the SQL of the entity rows: {_first_line(error)}") from error


def _stamp(table: pa.Table) -> str:
    if STAMP in table.column_names:
        return STAMP
    stamps = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    if len(stamps) != 1:
        raise EntityTimestampInferenceException(STAMP)
    return str(stamps[0])


def _instants(connection: Connection, table: pa.Table, stamp: str) -> pa.ChunkedArray:
    values = _plain(table[stamp])
    if values.null_count:
        raise BadEntityRows(f"{stamp!r} is null in {values.null_count} of {len(values)} rows: they have no instant")
    if pa.types.is_null(values.type) or not len(values):
        return values.cast(pa.string()).cast(_INSTANT)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _parsed(connection, values, stamp)
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(values.type):
        raise BadEntityRows(f"{stamp!r} holds {values.type}: timestamps, dates or texts of them are expected")
    if values.type.tz is None:
        values = values.cast(pa.timestamp("us"), safe=False)  # naive times are UTC, as everywhere in Feast
    return values.cast(_INSTANT, safe=False)


def _parsed(connection: Connection, texts: pa.ChunkedArray, stamp: str) -> pa.ChunkedArray:
    connection.register("texts", pa.table({"text": texts}))
    try:
        parsed = connection.execute("SELECT CAST(text AS TIMESTAMPTZ) AS instant FROM texts").to_arrow_table()
    except DuckDBError as error:
        raise BadEntityRows(f"{stamp!r} holds a text that is no instant: {_first_line(error)}") from error
    finally:
        connection.unregister("texts")
    return parsed["instant"].cast(_INSTANT)


def _ids(name: str, values: pa.ChunkedArray, kind: ValueType) -> pa.ChunkedArray:
    """A join key's values; whole numbers also where pandas made floats of them, since some were missing."""
    values = _plain(values)
    if kind not in _WHOLE:
        return values
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    if not any(matches(values.type) for matches in _READ_AS_WHOLE):
        raise BadEntityRows(f"join key {name!r} holds {values.type}: whole numbers are expected")
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise BadEntityRows(f"join key {name!r} holds what is no whole number: {_first_line(error)}") from error


def _short(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole numbers in 32 bits if they all fit."""
    if not pa.types.is_int64(values.type):
        return values
    edges = pc.min_max(values).as_py()
    fits = edges["min"] is not None and edges["min"] >= -(2**31) and edges["max"] < 2**31
    return values.cast(pa.int32()) if fits else values


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values themselves, where they are kept as a dictionary (pandas' categories)."""
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
