"""What is true of all records in a set of files of the event log, found once and kept beside them.

Which ids come again, and which columns are nowhere null, takes a look at every record; files of the log are never
rewritten, so it is looked for once a set of files. It is kept in hidden files ``.facts-<digest>`` in the log's folder.
The digest is of each file's name, size, inode and times of change, so a set with a file more or less, or another in the
place of one, is another set. Records that cannot be read or written are as if there were none.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.stores.duckdb_client import Connection, literal
from feature_repo.stores.parquet_files import replace_file

RECORDS = 8
"""So many sets of files are remembered in a folder; the one that was written first goes first."""

TICK_NS = 100_000_000
"""Times of files are told by ticks: a file that changed so shortly before its record was written may have changed since
and say the same time."""

_PREFIX = ".facts-"
_FULL = b"full"


class Facts(NamedTuple):
    """`repeated`: the hashes of the ids that come again, and maybe others; `full`: columns that are nowhere null."""

    repeated: Any
    full: frozenset[str] = frozenset()


class Place(NamedTuple):
    """Where the facts of a set of files are kept: in `folder`, by their digest; `changed`: the last change (ns)."""

    folder: Path
    digest: str
    changed: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"{_PREFIX}{self.digest}"


def place_of(connection: Connection, folder: Path, files: Sequence[Path], column: str) -> Place:
    """Where the facts of these files as they are now belong; `column` holds the ids, in the files' own name.

    Hashes are DuckDB's, which may be others in its next version. Raises OSError if a file is gone.
    """
    ((version,),) = connection.execute("SELECT version()").fetchall()
    said = hashlib.sha256(f"{version} {column}".encode())
    changed = 0
    for file in files:
        found = file.stat()
        said.update(f"\n{file} {found.st_size} {found.st_ino} {found.st_mtime_ns} {found.st_ctime_ns}".encode())
        changed = max(changed, found.st_mtime_ns, found.st_ctime_ns)
    return Place(folder if folder.is_dir() else folder.parent, said.hexdigest()[:32], changed)


def recorded(place: Place) -> Facts | None:
    """What is kept there; None if nothing is, or the files were changed too shortly before to be sure of it."""
    try:
        if place.path.stat().st_mtime_ns - place.changed < TICK_NS:
            return None
        table = pq.read_table(place.path)
        names = table.schema.metadata[_FULL].decode()
        return Facts(table["hash"].to_numpy(), frozenset(names.split("\n")) - {""})
    except (OSError, pa.ArrowException, KeyError, TypeError):  # none, or none that can be read
        return None


def record(place: Place, facts: Facts) -> None:
    """Keep the facts there, and of others in the folder the newest alone."""
    table = pa.table({"hash": pa.array(facts.repeated, pa.uint64())})
    with suppress(OSError):  # a folder that may only be read
        replace_file(place.path, table.replace_schema_metadata({_FULL: "\n".join(sorted(facts.full)).encode()}))
        kept = sorted(place.folder.glob(f"{_PREFIX}*"), key=lambda path: path.stat().st_mtime_ns)
        for path in kept[:-RECORDS]:
            path.unlink(missing_ok=True)


def full_columns(connection: Connection, files: Sequence[Path]) -> frozenset[str]:
    """The columns that all of the files have, and that are null in no record by what the files' footers say."""
    names = ", ".join(literal(str(file)) for file in files)
    found = connection.execute(
        f"SELECT path_in_schema FROM parquet_metadata([{names}]) GROUP BY path_in_schema "
        f"HAVING count(DISTINCT file_name) = {len(set(files))} AND count(stats_null_count) = count(*) "
        "AND sum(stats_null_count) = 0"
    ).fetchall()
    return frozenset(name for (name,) in found)


def again(hashes: Any) -> Any:
    """The hashes, of a NumPy array, that are in it more than once."""
    ordered = np.sort(hashes)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
