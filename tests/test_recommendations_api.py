"""Recommendations over HTTP, by a real server on a real store and real tables: stored, ranked, and fallen back."""

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from feast import Field
from feast.types import Array, Float32

from feature_repo.clock import iso
from feature_repo.stores.batch_rows import Row, write_rows
from feature_repo.stores.values import to_proto
from models.recommend import CUSTOMERS, RESTAURANTS, SIDES
from models.stored import PICKS, Run, StoredPicks, open_stored
from serving.breaker import Breaker, Unavailable
from serving.recommender import kilometres
from serving.stored_lists import ListReader
from serving.stored_reader import FAILING, StoredReader
from tests import serving_stack
from tests.repo import START, quietly, wait_for
from tests.serving_stack import Stack, app_on, batch_view, problem

with quietly():
    from feature_repo import definitions

DAY = 86_400_000
MIDNIGHT = START - DAY // 2
RUN = Run("run-1", PICKS, MIDNIGHT, "als", "f1", MIDNIGHT - 28 * DAY, MIDNIGHT, MIDNIGHT + 5)
KNOWN, NEW = 7, 8
"""A customer with picks and a vector, and one of whom nothing is known."""
PICKED = {30: 0.9, 10: 0.8, 20: 0.7}
POPULAR: Mapping[int | None, Mapping[int, float]] = {None: {10: 90.0, 40: 50.0, 30: 20.0}, 4: {40: 50.0, 50: 9.0}}
VECTORS = {10: [1.0, 0.0], 20: [0.5, 0.5], 30: [0.0, 1.0], 40: [0.9, 0.1], 50: [1.0, 0.0]}


def publish(stack: Stack, picked: Mapping[int, float] = PICKED, run: Run = RUN) -> None:
    """Publish a run with the picks of KNOWN, and POPULAR."""
    stored = open_stored(stack.settings)
    stored.begin(run)
    picks = [{"customer_id": KNOWN, **row} for row in ranked(picked)]
    popular = [{"zone_id": zone, **row} for zone, listed in POPULAR.items() for row in ranked(listed)]
    stored.write(run, 0, {"picks": picks, "popular": popular})
    stored.publish(run, run.as_of_ms + 10)
    stored.close()


def ranked(listed: Mapping[int, float]) -> list[dict[str, Any]]:
    return [{"rank": i, "restaurant_id": r, "score": score} for i, (r, score) in enumerate(listed.items())]


def vectors(
    stack: Stack, view: str, by_id: Mapping[int, list[float]], factorization: str = "f1", event_ms: int = MIDNIGHT
) -> None:
    """Materialize vectors, as of `event_ms`."""
    compiled, side = batch_view(stack.store, view), SIDES[view]
    rows = []
    for entity, vector in by_id.items():
        values = {f"{side}_vector": vector, f"{side}_factorization": factorization}
        data = {n: to_proto(compiled.features[n], value).SerializeToString() for n, value in values.items()}
        rows.append(Row([entity], data, event_ms * 1000, event_ms * 1000))
    write_rows(stack.redis, stack.store.project, compiled, rows)


def places(stack: Stack, by_id: Mapping[int, tuple[float | None, float | None]]) -> None:
    """Materialize profiles of restaurants at (latitude, longitude)."""
    view = batch_view(stack.store, "restaurant_profile")
    for restaurant, (latitude, longitude) in by_id.items():
        profile = {"zone_id": 4, "cuisine": "thai", "latitude": latitude, "longitude": longitude}
        data = {n: to_proto(view.features[n], value).SerializeToString() for n, value in profile.items()}
        write_rows(stack.redis, stack.store.project, view, [Row([restaurant], data, MIDNIGHT * 1000, MIDNIGHT * 1000)])


def ask(stack: Stack, customer: int = KNOWN, /, **query: Any) -> httpx.Response:
    return stack.http.get(f"/v1/recommendations/{customer}", params=query)


def answer(stack: Stack, customer: int = KNOWN, /, **query: Any) -> Any:
    found = ask(stack, customer, **query)
    assert found.status_code == 200, found.text
    return found.json()


def ids(document: Any) -> list[int]:
    return [found["restaurant_id"] for found in document["recommendations"]]


def scores(document: Any) -> list[float | None]:
    return [found["score"] for found in document["recommendations"]]


