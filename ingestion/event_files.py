"""Files of the event log: Parquet that is published whole or not at all, and how far a partition is covered by it.

They lie at ``data/log/<topic>/date=<append date>/<partition>-<first offset>.parquet``, hold the columns of
``events.arrow_schema`` and are never rewritten. Simulated and imported history never had an append time: it is
partition -1 in files named ``history-<first offset>.parquet``, its append time is its event time. The footer's key
``first_offset`` and ``last_offset`` say from and up to which offset a file speaks for its partition, records that did
not parse included: where one begins right behind another's last, nothing is missing between them.
"""

import hashlib
import os
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.clock import from_ms
from feature_repo.settings import Settings
from feature_repo.stores.log_homes import FIRST_LOG, FOLDER, THIS_LOG
from feature_repo.stores.parquet_files import publish_file
from ingestion.events import arrow_schema, event_type

HISTORY = -1
"""The partition of events that never lay in a log."""

DAY_MS = 86_400_000
LAST_OFFSET = b"last_offset"
FIRST_OFFSET = b"first_offset"
_FILE = re.compile(r"(history|\d+)-(\d+)\.parquet")


def log_folder(settings: Settings, topic: str) -> Path:
    """Where the files of `topic` lie."""
    return settings.data / "log" / topic


def events_table(topic: str, columns: Mapping[str, Any]) -> pa.Table:
    """The event log's table from columns (arrays or lists) named as in ``arrow_schema``, instants in milliseconds.

    A missing ``extra`` is null. Derived columns may be missing: they are computed, which needs their sources as arrays.
    """
    schema = arrow_schema(topic)
    length = len(columns["event_time"])
    arrays = []
    for field in schema:
        values = columns.get(field.name)
        if values is None and field.name in event_type(topic).derived:
            values = event_type(topic).derived[field.name](dict(columns))
        if values is None and field.name == "extra":
            arrays.append(pa.nulls(length, field.type))
        elif pa.types.is_timestamp(field.type):
            arrays.append(pc.multiply(pa.array(values, pa.int64()), 1000).cast(field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def log_home(settings: Settings, topic: str, identity: str) -> Path:
    """Where the files of the log with this identity lie: offsets of two logs must not meet in one folder.

    The first log that is archived here has the topic's own folder; another (the topic was made anew, or lies in another
    server by now) a folder ``log=<hash>`` below it. Readers find the files of all of them.
    """
    folder = log_folder(settings, topic)
    _say_whose(folder / FIRST_LOG, identity)
    home = find_log_home(settings, topic, identity)
    if home != folder:
        _say_whose(home / THIS_LOG, identity)
    return home


def find_log_home(settings: Settings, topic: str, identity: str) -> Path:
    """The same, for readers: nothing is made."""
    folder = log_folder(settings, topic)
    owner = folder / FIRST_LOG
    if not owner.exists() or owner.read_text() == identity:
        return folder
    return folder / f"{FOLDER}{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def publish_events(
    settings: Settings,
    topic: str,
    table: pa.Table,
    last_offset: int,
    home: Path | None = None,
    first_offset: int | None = None,
) -> Path:
    """Publish one file of the event log; `table` holds one partition's records of one append date, in offset order.

    `first_offset` (that of the first event, if left out) and `last_offset` are those that the file speaks for, `home`
    its log's folder. Raises FileExistsError if a file there begins at the same offset, ValueError for records of
    several dates or partitions: a reader looks for them by the folder's name.
    """
    partitions = pc.unique(table["partition"]).to_pylist()
    edges = pc.min_max(table["append_time"].cast(pa.int64())).as_py()
    day = edges["min"] // (DAY_MS * 1000)
    if len(partitions) != 1 or edges["max"] // (DAY_MS * 1000) != day:
        raise ValueError(f"{topic}: records of several dates or partitions in one file: readers would miss some")
    owner = "history" if partitions[0] == HISTORY else str(partitions[0])
    folder = (home or log_folder(settings, topic)) / f"date={from_ms(day * DAY_MS).date().isoformat()}"
    first = table["offset"][0].as_py()
    final = folder / f"{owner}-{first}.parquet"
    speaks_for = {FIRST_OFFSET: str(first if first_offset is None else first_offset), LAST_OFFSET: str(last_offset)}
    metadata = {**(table.schema.metadata or {}), **speaks_for}
    publish_file(final, table.replace_schema_metadata(metadata))
    return final


def covered(settings: Settings, topic: str, home: Path | None = None) -> dict[int, int]:
    """Of each partition of `topic` that has files (`home`: of one log), the highest offset that they speak for.

    Raises ValueError for a newest file without ``last_offset``: where to go on from would be a guess.
    """
    newest: dict[int, tuple[int, Path]] = {}
    for path in (home or log_folder(settings, topic)).glob("date=*/*.parquet"):
        match = _FILE.fullmatch(path.name)
        if match is None:
            continue
        partition = HISTORY if match[1] == "history" else int(match[1])
        newest[partition] = max(newest.get(partition, (-1, path)), (int(match[2]), path))
    return {partition: _last_offset(path) for partition, (_, path) in newest.items()}


def log_dates(settings: Settings, topic: str) -> list[date]:
    """The append dates that `topic` has files of, sorted."""
    folders = {path.parent.name for path in log_folder(settings, topic).rglob("date=*/*.parquet")}
    return sorted(date.fromisoformat(name.removeprefix("date=")) for name in folders)


def append_history(settings: Settings, topic: str, columns: Mapping[str, Any]) -> int:
    """Add events that never lay in a log, one file a date, and give their number.

    `columns` are arrays or lists of equal length: the event's fields and ``event_time``, instants in milliseconds. The
    events are sorted by time and numbered on from the history that is there. One writer at a time, a topic.
    """
    times = np.asarray(columns["event_time"], dtype=np.int64)
    if not len(times):
        return 0
    first = covered(settings, topic).get(HISTORY, -1) + 1
    numbered = {
        **columns,
        "partition": np.full(len(times), HISTORY, dtype=np.int32),
        "offset": np.zeros(len(times), dtype=np.int64),
        "append_time": times,
    }
    order = np.argsort(times, kind="stable")
    offsets = pa.array(np.arange(first, first + len(times)))
    table = events_table(topic, numbered).take(pa.array(order))
    table = table.set_column(table.schema.get_field_index("offset"), table.schema.field("offset"), offsets)
    edges = np.flatnonzero(np.diff(times[order] // DAY_MS)) + 1
    for start, end in zip([0, *edges.tolist()], [*edges.tolist(), len(times)], strict=True):
        publish_events(settings, topic, table.slice(start, end - start), last_offset=first + end - 1)
    return len(times)


def _say_whose(file: Path, identity: str) -> None:
    """Write the identity, whole or not at all, unless one stands there: the first one stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        mine = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
        mine.write_text(identity)
        with suppress(FileExistsError):
            os.link(mine, file)
        mine.unlink()


def _last_offset(path: Path) -> int:
    metadata = pq.read_metadata(path).metadata or {}
    try:
        return int(metadata[LAST_OFFSET])
    except KeyError:
        raise ValueError(
            f"{path}: no last_offset in its footer: it cannot be told how far its partition goes"
        ) from None
