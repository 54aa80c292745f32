"""What is broken outside of the server: values in the store, bodies that end early, orders that bring out a fault."""

import socket
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest

from feature_repo.stores import layout
from serving.predictor import Answered, NoRung, Predictor
from serving.problems import Problem
from serving.reader import Row
from serving.schemas import Order
from tests.repo import wait_for
from tests.serving_stack import Stack, batch_view
from tests.test_serving_eta import metric


def entity(stack: Stack, restaurant: int) -> bytes:
    view = batch_view(stack.store, "restaurant_profile")
    return layout.key_builder(stack.store.project, view.join_keys, view.key_types)([restaurant])


STAMP = layout.time_field("restaurant_prep_stats")
VALUE = layout.feature_field("restaurant_prep_stats", "mean_prep_minutes_7d")


@pytest.mark.parametrize("field", [STAMP, VALUE])
def test_a_damaged_row_is_outside_and_the_others_are_as_they_were(stack: Stack, field: bytes) -> None:
    stack.fold()
    stack.redis.hset(entity(stack, 2), field, b"\xff\xff\xff")  # type: ignore[arg-type]
    document = stack.post("/v1/eta/batch", {"orders": [{"restaurant_id": 1}, {"restaurant_id": 2}]}).json()
    one, two = (outcome["eta"]["features"] for outcome in document["outcomes"])
    name = "restaurant_prep_stats__mean_prep_minutes_7d"
    assert (one[name]["status"], one[name]["value"]) == ("PRESENT", 14.5)
    assert (two[name]["status"], two[name]["value"]) == ("OUTSIDE_MAX_AGE", None)
    assert two["restaurant_profile__zone_id"]["status"] == "PRESENT"


def test_damaged_progress_is_none(stack: Stack) -> None:
    stack.push("order_placed", stack.order(1))
    stack.fold()
    assert stack.eta(1)["mode"] == "streaming"
    key = layout.progress_key(stack.store.project, "order_placed")
    fields: Any = stack.redis.hkeys(key)  # type: ignore[arg-type]
    for field in fields:
        if b":" in field:
            stack.redis.hset(key, field, b"?")  # type: ignore[arg-type]
    answer = stack.eta(1)
    assert answer["mode"] == "batch_features"
    assert any("OUTSIDE_MAX_AGE" in why for why in answer["stepped_down"])
    stack.redis.delete(key)  # a worker will not fold upon it


def test_a_body_that_its_sender_breaks_off_is_no_fault_of_ours(stack: Stack) -> None:
    faults = sum(metric(stack, "tiffin_requests_total", route="/v1/eta", status="500"))
    where = urlsplit(stack.url)
    assert where.port is not None
    for _ in range(3):
        with socket.create_connection((where.hostname, where.port)) as caller:
            caller.sendall(b"POST /v1/eta HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            time.sleep(0.05)  # it is read, and more is waited for
    wait_for(lambda: stack.get("/v1/eta/1").status_code == 200, "the server to answer")
    assert sum(metric(stack, "tiffin_requests_total", route="/v1/eta", status="500")) == faults


def test_an_order_of_a_batch_that_brings_out_a_fault_fails_alone(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.fold()
    answer = Predictor.answer

    def faulty(self: Predictor, orders: Sequence[Order], rows: Sequence[Row]) -> list[Answered | NoRung | Problem]:
        if any(order.restaurant_id == 2 for order in orders):
            raise ZeroDivisionError("secret of ours")
        return answer(self, orders, rows)

    monkeypatch.setattr(Predictor, "answer", faulty)
    answered = stack.post("/v1/eta/batch", {"orders": [{"restaurant_id": i} for i in (1, 2, 3)]})
    outcomes = answered.json()["outcomes"]
    assert [one.get("eta") is not None for one in outcomes] == [True, False, True]
    assert outcomes[1]["problem"]["status"] == 500
    assert "secret" not in answered.text
