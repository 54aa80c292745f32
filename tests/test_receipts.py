"""Receipts: every answer is logged with what it was made from, without anybody waiting for it."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from feature_repo.stores.features import Feature
from ingestion.events import PREDICTIONS, parse
from models.prediction_ids import prediction_id
from models.receipt import BatchRead, Prediction, StreamRead, prediction_from
from models.registry import RECHECK_MS, Registry
from serving import receipts as receipts_module
from serving.app import create_app
from serving.prediction_finder import PredictionFinder
from serving.predictor import Answered
from serving.receipt_batch import Batch, pack
from serving.receipt_line import ReceiptLine
from serving.receipts import DEATHS, ReceiptLog, batch_of
from tests.repo import DEADLINE_S, MINUTE, wait_for
from tests.serving_stack import ORDERS_10M, PARTITIONS, ZONE_ORDERS_10M, Stack, problem, publish_model
from tests.test_serving_eta import metric

HOUR_MS = 60 * MINUTE


def logged(stack: Stack, count: int) -> list[Prediction]:
    """The receipts in the log, once there are so many."""
    wait_for(lambda: len(stack.records(PREDICTIONS)) >= count, "the receipts to be logged")
    return [prediction_from(record.value) for record in stack.records(PREDICTIONS)]


def receipts(stack: Stack, outcome: str) -> float:
    return sum(metric(stack, "tiffin_receipts_total", outcome=outcome))


def test_every_answer_is_an_event_that_says_what_was_answered(stack: Stack) -> None:
    stack.push("order_placed", stack.order(1))
    stack.fold()
    answer = stack.post("/v1/eta", {"restaurant_id": 1, "order_id": "o-77", "customer_id": 5}).json()
    (found,) = logged(stack, 1)
    (record,) = stack.records(PREDICTIONS)
    event = parse(PREDICTIONS, record.value, record.append_ms)
    assert (event.event_id, event.time) == (answer["prediction_id"], stack.clock.now)
    assert (found.order_id, found.customer_id, found.zone_id, found.at) == ("o-77", 5, 1, stack.clock.now)
    assert (found.eta_minutes, found.mode) == (answer["eta_minutes"], "streaming")
    assert {"name": found.model, "version": found.model_version} == answer["model"]
    assert found.receipt.keys == {"restaurant_id": 1, "zone_id": 1}
    shown = {name: (f["value"], f["status"]) for name, f in answer["features"].items()}
    assert {name: (f.value, f.status) for name, f in found.receipt.features.items()} == shown


def test_a_receipt_says_what_each_view_was_read_from(stack: Stack) -> None:
    stack.push("order_placed", stack.order(1), stack.order(1), stack.order(2))
    stack.fold()
    stack.eta(1)
    (found,) = logged(stack, 1)
    reads = found.receipt.reads
    stats, orders = reads["restaurant_prep_stats"], reads["restaurant_recent_orders"]
    assert isinstance(stats, BatchRead)
    assert isinstance(orders, StreamRead)
    assert stats.event_us == stats.created_us == (stack.clock.now - 12 * HOUR_MS) * 1000
    (read,) = orders.topics.values()
    assert list(orders.topics) == ["order_placed"]
    placed = {record.offset: record for record in stack.records("order_placed")}
    ends = [max((r.offset for r in placed.values() if r.partition == p), default=-1) + 1 for p in range(PARTITIONS)]
    assert all(done is not None and done >= end for done, end in zip(read.progress, ends, strict=True))
    of_one = [r for r in placed.values() if b'"restaurant_id":1' in r.value]
    assert read.applied[of_one[0].partition] == max(r.offset for r in of_one)
    assert read.prefix == read.progress, "nothing came between"
    assert found.receipt.features[ORDERS_10M].since == stack.clock.now // MINUTE * MINUTE - 10 * MINUTE
    couriers = reads["zone_couriers"]
    assert isinstance(couriers, StreamRead)
    assert list(couriers.topics) == ["courier_status"]
    open_orders = reads["zone_open_orders"]
    assert isinstance(open_orders, StreamRead)
    assert open_orders.topics["order_placed"].applied != [None] * PARTITIONS
    assert open_orders.topics["order_delivered"].applied == [None] * PARTITIONS


def test_an_absent_field_is_vouched_for_by_the_progress_read_before_it(stack: Stack) -> None:
    stack.push("order_placed", stack.order(2))
    stack.fold()
    assert stack.value(ORDERS_10M, 3) == 0
    (found,) = logged(stack, 1)
    read = found.receipt.reads["restaurant_recent_orders"]
    assert isinstance(read, StreamRead)
    (topic,) = read.topics.values()
    assert topic.applied == [None] * PARTITIONS
    assert sum(topic.prefix) == sum(done or 0 for done in topic.progress) > 0


def test_a_prediction_is_shown_before_and_after_it_is_in_the_log(stack: Stack) -> None:
    stack.push("order_placed", stack.order(1))
    stack.fold()
    answer = stack.eta(1)
    shown = stack.get(f"/v1/predictions/{answer['prediction_id']}").json()
    assert (shown["eta_minutes"], shown["mode"], shown["model"]) == (
        answer["eta_minutes"],
        "streaming",
        answer["model"],
    )
    assert shown["features"][ORDERS_10M]["value"] == 1
    assert shown["features"][ZONE_ORDERS_10M]["window_from"].endswith("Z")
    assert shown["features"]["restaurant_profile__zone_id"]["window_from"] is None
    logged(stack, 1)
    finder = PredictionFinder(stack.settings, stack.log)
    found = finder(answer["prediction_id"])
    assert found is not None
    assert found.eta_minutes == answer["eta_minutes"]
    assert finder(prediction_id(stack.clock.now)) is None


def test_what_was_never_predicted_is_a_404_and_no_id_a_422(stack: Stack) -> None:
    unknown = prediction_id(stack.clock.now)
    assert unknown in problem(stack.get(f"/v1/predictions/{unknown}"), 404)["detail"]
    for bad in ("x", "8" + unknown[1:], "7" + "Z" * 25, "0" * 26, unknown.lower(), unknown + "0"):
        problem(stack.get(f"/v1/predictions/{bad}"), 422)


def test_without_the_log_a_receipt_that_is_not_kept_is_a_503(stack: Stack) -> None:
    stack.valkey.stop()
    unknown = prediction_id(stack.clock.now)
    assert "log cannot be read" in problem(stack.get(f"/v1/predictions/{unknown}"), 503)["detail"]


def test_a_shadow_answers_in_receipts_alone_and_stops_when_it_is_taken_away(stack: Stack) -> None:
    registry = Registry(stack.settings.data / "models")
    in_use = registry.current("eta_streaming")
    other = publish_model(stack.settings, stack.store, "eta_streaming", seed=3)
    registry.promote("eta_streaming", in_use)
    registry.set_shadow("eta_streaming", other)
    stack.move(RECHECK_MS)
    answer = stack.eta(1)
    assert answer["model"]["version"] == in_use
    found = logged(stack, 1)[-1]
    assert found.model_version == in_use
    assert found.receipt.shadow is not None
    assert found.receipt.shadow.model_version == other
    values = {name: served.value for name, served in found.receipt.features.items()}
    model = registry.load("eta_streaming", other)
    median, _ = model.predict(
        model.vector.row({n: v if isinstance(v, int | float) else None for n, v in values.items()}, found.at)
    )
    assert found.receipt.shadow.eta_minutes == round(float(median[0]), 3)
    registry.set_shadow("eta_streaming", None)
    stack.move(RECHECK_MS)
    stack.eta(1)
    assert max(logged(stack, 2), key=lambda p: p.at).receipt.shadow is None


def test_receipts_wait_while_the_log_is_down_and_are_logged_once_it_is_back(stack: Stack) -> None:
    answered, dropped = receipts(stack, "logged"), receipts(stack, "dropped")
    one = stack.eta(1)
    logged(stack, 1)
    stack.valkey.stop()
    stack.valkey.start()
    wait_for(lambda: stack.get("/v1/eta/1").status_code == 200, "the store to be asked again")
    wait_for(lambda: receipts(stack, "logged") - answered >= 2, "the receipts to be logged")
    ids = [prediction_from(record.value).event_id for record in stack.records(PREDICTIONS)]
    assert one["prediction_id"] in ids
    assert len(ids) == len(set(ids)) == receipts(stack, "logged") - answered
    assert receipts(stack, "dropped") == dropped


def answered_once(stack: Stack) -> Answered:
    """An answer as it is given to be recorded."""
    taken: list[Answered] = []
    packing = receipts_module.batch_of

    def noted(answers: Sequence[Answered], append_ms: int | None) -> Batch:
        taken.extend(answers)
        return packing(answers, append_ms)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.receipts.batch_of", noted)
        stack.eta(1)
    return taken[0]


def copies(answered: Answered, count: int) -> list[Answered]:
    """Answers with ids of their own, as of one request."""
    numbered = [msgspec.structs.replace(answered.eta, prediction_id=prediction_id(n, 0)) for n in range(count)]
    return [replace(answered, eta=eta) for eta in numbered]


def published(stack: Stack) -> list[str]:
    """The ids of the predictions in the log, in order."""
    return [prediction_from(record.value).event_id for record in stack.records(PREDICTIONS)]


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def test_what_finds_the_queue_full_is_dropped_and_counted(stack: Stack) -> None:
    answered = answered_once(stack)
    logged(stack, 1)
    before, there = receipts(stack, "dropped"), published(stack)
    wanted = copies(answered, 30)

    async def run() -> None:
        given = ReceiptLog(stack.settings, stack.clock, queued=10)
        for one in wanted:  # nothing is published before `start`
            given.add([one])
        given.add(wanted)
        assert given.recent(wanted[9].eta.prediction_id) is not None
        assert given.recent(wanted[10].eta.prediction_id) is None
        given.start()
        await given.close(DEADLINE_S)

    asyncio.run(run())
    assert receipts(stack, "dropped") - before == 50
    assert sorted(set(published(stack)) - set(there)) == [one.eta.prediction_id for one in wanted[:10]]


def test_closing_does_not_wait_for_a_log_that_is_down_and_counts_what_is_lost(stack: Stack) -> None:
    answered, before = answered_once(stack), receipts(stack, "dropped")
    logged(stack, 1)
    stack.valkey.stop()

    async def run() -> None:
        given = ReceiptLog(stack.settings, stack.clock)
        given.start()
        given.add(copies(answered, 5))
        await given.close(seconds=0.5)
        given.add([answered])

    asyncio.run(run())
    assert receipts(stack, "dropped") - before == 6


def test_an_answer_of_which_no_receipt_can_be_made_takes_no_other_with_it(stack: Stack) -> None:
    answered, before = answered_once(stack), receipts(stack, "dropped")
    there = len(logged(stack, 1))
    broken: Any = object()
    unknown = msgspec.structs.replace(answered.eta, prediction_id=broken)  # found out here
    odd: Any = [Feature("", 77, None)] * len(answered.row.names)  # type: ignore[arg-type, union-attr]  # found out there
    assert answered.row is not None
    wanted = copies(answered, 4)
    wanted[1] = replace(wanted[1], eta=unknown)
    wanted[2] = replace(wanted[2], row=replace(answered.row, values=odd))

    async def run() -> None:
        given = ReceiptLog(stack.settings, stack.clock)
        given.start()
        given.add(wanted)
        await given.close(DEADLINE_S)

    asyncio.run(run())
    assert set(published(stack)[there:]) == {wanted[0].eta.prediction_id, wanted[3].eta.prediction_id}
    assert receipts(stack, "dropped") - before == 2


def test_a_killed_process_is_replaced_and_what_it_had_is_logged(stack: Stack) -> None:
    answered = answered_once(stack)
    logged(stack, 1)
    before, dropped = receipts(stack, "logged"), receipts(stack, "dropped")
    wanted = copies(answered, 60)

    async def run() -> None:
        given = ReceiptLog(stack.settings, stack.clock)
        given.start()
        for number, one in enumerate(wanted):
            given.add([one])
            if number % 20 == 10:
                await until(lambda: given.pid is not None, "a process to be there")
                os.kill(given.pid or 0, signal.SIGKILL)
                await asyncio.sleep(0)
        await given.close(DEADLINE_S)

    asyncio.run(run())
    assert {one.eta.prediction_id for one in wanted} <= set(published(stack))
    assert receipts(stack, "logged") - before == 60
    assert receipts(stack, "dropped") == dropped


def test_a_batch_that_no_process_survives_is_given_up_and_those_after_it_are_not(stack: Stack) -> None:
    answered = answered_once(stack)
    logged(stack, 1)
    before = receipts(stack, "dropped")
    first, second = copies(answered, 2)
    stack.valkey.stop()  # so that none can say that it is done

    async def run() -> None:
        given = ReceiptLog(stack.settings, stack.clock)
        given.start()
        given.add([first])
        killed: set[int] = set()
        while len(killed) < DEATHS:
            await until(lambda: given.pid not in {None, *killed}, "another process to be there")
            assert given.pid is not None
            killed.add(given.pid)
            os.kill(given.pid, signal.SIGKILL)
        await until(lambda: receipts(stack, "dropped") > before, "it to be given up")
        stack.valkey.start()
        given.add([second])
        await given.close(DEADLINE_S)

    asyncio.run(run())
    assert receipts(stack, "dropped") - before == 1
    assert first.eta.prediction_id not in published(stack)
    assert second.eta.prediction_id in published(stack)


def test_what_a_server_had_handed_over_is_logged_though_it_was_killed(stack: Stack) -> None:
    answered = answered_once(stack)
    logged(stack, 1)

    async def run() -> None:
        line = await ReceiptLine.begun(stack.settings, lambda logged, dropped: None)
        line.send(pack(batch_of(copies(answered, 3), stack.clock.now)))
        await asyncio.sleep(0.01)  # the event loop has written it
        line.hang_up()
        pid, there = line.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        assert pid is not None
        await until(lambda: os.waitid(os.P_PID, pid, there) is not None, "the process to end by itself")
        line.close()

    asyncio.run(run())
    assert {prediction_id(n, 0) for n in range(3)} <= set(published(stack))


def test_creating_the_app_starts_no_thread(stack: Stack) -> None:
    before = threading.active_count()
    create_app(stack.settings)
    assert threading.active_count() == before
