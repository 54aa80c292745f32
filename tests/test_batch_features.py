"""Daily batch features, against rows computed by hand."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.clock import from_ms, to_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import parquet_files
from feature_repo.stores.parquet_files import append_file
from ingestion.batch_features import PROFILE, STATS, compute
from ingestion.event_files import append_history, events_table, publish_events

MINUTE, DAY = 60_000, 86_400_000
T = to_ms(datetime(2026, 3, 10, tzinfo=UTC))
NOW = T + DAY // 2


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(TIFFIN_REPO=tmp_path)


def ready(settings: Settings, *events: tuple[int, float], restaurant: int = 1, ids: str = "r") -> None:
    """Orders that became ready at these instants after these minutes."""
    at = np.array([instant for instant, _ in events], dtype=np.int64)
    took = np.array([int(minutes * MINUTE) for _, minutes in events])
    names = [f"{ids}-{restaurant}-{instant}" for instant in at]
    columns = {"event_time": at, "event_id": names, "order_id": names, "placed_at": at - took, "ready_at": at}
    append_history(settings, "order_ready", {**columns, "restaurant_id": [restaurant] * len(at)})


def placed(settings: Settings, *events: tuple[int, int], restaurant: int = 1) -> None:
    """Orders placed at these instants in these zones."""
    at = np.array([instant for instant, _ in events], dtype=np.int64)
    names = [f"p-{restaurant}-{instant}" for instant in at]
    columns: dict[str, Any] = {"event_time": at, "event_id": names, "order_id": names, "placed_at": at}
    columns |= {"restaurant_id": [restaurant] * len(at), "zone_id": [zone for _, zone in events]}
    nothing = [None] * len(at)
    more = {"customer_id": nothing, "basket_total": nothing, "item_count": nothing}
    append_history(settings, "order_placed", {**columns, **more})


def delivered(settings: Settings, instant: int, minutes: float, restaurant: int = 1) -> None:
    at = np.array([instant], dtype=np.int64)
    name = [f"d-{restaurant}-{instant}"]
    columns = {"event_time": at, "event_id": name, "order_id": name, "delivered_at": at}
    columns |= {"placed_at": at - int(minutes * MINUTE), "restaurant_id": [restaurant], "zone_id": [1]}
    append_history(settings, "order_delivered", {**columns, "courier_id": [None]})


def rows(settings: Settings, view: str) -> list[dict[str, Any]]:
    """All rows of a view, as written."""
    files = parquet_files(settings.data / "batch" / view)
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def day(t: int) -> date:
    return from_ms(t).date()


def test_a_row_covers_what_happened_before_its_midnight(settings: Settings) -> None:
    ready(settings, (T - 20 * DAY, 10), (T - 2 * DAY, 20), (T - 1, 40), (T, 400))
    placed(settings, (T - 2 * DAY, 4), (T - 1, 4), (T, 4))
    delivered(settings, T - DAY, 33)

    assert compute(settings, day(T), day(T), NOW)[STATS] == 1

    (row,) = rows(settings, STATS)
    assert row == {
        "restaurant_id": 1,
        "mean_prep_minutes_7d": 30.0,
        "mean_prep_minutes_28d": pytest.approx(70 / 3),
        "p90_prep_minutes_28d": pytest.approx(36.0),  # 20 + 0.8 * (40 - 20)
        "mean_delivery_minutes_28d": 33.0,
        "orders_28d": 2,
        "event_time": from_ms(T),
        "created": from_ms(NOW),
    }


def test_the_first_instant_of_28_days_counts_and_the_one_before_does_not(settings: Settings) -> None:
    ready(settings, (T - 28 * DAY, 10), (T - 28 * DAY - 1, 100))
    ready(settings, (T - 7 * DAY, 50), (T - 7 * DAY - 1, 60), restaurant=2)

    compute(settings, day(T), day(T), NOW)

    first, second = rows(settings, STATS)
    assert (first["mean_prep_minutes_28d"], first["mean_prep_minutes_7d"]) == (10, None)
    assert (second["mean_prep_minutes_28d"], second["mean_prep_minutes_7d"]) == (55, 50)


def test_what_is_not_known_is_null_and_no_orders_are_zero(settings: Settings) -> None:
    delivered(settings, T - 40 * DAY, 30)

    compute(settings, day(T), day(T), NOW)

    (row,) = rows(settings, STATS)
    assert row["orders_28d"] == 0
    assert {value for name, value in row.items() if "minutes" in name} == {None}


def test_a_restaurant_has_no_row_before_it_has_history(settings: Settings) -> None:
    ready(settings, (T - 3 * DAY + 5, 10))

    compute(settings, day(T - 9 * DAY), day(T), NOW)

    assert [row["event_time"] for row in rows(settings, STATS)] == [from_ms(T - n * DAY) for n in (2, 1, 0)]


def test_a_repeat_counts_once_by_the_record_that_came_first(settings: Settings) -> None:
    ready(settings, (T - DAY, 10))
    event_id = f"r-1-{T - DAY}"
    columns = {
        "event_id": [event_id],
        "order_id": ["again"],
        "restaurant_id": [1],
        "placed_at": np.array([T - DAY - 90 * MINUTE]),
        "ready_at": np.array([T - DAY]),
        "event_time": [T - DAY],
        "append_time": [T - DAY + 1],
        "partition": [0],
        "offset": [0],
    }
    publish_events(settings, "order_ready", events_table("order_ready", columns), last_offset=0)

    compute(settings, day(T), day(T), NOW)

    assert rows(settings, STATS)[0]["mean_prep_minutes_28d"] == 10


def test_records_appended_later_than_now_do_not_count(settings: Settings) -> None:
    ready(settings, (T - 2 * DAY, 10), (T - 5, 90))

    compute(settings, day(T - DAY), day(T), T - 10)

    assert [(row["event_time"], row["mean_prep_minutes_28d"]) for row in rows(settings, STATS)] == [
        (from_ms(T - DAY), 10)
    ]


def test_a_second_run_writes_only_what_changed(settings: Settings) -> None:
    ready(settings, (T - 3 * DAY, 10))
    ready(settings, (T - 3 * DAY, 10), restaurant=2)
    assert compute(settings, None, None, NOW)[STATS] == 6
    assert compute(settings, None, None, NOW + 1)[STATS] == 0

    ready(settings, (T - DAY + 1, 30), ids="late")
    assert compute(settings, None, None, NOW + 2)[STATS] == 1

    newest = rows(settings, STATS)[-1]
    assert (newest["created"], newest["event_time"], newest["mean_prep_minutes_28d"]) == (
        from_ms(NOW + 2),
        from_ms(T),
        20,
    )


def test_many_days_at_once_are_the_same_as_each_alone(settings: Settings, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    alone = Settings(TIFFIN_REPO=tmp_path / "alone")
    events = [
        (T - int(back), float(took))
        for back, took in zip(rng.integers(1, 60 * DAY, 300), rng.random(300) * 40, strict=True)
    ]
    for each in (settings, alone):
        ready(each, *events)

    compute(settings, day(T - 60 * DAY), day(T - 28 * DAY), NOW)
    for back in range(33, 27, -1):  # across the edge between two chunks
        compute(alone, day(T - back * DAY), day(T - back * DAY), NOW)

    assert len(rows(alone, STATS)) == 6
    assert rows(settings, STATS)[-6:] == rows(alone, STATS)


def test_no_history_gives_no_rows(settings: Settings) -> None:
    assert compute(settings, None, None, NOW) == {STATS: 0, PROFILE: 0}


def test_a_restaurant_without_profile_gets_its_most_frequent_zone(settings: Settings) -> None:
    noon = T - 3 * DAY + DAY // 2
    placed(settings, (noon, 9), (noon + 1, 5), (noon + 2, 5), (noon + DAY, 9), (noon + DAY + 1, 9))

    assert compute(settings, None, None, NOW)[PROFILE] == 1

    (row,) = rows(settings, PROFILE)
    assert (row["zone_id"], row["cuisine"], row["latitude"]) == (5, None, None)
    assert row["event_time"] == from_ms(T - 2 * DAY), "known from the first midnight after its first order"
    assert compute(settings, None, None, NOW + 1)[PROFILE] == 0


def test_a_profile_is_stated_anew_every_week(settings: Settings) -> None:
    given = from_ms(T - 16 * DAY)
    instant = pa.array([given], pa.timestamp("us", tz="UTC"))
    place = {"zone_id": [2], "cuisine": ["thai"], "latitude": [1.5], "longitude": [2.5]}
    profile = pa.table({"restaurant_id": [1], **place, "event_time": instant, "created": instant})
    append_file(settings.data / "batch" / PROFILE, profile)
    placed(settings, (T - 16 * DAY, 9))

    assert compute(settings, None, None, NOW)[PROFILE] == 2
    assert compute(settings, None, None, NOW)[PROFILE] == 0

    stated = rows(settings, PROFILE)
    assert [row["event_time"] for row in stated] == [given, given + timedelta(days=7), given + timedelta(days=14)]
    assert {(row["zone_id"], row["cuisine"], row["latitude"]) for row in stated} == {(2, "thai", 1.5)}
