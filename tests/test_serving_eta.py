"""Predictions over HTTP, by a real server on a real store: what is answered, in which mode, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from feature_repo.stores.redis_client import connect_async
from feature_repo.stores.redis_pipe import RedisPipe
from feature_repo.stores.served import Served
from feature_repo.stores.stream_store import StreamStore, Swap
from feature_repo.views import WindowView, views_of_service
from models.registry import Model, Registry, Watcher
from serving.modes import Mode
from serving.predictor import Predictor
from serving.reader import FeatureReader
from tests.repo import MINUTE, wait_for
from tests.serving_stack import (
    BATCH_AGE_MS,
    ORDERS_10M,
    PARTITIONS,
    UNKNOWN,
    ZONE_ORDERS_10M,
    Stack,
    problem,
    publish_model,
    running,
    write_batch,
)

BATCH_VIEWS = ("restaurant_profile__", "restaurant_prep_stats__")
PAST_LAG_MS = 10_001
RECHECK_MS = 5_000


def metric(stack: Stack, called: str, /, **labels: str) -> list[float]:
    """The samples of a metric that bear these labels."""
    families = text_string_to_metric_families(stack.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return [s.value for s in samples if s.name == called and labels.items() <= s.labels.items()]


def damage(stack: Stack, service: str, version: str) -> None:
    (stack.settings.data / "models" / service / version / "median.onnx").write_bytes(b"not a model")


def ready_checks(stack: Stack, status: int) -> Any:
    answer = stack.get("/ready")
    assert answer.status_code == status, answer.text
    return answer.json()["checks"]


def test_an_id_alone_gets_a_prediction_from_batch_and_stream(stack: Stack) -> None:
    stack.push("order_placed", stack.order(1, basket_total=30.0), stack.order(1, basket_total=10.0))
    stack.move(4_000)
    answer = stack.eta(1)
    assert (answer["restaurant_id"], answer["mode"], answer["stepped_down"]) == (1, "streaming", [])
    assert answer["as_of"] == "2026-03-01T12:00:04.000Z"
    assert len(answer["prediction_id"]) == 26
    assert 0 < answer["eta_minutes"] <= answer["eta_minutes_p90"]
    model = Registry(stack.settings.data / "models").load("eta_streaming").manifest
    assert answer["model"] == {"name": "eta_streaming", "version": model.version}
    features = answer["features"]
    assert features[ORDERS_10M] == {"value": 2, "status": "PRESENT", "age_seconds": 4.0}
    assert features["restaurant_recent_orders__basket_mean_30m"]["value"] == 20.0
    prep = features["restaurant_recent_prep__prep_minutes_mean_30m"]
    assert prep == {"value": None, "status": "NULL_VALUE", "age_seconds": 0.0}
    stored = features["restaurant_prep_stats__mean_prep_minutes_28d"]
    assert stored == {"value": 15.0, "status": "PRESENT", "age_seconds": BATCH_AGE_MS / 1000 + 4}
    assert features["restaurant_profile__cuisine"]["value"] == "thai"
    assert set(model.stored_features) <= set(features)


def test_more_orders_make_the_prediction_later(stack: Stack) -> None:
    before = stack.eta(1)
    stack.push("order_placed", *(stack.order(1) for _ in range(30)))
    stack.fold()
    after = stack.eta(1)
    assert after["eta_minutes"] > before["eta_minutes"] + 5
    assert stack.eta(3)["eta_minutes"] == before["eta_minutes"], "another restaurant has nothing to do with it"


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/json"}, {"content-type": "text/plain"}])
def test_an_order_is_read_whatever_its_content_type(shared: Stack, headers: dict[str, str]) -> None:
    answer = shared.post("/v1/eta", {"restaurant_id": 3}, **headers)
    assert answer.status_code == 200
    assert answer.json()["features"] == shared.eta(3)["features"]


def test_an_order_may_name_another_zone_than_the_restaurants(shared: Stack) -> None:
    def orders_around(zone: int | None) -> Any:
        answer = shared.post("/v1/eta", {"restaurant_id": 1, "zone_id": zone})
        return answer.json()["features"][ZONE_ORDERS_10M]["value"]

    assert (orders_around(None), orders_around(2), orders_around(77)) == (1, 2, 0)


def test_each_order_of_a_batch_has_its_own_outcome(stack: Stack) -> None:
    stack.push("order_placed", stack.order(1))
    stack.fold()
    orders: list[dict[str, Any]] = [{"restaurant_id": 3}, {"restaurant_id": UNKNOWN}, {"restaurant_id": 1}]
    answer = stack.post("/v1/eta/batch", {"orders": orders})
    assert answer.status_code == 200
    found, unknown, again = answer.json()["outcomes"]
    assert [outcome["index"] for outcome in (found, unknown, again)] == [0, 1, 2]
    assert [found["eta"]["restaurant_id"], again["eta"]["restaurant_id"]] == [3, 1]
    assert again["eta"]["eta_minutes"] == stack.eta(1)["eta_minutes"]
    assert again["eta"]["features"] == stack.eta(1)["features"]
    assert unknown["problem"]["status"] == 404
    assert str(UNKNOWN) in unknown["problem"]["detail"]
    assert unknown["eta"] is None
    stack.clock.now += PAST_LAG_MS
    answer = stack.post("/v1/eta/batch", {"orders": [{"restaurant_id": 1, "require": "streaming"}, orders[0]]})
    refused, stepped_down = answer.json()["outcomes"]
    assert (refused["problem"]["status"], stepped_down["eta"]["mode"]) == (503, "batch_features")


def test_a_batch_answers_features_that_are_null(shared: Stack) -> None:
    (outcome,) = shared.post("/v1/eta/batch", {"orders": [{"restaurant_id": 3}]}).json()["outcomes"]
    assert outcome["eta"]["features"] == shared.eta(3)["features"]


def test_a_batch_takes_500_orders_and_no_more(shared: Stack) -> None:
    def ask(count: int) -> Any:
        return shared.post("/v1/eta/batch", {"orders": [{"restaurant_id": 1 + n % 3} for n in range(count)]})

    outcomes = ask(500).json()["outcomes"]
    assert [outcome["eta"]["restaurant_id"] for outcome in outcomes] == [1 + n % 3 for n in range(500)]
    for count in (501, 0):
        assert problem(ask(count), 422)["errors"][0]["field"] == "orders"


def test_an_unknown_restaurant_is_a_404_that_says_which(shared: Stack) -> None:
    for answer in (shared.get(f"/v1/eta/{UNKNOWN}"), shared.post("/v1/eta", {"restaurant_id": UNKNOWN})):
        assert f"restaurant_id {UNKNOWN}" in problem(answer, 404)["detail"]


@pytest.mark.parametrize("given", ["abc", str(2**70), "null", "1.5", "-", "%00", "1e3"])
def test_a_path_that_is_no_id_is_refused_by_name(shared: Stack, given: str) -> None:
    (error,) = problem(shared.get(f"/v1/eta/{given}"), 422)["errors"]
    assert error["field"] == "restaurant_id"


@pytest.mark.parametrize("given", ["1", 2**70, None, True, 1.5, [1], {}])
def test_an_order_whose_id_is_no_id_is_refused_by_name_and_value(shared: Stack, given: object) -> None:
    refused = problem(shared.post("/v1/eta", {"restaurant_id": given}), 422)
    assert (refused["errors"][0]["field"], refused["errors"][0]["value"]) == ("restaurant_id", repr(given))


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({"restaurant_id": None}, "restaurant_id"),
        ({"restaurant_id": "1"}, "restaurant_id"),
        ({"restaurant_id": 2**70}, "restaurant_id"),
        ({"restaurant_id": True}, "restaurant_id"),
        ({"restaurant_id": 1.5}, "restaurant_id"),
        ({"restaurant_id": [1]}, "restaurant_id"),
        ({"restaurant_id": 1, "zone_id": "2"}, "zone_id"),
        ({"restaurant_id": 1, "zone_id": -(2**63) - 1}, "zone_id"),
        ({"restaurant_id": 1, "require": "best"}, "require"),
        ({"restaurant_id": 1, "colour": "red"}, "colour"),
        ({}, "restaurant_id"),
        (None, "body"),
        ("order", "body"),
        ([{"restaurant_id": 1}], "body"),
    ],
)
def test_an_order_of_a_batch_that_is_none_fails_alone(shared: Stack, order: object, field: str) -> None:
    answer = shared.post("/v1/eta/batch", {"orders": [{"restaurant_id": 3}, order, {"restaurant_id": 1}]})
    assert answer.status_code == 200
    before, refused, after = answer.json()["outcomes"]
    assert (before["eta"]["features"], after["eta"]["restaurant_id"]) == (shared.eta(3)["features"], 1)
    assert refused["eta"] is None
    assert (refused["problem"]["status"], refused["problem"]["errors"][0]["field"]) == (422, field)
    assert field in refused["problem"]["detail"]


def test_a_batch_of_nothing_but_bad_orders_is_answered_too(stack: Stack) -> None:
    before = metric(stack, "tiffin_prediction_problems_total", status="422")
    answer = stack.post("/v1/eta/batch", {"orders": [{"restaurant_id": None}, {"restaurant_id": "1"}]})
    assert [outcome["problem"]["status"] for outcome in answer.json()["outcomes"]] == [422, 422]
    assert metric(stack, "tiffin_prediction_problems_total", status="422") == [sum(before) + 2]


def test_a_batch_tells_of_each_restaurant_what_is_known_of_it(stack: Stack) -> None:
    write_batch(stack.redis, stack.store, stack.clock.now - 31 * 86_400_000, {8: 2})
    stack.push("order_placed", stack.order(1))
    stack.fold()
    document = {"orders": [{"restaurant_id": 1}, {"restaurant_id": None}, {"restaurant_id": 8}, {"restaurant_id": 2}]}
    known, none, expired, empty = stack.post("/v1/eta/batch", document).json()["outcomes"]
    basket = "restaurant_recent_orders__basket_mean_30m"
    statuses = [outcome["eta"]["features"][basket]["status"] for outcome in (known, empty)]
    assert statuses == ["PRESENT", "NULL_VALUE"]
    assert expired["eta"]["features"]["restaurant_profile__zone_id"]["status"] == "OUTSIDE_MAX_AGE"
    assert expired["eta"]["features"][ZONE_ORDERS_10M]["status"] == "NOT_FOUND", "no zone, so no key"
    assert (known["eta"]["mode"], expired["eta"]["mode"]) == ("streaming", "batch_features")
    assert none["problem"]["status"] == 422


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"null", b"[]", b'{"restaurant_id": NaN}'])
def test_a_body_that_is_no_order_is_refused(shared: Stack, body: bytes) -> None:
    for path in ("/v1/eta", "/v1/eta/batch"):
        assert problem(shared.post(path, body), 422)["errors"]


def test_fields_and_modes_that_nobody_knows_are_refused(shared: Stack) -> None:
    for extra in ("resturant", "require"):
        refused = problem(shared.post("/v1/eta", {"restaurant_id": 1, extra: "best"}), 422)
        assert refused["errors"][0]["field"] == extra
    assert problem(shared.get("/v1/eta/1", require="best"), 422)["errors"][0]["field"] == "require"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/nothing", 404), ("DELETE", "/v1/eta/1", 405), ("PUT", "/live", 405)]
)
def test_a_route_that_is_not_there_is_a_problem_too(shared: Stack, method: str, path: str, status: int) -> None:
    assert path in problem(shared.http.request(method, path), status)["detail"]


def test_a_stopped_worker_leaves_batch_features_and_says_what_is_stale(stack: Stack) -> None:
    stack.push("order_placed", stack.order(1))
    stack.fold()
    stack.clock.now += PAST_LAG_MS - 1
    assert stack.eta(1)["mode"] == "streaming", "10 s behind are allowed"
    stack.clock.now += 1
    answer = stack.eta(1)
    assert (answer["mode"], answer["model"]["name"]) == ("batch_features", "eta_batch")
    stale = {"value": None, "status": "OUTSIDE_MAX_AGE", "age_seconds": PAST_LAG_MS / 1000}
    shown = {name: f for name, f in answer["features"].items() if not name.startswith(BATCH_VIEWS)}
    assert {ORDERS_10M, ZONE_ORDERS_10M, "zone_couriers__couriers_available"} <= shown.keys()
    assert all(feature == stale for feature in shown.values()), "never a 0"
    assert ORDERS_10M in answer["stepped_down"][0]
    stack.fold()
    assert stack.eta(1)["mode"] == "streaming", "a worker that is back is believed again"


def test_a_required_mode_is_refused_rather_than_stepped_down_from(stack: Stack) -> None:
    assert stack.eta(1, require="streaming")["mode"] == "streaming"
    stack.clock.now += PAST_LAG_MS
    for answer in (
        stack.get("/v1/eta/1", require="streaming"),
        stack.post("/v1/eta", {"restaurant_id": 1, "require": "streaming"}),
    ):
        refused = problem(answer, 503)
        assert refused["accepted_modes"] == ["streaming"]
        assert ORDERS_10M in refused["detail"]
    assert stack.eta(1, require="batch_features")["mode"] == "batch_features"


def test_without_the_store_there_is_a_503_and_predictions_come_back_with_it(stack: Stack) -> None:
    before = stack.eta(1)
    stack.valkey.stop()
    for answer in (stack.get("/v1/eta/1"), stack.post("/v1/eta", {"restaurant_id": 1})):
        document = problem(answer, 503)
        assert [reason.partition(":")[0] for reason in document["missing"]] == ["streaming", "batch_features", "stored"]
        assert "online store" in document["missing"][0]
        assert "no run was published yet" in document["missing"][2]
    (outcome,) = stack.post("/v1/eta/batch", {"orders": [{"restaurant_id": 1}]}).json()["outcomes"]
    assert outcome["problem"]["status"] == 503
    stack.valkey.start()
    wait_for(lambda: stack.get("/v1/eta/1").status_code == 200, "the store to be asked again")
    assert stack.eta(1)["features"] == before["features"]


def test_a_promoted_model_is_taken_up_without_restart(stack: Stack) -> None:
    old = stack.eta(1)["model"]["version"]
    new = publish_model(stack.settings, stack.store, "eta_streaming", seed=2)
    assert stack.eta(1)["model"]["version"] == old
    stack.move(RECHECK_MS)
    assert stack.eta(1)["model"]["version"] == new
    assert stack.get("/ready").json()["checks"]["model:streaming"]["version"] == new
    assert metric(stack, "tiffin_model_in_use", name="eta_streaming", version=new) == [1.0]
    assert metric(stack, "tiffin_model_in_use", name="eta_streaming", version=old) == []


def test_a_broken_model_is_refused_and_the_one_before_answers_on(stack: Stack) -> None:
    before = stack.eta(1)
    damage(stack, "eta_streaming", publish_model(stack.settings, stack.store, "eta_streaming", seed=2))
    stack.move(RECHECK_MS)
    after = stack.eta(1)
    assert (after["mode"], after["model"]) == ("streaming", before["model"])
    assert after["eta_minutes"] == pytest.approx(before["eta_minutes"], abs=0.5)


def test_without_any_sound_model_a_mode_is_stepped_down_from(stack: Stack) -> None:
    registry = Registry(stack.settings.data / "models")
    damage(stack, "eta_streaming", registry.current("eta_streaming"))
    answer = stack.eta(1)
    assert answer["mode"] == "batch_features"
    assert "no sound model" in answer["stepped_down"][0]
    checks = ready_checks(stack, 503)
    assert (checks["model:streaming"]["ok"], checks["model:batch_features"]["ok"]) == (False, True)
    damage(stack, "eta_batch", registry.current("eta_batch"))
    stack.move(RECHECK_MS)
    assert stack.eta(1)["mode"] == "batch_features", "the one that was loaded goes on"


def test_a_model_of_other_definitions_is_not_used_and_says_so(stack: Stack) -> None:
    version = publish_model(stack.settings, stack.store, "eta_streaming", definition_hash="of another meaning")
    answer = stack.eta(1)
    assert answer["mode"] == "batch_features"
    assert f"{version} was trained on features that are defined otherwise" in answer["stepped_down"][0]
    assert "train again" in problem(stack.get("/v1/eta/1", require="streaming"), 503)["detail"]
    assert "train again" in ready_checks(stack, 503)["model:streaming"]["reason"]


def test_a_restaurant_that_moved_is_read_by_its_new_zone_at_once(stack: Stack) -> None:
    """Its zone is remembered from read to read, and yet never believed."""
    stack.push("order_placed", *(stack.order(1, zone_id=1) for _ in range(3)), stack.order(3))
    stack.fold()
    assert stack.value(ZONE_ORDERS_10M, 1) == stack.value(ZONE_ORDERS_10M, 1) == 3
    stack.clock.now += MINUTE
    write_batch(stack.redis, stack.store, stack.clock.now, {1: 2})
    stack.fold()
    assert stack.value(ZONE_ORDERS_10M, 1) == 1
    assert stack.value("restaurant_profile__zone_id", 1) == 2
    (outcome,) = stack.post("/v1/eta/batch", {"orders": [{"restaurant_id": 1, "zone_id": 1}]}).json()["outcomes"]
    assert outcome["eta"]["features"][ZONE_ORDERS_10M]["value"] == 3, "a zone that is given is what is asked for"


def test_a_change_over_leaves_no_judgement_of_what_was_served_before(stack: Stack) -> None:
    assert stack.eta(1)["mode"] == "streaming"
    views = views_of_service(stack.store, stack.store.get_feature_service("eta_streaming"))
    reader = FeatureReader(
        RedisPipe(connect_async(stack.settings)), stack.store.project, views, "restaurant_id", stack.clock
    )
    model = Watcher(Registry(stack.settings.data / "models"), "eta_streaming")
    predictor = Predictor(reader, {Mode.STREAMING: model}, {}, stack.clock)
    served = StreamStore(stack.redis, stack.store.project).served()
    orders = served.views["restaurant_recent_orders"]
    assert isinstance(orders, WindowView)
    shorter = replace(orders, aggregates=tuple(replace(a, window=MINUTE) for a in orders.aggregates))
    after = Served(b"after", {**served.views, orders.name: shorter})
    reader._plan.follow(served)
    assert isinstance(predictor.model(Mode.STREAMING), Model)
    reader._plan.follow(after)
    assert "defined otherwise" in str(predictor.model(Mode.STREAMING))


def test_a_model_of_a_feature_that_this_server_does_not_read_says_what_to_do(stack: Stack) -> None:
    publish_model(stack.settings, stack.store, "eta_streaming", more=("zone_couriers__couriers_asleep",))
    answer = stack.eta(1)
    assert answer["mode"] == "batch_features"
    assert "uses zone_couriers__couriers_asleep, which is not served here" in answer["stepped_down"][0]
    assert "restart the server" in answer["stepped_down"][0]


def test_a_stream_whose_windows_reach_back_to_what_was_not_folded_is_not_ready(stack: Stack) -> None:
    assert ready_checks(stack, 200)["stream:zone_couriers"]["ok"]
    view = next(view for view in stack.views if view.name == "zone_couriers")
    store = StreamStore(stack.redis, stack.store.project)
    for partition in range(PARTITIONS):
        found = store.progress("courier_status", partition, view.tiles_hash)
        assert found is not None
        late = found._replace(covered_from=stack.clock.now)
        store.swap_progress("courier_status", partition, [Swap(view.tiles_hash, found, late)])
    check = ready_checks(stack, 503)["stream:zone_couriers"]
    assert (check["ok"], check["lag_seconds"]) == (False, 0.0)
    assert "not folded" in check["reason"]
    assert stack.eta(1)["mode"] == "batch_features"


def test_a_restaurant_whose_zone_is_unknown_is_answered_from_batch_and_told_why(stack: Stack) -> None:
    write_batch(stack.redis, stack.store, stack.clock.now - 31 * 86_400_000, {8: 2})
    answer = stack.eta(8)
    assert answer["features"]["restaurant_profile__zone_id"]["status"] == "OUTSIDE_MAX_AGE"
    assert answer["features"][ZONE_ORDERS_10M] == {"value": None, "status": "NOT_FOUND", "age_seconds": None}
    assert answer["mode"] == "batch_features"
    assert f"{ZONE_ORDERS_10M} (NOT_FOUND)" in answer["stepped_down"][0]
    assert ORDERS_10M not in answer["stepped_down"][0]


def test_live_answers_whatever_else_is_down(stack: Stack) -> None:
    stack.valkey.stop()
    assert stack.get("/live").json() == {"status": "live"}


def test_ready_names_every_check_and_fails_where_the_stream_lags(stack: Stack) -> None:
    views = [view.name for view in stack.views]
    checks = ready_checks(stack, 200)
    assert set(checks) == {
        *("registry", "online_store", "model:streaming", "model:batch_features", "stored"),
        *(f"stream:{view}" for view in views),
    }
    assert [name for name, check in checks.items() if not check["ok"]] == ["stored"], "which is not needed"
    stack.clock.now += PAST_LAG_MS
    lagging = ready_checks(stack, 503)["stream:zone_couriers"]
    assert lagging == {"ok": False, "lag_seconds": PAST_LAG_MS / 1000, "allowed_seconds": 10.0}
    stack.valkey.stop()
    checks = ready_checks(stack, 503)
    assert "cannot be reached" in checks["online_store"]["reason"]
    assert [name for name, check in checks.items() if not check["ok"]] == ["online_store", "stored"]


def test_ready_says_that_no_worker_ever_ran(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    with running(tmp_path_factory.getbasetemp(), tmp_path) as stack:
        assert "start a worker" in ready_checks(stack, 503)["stream:zone_couriers"]["reason"]
        assert stack.eta(1)["mode"] == "batch_features"


def test_metrics_count_what_was_answered_and_show_the_lag(stack: Stack) -> None:
    def counted() -> list[list[float]]:
        return [
            metric(stack, "tiffin_requests_total", route="/v1/eta/{restaurant_id}", status="200"),
            metric(stack, "tiffin_predictions_total", mode="streaming"),
            metric(stack, "tiffin_prediction_problems_total", status="404"),
            metric(stack, "tiffin_events_total", topic="order_placed", outcome="accepted"),
            metric(stack, "tiffin_request_seconds_count", route="/v1/eta/{restaurant_id}"),
        ]

    def ask() -> None:
        stack.eta(1)
        stack.get(f"/v1/eta/{UNKNOWN}")
        stack.push("order_placed", stack.order(), stack.order())
        stack.fold()

    ask()
    before = counted()
    ask()
    assert [after[0] - one[0] for after, one in zip(counted(), before, strict=True)] == [1, 1, 1, 2, 2]
    stack.clock.now += 7_000
    assert metric(stack, "tiffin_stream_lag_seconds", view="zone_couriers") == [7.0]


def test_a_failure_of_ours_is_a_problem_without_a_traceback_and_is_counted(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("secret of ours")

    monkeypatch.setattr(Predictor, "answer", fails)

    def failed() -> float:
        return sum(metric(stack, "tiffin_requests_total", route="/v1/eta/{restaurant_id}", status="500"))

    before = failed()
    assert "secret" not in str(problem(stack.get("/v1/eta/1"), 500))
    assert failed() == before + 1


def test_openapi_lists_every_route_and_the_bodies_they_take(shared: Stack) -> None:
    document = shared.get("/openapi.json").json()
    routes = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert routes == {
        *{("get", "/v1/eta/{restaurant_id}"), ("post", "/v1/eta"), ("post", "/v1/eta/batch")},
        *{("get", "/v1/predictions/{prediction_id}"), ("get", "/v1/recommendations/{customer_id}")},
        *{("post", "/v1/events/{topic}"), ("get", "/live"), ("get", "/ready"), ("get", "/health")},
        *{("post", "/get-online-features"), ("post", "/push"), ("post", "/write-to-online-store")},
    }
    for path in ("/v1/eta", "/v1/eta/batch", "/v1/events/{topic}", "/get-online-features", "/push"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert "$ref" not in str(body), "every part of it is there"
    order = document["paths"]["/v1/eta"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert order["required"] == ["restaurant_id"]
    assert set(order["properties"]) == {"restaurant_id", "zone_id", "order_id", "customer_id", "require"}
    assert shared.get("/docs").status_code == 200
