"""The ladder: the best rung that can be had answers, and says why no better one did."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import SecretStr

from feature_repo.clock import iso
from models.receipt import prediction_from
from models.stored import ETA, Run, default_url, open_stored
from tests.repo import MINUTE, wait_for
from tests.serving_stack import UNKNOWN, ZONE_OF, Stack, app_on, problem, served
from tests.test_receipts import logged

HOUR_MS = 60 * MINUTE


def store_etas(stack: Stack, as_of_ms: int | None = None, restaurants: tuple[int, ...] = tuple(ZONE_OF)) -> Run:
    """Publish a run: restaurant r is 10 r + hour minutes away."""
    as_of = stack.clock.now if as_of_ms is None else as_of_ms
    run = Run(f"run-of-{as_of}", ETA, as_of, "eta_batch", "v1", 0, as_of, as_of)
    rows = [
        {"restaurant_id": r, "hour": hour, "eta_minutes": 10.0 * r + hour, "eta_minutes_p90": 20.0 * r + hour}
        for r in restaurants
        for hour in range(24)
    ]
    stored = open_stored(stack.settings)
    stored.begin(run)
    stored.write(run, 0, {"etas": rows})
    stored.publish(run, as_of)
    stored.close()
    return run


@contextmanager
def frozen(stack: Stack) -> Iterator[None]:
    """The online store's server, stopped in its tracks: connections stay open, and nothing answers."""
    os.kill(stack.valkey.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(stack.valkey.pid, signal.SIGCONT)


def hour_of(stack: Stack) -> int:
    return stack.clock.now // HOUR_MS % 24


def test_a_store_that_hangs_is_a_store_that_is_down(stack: Stack) -> None:
    run = store_etas(stack)
    before = stack.eta(2)
    with frozen(stack):
        answer = stack.eta(2)
        assert answer["mode"] == "stored"
        assert [why.partition(":")[0] for why in answer["stepped_down"]] == ["streaming", "batch_features"]
        assert all("does not answer in time" in why for why in answer["stepped_down"])
        assert (answer["eta_minutes"], answer["eta_minutes_p90"]) == (20.0 + hour_of(stack), 40.0 + hour_of(stack))
        assert answer["features"] == {}
        assert answer["model"] == {"name": "eta_batch", "version": "v1"}
        assert answer["stored"] == {
            "run_id": run.run_id,
            "hour": hour_of(stack),
            "computed_as_of": iso(run.as_of_ms),
            "age_seconds": 0.0,
        }
        for _ in range(10):
            assert stack.eta(2)["mode"] == "stored"
    wait_for(lambda: stack.eta(2)["mode"] == "streaming", "the ladder to climb back")
    assert stack.eta(2)["features"] == before["features"]


def test_what_was_asked_of_a_frozen_store_answers_nobody_else(stack: Stack) -> None:
    store_etas(stack)
    stack.push("order_placed", stack.order(1), stack.order(1), stack.order(3))
    stack.fold()
    values = {r: stack.eta(r)["features"] for r in ZONE_OF}
    assert values[1] != values[2]
    for restaurant in (1, 2, 3, 1):
        with frozen(stack):
            stack.eta(restaurant)
    wait_for(lambda: stack.eta(1)["mode"] == "streaming", "the ladder to climb back")
    for _ in range(5):
        assert {r: stack.eta(r)["features"] for r in ZONE_OF} == values


def test_a_stored_answer_has_a_receipt(stack: Stack) -> None:
    run = store_etas(stack)
    stack.valkey.stop()
    answer = stack.eta(3)
    assert answer["mode"] == "stored"
    shown = stack.get(f"/v1/predictions/{answer['prediction_id']}").json()
    assert shown["stored"] == {"run_id": run.run_id, "hour": hour_of(stack), "as_of": run.as_of_ms}
    assert (shown["features"], shown["reads"]) == ({}, {})
    stack.valkey.start()
    (found,) = [p for p in logged(stack, 1) if p.mode == "stored"]
    assert found == prediction_from(stack.records("eta_predictions")[-1].value)
    assert found.receipt.stored is not None


def test_who_requires_a_better_rung_gets_a_problem_that_says_what_is_missing(stack: Stack) -> None:
    store_etas(stack)
    stack.valkey.stop()
    for require, missing in (("streaming", 1), ("batch_features", 2)):
        document = problem(stack.get("/v1/eta/1", require=require), 503)
        assert document["accepted_modes"][-1] == require
        assert len(document["missing"]) == missing
        assert "online store" in document["missing"][-1]
    assert stack.eta(1, require="stored")["mode"] == "stored"


def test_each_order_of_a_batch_has_its_own_rung(stack: Stack) -> None:
    store_etas(stack, restaurants=(1, 2))
    stack.valkey.stop()
    orders: list[dict[str, Any]] = [{"restaurant_id": r} for r in (1, 2, 3)]
    orders.append({"restaurant_id": 1, "require": "streaming"})
    outcomes = stack.post("/v1/eta/batch", {"orders": orders}).json()["outcomes"]
    assert [outcome["eta"] and outcome["eta"]["eta_minutes"] for outcome in outcomes] == [
        10.0 + hour_of(stack),
        20.0 + hour_of(stack),
        None,
        None,
    ]
    assert "has nothing for it" in outcomes[2]["problem"]["detail"]
    assert outcomes[3]["problem"]["accepted_modes"] == ["streaming"]


def test_a_restaurant_that_a_store_that_answers_does_not_know_is_a_404_whatever_is_stored(stack: Stack) -> None:
    store_etas(stack, restaurants=(1, UNKNOWN))
    problem(stack.get(f"/v1/eta/{UNKNOWN}"), 404)


def test_a_run_that_is_too_old_answers_nobody(stack: Stack) -> None:
    store_etas(stack)
    stack.valkey.stop()
    stack.clock.now += 48 * HOUR_MS
    assert stack.eta(1)["stored"]["age_seconds"] == 48 * 3600
    stack.clock.now += 1
    assert "more than 48 hours ago" in problem(stack.get("/v1/eta/1"), 503)["missing"][-1]


def test_without_models_the_stored_answer_is_given_too(stack: Stack) -> None:
    store_etas(stack)
    for name in ("eta_streaming", "eta_batch"):
        (stack.settings.data / "models" / name / "current").unlink()
    with served(app_on(stack.settings, stack.clock)) as url:
        answer = stack.http.get(f"{url}/v1/eta/1").json()
    assert answer["mode"] == "stored"
    assert "no sound model" in answer["stepped_down"][0]


def test_tables_that_hang_or_are_gone_are_a_problem_not_a_fault(stack: Stack) -> None:
    missing = stack.settings.model_copy(update={"predictions_url": SecretStr("postgresql+psycopg://127.0.0.1:1/x")})
    stack.valkey.stop()
    with served(app_on(missing, stack.clock)) as url:
        for _ in range(5):
            document = problem(stack.http.get(f"{url}/v1/eta/1"), 503)
            assert "stored predictions" in document["missing"][-1]
    assert default_url(stack.settings.data).startswith("sqlite")


def test_ready_shows_what_is_stored_and_does_not_need_it(stack: Stack) -> None:
    check = stack.get("/ready").json()["checks"]["stored"]
    assert (check["ok"], check["needed"]) == (False, False)
    run = store_etas(stack)
    answer = stack.get("/ready")
    assert answer.status_code == 200
    assert answer.json()["checks"]["stored"] == {
        "ok": True,
        "needed": False,
        "run_id": run.run_id,
        "age_seconds": 0.0,
    }
