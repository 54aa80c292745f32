"""Requests with something wrong in them, by the hundred: each is answered, and none by a fault of ours."""

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from tests.serving_stack import Stack, problem, running

COUNT = 400
ORDER = {"restaurant_id": 1, "zone_id": None, "require": "batch_features"}
EVENTS: dict[str, list[Any]] = {
    "event_id": ["a", "b"],
    "courier_id": [1, 2],
    "zone_id": [1, 2],
    "status": ["busy", "offline"],
    "at": [1_772_366_400_000, "2026-03-01T12:00:00Z"],
}
ROWS = {
    "restaurant_id": [1, 2],
    "zone_id": [1, None],
    "cuisine": ["thai", None],
    "latitude": [1, 2.5],
    "longitude": ["NaN", 2],
    "event_timestamp": ["2026-01-01T00:00:00", "2026-01-01T00:00:00Z"],
    "created": [None, "2026-01-01"],
}
BODIES: dict[str, dict[str, Any]] = {
    "/get-online-features": {
        "entities": {"restaurant_id": [1, None, "a"], "zone_id": [1, 2, 3]},
        "features": ["restaurant_profile:cuisine", "zone_recent_orders:zone_orders_10m"],
        "feature_service": None,
        "full_feature_names": True,
        "include_feature_view_version_metadata": False,
    },
    "/push": {"push_source_name": "courier_status", "df": EVENTS, "to": "online"},
    "/write-to-online-store": {"feature_view_name": "restaurant_profile", "df": ROWS, "allow_registry_cache": True},
    "/v1/eta": ORDER,
    "/v1/eta/batch": {"orders": [ORDER, {"restaurant_id": 2}]},
    "/v1/events/courier_status": {name: values[0] for name, values in EVENTS.items()},
}
WRONG: list[Any] = [
    *(None, True, 0, -1, 1.5, "", [], {}, [[]], {"": None}, [None], "x" * 300, 10**30, -(10**400), float("nan")),
    *("2026-01-01T00:00:00", ["a:b"], "a@v1:b", ":", "::", "\x00", "\ud800", "é" * 20, {"restaurant_id": []}),
    *("restaurant_profile@v0:cuisine", "zone_recent_orders", "order_placed", [1] * 3, "99999-01-01T00:00:00"),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack; what some of these requests write is not looked at."""
    with running(tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("requests")) as stack:
        yield stack


def places_of(document: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a document, but not to the whole."""
    if place:
        yield place
    if isinstance(document, dict | list):
        names = list(document) if isinstance(document, dict) else range(len(document))
        for name in names:
            yield from places_of(document[name], (*place, name))


def changed(dice: random.Random, document: Any) -> Any:
    """The document with one part left out, called otherwise or replaced; or something else instead of it."""
    places = list(places_of(document))
    if not places or dice.random() < 0.02:
        return deepcopy(dice.choice(WRONG))
    *way, last = dice.choice(places)
    part = document
    for name in way:
        part = part[name]
    if dice.random() < 0.2:
        del part[last]
    elif isinstance(part, dict) and dice.random() < 0.2:
        part[dice.choice(["", "\x00", "zz", "restaurant_id", "é"])] = part.pop(last)
    else:
        part[last] = deepcopy(dice.choice(WRONG))
    return document


def body_of(dice: random.Random, path: str) -> bytes:
    document = deepcopy(BODIES[path])
    for _ in range(dice.randint(1, 3)):
        document = changed(dice, document)
    data = bytearray(json.dumps(document).encode())
    if dice.random() < 0.25:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("path", BODIES)
def test_no_request_is_answered_by_a_fault_of_ours(stack: Stack, path: str) -> None:
    assert stack.post(path, BODIES[path]).status_code == 200
    dice, refused = random.Random(path), 0
    for _ in range(COUNT):
        body = body_of(dice, path)
        answer = stack.post(path, body)
        assert answer.status_code in (200, 404, 413, 422), body
        if answer.status_code != 200:
            refused += 1
            problem(answer, answer.status_code)
    assert refused > COUNT / 4
