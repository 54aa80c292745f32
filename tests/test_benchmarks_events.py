"""The made-up events of the benchmarks: that they are events, and of whom."""

from collections import Counter

from benchmarks.events import COURIER, DELIVERED, PLACED, READY, RECENT_MS, TOPICS, Made, Town, by_topic, made_up
from ingestion.events import EVENT_TYPES, Event, event_key, parse

START, END = 1_772_000_000_000, 1_772_003_600_000
TOWN = Town(restaurants=500, zones=7, couriers=20)


def parsed(events: list[Made]) -> list[Event]:
    return [parse(made.topic, made.message.value, END) for made in events]


def test_every_made_up_event_parses_and_lies_in_the_time_asked_for() -> None:
    made = list(made_up(TOWN, 5_000, START, END))
    events = parsed(made)
    assert len(events) == 5_000
    assert [event.time for event in events] == [m.time for m in made] == sorted(m.time for m in made)
    assert START <= made[0].time < made[-1].time <= END
    assert {made.topic for made in made} == set(TOPICS) == set(EVENT_TYPES)
    assert len({event.event_id for event in events}) == len(events)


def test_keys_are_those_of_the_events() -> None:
    for made, event in zip(e := list(made_up(TOWN, 500, START, END)), parsed(e), strict=True):
        assert made.message.key == event_key(made.topic, event.columns)


def test_equal_numbers_give_equal_events_and_another_part_others() -> None:
    first, again, other = (list(made_up(TOWN, 1_000, START, END, part)) for part in (3, 3, 4))
    assert first == again
    ids = [{event.event_id for event in parsed(events)} for events in (first, other)]
    orders = [{event.columns.get("order_id") for event in parsed(events)} - {None} for events in (first, other)]
    assert not ids[0] & ids[1]
    assert not orders[0] & orders[1]


def test_the_most_popular_restaurant_has_twice_the_orders_of_the_next() -> None:
    found = Counter(event.columns.get("restaurant_id") for event in parsed(list(made_up(TOWN, 100_000, START, END))))
    first, second, *_ = TOWN.by_popularity.tolist()
    assert 1.7 < found[first] / found[second] < 2.3


def test_everywhere_leaves_nobody_without_recent_events() -> None:
    events = parsed(list(made_up(TOWN, 100, START, END, everywhere=True)))
    recent = [event for event in events if event.time >= END - RECENT_MS]
    restaurants = set(range(1, TOWN.restaurants + 1))
    zones = set(TOWN.zone_of(TOWN.by_popularity).tolist())
    for topic, column, all_of_them in (
        (PLACED, "restaurant_id", restaurants),
        (READY, "restaurant_id", restaurants),
        (PLACED, "zone_id", zones),
        (DELIVERED, "zone_id", zones),
    ):
        assert {event.columns[column] for event in recent if event.topic == topic} >= all_of_them
    free = {e.columns["zone_id"] for e in recent if e.topic == COURIER and e.columns["status"] == "available"}
    assert free >= zones


def test_messages_are_sorted_out_by_topic_in_their_order() -> None:
    made = list(made_up(TOWN, 1_000, START, END))
    found = by_topic(iter(made))
    assert found[READY] == [each.message for each in made if each.topic == READY]
    assert sum(map(len, found.values())) == len(made)
