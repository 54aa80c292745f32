"""Events over HTTP: what is in the log once answered, what is refused and why, and what the features say then."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestion.events import DEAD_LETTERS, TOPICS
from ingestion.log import Message
from serving.bodies import MAX_BYTES
from serving.events_api import MAX_EVENTS
from tests.repo import MINUTE
from tests.serving_stack import ORDERS_10M, ZONE_ORDERS_10M, Stack, problem, running

TOPIC = "order_placed"
URL = f"/v1/events/{TOPIC}"
DEEP = b"[" * 100_000
DEEP_EXTRA = b'{"x":' + DEEP + b"]" * len(DEEP) + b"}"


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Iterator[Stack]:
    """A stack of the test's own, with nothing in the log."""
    with running(tmp_path_factory.getbasetemp(), tmp_path) as stack:
        yield stack


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack for tests whose events are all refused: its log stays empty."""
    with running(tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("untouched")) as stack:
        yield stack
        assert [record for topic in TOPICS for record in stack.records(topic)] == []


def in_log(stack: Stack, topic: str = TOPIC) -> set[str]:
    """The ids of the events in the log."""
    return {json.loads(record.value)["event_id"] for record in stack.records(topic)}


def test_one_event_is_in_the_log_once_it_is_answered(stack: Stack) -> None:
    event = stack.order(1)
    answer = stack.post(URL, event)
    assert answer.status_code == 200
    (record,) = stack.records(TOPIC)
    assert answer.json() == {
        "topic": TOPIC,
        "accepted": 1,
        "refused": 0,
        "outcomes": [
            {"index": 0, "status": "accepted", "event_id": event["event_id"], "partition": record.partition},
        ],
    }
    assert json.loads(record.value) == event
    assert record.append_ms == stack.clock.now, "a drill's record is stamped by the drill's clock"


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/json"}])
def test_an_array_is_taken_in_order_and_each_event_answered(stack: Stack, headers: dict[str, str]) -> None:
    events = [stack.order(restaurant) for restaurant in (1, 2, 1, 3)]
    answer = stack.post(URL, events, **headers)
    assert answer.status_code == 200
    outcomes = answer.json()["outcomes"]
    assert [o["event_id"] for o in outcomes] == [event["event_id"] for event in events]
    assert outcomes[0]["partition"] == outcomes[2]["partition"], "events of a restaurant share a partition"
    assert in_log(stack) == {str(event["event_id"]) for event in events}


def test_the_good_events_among_bad_ones_are_in_the_log_and_the_bad_are_named(stack: Stack) -> None:
    without_zone = {name: value for name, value in stack.order().items() if name != "zone_id"}
    events: list[object] = [
        stack.order(event_id="good"),
        without_zone,
        stack.order(restaurant_id="thirty"),
        stack.order(placed_at=stack.clock.now + MINUTE + 1),
        "no event",
        stack.order(event_id="good too", placed_at=stack.clock.now + MINUTE),
    ]
    refused = problem(stack.post(URL, events), 422)
    assert (refused["accepted"], refused["refused"]) == (2, 4)
    errors = [(error["index"], error["field"], error["value"]) for error in refused["errors"]]
    assert errors[:2] == [(1, "zone_id", "None"), (2, "restaurant_id", "'thirty'")]
    assert [error[:2] for error in errors[2:]] == [(3, "placed_at"), (4, "event")]
    assert "60 s are allowed" in refused["errors"][2]["reason"]
    assert refused["detail"].startswith("zone_id is None: missing")
    assert in_log(stack) == {"good", "good too"}
    assert [o["status"] for o in refused["outcomes"]] == ["accepted", *["refused"] * 4, "accepted"]


def test_an_impossible_event_is_refused_with_its_reason(untouched: Stack) -> None:
    at = untouched.clock.now
    event = {"event_id": "r", "order_id": "o", "restaurant_id": 1, "placed_at": at, "ready_at": at - 1}
    (error,) = problem(untouched.post("/v1/events/order_ready", event), 422)["errors"]
    assert error["field"] == "ready_at"
    assert "negative" in error["reason"]
    assert untouched.records("order_ready") == []


@pytest.mark.parametrize("topic", ["orders", "dead_letters", "eta_predictions", "%2e%2e"])
def test_a_topic_that_nobody_may_write_is_a_404_that_names_those_there_are(untouched: Stack, topic: str) -> None:
    detail = problem(untouched.post(f"/v1/events/{topic}", untouched.order()), 404)["detail"]
    if topic != "%2e%2e":
        assert topic in detail
        assert TOPIC in detail


@pytest.mark.parametrize("body", [b"", b"{", b"[{", b"\xff", b"null", b"7", b"[1", b"{}", b"[null]", b"[] []"])
def test_what_is_no_event_is_refused_and_nothing_is_taken(untouched: Stack, body: bytes) -> None:
    assert problem(untouched.post(URL, body), 422)["detail"]
    assert untouched.records(TOPIC) == []


@pytest.mark.parametrize("body", [DEEP, DEEP + b"]" * len(DEEP), DEEP_EXTRA])
def test_json_that_is_nested_without_end_is_refused_like_any_other(untouched: Stack, body: bytes) -> None:
    assert problem(untouched.post(URL, body), 422)
    assert untouched.records(TOPIC) == []


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_an_instant_beyond_what_years_hold_is_refused_by_name(untouched: Stack, moment: str) -> None:
    at = untouched.clock.now
    event = {"event_id": "r", "order_id": "o", "restaurant_id": 1, "placed_at": at, "ready_at": moment}
    (error,) = problem(untouched.post("/v1/events/order_ready", event), 422)["errors"]
    assert error["field"] == "ready_at"


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_no_bytes_that_somebody_puts_into_the_log_stop_a_partition(stack: Stack, moment: str) -> None:
    at = stack.clock.now
    event = {"event_id": "r", "order_id": "o", "restaurant_id": 1, "placed_at": at, "ready_at": moment}
    stack.log.publish("order_ready", [Message(b"1", json.dumps(event).encode())], at)
    stack.fold()
    (letter,) = stack.records(DEAD_LETTERS)
    assert json.loads(letter.value)["field"] == "ready_at"


def test_no_events_are_no_error(stack: Stack) -> None:
    answer = stack.post(URL, [])
    assert answer.status_code == 200
    assert answer.json() == {"topic": TOPIC, "accepted": 0, "refused": 0, "outcomes": []}


def test_too_many_events_are_refused_whole(untouched: Stack) -> None:
    tiny = json.dumps({"event_id": 1}).encode()
    detail = problem(untouched.post(URL, b"[" + b",".join([tiny] * (MAX_EVENTS + 1)) + b"]"), 413)["detail"]
    assert str(MAX_EVENTS) in detail
    assert untouched.records(TOPIC) == []
    answer = problem(untouched.post(URL, b"[" + b",".join([tiny] * MAX_EVENTS) + b"]"), 422)
    assert answer["refused"] == MAX_EVENTS, "so many are looked at"


def test_too_many_bytes_are_refused_whole(stack: Stack) -> None:
    event = json.dumps(stack.order(note="x" * MAX_BYTES)).encode()
    assert str(MAX_BYTES) in problem(stack.post(URL, event), 413)["detail"]
    assert stack.records(TOPIC) == []
    assert stack.post(URL, event.replace(b"x" * 1000, b"")[: MAX_BYTES - 1]).status_code != 413
    assert stack.eta(1)["restaurant_id"] == 1, "the server goes on"


def test_a_log_that_is_down_is_a_503_that_says_to_send_again(stack: Stack) -> None:
    event = stack.order()
    stack.valkey.stop()
    detail = problem(stack.post(URL, event), 503)["detail"]
    assert "Send all of it again" in detail
    stack.valkey.start()
    assert stack.post(URL, event).status_code == 200
    assert in_log(stack) == {event["event_id"]}


def test_an_event_that_is_sent_twice_counts_once(stack: Stack) -> None:
    event = stack.order(1)
    stack.push(TOPIC, event, event)
    stack.fold()
    stack.push(TOPIC, event, stack.order(1))
    stack.fold()
    assert len(stack.records(TOPIC)) == 4
    assert (stack.value(ORDERS_10M), stack.value(ZONE_ORDERS_10M)) == (2, 2)


def test_a_window_runs_empty_while_nothing_is_written(stack: Stack) -> None:
    stack.push(TOPIC, stack.order(1), stack.order(1))
    stack.fold()
    stored = entities(stack)
    assert stack.value(ORDERS_10M) == 2
    stack.move(10 * MINUTE)
    assert stack.value(ORDERS_10M) == 2, "the trailing edge moves by whole minutes: nothing younger is missed"
    stack.move(MINUTE)
    features = stack.eta(1)["features"]
    assert features[ORDERS_10M] == {"value": 0, "status": "PRESENT", "age_seconds": 0.0}
    assert features["restaurant_recent_orders__orders_30m"] == {"value": 2, "status": "PRESENT", "age_seconds": 660.0}
    stack.move(20 * MINUTE)
    features = stack.eta(1)["features"]
    assert features["restaurant_recent_orders__orders_30m"]["value"] == 0
    mean = features["restaurant_recent_orders__basket_mean_30m"]
    assert (mean["value"], mean["status"]) == (None, "NULL_VALUE")
    assert entities(stack) == stored, "nothing was written for it"


def entities(stack: Stack) -> dict[bytes, Any]:
    """Every entity's hash, byte for byte; the worker's progress is no entity's."""
    keys: Any = stack.redis.keys("*restaurant_id*")
    keys += stack.redis.keys("*zone_id*")
    assert keys
    return {key: stack.redis.hgetall(key) for key in keys}


def test_a_couriers_latest_status_counts_in_its_zone(stack: Stack) -> None:
    def status(number: int, courier: int, zone: int, state: str, seconds: int = 0) -> dict[str, object]:
        at = stack.clock.now + seconds * 1000
        return {"event_id": f"c{number}", "courier_id": courier, "zone_id": zone, "status": state, "at": at}

    def couriers(restaurant: int) -> tuple[Any, Any]:
        features = stack.eta(restaurant)["features"]
        return features["zone_couriers__couriers_available"]["value"], features["zone_couriers__couriers_busy"]["value"]

    first = [status(1, 1, 1, "available"), status(2, 2, 1, "available"), status(3, 3, 1, "busy", -5)]
    stack.push("courier_status", *first, status(4, 3, 1, "offline", -9))
    stack.fold()
    assert (couriers(1), couriers(3)) == ((2, 1), (0, 0))
    stack.move(1000)
    stack.push("courier_status", status(5, 1, 2, "busy"), status(6, 2, 1, "offline"))
    stack.fold()
    assert (couriers(1), couriers(3)) == ((0, 1), (0, 1))
