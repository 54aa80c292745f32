"""Importing an order history: what is kept, what is refused and why, and that doing it again adds nothing."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.clock import to_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import parquet_files
from ingestion.event_files import HISTORY, covered
from ingestion.events import EVENT_TYPES, parse
from ingestion.import_mapping import read_mapping
from ingestion.importer import events_of, import_orders

MAPPING = """
source: cafe
fields:
  order_id: nr
  restaurant_id: kitchen
  zone_id: area
  customer_id: guest
  courier_id: rider
  placed_at: ordered
  ready_at: done
  delivered_at: brought
  basket_total: total
  item_count: {constant: 2}
timezone: Europe/Amsterdam
timezones: {brought: UTC, delivered_at: UTC}
ids: {zone_id: dense}
where:
  order_delivered: {asap: true}
max_minutes: 120
keep: [asap, note]
couriers: {idle_minutes: 60}
"""

HEADER = "nr,kitchen,area,guest,rider,ordered,done,brought,total,asap,note"
GOOD = [
    "1,7,Noord,70,5,2026-03-02 12:00:00,2026-03-02 12:20:00,2026-03-02 11:30:00,12.5,true,hi",
    "2,7,Zuid,71,5,2026-03-02 12:10:00,,2026-03-02 11:45:00Z,20,true,",
    "3,8,Noord,,6,2026-03-01 12:00:00+00:00,,2026-03-02T15:00:00Z,,false,tomorrow's",
]
DIRTY = {
    "4,7,Noord,70,5,2026-03-02 12:00:00,,2026-03-02 10:59:59,1,true,": "delivered_at is before placed_at",
    "5,7,Noord,70,5,2026-03-02 12:00:00,2026-03-02 11:00:00,2026-03-02 12:00:00,,true,": "ready_at is before placed_at",
    "6,,Noord,70,5,2026-03-02 12:00:00,,2026-03-02 12:00:00,1,true,": "restaurant_id is missing",
    "7,7,,70,5,2026-03-02 12:00:00,,2026-03-02 12:00:00,1,true,": "zone_id is missing",
    "8,7,Noord,70,5,,,2026-03-02 12:00:00,1,true,": "placed_at is missing",
    "9,7,Noord,70,5,2026-03-02 12:00:00,,,1,true,": "delivered_at is missing",
    ",7,Noord,70,5,2026-03-02 12:00:00,,2026-03-02 12:00:00,1,true,": "order_id is missing",
    "10,7,Noord,70,5,2026-03-02 12:00:00,,2026-03-02 13:00:01,1,true,": "delivery took longer than max_minutes (120)",
    "1,9,Noord,70,5,2026-03-02 12:00:00,,2026-03-02 12:00:00,1,true,": "order_id is a repeat of an earlier row's",
    "11,7,Noord,70,5,2026-03-02 12:00:00,,2026-03-02 11:00:00,1,true,": "delivery took no time",
    "12,7,Noord,70,5,noon,,2026-03-02 12:00:00,1,true,": "placed_at cannot be read",
    "13,K7,Noord,70,5,2026-03-02 12:00:00,,2026-03-02 12:00:00,1,true,": "restaurant_id cannot be read",
    "14,7,Noord,70,5,2026-03-02 12:00:00,,2026-03-02 12:00:00,-1,true,": (
        "basket_total: Expected `float` >= 0.0: the event cannot be counted"
    ),
    "15,99999999999999999999,Noord,70,5,2026-03-02 12:00:00,,2026-03-02 12:00:00,1,true,": (
        "restaurant_id does not fit 64 bits"
    ),
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(TIFFIN_REPO=tmp_path / "repo")


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    path = tmp_path / "mapping.yaml"
    path.write_text(MAPPING)
    return path


def orders(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "orders.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def utc(month: int, day: int, hour: int, minute: int = 0) -> int:
    return to_ms(datetime(2026, month, day, hour, minute, tzinfo=UTC))


def rows(settings: Settings, topic: str) -> list[dict[str, Any]]:
    files = parquet_files(settings.data / "log" / topic)
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def test_rows_become_events_with_times_in_utc(settings: Settings, tmp_path: Path, mapping: Path) -> None:
    report = import_orders(settings, orders(tmp_path, *GOOD), mapping)

    assert (report.rows, report.kept, report.refused) == (3, 3, Counter())
    assert report.written == {"order_placed": 3, "order_ready": 1, "order_delivered": 2, "courier_status": 6}
    tomorrows, first, second = rows(settings, "order_placed")
    assert first["placed_at"] == first["append_time"] == datetime(2026, 3, 2, 11, tzinfo=UTC), "12:00 in Amsterdam"
    assert (first["event_id"], first["order_id"], first["restaurant_id"]) == ("cafe-placed-1", "1", 7)
    assert (first["zone_id"], second["zone_id"], tomorrows["zone_id"]) == (1, 2, 1)
    assert (first["basket_total"], tomorrows["basket_total"], first["item_count"]) == (12.5, None, 2)
    assert msgspec.json.decode(first["extra"]) == {"asap": True, "note": "hi"}
    assert rows(settings, "order_ready")[0]["prep_minutes"] == 20
    assert [row["delivery_minutes"] for row in rows(settings, "order_delivered")] == [30, 35]
    assert covered(settings, "order_placed") == {HISTORY: 2}


@pytest.mark.parametrize(("line", "reason"), DIRTY.items(), ids=DIRTY.values())
def test_a_dirty_row_is_refused_whole_with_its_reason(
    settings: Settings, tmp_path: Path, mapping: Path, line: str, reason: str
) -> None:
    report = import_orders(settings, orders(tmp_path, GOOD[0], line), mapping)

    assert (report.rows, report.kept, dict(report.refused)) == (2, 1, {reason: 1})
    assert len(rows(settings, "order_placed")) == 1
    assert report.refused_file is not None
    (refused,) = pq.read_table(report.refused_file).to_pylist()
    assert refused["refused_because"] == reason
    assert refused["nr"] == (line.split(",", maxsplit=1)[0] or None) or not line.split(",", maxsplit=1)[0]


def test_importing_again_adds_only_what_is_new(settings: Settings, tmp_path: Path, mapping: Path) -> None:
    import_orders(settings, orders(tmp_path, *GOOD[:2]), mapping)

    again = import_orders(settings, orders(tmp_path, *GOOD[:2]), mapping)
    more = import_orders(settings, orders(tmp_path, *GOOD), mapping)

    assert (sum(again.written.values()), again.already_there) == (0, 8)
    assert more.written == {"order_placed": 1, "order_ready": 0, "order_delivered": 0, "courier_status": 3}
    assert len({row["event_id"] for row in rows(settings, "order_placed")}) == 3


def test_text_ids_keep_their_numbers_in_later_imports(settings: Settings, tmp_path: Path, mapping: Path) -> None:
    import_orders(settings, orders(tmp_path, GOOD[1]), mapping)
    import_orders(settings, orders(tmp_path, *GOOD), mapping)

    lookup = pq.read_table(settings.data / "imported" / "zone_id.parquet").to_pylist()
    assert lookup == [{"text": "Zuid", "id": 1}, {"text": "Noord", "id": 2}]


def test_couriers_are_busy_from_the_first_order_to_the_last_of_those_that_overlap(
    settings: Settings, tmp_path: Path, mapping: Path
) -> None:
    import_orders(settings, orders(tmp_path, *GOOD), mapping)

    states = [(row["courier_id"], row["status"], to_ms(row["at"])) for row in rows(settings, "courier_status")]
    assert states == [
        (5, "busy", utc(3, 2, 11)),
        (5, "available", utc(3, 2, 11, 45)),
        (5, "offline", utc(3, 2, 12, 45)),
        (6, "busy", utc(3, 2, 13)),  # ordered a day before; busy for max_minutes at most
        (6, "available", utc(3, 2, 15)),
        (6, "offline", utc(3, 2, 16)),
    ]
    assert [row["zone_id"] for row in rows(settings, "courier_status")][:3] == [1, 2, 2]


def test_a_courier_with_a_next_order_soon_does_not_go_offline(
    settings: Settings, tmp_path: Path, mapping: Path
) -> None:
    soon = "20,7,Noord,70,5,2026-03-02 13:45:00,,2026-03-02 13:10:00,1,true,"

    import_orders(settings, orders(tmp_path, GOOD[1], soon), mapping)

    states = [row["status"] for row in rows(settings, "courier_status")]
    assert states == ["busy", "available", "busy", "available", "offline"]


def test_a_part_of_the_time_is_imported_and_the_rest_can_be_replayed(
    settings: Settings, tmp_path: Path, mapping: Path
) -> None:
    path, noon = orders(tmp_path, *GOOD), utc(3, 2, 11, 30)

    report = import_orders(settings, path, mapping, until_ms=noon)
    rest = list(events_of(settings, path, mapping, after_ms=noon))

    assert report.written == {"order_placed": 3, "order_ready": 1, "order_delivered": 0, "courier_status": 1}
    assert [event["event_id"] for _, event in rest][:2] == ["cafe-delivered-1", "cafe-delivered-2"]
    times = []
    for topic, event in rest:
        own = event[EVENT_TYPES[topic].time_field]
        times.append(own)
        assert parse(topic, msgspec.json.encode(event), own).time == own >= noon
    assert times == sorted(times)
    assert len(rest) + sum(report.written.values()) == 12


def test_parquet_with_numbers_and_instants_is_read_too(settings: Settings, tmp_path: Path, mapping: Path) -> None:
    instant = datetime(2026, 3, 2, 12, tzinfo=UTC)
    columns: dict[str, Any] = {"nr": [1], "kitchen": [7.0], "area": ["Noord"], "guest": [float("nan")], "rider": [5]}
    columns |= {"ordered": pa.array([instant], pa.timestamp("ns", tz="UTC")), "done": pa.nulls(1, pa.timestamp("s"))}
    columns |= {"brought": [utc(3, 2, 12, 30)], "total": [3], "asap": [True], "note": [None]}
    pq.write_table(pa.table(columns), tmp_path / "orders.parquet")

    report = import_orders(settings, tmp_path / "orders.parquet", mapping)

    assert report.written["order_delivered"] == 1
    (row,) = rows(settings, "order_placed")
    assert (row["placed_at"], row["customer_id"], row["restaurant_id"]) == (instant, None, 7)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("source: cafe", "source: the cafe"),
        ("timezone: Europe/Amsterdam", "timezone: Europe/Atlantis"),
        ("  restaurant_id: kitchen\n", ""),
        ("  zone_id: area", "  zone_id: area\n  zone_name: area"),
        ("  courier_id: rider\n", ""),
        ("order_delivered: {asap", "order_brought: {asap"),
        ("ids: {zone_id", "ids: {order_id"),
        ("keep: [asap", "keep: [colour"),
        ("max_minutes: 120", "max_minutes: 0"),
        ("keep:", "keep_all: true\nkeep:"),
    ],
)
def test_a_wrong_mapping_is_refused_before_anything_is_written(
    settings: Settings, tmp_path: Path, mapping: Path, wrong: str, complaint: str
) -> None:
    assert wrong in MAPPING
    mapping.write_text(MAPPING.replace(wrong, complaint))

    with pytest.raises(ValueError, match=r"mapping\.yaml"):
        import_orders(settings, orders(tmp_path, *GOOD), mapping)

    assert not settings.data.exists()


def test_the_shipped_mapping_reads() -> None:
    mapping = read_mapping(Path(__file__).parent.parent / "examples" / "delivery_log" / "mapping.yaml")

    assert mapping.source == "delivery_log"
    assert "ready_at" not in mapping.fields