@pytest.fixture(scope="module")
def served(shared: Stack) -> Stack:
    """A stack with everything: tables, vectors of one factorization, and places."""
    publish(shared)
    vectors(shared, CUSTOMERS, {KNOWN: [1.0, 0.25]})
    vectors(shared, RESTAURANTS, VECTORS)
    places(shared, {10: (52.37, 4.89), 20: (52.38, 4.89), 30: (52.47, 4.89), 40: (None, 4.89)})
    return shared


def test_by_default_what_is_stored_is_answered(served: Stack) -> None:
    assert answer(served) == {
        "customer_id": KNOWN,
        "mode": "stored",
        "recommendations": [{"restaurant_id": r, "score": score} for r, score in PICKED.items()],
        "as_of": iso(MIDNIGHT),
        "age_seconds": DAY / 2 / 1000,
        "run_id": "run-1",
        "factorization": None,
        "fallback": None,
        "stepped_down": [],
        "candidates": 3,
        "left_out": {"closed": 0, "too_far": 0},
        "not_comparable": 0,
        "place_unknown": [],
    }


def test_closed_restaurants_and_those_beyond_the_limit_are_left_out(served: Stack) -> None:
    found = answer(served, closed=[30, 99], limit=1)
    assert ids(found) == [10]
    assert (found["candidates"], found["left_out"]) == (3, {"closed": 1, "too_far": 0})


@pytest.mark.parametrize(
    ("zone", "fallback", "restaurants"),
    [(4, "popular_in_zone", [40, 50]), (None, "popular", [10, 40, 30]), (5, "popular", [10, 40, 30])],
)
@pytest.mark.parametrize("mode", ["stored", "online"])
def test_a_new_customer_gets_what_is_popular(
    served: Stack, mode: str, zone: int | None, fallback: str, restaurants: list[int]
) -> None:
    where = {} if zone is None else {"zone_id": zone}
    found = answer(served, NEW, mode=mode, **where)
    assert (found["mode"], found["fallback"], ids(found)) == ("stored", fallback, restaurants)
    assert scores(found) == list(POPULAR[zone if fallback == "popular_in_zone" else None].values())
    assert found["run_id"] == "run-1"
    if mode == "online":
        assert found["stepped_down"] == [f"online: customer_id {NEW} has no vector to rank by (NOT_FOUND)"]


def test_online_ranks_the_picks_and_what_is_popular_by_vectors(served: Stack) -> None:
    found = answer(served, mode="online")
    assert (found["mode"], found["fallback"], found["stepped_down"], found["run_id"]) == ("online", None, [], None)
    assert (found["factorization"], found["as_of"], found["age_seconds"]) == ("f1", iso(MIDNIGHT), DAY / 2 / 1000)
    assert ids(found) == [10, 40, 20, 30]
    assert scores(found) == pytest.approx([1.0, 0.925, 0.625, 0.25])
    in_zone = answer(served, mode="online", zone_id=4)
    assert (ids(in_zone), in_zone["candidates"]) == ([50, 40], 2), "what is ordered from there"
    assert ids(answer(served, mode="online", zone_id=5)) == ids(found), "nothing is known of that zone"


def test_online_ranks_the_candidates_that_are_asked_for_once_each(served: Stack) -> None:
    found = answer(served, mode="online", restaurant_ids=[20, 50, 20, 10], limit=2)
    assert (ids(found), found["candidates"]) == ([10, 50], 3), "equal scores: the lower id first"


def test_online_leaves_out_what_is_closed_or_too_far_and_says_what_it_cannot_tell(served: Stack) -> None:
    near = {"latitude": 52.37, "longitude": 4.89, "max_km": 2}
    found = answer(served, mode="online", closed=[10], restaurant_ids=[10, 20, 30, 40, 50], **near)
    assert ids(found) == [50, 40, 20], "30 is 11 km away"
    assert found["left_out"] == {"closed": 1, "too_far": 1}
    assert found["place_unknown"] == [50, 40], "without a profile, and without a latitude"
    farther = answer(served, mode="online", restaurant_ids=[30], **near | {"max_km": 12})
    assert (ids(farther), farther["place_unknown"]) == ([30], [])


