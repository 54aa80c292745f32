"""Files of the event log: whole or not at all, under one name, and saying how far they go."""

import os
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.clock import to_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import parquet_files
from ingestion.event_files import HISTORY, append_history, covered, events_table, log_dates, log_folder, publish_events
from ingestion.events import arrow_schema, parse

NOON = to_ms(datetime(2026, 3, 1, 12, tzinfo=UTC))
MINUTE = 60_000
DAY = 86_400_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(TIFFIN_REPO=tmp_path)


def ready(times: list[int], first: int = 0, partition: int = 3) -> pa.Table:
    """Records of order_ready at `times`, each ten minutes after it was placed."""
    at = np.array(times, dtype=np.int64)
    return events_table(
        "order_ready", {**history(times), "partition": [partition] * len(at), "append_time": at}
    ).set_column(1, pa.field("offset", pa.int64(), nullable=False), pa.array(range(first, first + len(at)), pa.int64()))


def history(times: list[int]) -> dict[str, object]:
    at = np.array(times, dtype=np.int64)
    names = [f"e{time}" for time in times]
    return {
        "event_time": at,
        "event_id": names,
        "order_id": names,
        "restaurant_id": [7] * len(times),
        "placed_at": at - 10 * MINUTE,
        "ready_at": at,
        "offset": [0] * len(times),
    }


def test_a_file_lies_where_its_date_partition_and_offset_say(settings: Settings) -> None:
    path = publish_events(settings, "order_ready", ready([NOON, NOON + 1], first=40), last_offset=44)

    assert path.relative_to(settings.data).as_posix() == "log/order_ready/date=2026-03-01/3-40.parquet"
    assert pq.read_table(path).schema.equals(arrow_schema("order_ready"))
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"
    assert covered(settings, "order_ready") == {3: 44}


def test_columns_are_what_parse_says(settings: Settings) -> None:
    value = b'{"event_id":"a","order_id":5,"restaurant_id":7,"placed_at":%d,"ready_at":%d}' % (NOON - 90_000, NOON)
    event = parse("order_ready", value, NOON)
    columns = {**history([NOON]), "placed_at": np.array([NOON - 90_000]), "event_id": ["a"], "order_id": ["5"]}

    append_history(settings, "order_ready", columns)

    (row,) = pq.read_table(parquet_files(settings.data)[0]).to_pylist()
    assert row["prep_minutes"] == event.columns["prep_minutes"] == 1.5
    assert row["event_time"] == row["append_time"] == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert (row["order_id"], row["extra"], row["partition"], row["offset"]) == ("5", None, HISTORY, 0)


def test_a_taken_name_is_refused_and_leaves_the_first_file_as_it_was(settings: Settings) -> None:
    path = publish_events(settings, "order_ready", ready([NOON]), last_offset=0)
    before = path.read_bytes()

    with pytest.raises(FileExistsError):
        publish_events(settings, "order_ready", ready([NOON, NOON + 5]), last_offset=1)

    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path], "no temporary file stays behind"


def test_a_writer_that_dies_half_way_leaves_nothing_to_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        publish_events(settings, "order_ready", ready([NOON]), last_offset=0)

    assert [path for path in settings.data.rglob("*") if path.is_file()] == []
    assert covered(settings, "order_ready") == {}


def test_a_file_holds_one_date_of_one_partition(settings: Settings) -> None:
    with pytest.raises(ValueError, match="several dates or partitions"):
        publish_events(settings, "order_ready", ready([NOON, NOON + DAY]), last_offset=1)
    both = pa.concat_tables([ready([NOON]), ready([NOON], partition=4)])
    with pytest.raises(ValueError, match="several dates or partitions"):
        publish_events(settings, "order_ready", both, last_offset=1)


def test_history_is_sorted_split_by_date_and_numbered_on(settings: Settings) -> None:
    assert append_history(settings, "order_ready", history([NOON + DAY, NOON, NOON + 1])) == 3
    assert append_history(settings, "order_ready", history([NOON + 2])) == 1
    assert append_history(settings, "order_ready", history([])) == 0

    files = [path.relative_to(log_folder(settings, "order_ready")).as_posix() for path in parquet_files(settings.data)]
    assert files == [
        "date=2026-03-01/history-0.parquet",
        "date=2026-03-01/history-3.parquet",
        "date=2026-03-02/history-2.parquet",
    ]
    assert covered(settings, "order_ready") == {HISTORY: 3}
    assert log_dates(settings, "order_ready") == [date(2026, 3, 1), date(2026, 3, 2)]


def test_coverage_goes_by_the_greatest_first_offset_as_a_number(settings: Settings) -> None:
    for first in (9, 10):
        publish_events(settings, "order_ready", ready([NOON], first=first), last_offset=first)
    publish_events(settings, "order_ready", ready([NOON + DAY], first=2), last_offset=2)

    assert covered(settings, "order_ready") == {3: 10}


def test_a_file_that_does_not_say_how_far_it_goes_is_named(settings: Settings) -> None:
    path = publish_events(settings, "order_ready", ready([NOON]), last_offset=0)
    pq.write_table(ready([NOON]), path)

    with pytest.raises(ValueError, match=r"3-0\.parquet: no last_offset"):
        covered(settings, "order_ready")
