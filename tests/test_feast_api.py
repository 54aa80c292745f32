"""``/get-online-features`` and ``/push``, asked as Feast's clients do and as nobody should."""

import json
import warnings
from typing import Any

import feast.utils
import msgspec
import pytest
from feast import Field
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

from feature_repo.clock import iso
from feature_repo.stores.online_requests import PLANS_KEPT
from ingestion.events import DEAD_LETTERS
from serving.bodies import MAX_BYTES
from serving.feast_bodies import MAX_FEATURES, MAX_ROWS
from tests.feast_tools import BASKET, CUISINE, ORDERS, PUSH, READ, WRITE, ZONE, ask, sent
from tests.repo import MINUTE, quietly
from tests.serving_stack import BATCH_AGE_MS, UNKNOWN, Stack, problem


@pytest.mark.parametrize(
    "bad", [None, "abc", "01", "1.0", "٣", "", 1.5, True, 2**70, -(2**63) - 1, 10**400, [1], {"a": 1}]
)
def test_an_id_that_is_none_fails_its_own_row_only_and_is_shown_as_it_came(shared: Stack, bad: object) -> None:
    body = b'{"entities": {"restaurant_id": [1, %s, 3]}, "features": ["%s", "%s"]}'
    answer = shared.post(READ, body % (json.dumps(bad).encode(), CUISINE.encode(), ORDERS.encode()))
    assert answer.status_code == 200
    ids, *features = answer.json()["results"]
    assert [column["statuses"] for column in features] == [["PRESENT", "NOT_FOUND", "PRESENT"]] * 2
    assert [column["values"][1] for column in features] == [None, None]
    if not isinstance(bad, list | dict) and (not isinstance(bad, int) or abs(bad) < 2**63):
        assert ids["values"] == [1, bad, 3]
        assert type(ids["values"][1]) is type(bad)
    else:
        assert str(bad)[:200] == ids["values"][1]


@pytest.mark.parametrize("literal", [b"1" + b"0" * 5000, b"1e400"])
def test_a_number_that_nothing_can_hold_fails_its_own_row_only(shared: Stack, literal: bytes) -> None:
    body = b'{"entities": {"restaurant_id": [1, %s]}, "features": ["%s"]}' % (literal, CUISINE.encode())
    ids, cuisine = shared.post(READ, body).json()["results"]
    assert cuisine["statuses"] == ["PRESENT", "NOT_FOUND"]
    assert ids["values"] == [1, literal.decode()[:200]]


def test_every_value_comes_with_the_instant_it_speaks_of(shared: Stack) -> None:
    found = ask(shared, {"entities": {"restaurant_id": [1, UNKNOWN]}, "features": [CUISINE, ORDERS]})
    written = iso(shared.clock.now - BATCH_AGE_MS).replace(".000Z", "Z")
    assert found["cuisine"]["event_timestamps"] == [written, "1970-01-01T00:00:00Z"]
    assert found["orders_10m"]["event_timestamps"][0] == iso(shared.clock.now).replace(".000Z", "Z")


def test_as_many_rows_as_are_allowed_read_like_a_few(shared: Stack) -> None:
    few = ask(shared, {"entities": {"restaurant_id": [1, None, 3]}, "features": [CUISINE, ORDERS]})
    found = ask(shared, {"entities": {"restaurant_id": [1, None, 3] * 100}, "features": [CUISINE, ORDERS]})
    assert {name: column["values"] for name, column in found.items()} == {n: c["values"] * 100 for n, c in few.items()}
    most = ask(shared, {"entities": {"restaurant_id": [1] * MAX_ROWS}, "features": [ZONE]})
    assert most["zone_id"]["values"] == [1] * MAX_ROWS
    refused = shared.post(READ, {"entities": {"restaurant_id": [1] * (MAX_ROWS + 1)}, "features": [ZONE]})
    assert str(MAX_ROWS) in problem(refused, 413)["detail"]


def test_a_service_goes_before_features_and_columns_nobody_needs_are_let_through(shared: Stack) -> None:
    entities = {"restaurant_id": [1], "colour": ["red"]}
    found = ask(shared, {"entities": entities, "feature_service": "eta_batch", "features": [ORDERS], "novelty": 1})
    assert "cuisine" in found
    assert "orders_10m" not in found
    assert "colour" not in found