def test_a_fallback_leaves_out_what_is_too_far_all_the_same(served: Stack) -> None:
    near = {"latitude": 52.37, "longitude": 4.89, "max_km": 2}
    found = answer(served, NEW, mode="online", **near)
    assert (found["fallback"], ids(found)) == ("popular", [10, 40])
    assert (found["left_out"], found["place_unknown"]) == ({"closed": 0, "too_far": 1}, [40])


def test_all_candidates_left_out_is_an_empty_answer(served: Stack) -> None:
    found = answer(served, mode="online", restaurant_ids=[10], closed=[10])
    assert (found["mode"], found["recommendations"]) == ("online", [])


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=51", "limit"),
        ("mode=offline", "mode"),
        ("zone_id=x", "zone_id"),
        ("closed=9223372036854775808", "closed"),
        ("restaurant_ids=1", "restaurant_ids"),
        ("latitude=1&longitude=2&max_km=3", "latitude"),
        ("require=online", "require"),
        ("mode=online&require=stored", "require"),
        ("mode=online&latitude=1&longitude=2", "max_km"),
        ("mode=online&max_km=2", "latitude"),
        ("mode=online&latitude=nan&longitude=2&max_km=3", "latitude"),
        ("mode=online&latitude=91&longitude=2&max_km=3", "latitude"),
        ("mode=online&latitude=1&longitude=2&max_km=0", "max_km"),
        ("mode=online&latitude=1&longitude=2&max_km=inf", "max_km"),
        ("mode=online&" + "&".join(f"restaurant_ids={i}" for i in range(501)), "restaurant_ids"),
        ("resturant_ids=1", "resturant_ids"),
    ],
)
def test_bad_input_names_field_and_reason(served: Stack, query: str, field: str) -> None:
    document = problem(served.http.get(f"/v1/recommendations/{KNOWN}?{query}"), 422)
    assert document["errors"][0]["field"].split(".")[0] == field
    assert document["errors"][0]["reason"]


@pytest.mark.parametrize("customer", ["x", "1.5", str(2**63), str(-(2**63) - 1)])
def test_an_id_that_is_no_int64_is_refused(served: Stack, customer: str) -> None:
    assert "customer_id" in problem(served.get(f"/v1/recommendations/{customer}"), 422)["detail"]


@pytest.mark.parametrize("customer", [2**63 - 1, -(2**63)])
def test_any_int64_is_a_customer(served: Stack, customer: int) -> None:
    assert answer(served, customer)["fallback"] == "popular"
    assert answer(served, customer, mode="online", zone_id=customer)["fallback"] == "popular"


def test_openapi_says_what_is_asked_and_answered(served: Stack) -> None:
    document = served.get("/openapi.json").json()
    route = document["paths"]["/v1/recommendations/{customer_id}"]["get"]
    parameters = {parameter["name"]: parameter for parameter in route["parameters"]}
    assert set(parameters) == {
        *("customer_id", "mode", "require", "limit", "zone_id", "restaurant_ids", "closed"),
        *("latitude", "longitude", "max_km"),
    }
    assert parameters["limit"]["schema"] == {"type": "integer", "maximum": 50, "minimum": 1, "default": 10} | {
        "title": "Limit"
    }
    answers = {
        status: content["schema"]["$ref"].rsplit("/", 1)[1]
        for status, found in route["responses"].items()
        for content in found["content"].values()
    }
    assert answers == {"200": "Recommendations", **dict.fromkeys(("404", "422", "503"), "ProblemDetails")}
    schema = document["components"]["schemas"]["Recommendations"]
    assert set(schema["properties"]) == set(answer(served))


def test_without_a_published_run_the_answer_says_what_to_do(stack: Stack) -> None:
    for query in ({}, {"mode": "online"}, {"mode": "online", "restaurant_ids": [10]}):
        document = problem(ask(stack, **query), 503)
        assert "no run of picks was published yet (`tiffin picks` does it)" in document["detail"]
    vectors(stack, CUSTOMERS, {KNOWN: [1.0, 0.0]})
    vectors(stack, RESTAURANTS, VECTORS)
    assert ids(answer(stack, mode="online", restaurant_ids=[20, 10])) == [10, 20], "which needs no table"


