"""Training sets from receipts: what was served, joined with what came true."""

from datetime import timedelta

import numpy as np
import pytest

from feature_repo.clock import from_ms
from ingestion.archive import catch_up
from ingestion.event_files import append_history
from ingestion.events import ARCHIVED
from models.dataset import ASKED_BEFORE_MS, Dataset, NoTrainingRows
from models.pipeline import Plan, Source, train_all
from models.receipt_dataset import build_from_receipts
from models.registry import Registry
from tests.repo import MINUTE, wait_for
from tests.serving_stack import ORDERS_10M, Stack
from tests.test_receipts import logged, receipts

COUNT = 260


def asked(stack: Stack, order: str, restaurant: int = 1) -> None:
    answer = stack.post("/v1/eta", {"restaurant_id": restaurant, "order_id": order})
    assert answer.status_code == 200, answer.text


def delivered(stack: Stack, order: str, took: float, restaurant: int = 1) -> dict[str, object]:
    return {
        "event_id": f"d-{order}",
        "order_id": order,
        "restaurant_id": restaurant,
        "zone_id": 1,
        "courier_id": 1,
        "placed_at": stack.clock.now,
        "delivered_at": stack.clock.now + round(took * MINUTE),
    }


def archive_all(stack: Stack, predictions: int) -> None:
    logged(stack, predictions)
    catch_up(stack.log, stack.settings, stack.clock, list(ARCHIVED))


def dataset(stack: Stack, service: str = "eta_streaming") -> Dataset:
    now = from_ms(stack.clock.now)
    return build_from_receipts(stack.store, stack.settings, service, now - timedelta(days=1), now + timedelta(days=1))


def test_rows_are_what_was_served_and_what_came_true(stack: Stack) -> None:
    asked(stack, "a")
    answer = stack.eta(1)
    stack.push("order_placed", stack.order(1, order_id="a"))
    stack.fold()
    asked(stack, "b")
    stack.push("order_placed", stack.order(1, order_id="b"))
    began = stack.clock.now
    gone = [delivered(stack, "a", 30.0), delivered(stack, "b", 0.5)]
    stack.move(30 * MINUTE)
    stack.push("order_delivered", *gone)
    archive_all(stack, 3)
    found = dataset(stack)
    assert sorted(zip(found.order_id.tolist(), found.label.tolist(), strict=True)) == [("a", 30.0), ("b", 0.5)]
    assert found.event_ms.tolist() == [began, began]
    served = dict(zip(found.order_id.tolist(), found.features[ORDERS_10M].tolist(), strict=True))
    assert served == {"a": 0.0, "b": 1.0}
    row = found.features.iloc[found.order_id.tolist().index("a")]
    for name in found.vector.stored:
        value = answer["features"][name]["value"]
        assert np.isnan(row[name]) if value is None else row[name] == value
    assert dataset(stack, "eta_batch").vector.stored == tuple(
        name for name in found.vector.stored if name.startswith(("restaurant_profile", "restaurant_prep_stats"))
    )


def test_orders_that_were_in_their_own_features_are_left_out_and_counted(stack: Stack) -> None:
    stack.push("order_placed", stack.order(1, order_id="a"), stack.order(2, order_id="b"))
    stack.fold()
    asked(stack, "a")
    asked(stack, "c", 2)
    stack.push("order_placed", stack.order(2, order_id="c"))
    gone = [delivered(stack, order, 20.0) for order in ("a", "b", "c")]
    stack.move(20 * MINUTE)
    stack.push("order_delivered", *gone)
    archive_all(stack, 2)
    found = dataset(stack)
    assert (found.order_id.tolist(), found.left_out) == (["c"], 1)


def test_an_order_that_history_has_too_is_left_out_all_the_same(stack: Stack) -> None:
    event = stack.order(1, order_id="a")
    stack.push("order_placed", event)
    stack.fold()
    asked(stack, "a")
    asked(stack, "b", 2)
    stack.push("order_placed", stack.order(2, order_id="b"))
    columns = {name: [value] for name, value in event.items()} | {"event_time": [event["placed_at"]]}
    append_history(stack.settings, "order_placed", columns)
    gone = [delivered(stack, order, 20.0) for order in ("a", "b")]
    stack.move(20 * MINUTE)
    stack.push("order_delivered", *gone)
    archive_all(stack, 2)
    found = dataset(stack)
    assert (found.order_id.tolist(), found.left_out) == (["b"], 1)


def test_without_receipts_or_outcomes_it_says_so(stack: Stack) -> None:
    with pytest.raises(NoTrainingRows, match="no receipt"):
        dataset(stack)
    asked(stack, "a")
    stack.push("order_placed", stack.order(1, order_id="a"))
    stack.push("order_delivered", delivered(stack, "x", 0.0))
    archive_all(stack, 1)
    with pytest.raises(NoTrainingRows, match="was delivered"):
        dataset(stack)


def test_models_of_both_sources_are_measured_on_the_same_orders(stack: Stack) -> None:
    """Enough orders for a percentile: one every two minutes."""
    before = receipts(stack, "logged")
    for number in range(COUNT):
        asked(stack, f"o-{number}")
        stack.push("order_placed", stack.order(1, order_id=f"o-{number}", placed_at=stack.clock.now + ASKED_BEFORE_MS))
        gone = delivered(stack, f"o-{number}", 1.0 + (number % 5) / 5)
        stack.move(2 * MINUTE)
        stack.push("order_delivered", gone)
        stack.fold()
        if number % 20 == 19:  # the embedded log keeps predictions for an hour
            enough = before + number + 1
            wait_for(lambda enough=enough: receipts(stack, "logged") >= enough, "the receipts to be logged")  # type: ignore[misc]
            catch_up(stack.log, stack.settings, stack.clock, list(ARCHIVED))
    now = from_ms(stack.clock.now)
    plan = Plan(now - timedelta(days=1), now + timedelta(minutes=1), None, {}, source=Source.RECEIPTS)
    results = train_all(stack.store, stack.settings, plan)
    for result in results:
        assert result.rival is not None
        assert result.rival.rows["test"] == result.trained.rows["test"] > 30
        assert abs(result.rival.rows["train"] - result.trained.rows["train"]) <= 2
        assert Registry(stack.settings.data / "models").current(result.trained.service) == result.version
    streaming = next(r for r in results if r.trained.service == "eta_streaming")
    assert streaming.rival is not None
    assert streaming.rival.metrics["baseline"] == pytest.approx(streaming.trained.metrics["baseline"], abs=0.05)