def test_no_rows_are_no_error(shared: Stack) -> None:
    found = ask(shared, {"entities": {"restaurant_id": []}, "features": [CUISINE]})
    assert [column["values"] for column in found.values()] == [[], []]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"features": ["nowhere:cuisine"]}, 404, "nowhere"),
        ({"features": ["restaurant_profile:colour"]}, 404, "colour"),
        ({"features": ["restaurant_profile:restaurant_id"]}, 404, "restaurant_id"),
        ({"features": ["restaurant_recent_orders:restaurant_id"]}, 404, "restaurant_id"),
        ({"feature_service": "no_service"}, 404, "no_service"),
        ({"features": ["restaurant_profile"]}, 422, "features[0]"),
        ({"features": ["restaurant_profile@v7:cuisine"]}, 422, "restaurant_profile@v7"),
        ({"features": [CUISINE, CUISINE]}, 422, "cuisine"),
        ({"features": []}, 422, "features"),
        ({"features": None}, 422, "features"),
        ({"features": CUISINE}, 422, "features"),
        ({"features": [7]}, 422, "features[0] is [7]"),
        ({"features": [CUISINE] * (MAX_FEATURES + 1)}, 413, str(MAX_FEATURES)),
        ({"feature_service": 7}, 422, "feature_service"),
        ({"full_feature_names": "yes"}, 422, "full_feature_names"),
        ({"entities": None}, 422, "entities"),
        ({"entities": []}, 422, "entities"),
        ({"entities": {}}, 422, "entities"),
        ({"entities": {"restaurant_id": 1}}, 422, "entities.restaurant_id"),
        ({"entities": {"zone_id": [1]}}, 422, "entities.restaurant_id"),
        ({"entities": {"restaurant_id": [1], "zone_id": [1, 2]}}, 422, "entities.zone_id"),
    ],
)
def test_a_read_that_cannot_be_answered_says_why(
    shared: Stack, change: dict[str, object], status: int, said: str
) -> None:
    document = {"entities": {"restaurant_id": [1]}, "features": [CUISINE]} | change
    assert said in problem(shared.post(READ, document), status)["detail"]


@pytest.mark.parametrize("path", [READ, WRITE, PUSH])
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"null", b"[]", b"{}", b"[" * 100_000, b'{"df": NaN}'])
def test_a_body_that_is_no_request_is_refused(shared: Stack, path: str, body: bytes) -> None:
    assert problem(shared.post(path, body), 422)["errors"]


@pytest.mark.parametrize("path", [READ, WRITE, PUSH])
def test_a_body_that_is_too_large_is_refused_whole(shared: Stack, path: str) -> None:
    assert str(MAX_BYTES) in problem(shared.post(path, b" " * (MAX_BYTES + 1)), 413)["detail"]


def test_a_transformation_on_demand_is_answered_by_feasts_own_read(stack: Stack) -> None:
    with quietly(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "On demand feature view is an experimental", RuntimeWarning)
        profile = stack.store.get_feature_view("restaurant_profile")

        @on_demand_feature_view(  # type: ignore[untyped-decorator]
            sources=[profile], schema=[Field(name="north", dtype=Float64)], mode="python"
        )
        def shifted(inputs: dict[str, Any]) -> dict[str, Any]:
            return {"north": [latitude + 1 for latitude in inputs["latitude"]]}

        stack.store.apply([shifted])
    assert stack.post(WRITE, sent(stack, {}) | {"allow_registry_cache": False}).status_code == 200
    found = ask(stack, {"entities": {"restaurant_id": [50, 1]}, "features": ["shifted:north"]})
    assert found["north"]["values"] == [53.0, 53.4]
    refused = stack.post(READ, {"entities": {"restaurant_id": ["abc"]}, "features": ["shifted:north"]})
    assert problem(refused, 422)


def test_requests_of_many_shapes_are_not_all_remembered(shared: Stack) -> None:
    names = [f"restaurant_prep_stats:{name}" for name in ("orders_28d", "mean_prep_minutes_7d")] + [CUISINE, ZONE]
    names += [f"restaurant_recent_orders:{name}" for name in ("orders_10m", "orders_30m", "basket_mean_30m")]
    for shape in range(1, 2 ** len(names)):
        features = [name for bit, name in enumerate(names) if shape >> bit & 1]
        ask(shared, {"entities": {"restaurant_id": [1]}, "features": features})
    assert len(feast.utils._feature_resolution_cache) <= PLANS_KEPT < shape