def test_a_customer_of_whom_nothing_is_known_and_nothing_popular_is_not_found(stack: Stack) -> None:
    stored = open_stored(stack.settings)
    stored.begin(RUN)
    stored.write(RUN, 0, {"picks": [{"customer_id": KNOWN, **row} for row in ranked(PICKED)]})
    stored.publish(RUN, MIDNIGHT)
    stored.close()
    assert f"customer_id {NEW}" in problem(ask(stack, NEW), 404)["detail"]
    assert "no vector" in problem(ask(stack, NEW, mode="online", restaurant_ids=[10]), 404)["detail"]


@pytest.mark.parametrize(
    ("factorization", "event_ms"), [("f2", MIDNIGHT), ("f1", MIDNIGHT - DAY), ("f2", MIDNIGHT - DAY)]
)
def test_vectors_of_another_factorization_are_not_compared(stack: Stack, factorization: str, event_ms: int) -> None:
    """As while a new one is being materialized: the customer's is there, the restaurants' are not, then some are."""
    publish(stack)
    vectors(stack, CUSTOMERS, {KNOWN: [1.0, 0.25]})
    vectors(stack, RESTAURANTS, VECTORS, factorization, event_ms)
    found = answer(stack, mode="online")
    assert (found["mode"], found["fallback"], ids(found)) == ("stored", None, list(PICKED))
    assert "factorization f1" in found["stepped_down"][0]
    assert f"{factorization} as of {iso(event_ms)}" in found["stepped_down"][0]
    assert "cannot be compared" in problem(ask(stack, mode="online", require="online"), 503)["detail"]

    vectors(stack, RESTAURANTS, {20: [0.5, 0.5]}, "f1", MIDNIGHT)
    some = answer(stack, mode="online", restaurant_ids=[10, 20, 30, 60, 61, 40])
    assert (some["mode"], some["not_comparable"]) == ("online", 5)
    assert ids(some) == [20, 10, 40, 30, 60, 61], "what cannot be compared comes last, by popularity, then id"
    assert scores(some) == [0.625, None, None, None, None, None]
    assert ids(answer(stack, mode="online", restaurant_ids=[10, 20, 40], zone_id=4)) == [20, 40, 10]


def test_vectors_that_are_too_old_or_no_vectors_are_not_ranked_by(stack: Stack) -> None:
    publish(stack)
    vectors(stack, RESTAURANTS, VECTORS)
    vectors(stack, CUSTOMERS, {KNOWN: [1.0, float("nan")], NEW: [1.0, 0.0, 0.0]})
    assert "(not finite)" in answer(stack, mode="online")["stepped_down"][0]
    assert "cannot be compared" in answer(stack, NEW, mode="online")["stepped_down"][0], "of another length"
    vectors(stack, CUSTOMERS, {KNOWN: [1.0, 0.0]}, event_ms=MIDNIGHT + 1)
    stack.clock.now += 8 * DAY
    assert "(OUTSIDE_MAX_AGE)" in answer(stack, mode="online")["stepped_down"][0]


def test_when_the_online_store_is_down_the_stored_answer_says_so(stack: Stack) -> None:
    publish(stack)
    vectors(stack, CUSTOMERS, {KNOWN: [1.0, 0.25]})
    vectors(stack, RESTAURANTS, VECTORS)
    assert answer(stack, mode="online")["mode"] == "online"
    stack.valkey.stop()
    found = answer(stack, mode="online")
    assert (found["mode"], found["run_id"], ids(found)) == ("stored", "run-1", list(PICKED))
    assert found["stepped_down"] == ["online: online store, vectors: it cannot be reached"]
    near = {"latitude": 52.37, "longitude": 4.89, "max_km": 2}
    some = answer(stack, mode="online", restaurant_ids=[60, 40, 10, 30], closed=[30], **near)
    assert (ids(some), scores(some)) == ([10, 40, 60], [0.8, None, None])
    assert some["place_unknown"] == [10, 40, 60], "places are in the store that is down"
    assert (some["left_out"]["closed"], some["not_comparable"]) == (1, 2)
    refused = problem(ask(stack, mode="online", require="online"), 503)
    assert "online store, vectors: it cannot be reached" in refused["detail"]
    assert answer(stack)["mode"] == "stored", "which never needed it"
    stack.valkey.start()
    wait_for(lambda: answer(stack, mode="online")["mode"] == "online", "the store to be asked again")


