"""Parquet sources of Feast's definitions, as SQL: which files, which columns, under which names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FileSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.value_type import ValueType

from feature_repo.stores.duckdb_client import identifier, literal, parquet_files

SQL_TYPES = {
    ValueType.INT64: "BIGINT",
    ValueType.INT32: "INTEGER",
    ValueType.DOUBLE: "DOUBLE",
    ValueType.FLOAT: "FLOAT",
    ValueType.STRING: "VARCHAR",
    ValueType.BOOL: "BOOLEAN",
    ValueType.BYTES: "BLOB",
    ValueType.UNIX_TIMESTAMP: "TIMESTAMPTZ",
    ValueType.FLOAT_LIST: "FLOAT[]",
    ValueType.DOUBLE_LIST: "DOUBLE[]",
    ValueType.INT64_LIST: "BIGINT[]",
    ValueType.STRING_LIST: "VARCHAR[]",
}


class BadSource(ValueError):
    """A source that cannot be read; says which and what is expected."""


@dataclass(frozen=True)
class Source:
    """A Parquet file or folder, with the names that Feast's definition gives its columns."""

    name: str
    path: Path
    time: str
    created: str | None
    mapping: Mapping[str, str]
    """{name in the features: name in the files}"""

    @classmethod
    def of(cls, source: Any, repo_path: Path | str | None) -> "Source":
        """The source of a definition; a relative path is below the repository folder. Raises BadSource."""
        if not isinstance(source, FileSource):
            raise BadSource(f"{getattr(source, 'name', source)}: only FileSource with Parquet files is supported here")
        path = Path(source.path.removeprefix("file://"))
        if not path.is_absolute():
            path = Path(repo_path or ".") / path
        mapping = {ours: theirs for theirs, ours in (source.field_mapping or {}).items()}
        return cls(source.name, path, source.timestamp_field, source.created_timestamp_column or None, mapping)

    def files(self, appended_since: date | None = None, appended_until: date | None = None) -> list[Path]:
        """The files, oldest first; of a log (folders ``date=...``) only those of the days asked for, both included."""
        if not self.path.exists():
            return []
        first = f"date={appended_since.isoformat()}" if appended_since else "date="
        last = f"date={appended_until.isoformat()}" if appended_until else "date=~"
        return [
            file
            for file in parquet_files(self.path)
            if not file.parent.name.startswith("date=") or first <= file.parent.name <= last
        ]

    def as_stored(self, table: pa.Table) -> pa.Table:
        """Rows to append: the columns under their names in the files, without an index that pandas left behind.

        Raises BadSource if they are not the columns of the files that are there.
        """
        table = table.select([name for name in table.column_names if not name.startswith("__index_level_")])
        table = table.rename_columns([self.mapping.get(name, name) for name in table.column_names])
        files = self.files()
        if files and (wrong := set(table.column_names) ^ set(pq.read_schema(files[0]).names)):
            lacking = sorted(wrong - set(table.column_names))
            raise BadSource(
                f"{self.name}: rows to append {'lack' if lacking else 'have'} the column "
                f"{(lacking or sorted(wrong))[0]!r}, unlike those in {files[0].name}: they would not be read together"
            )
        return table

    def has(self, name: str) -> bool:
        """Whether the files have this column."""
        files = self.files()
        return bool(files) and self.mapping.get(name, name) in pq.read_schema(files[-1]).names

    def column(self, name: str) -> str:
        """A column's quoted name in the files; the join key of views without entities is in none, and everywhere ''."""
        if name == DUMMY_ENTITY_ID:
            return literal(DUMMY_ENTITY_VAL)
        return identifier(self.mapping.get(name, name))

    def micros(self, column: str) -> str:
        """SQL for a time column as microseconds since the epoch; naive times are UTC."""
        return f"epoch_us(CAST({self.column(column)} AS TIMESTAMPTZ))"

    def within(self, column: str, first_us: int | None, last_us: int | None) -> str:
        """SQL for a time column that is not null and lies in [first, last], so put that files can be skipped by it."""
        instant = f"CAST({self.column(column)} AS TIMESTAMPTZ)"
        bounds = [f"{instant} >= make_timestamptz({first_us})"] if first_us is not None else []
        bounds += [f"{instant} <= make_timestamptz({last_us})"] if last_us is not None else []
        return " AND ".join(bounds) or f"{instant} IS NOT NULL"


def relation(files: Sequence[Path]) -> str:
    """SQL that reads the files as one table, with ``filename`` and ``file_row_number``."""
    names = ", ".join(literal(str(file)) for file in files)
    return (
        f"read_parquet([{names}], union_by_name = true, hive_partitioning = false, "
        "filename = true, file_row_number = true)"
    )


def null_of(kind: ValueType) -> str:
    """SQL for a null of a feature's type."""
    return f"CAST(NULL AS {SQL_TYPES.get(kind, 'VARCHAR')})"
