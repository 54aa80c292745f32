"""Stories hold what could go wrong, and what it means to agree tells what differs from what is only rounded."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import msgspec
import pytest
from feast.value_type import ValueType

from feature_repo.stores.reading import Feature, Status
from feature_repo.views import PresenceView, StreamView, WindowView
from feature_repo.windows import DISTINCT_BOUND, MAX_AHEAD_MS, Aggregate, Layout
from ingestion.events import EVENT_TYPES, BadEvent, event_type, parse
from ingestion.log import Message
from ingestion.parity.compare import agree
from ingestion.parity.event_maker import EventMaker
from ingestion.parity.generate import numbers_of, random_story
from ingestion.parity.story import Check, Leave, Publish, Step, Story, Wait
from tests.repo import MINUTE, START

ORDERS, COURIERS = "order_placed", "courier_status"
WINDOW, TTL = 5 * MINUTE, 10 * MINUTE
AGGREGATES = (
    Aggregate("orders", "order_id", "count", WINDOW),
    Aggregate("mean", "basket_total", "mean", WINDOW),
    Aggregate("spread", "basket_total", "std", WINDOW),
)
KEYS = ("restaurant_id",), (ValueType.INT64,)
WINDOWS = WindowView(
    "windows",
    *KEYS,
    {"orders": ValueType.INT64, "mean": ValueType.DOUBLE, "spread": ValueType.DOUBLE},
    ORDERS,
    AGGREGATES,
    Layout.of(MINUTE, AGGREGATES),
    10_000,
    "w",
)
PRESENCE = PresenceView(
    "presence",
    ("zone_id",),
    (ValueType.INT64,),
    {"free": ValueType.INT64},
    (COURIERS,),
    "courier_id",
    "status",
    {"free": "available"},
    TTL,
    10_000,
    "p",
)
VIEWS: tuple[StreamView, ...] = (WINDOWS, PRESENCE)

KINDS = {
    "an event again",
    "a batch again",
    "two about one restaurant at one time",
    *(f"{by} ms from a hop's edge" for by in (-1, 0, 1)),
    "late",
    "later than the tiles kept",
    "before 1970",
    "ahead",
    "as far ahead as is let through",
    "too far ahead",
    "no event",
    "null",
    "a negative id",
    "a great number",
    "a text that is not ASCII",
    "a whole number for a text",
    "more than are told apart",
    "the clock goes on",
    "a reader behind",
    "a worker hands over",
    "a worker dies",
    "one worker",
    "the other worker",
    *(f"a step which one {what}" for what in ("dies", "fails", "rival")),
}
"""What stories must hold."""


def told(seed: str) -> Story:
    return random_story(VIEWS, numbers_of(seed))


def kinds_of(story: Story) -> Iterator[str]:
    """Which kinds happen in a story."""
    now, before = story.start, list[Publish]()
    for action in story.actions:
        match action:
            case Wait(until):
                yield "the clock goes on" if until > now else "it stands"
                now = until
            case Check(instants, _, behind):
                yield "a reader behind" if behind else "a reader"
                now = instants[-1]
            case Leave(_, hands_over):
                yield "a worker hands over" if hands_over else "a worker dies"
            case Step(worker, _, interruption):
                yield "the other worker" if worker else "one worker"
                yield f"a step which one {interruption.what}" if interruption else "a step"
            case Publish():
                yield from kinds_of_batch(action, now, before)
                before.append(action)


def kinds_of_batch(batch: Publish, now: int, before: Sequence[Publish]) -> Iterator[str]:
    if batch in before:
        yield "a batch again" if len(batch.messages) > 1 else "an event again"
    if len(batch.messages) > DISTINCT_BOUND:
        yield "more than are told apart"
    known = set()
    for message in batch.messages:
        yield from kinds_of_message(batch.topic, message, now)
        try:
            event = parse(batch.topic, message.value, now)
        except BadEvent as error:
            yield "too far ahead" if "s ahead of its arrival" in error.reason else "no event"
            continue
        place = (event.columns.get("restaurant_id"), event.time)
        yield "two about one restaurant at one time" if place in known and place[0] else "one"
        known.add(place)
        yield {1: "1 ms from a hop's edge", MINUTE - 1: "-1 ms from a hop's edge", 0: "0 ms from a hop's edge"}.get(
            event.time % MINUTE, "within a hop"
        )


def kinds_of_message(topic: str, message: Message, now: int) -> Iterator[str]:
    try:
        event = msgspec.json.decode(message.value)
        own = event[event_type(topic).time_field]
        ahead = own - now
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return
    yield "late" if -WINDOW < ahead < -MINUTE else "later than the tiles kept" if ahead < -WINDOW - MINUTE else "timely"
    yield "ahead" if 0 < ahead < MAX_AHEAD_MS else "not ahead"
    yield "as far ahead as is let through" if ahead == MAX_AHEAD_MS else "another"
    yield "before 1970" if own < 0 else "after"
    for name, value in event.items():
        if value is None:
            yield "null"
        if name.endswith("_id") and isinstance(value, int) and value < 0:
            yield "a negative id"
        if isinstance(value, float) and value >= 1e8:
            yield "a great number"
        if isinstance(value, str) and not value.isascii():
            yield "a text that is not ASCII"
        if name == "order_id" and isinstance(value, int):
            yield "a whole number for a text"


def test_stories_hold_what_could_go_wrong() -> None:
    found = {kind for number in range(100) for kind in kinds_of(told(f"census:{number}"))}
    assert KINDS - found == set()


def test_a_story_is_the_same_whenever_its_seed_is() -> None:
    assert told("1:2") == told("1:2") != told("1:3")


def test_a_number_left_out_leaves_the_others_what_they_were() -> None:
    numbers = [7, 2**31 + 5, 2**30 + 6]
    whole, without = random_story(VIEWS, numbers), random_story(VIEWS, [7, 0, numbers[2]])
    assert len(whole.actions) > len(without.actions)
    assert type(whole.actions[-2]) is type(without.actions[-2])


def test_a_story_ends_with_a_check_and_its_clock_never_goes_back() -> None:
    for number in range(20):
        story = told(f"clock:{number}")
        moments = [story.start]
        for action in story.actions:
            moments += [action.until] if isinstance(action, Wait) else []
            moments += action.instants if isinstance(action, Check) else ()
        assert moments == sorted(moments)
        assert isinstance(story.actions[-1], Check)


@pytest.mark.parametrize("topic", EVENT_TYPES)
def test_events_are_made_that_can_be_taken(topic: str) -> None:
    dice = Random(1)
    maker = EventMaker([topic], dice)
    for number in range(200):
        dice.seed(number)
        event = maker.event(topic, START)
        for each in (event, maker.alike(topic, event, START), *maker.flood(topic, event, ["restaurant_id"], 3)):
            assert parse(topic, maker.message(topic, each).value, START).time == START


@pytest.mark.parametrize("topic", EVENT_TYPES)
def test_bad_records_are_made_that_cannot_be_taken(topic: str) -> None:
    dice = Random(1)
    maker = EventMaker([topic], dice)
    for number in range(200):
        dice.seed(number)
        with pytest.raises(BadEvent):
            parse(topic, maker.bad(topic, START, START).value, START)


def test_rows_ask_for_ids_that_their_views_can_hold() -> None:
    narrow = replace(WINDOWS, key_types=(ValueType.INT32,))
    for number in range(30):
        checks = [
            action for action in random_story([narrow], numbers_of(f"{number}")).actions if isinstance(action, Check)
        ]
        assert all(-(2**31) <= each < 2**31 for check in checks for each in check.rows["restaurant_id"])


def test_a_story_is_readable() -> None:
    said = str(told("words:1"))
    assert "publish to order_placed: b'" in said
    assert "restaurant_id" in said
    assert "check {" in said


def served(value: Any) -> Feature:
    return Feature(value, Status.NULL_VALUE if value is None else Status.PRESENT, 0)


@pytest.mark.parametrize(
    ("feature", "online", "oracle", "offline", "same"),
    [
        ("orders", 2, 2, 2, True),
        ("orders", 2, 2, 3, False),
        ("orders", 3, 2, 2, False),
        ("orders", 2, 2, 2.0, False),
        ("mean", None, None, None, True),
        ("mean", None, None, 0.0, False),
        ("mean", 0.0, None, 0.0, False),
        ("mean", 0.1, 0.1, math.nextafter(0.1, 1), True),
        ("mean", math.nextafter(0.1, 1), 0.1, 0.1, False),
        ("mean", 0.1, 0.1, 0.1 * (1 + 1e-14), False),
        ("spread", math.nextafter(0.1, 1), 0.1, math.nextafter(0.1, 0), True),
        ("spread", 0.1 * (1 + 1e-14), 0.1, 0.1, False),
        ("spread", 0.0, 0.0, 1e-300, False),
    ],
)
def test_equal_and_rounded_are_told_from_different(
    feature: str, online: Any, oracle: Any, offline: Any, same: bool
) -> None:
    assert agree(WINDOWS, feature, served(online), oracle, offline) is same


def test_a_right_value_under_a_wrong_status_does_not_agree() -> None:
    assert agree(PRESENCE, "free", Feature(0, Status.PRESENT, 0), 0, 0)
    assert not agree(PRESENCE, "free", Feature(0, Status.OUTSIDE_MAX_AGE, 0), 0, 0)
    assert not agree(WINDOWS, "mean", Feature(None, Status.PRESENT, 0), None, None)
