"""Writing Parquet so that readers see a file whole or not at all, and writers never disturb each other."""

import os
import re
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.stores.durable import sync_folder

# Rows of the event log are sorted by time, so a row group is a stretch of time that readers can skip by its statistics.
_ROW_GROUP = 65_536
_APPENDED = re.compile(r"rows-(\d+)\.parquet")


def publish_file(path: Path, table: pa.Table) -> None:
    """Make `table` the file `path`: all of it, on disk, or nothing.

    Raises FileExistsError, changing nothing, if the name is taken.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = _write_hidden(path, table)
    try:
        os.link(hidden, path)  # unlike a rename, it fails if the name is there
    finally:
        hidden.unlink(missing_ok=True)
    sync_folder(path.parent)


def append_file(folder: Path, table: pa.Table) -> Path:
    """Add `table` to a folder as a file of its own, named so that later files sort later. Returns its path.

    A source that is a single file cannot be appended to: raises NotADirectoryError.
    """
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is one file: rows are appended to folders, as further files")
    numbers = [int(found[1]) for path in folder.glob("rows-*.parquet") if (found := _APPENDED.fullmatch(path.name))]
    number = max(numbers, default=-1) + 1
    while True:
        path = folder / f"rows-{number:09d}.parquet"
        try:
            publish_file(path, table)
        except FileExistsError:  # somebody else took the number
            number += 1
        else:
            return path


def replace_file(path: Path, table: pa.Table) -> None:
    """Put `table` where `path` is, in one step for whoever reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = _write_hidden(path, table)
    try:
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
    sync_folder(path.parent)


def _write_hidden(path: Path, table: pa.Table) -> Path:
    hidden = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.tmp")
    try:
        with hidden.open("xb") as handle:
            pq.write_table(
                table,
                handle,
                compression="zstd",
                row_group_size=_ROW_GROUP,
                coerce_timestamps="us",  # DuckDB and Feast stumble over nanoseconds
                allow_truncated_timestamps=True,
            )
            handle.flush()
            os.fsync(handle.fileno())
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    return hidden
