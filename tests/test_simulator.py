"""The city: the same whoever asks, in time order, and every event one that the worker would take."""

from collections import Counter, defaultdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from feature_repo.clock import to_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import parquet_files
from ingestion.city import City, day_of, day_start
from ingestion.events import EVENT_TYPES, arrow_schema, parse
from ingestion.simulator import burst, live, write_history

MONDAY = to_ms(datetime(2026, 3, 2, tzinfo=UTC))
HOUR = 3_600_000
DAY = 24 * HOUR

Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def city() -> City:
    return City.build(3, restaurants=12, zones=3, couriers=40, customers=80)


@pytest.fixture(scope="module")
def two_days(city: City) -> Events:
    return list(live(city, MONDAY, MONDAY + 2 * DAY))


def at(topic: str, event: dict[str, Any]) -> int:
    moment: int = event[EVENT_TYPES[topic].time_field]
    return moment


def test_every_event_parses_at_its_own_time(two_days: Events) -> None:
    for topic, event in two_days:
        assert parse(topic, msgspec.json.encode(event), at(topic, event)).time == at(topic, event)
    assert {topic for topic, _ in two_days} == set(EVENT_TYPES)


def test_events_come_in_time_order_and_within_the_time_asked_for(two_days: Events) -> None:
    times = [at(topic, event) for topic, event in two_days]

    assert times == sorted(times)
    assert times[0] >= MONDAY
    assert times[-1] < MONDAY + 2 * DAY


def test_the_seed_makes_the_city(city: City, two_days: Events) -> None:
    again = City.build(3, restaurants=12, zones=3, couriers=40, customers=80)
    other = City.build(4, restaurants=12, zones=3, couriers=40, customers=80)

    assert list(live(again, MONDAY, MONDAY + 2 * DAY)) == two_days
    assert list(live(other, MONDAY, MONDAY + DAY)) != list(live(city, MONDAY, MONDAY + DAY))


def test_carrying_on_from_an_instant_is_the_same_as_never_having_stopped(city: City, two_days: Events) -> None:
    middle = MONDAY + 29 * HOUR + 1  # just past the city's own change of day

    assert [*live(city, MONDAY, middle), *live(city, middle, MONDAY + 2 * DAY)] == two_days


def test_event_ids_are_unique(two_days: Events) -> None:
    ids = Counter((topic, event["event_id"]) for topic, event in two_days)

    assert max(ids.values()) == 1


def test_an_order_is_placed_then_ready_then_delivered(two_days: Events) -> None:
    orders: dict[int, list[str]] = defaultdict(list)
    for topic, event in two_days:
        if "order_id" in event:
            orders[event["order_id"]].append(topic)
    placed = [events for events in orders.values() if "order_placed" in events]

    stages = ["order_placed", "order_ready", "order_delivered"]
    assert all(events == stages[: len(events)] for events in placed)
    assert sum(len(events) == 3 for events in placed) > 0.95 * len(placed)


def test_couriers_are_busy_only_between_being_free_and_never_offline_twice(two_days: Events) -> None:
    states: dict[int, list[str]] = defaultdict(list)
    for topic, event in two_days:
        if topic == "courier_status":
            states[event["courier_id"]].append(event["status"])
    steps = Counter(step for courier in states.values() for step in pairwise(courier))

    assert steps["offline", "offline"] == 0
    assert steps["available", "busy"] > steps["busy", "busy"] > 0
    assert steps["offline", "available"] > 0


def test_the_evening_is_busier_than_the_night(two_days: Events) -> None:
    hours = Counter(at(topic, event) // HOUR % 24 for topic, event in two_days if topic == "order_placed")

    assert hours[19] > 5 * hours[4]


def test_the_citys_day_begins_at_five() -> None:
    assert day_of(MONDAY + 5 * HOUR) == day_of(MONDAY) + 1
    assert day_start(day_of(MONDAY + 5 * HOUR)) == MONDAY + 5 * HOUR


def test_history_is_what_live_yields(city: City, two_days: Events, tmp_path: Path) -> None:
    settings, told = Settings(TIFFIN_REPO=tmp_path), list[int]()

    counts = write_history(settings, city, MONDAY, MONDAY + 2 * DAY, told.append)

    assert told == [DAY, DAY]
    assert counts == Counter(topic for topic, _ in two_days)
    for topic in EVENT_TYPES:
        files = parquet_files(settings.data / "log" / topic)
        assert all(pq.read_schema(file).equals(arrow_schema(topic)) for file in files)
        written = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
        expected = [event for other, event in two_days if other == topic]
        assert [row["offset"] for row in written] == list(range(len(expected)))
        for row, event in zip(written, expected, strict=True):
            parsed = parse(topic, msgspec.json.encode(event), at(topic, event))
            stored = {name: to_ms(v) if isinstance(v, datetime) else v for name, v in row.items()}
            assert {name: stored[name] for name in parsed.columns} == parsed.columns
            assert stored["event_time"] == stored["append_time"] == parsed.time


def test_profiles_are_as_of_the_start_of_history(city: City, tmp_path: Path) -> None:
    settings = Settings(TIFFIN_REPO=tmp_path)
    write_history(settings, city, MONDAY, MONDAY + HOUR, lambda done: None)

    rows = pq.read_table(settings.data / "batch" / "restaurant_profile").to_pylist()

    assert [row["restaurant_id"] for row in rows] == list(range(1, 13))
    assert {row["event_time"] for row in rows} == {datetime(2026, 3, 2, tzinfo=UTC)}
    assert [row["zone_id"] for row in rows] == [r.zone_id for r in city.restaurants]


def test_a_burst_ends_at_its_instant_and_parses(city: City) -> None:
    events = burst(city, 5, 20, MONDAY)

    assert Counter(topic for topic, _ in events) == {"order_placed": 20, "order_ready": 10}
    times = [at(topic, event) for topic, event in events]
    assert times == sorted(times)
    assert MONDAY - 60_000 < times[0] <= times[-1] <= MONDAY
    parsed = [parse(topic, msgspec.json.encode(event), MONDAY) for topic, event in events]
    assert {event.columns["restaurant_id"] for event in parsed} == {5}
    assert all(minutes > 30 for e in parsed if isinstance(minutes := e.columns.get("prep_minutes"), float))
    assert burst(city, 5, 20, MONDAY) == events


@pytest.mark.parametrize(("restaurant", "count"), [(0, 5), (13, 5), (1, 0)])
def test_a_burst_at_no_restaurant_is_refused(city: City, restaurant: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"restaurant_id {restaurant}, count {count}"):
        burst(city, restaurant, count, MONDAY)


@pytest.mark.parametrize("name", ["restaurants", "zones", "couriers", "customers"])
def test_a_city_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} 0 is not positive"):
        City.build(1, **{name: 0})
