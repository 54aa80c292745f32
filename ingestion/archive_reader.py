"""Reading the archive back, partition by partition: for folding what the log has dropped."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.clock import from_ms
from feature_repo.settings import Settings
from ingestion.event_files import FIRST_OFFSET, LAST_OFFSET, find_log_home
from ingestion.events import Event, event_type
from ingestion.log import TopicPartition

CHUNK = 5000
_NAME = re.compile(r"(\d+)-(\d+)\.parquet")


class Archived(NamedTuple):
    """An event as it was archived. `append_ms` is when the log took it, in ms since the epoch."""

    offset: int
    append_ms: int
    event: Event


class Stretch(NamedTuple):
    """Offsets from `begin` on, up to `end` (not included), of which the archive has every record that parses."""

    begin: int
    end: int


class ArchivedLog:
    """The files below a repository's data folder. Reads nothing before it is asked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def stretch(self, where: TopicPartition, identity: str) -> Stretch | None:
        """The newest stretch without a gap; None without any file. `identity` is that of the log's topic."""
        files = self._stretch_files(where, identity)
        return Stretch(files[0].begin, files[-1].end) if files else None

    def since(self, where: TopicPartition, identity: str, append_ms: int) -> tuple[int, int]:
        """Where to read on from for all that was appended since an instant, and from which instant on that is whole.

        The second is later than the first asked for where the stretch begins too late. There must be a stretch.
        """
        files = self._stretch_files(where, identity)
        day = f"date={from_ms(append_ms).date().isoformat()}"
        recent = [file for file in files if file.path.parent.name >= day]
        older = files[0].begin == 0 or len(recent) < len(files)
        for file in recent:
            times = pq.read_table(file.path, columns=["offset", "append_time"])
            appended = times["append_time"].cast(pa.int64())
            inside = times.filter(pc.greater_equal(appended, append_ms * 1000))
            older = older or inside.num_rows < times.num_rows
            if inside.num_rows:
                # The first record of a stretch may have had others of its millisecond before it.
                first = int(appended[0].as_py()) // 1000 + 1
                return inside["offset"][0].as_py(), append_ms if older else max(append_ms, first)
        return files[-1].end, append_ms

    def read(self, where: TopicPartition, identity: str, offset: int) -> Iterator[list[Archived]]:
        """The events from `offset` on to the end of the stretch, in chunks, in the order of their offsets."""
        for file in self._stretch_files(where, identity):
            if file.end > offset:
                table = pq.read_table(file.path)
                table = table.filter(pc.greater_equal(table["offset"], offset))
                for batch in table.to_batches(max_chunksize=CHUNK):
                    yield _events(where.topic, batch)

    def _stretch_files(self, where: TopicPartition, identity: str) -> list["_File"]:
        found: list[tuple[int, Path]] = []
        for path in self._home(where.topic, identity).glob(f"date=*/{where.partition}-*.parquet"):
            match = _NAME.fullmatch(path.name)
            if match is not None and int(match[1]) == where.partition:
                found.append((int(match[2]), path))
        stretch: list[_File] = []
        for first, path in sorted(found, reverse=True):
            metadata = pq.read_metadata(path).metadata or {}
            file = _File(int(metadata.get(FIRST_OFFSET, first)), int(metadata[LAST_OFFSET]) + 1, path)
            if stretch and file.end < stretch[-1].begin:
                break
            stretch.append(file)
        return stretch[::-1]

    def _home(self, topic: str, identity: str) -> Path:
        return find_log_home(self._settings, topic, identity)


class _File(NamedTuple):
    begin: int
    end: int
    path: Path


def _events(topic: str, batch: pa.RecordBatch) -> list[Archived]:
    kind = event_type(topic)
    names = [*kind.schema.__struct_fields__, *kind.derived]
    columns: dict[str, list[Any]] = {name: _values(batch.column(name)) for name in names}
    offsets, appended, times = (_values(batch.column(name)) for name in ("offset", "append_time", "event_time"))
    return [
        Archived(offset, append_ms, Event(topic, columns["event_id"][i], time, {n: columns[n][i] for n in names}))
        for i, (offset, append_ms, time) in enumerate(zip(offsets, appended, times, strict=True))
    ]


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        column = pc.divide(column.cast(pa.int64()), 1000)
    values: list[Any] = column.to_pylist()
    return values
