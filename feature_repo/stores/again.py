"""What is in Parquet files again: hashes that several of their rows have, kept from one query to the next.

To look for them takes as long as a query does, and files of a log or of batch rows are published once and never
changed. So what was found is kept below the data folder, under the names, sizes and times of writing of the files that
it is of: a file more, less or written anew is another question. Hashes that are equal by chance do no harm, nor do
those of rows that a query leaves out: the queries decide by what was hashed.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.stores.duckdb_client import VERSION, Connection

HASHES_AT_ONCE = 16_000_000
"""So many rows are looked through at a time; sixteen bytes are held each."""

KEPT = 64
"""So many answers are kept, those used last."""

Hashes = npt.NDArray[np.uint64]


class Again:
    """Looks for what is there again, and keeps the answers in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, connection: Connection, files: Sequence[Path], hashes: str) -> Hashes:
        """The hashes that come again, by a query of all of `files` that gives each row's as ``hash``."""
        kept = self._folder / f"{_name(files, hashes)}.npy"
        with suppress(OSError, ValueError):  # never looked for, or half a file of a full disk
            found: Hashes = np.load(kept)
            kept.touch()
            return found
        found = _found(connection, hashes)
        with suppress(OSError):  # where nothing can be written it is looked for again
            self._keep(kept, found)
        return found

    def _keep(self, file: Path, found: Hashes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".writing.npy")
        np.save(aside, found)
        aside.replace(file)
        by_use = sorted(self._folder.glob("*.npy"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for old in by_use[KEPT:]:
            old.unlink(missing_ok=True)


def _name(files: Sequence[Path], hashes: str) -> str:
    """What an answer is of: the query, the files as they are, and the engine, whose hashes are its own."""
    digest = hashlib.sha256(f"{VERSION}\n{hashes}".encode())
    for file in files:
        about = file.stat()
        digest.update(f"\n{file}\n{about.st_size} {about.st_mtime_ns} {about.st_ino}".encode())
    return digest.hexdigest()[:32]


def _found(connection: Connection, hashes: str) -> Hashes:
    connection.execute(f"CREATE OR REPLACE TEMP TABLE hashes AS {hashes}")
    ((rows,),) = connection.execute("SELECT count(*) FROM hashes").fetchall()
    parts = 1 + rows // HASHES_AT_ONCE
    found = [_of_part(connection, parts, part) for part in range(parts)]
    connection.execute("DROP TABLE hashes")
    return np.concatenate(found)


def _of_part(connection: Connection, parts: int, part: int) -> Any:
    """Of one part of the hashes those that come again; sorting them here is ten times as fast as a GROUP BY."""
    where = f" WHERE hash % {parts} = {part}" if parts > 1 else ""
    hashes = np.sort(connection.execute(f"FROM hashes{where}").to_arrow_table()["hash"].to_numpy())
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