def test_events_pushed_by_column_are_in_the_log_and_in_the_features(stack: Stack) -> None:
    events = [stack.order(1), stack.order(1), stack.order(2, basket_total=None)]
    df = {name: [event[name] for event in events] for name in events[0]}
    answer = stack.post(PUSH, {"push_source_name": "order_placed", "df": df})
    assert answer.status_code == 200
    assert (answer.json()["accepted"], answer.json()["refused"]) == (3, 0)
    logged = [json.loads(record.value) for record in stack.records("order_placed")]
    assert sorted(logged, key=lambda event: str(event["event_id"])) == events
    stack.fold()
    found = ask(stack, {"entities": {"restaurant_id": [1, 2]}, "features": [ORDERS, BASKET]})
    assert (found["orders_10m"]["values"], found["basket_mean_30m"]["values"]) == ([2, 1], [20.0, None])


def test_of_pushed_events_the_good_are_taken_and_the_bad_named(stack: Stack) -> None:
    order = stack.order(1)
    df: dict[str, list[object]] = {name: [value] * 4 for name, value in order.items()}
    df["event_id"] = ["a", None, "c", "d"]
    df["placed_at"][2] = stack.clock.now + MINUTE + 1
    refused = problem(stack.post(PUSH, {"push_source_name": "order_placed", "df": df, "to": "online_and_offline"}), 422)
    assert (refused["accepted"], refused["refused"]) == (2, 2)
    assert [(e["index"], e["field"]) for e in refused["errors"]] == [(1, "event_id"), (2, "placed_at")]
    assert {json.loads(record.value)["event_id"] for record in stack.records("order_placed")} == {"a", "d"}
    stack.fold()
    assert stack.records(DEAD_LETTERS) == []


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"push_source_name": "orders"}, 404, "orders"),
        ({"push_source_name": DEAD_LETTERS}, 404, DEAD_LETTERS),
        ({"push_source_name": None}, 422, "push_source_name"),
        ({"to": "nowhere"}, 422, "nowhere"),
        ({"df": {}}, 422, "df"),
        ({"df": {"event_id": "a"}}, 422, "df.event_id"),
        ({"df": {"event_id": ["a"], "order_id": []}}, 422, "df.order_id"),
        ({"df": {"event_id": ["a"] * (MAX_ROWS + 1)}}, 413, str(MAX_ROWS)),
    ],
)
def test_a_push_that_cannot_be_taken_says_why(shared: Stack, change: dict[str, object], status: int, said: str) -> None:
    document = {"push_source_name": "order_placed", "df": {"event_id": ["a"]}} | change
    assert said in problem(shared.post(PUSH, document), status)["detail"]
    assert len(shared.records("order_placed")) == 3


def test_without_the_store_there_is_a_503_and_health_goes_on(stack: Stack) -> None:
    question = {"entities": {"restaurant_id": [1]}, "features": [CUISINE]}
    before = ask(stack, question)
    stack.valkey.stop()
    more = question | {"entities": {"restaurant_id": [1] * 1000}}
    for path, document in ((READ, question), (READ, more), (WRITE, sent(stack, {}))):
        assert "cannot be reached" in problem(stack.post(path, document), 503)["detail"]
    pushed = {"push_source_name": "order_placed", "df": {name: [value] for name, value in stack.order().items()}}
    assert "Send all of it again" in problem(stack.post(PUSH, pushed), 503)["detail"]
    assert stack.get("/health").json() == {"status": "healthy"}
    stack.valkey.start()
    assert ask(stack, question) == before


def test_the_document_says_what_these_routes_take_and_answer(shared: Stack) -> None:
    document = shared.get("/openapi.json").json()
    for path in (READ, WRITE, PUSH):
        route = document["paths"][path]["post"]
        schema = route["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["example"]) <= set(schema["properties"])
        assert set(schema["required"]) <= set(schema["example"])
        assert {"200", "404", "413", "422", "503"} <= set(route["responses"])
        assert "$ref" in str(route["responses"]["200"])
    example = document["paths"][READ]["post"]["requestBody"]["content"]["application/json"]["schema"]["example"]
    answer = shared.post(READ, msgspec.json.encode(example))
    assert set(answer.json()) == set(document["components"]["schemas"]["OnlineFeatures"]["properties"])
    vector = set(document["components"]["schemas"]["FeatureVector"]["properties"])
    assert all(set(result) == vector for result in answer.json()["results"])