def test_a_store_that_does_not_answer_is_given_up_on(stack: Stack) -> None:
    publish(stack)
    vectors(stack, CUSTOMERS, {KNOWN: [1.0, 0.25]})
    assert answer(stack, mode="online")["stepped_down"][0].endswith("has a vector")
    stack.redis.client_pause(60_000)
    found = answer(stack, mode="online")
    assert found["mode"] == "stored"
    assert "online store, vectors: it does not answer in time" in found["stepped_down"][0]
    stack.valkey.stop()
    stack.valkey.start()


def test_tables_that_cannot_be_read_are_a_problem_but_not_for_what_needs_none(stack: Stack) -> None:
    (stack.settings.data / "predictions.db").write_bytes(b"no database" * 1000)
    document = problem(ask(stack), 503)
    assert "stored predictions: it cannot be reached" in document["detail"]
    assert str(stack.settings.data) not in document["detail"]
    problem(ask(stack, mode="online"), 503)
    vectors(stack, CUSTOMERS, {KNOWN: [1.0, 0.25]})
    vectors(stack, RESTAURANTS, {20: [1.0, 0.0]})
    assert ids(answer(stack, mode="online", restaurant_ids=[60, 20, 50])) == [20, 50, 60]


def test_definitions_without_named_vectors_serve_all_but_the_online_answer(stack: Stack) -> None:
    publish(stack)
    with quietly():
        vector = [Field(name="customer_vector", dtype=Array(Float32))]
        view = definitions.daily_batch("customer_embedding", definitions.customer, timedelta(days=7), vector)
        stack.store.apply([definitions.customer, view])
    with serving_stack.served(app_on(stack.settings, stack.clock)) as url:
        found = httpx.get(f"{url}/v1/recommendations/{KNOWN}", params={"mode": "online"}).json()
    assert (found["mode"], ids(found)) == ("stored", list(PICKED))
    assert "customer_embedding has no feature customer_factorization" in found["stepped_down"][0]


def test_a_new_run_is_answered_from_once_it_is_published(stack: Stack) -> None:
    publish(stack)
    later = RUN._replace(run_id="run-2", as_of_ms=MIDNIGHT + 1000)
    publish(stack, {77: 1.0}, later)
    found = answer(stack)
    assert (found["run_id"], ids(found), found["as_of"]) == ("run-2", [77], iso(MIDNIGHT + 1000))


class Stuck:
    """Tables that answer when they are let."""

    def __init__(self) -> None:
        self.let, self.asked = threading.Event(), 0

    def picks(self, customer_id: int) -> StoredPicks | None:
        self.asked += 1
        assert self.let.wait(20)
        return StoredPicks([customer_id], [1.0], RUN)

    def popular(self, zone_id: int | None) -> StoredPicks | None:
        return None

    def current(self, kind: str) -> Run | None:
        return None

    def close(self) -> None:
        return


@contextmanager
def reading(tables: Stuck, timeout_s: float) -> Iterator[ListReader]:
    wrong: Any = tables
    breaker = Breaker("tables", FAILING, time.monotonic, open_s=0.0)
    reader = StoredReader(wrong, breaker, max_age_ms=0)
    yield ListReader(reader, timeout_s)
    tables.let.set()
    reader.close()


def test_tables_that_do_not_answer_are_given_up_on_and_never_queue_without_end() -> None:
    async def many(reader: ListReader, count: int) -> list[Any]:
        return await asyncio.gather(*(reader.read(i, None, False) for i in range(count)), return_exceptions=True)

    tables = Stuck()
    with reading(tables, timeout_s=0.05) as reader:
        outcomes = asyncio.run(many(reader, 70))
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
        refused = [outcome for outcome in outcomes if "waiting already" in str(outcome)]
        assert len(refused) == 70 - 64
        assert tables.asked == 4, "the others gave up before a thread was free"
        tables.let.set()
        (found,) = asyncio.run(many(reader, 1))
        assert found.picks.restaurants == [0]


def test_distances_are_great_circles() -> None:
    assert kilometres(0, 0, 0, 90) == pytest.approx(10_007.5, abs=0.1)
    assert kilometres(90, 0, -90, 50) == pytest.approx(20_015.1, abs=0.1)
    assert kilometres(52.37, 4.89, 52.37, 4.89) == 0
    assert kilometres(0, 179.5, 0, -179.5) == pytest.approx(111.2, abs=0.1)
