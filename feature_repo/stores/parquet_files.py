"""Writing Parquet so that readers see a file whole or not at all, and two writers never disturb each other."""

import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def append_file(folder: Path, table: pa.Table) -> Path:
    """Add `table` to a folder as a file of its own, named so that later files sort later. Returns its path.

    A source that is a single file becomes unwritable by this: raises NotADirectoryError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((_number(path) for path in folder.glob("*.parquet")), default=-1)
    hidden = _write_hidden(folder, table)
    try:
        while True:
            path = folder / f"{number:09d}.parquet"
            try:
                os.link(hidden, path)
            except FileExistsError:  # somebody else took the number
                number += 1
            else:
                return path
    finally:
        hidden.unlink()


def replace_file(path: Path, table: pa.Table) -> None:
    """Write `table` to `path`, in one step for whoever reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_hidden(path.parent, table).replace(path)


def _write_hidden(folder: Path, table: pa.Table) -> Path:
    hidden = folder / f".{uuid.uuid4().hex}.parquet"
    with hidden.open("wb") as handle:
        pq.write_table(table, handle, compression="zstd", coerce_timestamps="us", allow_truncated_timestamps=True)
        handle.flush()
        os.fsync(handle.fileno())
    return hidden


def _number(path: Path) -> int:
    return int(path.stem) if path.stem.isdigit() else -1
