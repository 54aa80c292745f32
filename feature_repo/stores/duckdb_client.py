"""The only module that imports DuckDB: connections with bounded memory, and quoting."""

from pathlib import Path

import duckdb

from feature_repo.settings import Settings

Connection = duckdb.DuckDBPyConnection
DuckDBError = duckdb.Error

__all__ = ["Connection", "DuckDBError", "connect", "identifier", "literal", "parquet_files"]


def connect(settings: Settings) -> Connection:
    """An in-memory database in UTC whose memory is bounded; what does not fit is spilled below the data folder."""
    spill = settings.data / "tmp"
    spill.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(
        ":memory:",
        config={"memory_limit": settings.duckdb_memory, "temp_directory": str(spill), "preserve_insertion_order": True},
    )
    if settings.duckdb_threads:
        connection.execute(f"SET threads = {settings.duckdb_threads}")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")
    return connection


def identifier(name: str) -> str:
    """`name` quoted as a column or table."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """`text` quoted as a string."""
    return "'" + text.replace("'", "''") + "'"


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files below `folder` (or `folder` itself, if it is one), sorted; files being written are left out."""
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith((".", "_")))
