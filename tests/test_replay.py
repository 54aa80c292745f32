"""A prediction computed again: every cause of a difference, provoked, and what is a fault."""

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from feature_repo.feast_quietly import apply_definitions
from feature_repo.settings import settings
from feature_repo.stores.features import Status
from ingestion.event_files import append_history, covered, log_folder
from ingestion.events import PREDICTIONS, parse
from models.__main__ import commands
from models.hindsight.audit import AuditReport, audit
from models.hindsight.compare import Sources
from models.hindsight.replay import Replay, UnknownPrediction, replay
from models.hindsight.verdicts import ANSWER, Finding, Verdict
from models.prediction_ids import NoPredictionId, made_at, prediction_id
from models.receipt import Prediction, Receipt, Served, StoredFrom
from tests.hindsight_tools import (
    STATS_ROWS,
    archive,
    archive_batch,
    log,
    predict,
    sources,
    write_batch_rows,
)
from tests.repo import MINUTE, START, order, quietly
from tests.serving_stack import BATCH_AGE_MS, ORDERS_10M, PREP_STATS, ZONE_ORDERS_10M, Stack

OPEN_ORDERS = "zone_open_orders__zone_open_orders"
MEAN_7D = "restaurant_prep_stats__mean_prep_minutes_7d"
HOUR = 60 * MINUTE


@pytest.fixture
def stack(stack: Stack) -> Stack:
    """The stack, with its batch rows archived, and an order that is folded."""
    archive_batch(stack)
    stack.push("order_placed", stack.order(1))
    stack.move(5_000)
    return stack


def again(stack: Stack, prediction: Prediction, held: Sources | None = None) -> Replay:
    """The prediction logged, archived and computed again."""
    log(stack, prediction)
    archive(stack)
    return replay(stack.settings, held or sources(stack), prediction.event_id)


def verdicts(found: Replay) -> dict[str, Verdict]:
    """What is said of those that are not as known now."""
    return {f.feature: f.verdict for f in found.findings if f.verdict is not Verdict.EQUAL}


def finding(found: Replay, feature: str) -> Finding:
    return next(f for f in found.findings if f.feature == feature)


def altered(prediction: Prediction, **receipt: Any) -> Prediction:
    """With another receipt."""
    return msgspec.structs.replace(prediction, receipt=msgspec.structs.replace(prediction.receipt, **receipt))


def served(prediction: Prediction, feature: str, value: Any, status: str = "PRESENT") -> Prediction:
    """As if another value had been served."""
    return altered(prediction, features=prediction.receipt.features | {feature: Served(value, status, None)})


def test_nothing_came_between_so_everything_is_equal(stack: Stack) -> None:
    prediction = predict(stack)
    found = again(stack, prediction)
    assert verdicts(found) == {}
    assert found.explained
    assert len(found.findings) == len(prediction.receipt.features) + 1 == 21
    assert (finding(found, ORDERS_10M).served, finding(found, OPEN_ORDERS).served) == (1, 1)
    assert found.would_be == (prediction.eta_minutes, prediction.eta_minutes_p90)


def test_a_late_event_is_named_and_moves_what_the_answer_would_be(stack: Stack) -> None:
    prediction = predict(stack)
    stack.clock.now += 1000
    late = [stack.order(1, event_id=f"late {i}", placed_at=prediction.at - MINUTE) for i in range(12)]
    stack.push("order_placed", *late)
    found = again(stack, prediction)
    told = finding(found, ORDERS_10M)
    assert (told.served, told.then, told.now, told.verdict) == (1, 1, 13, Verdict.LATE_EVENT)
    assert sorted(verdicts(found)) == sorted(
        {ORDERS_10M, "restaurant_recent_orders__orders_30m", ZONE_ORDERS_10M, OPEN_ORDERS}
    ), "the mean basket is the same"
    assert [event.id for event in told.events] == sorted(str(event["event_id"]) for event in late)[:5]
    assert {event.appended for event in told.events} == {stack.clock.now}
    assert found.would_be != (prediction.eta_minutes, prediction.eta_minutes_p90)
    assert found.explained


def test_an_event_that_the_log_had_and_the_worker_not_is_lag(stack: Stack) -> None:
    stack.push("order_placed", stack.order(1, event_id="waiting", basket_total=90.0))
    stack.clock.now += 1000
    found = again(stack, predict(stack))
    told = finding(found, ORDERS_10M)
    assert (told.served, told.now, told.verdict) == (1, 2, Verdict.LAG)
    assert [event.id for event in told.events] == ["waiting"]
    assert finding(found, "restaurant_recent_orders__basket_mean_30m").verdict is Verdict.LAG
    assert finding(found, OPEN_ORDERS).verdict is Verdict.LAG


def test_lag_is_said_before_a_late_event(stack: Stack) -> None:
    stack.push("order_placed", stack.order(1))
    stack.clock.now += 1000
    prediction = predict(stack)
    stack.clock.now += 1000
    stack.push("order_placed", stack.order(1, placed_at=prediction.at))
    assert finding(again(stack, prediction), ORDERS_10M).verdict is Verdict.LAG


def test_what_was_withheld_is_lag(stack: Stack) -> None:
    stack.clock.now += MINUTE
    prediction = predict(stack)
    assert prediction.receipt.features[ORDERS_10M].status == Status.OUTSIDE_MAX_AGE.name
    found = again(stack, prediction)
    stream = {name for name in prediction.receipt.features if not name.startswith("restaurant_pr")}
    assert set(verdicts(found)) == stream
    assert set(verdicts(found).values()) == {Verdict.LAG}
    assert finding(found, ORDERS_10M).now == 1


def test_an_order_that_is_in_the_store_already_counts_itself(stack: Stack) -> None:
    stack.push("order_placed", stack.order(1, order_id="mine"))
    stack.move(1000)
    found = again(stack, predict(stack, order_id="mine"))
    assert set(verdicts(found)) == {
        ORDERS_10M,
        "restaurant_recent_orders__orders_30m",
        "restaurant_recent_orders__basket_mean_30m",
        ZONE_ORDERS_10M,
        OPEN_ORDERS,
    }
    assert set(verdicts(found).values()) == {Verdict.SELF_INCLUDED}
    assert verdicts(again(stack, predict(stack, order_id="another's"))) == {}


def test_imported_history_never_lay_in_the_log(stack: Stack) -> None:
    prediction = predict(stack)
    event = parse("order_placed", order("old", prediction.at - MINUTE, 1, 1).value, prediction.at - MINUTE)
    columns = {name: [value] for name, value in event.columns.items()} | {"event_time": [event.time]}
    append_history(stack.settings, "order_placed", columns)
    told = finding(again(stack, prediction), ORDERS_10M)
    assert (told.served, told.now, told.verdict) == (1, 2, Verdict.HISTORY)
    assert [event.id for event in told.events] == ["old"]


def test_a_view_that_is_defined_otherwise_by_now_is_not_compared(stack: Stack) -> None:
    prediction = predict(stack)
    definitions = stack.settings.repo / "definitions.py"
    ours = 'time_window=10 * MINUTE, name="orders_10m"'
    assert ours in definitions.read_text()
    definitions.write_text(definitions.read_text().replace(ours, ours.replace("10 *", "20 *")))
    with quietly():
        apply_definitions(stack.settings)
        stack.store.refresh_registry()  # type: ignore[no-untyped-call]  # Feast left it untyped
    found = again(stack, prediction)
    assert set(verdicts(found)) == {n for n in prediction.receipt.features if n.startswith("restaurant_recent_orders")}
    assert set(verdicts(found).values()) == {Verdict.DEFINITION_CHANGED}
    assert found.would_be is None


def test_a_model_that_is_gone_cannot_answer_again(stack: Stack) -> None:
    prediction = predict(stack)
    shutil.rmtree(stack.settings.data / "models" / prediction.model / prediction.model_version)
    assert verdicts(again(stack, prediction)) == {ANSWER: Verdict.MODEL_CHANGED}


@pytest.mark.parametrize(
    ("feature", "value", "status"),
    [
        (ORDERS_10M, 2, "PRESENT"),
        (ORDERS_10M, None, "NULL_VALUE"),
        (ORDERS_10M, None, "NOT_FOUND"),
        (ORDERS_10M, 1, "OUTSIDE_MAX_AGE"),
        (OPEN_ORDERS, 0, "PRESENT"),
        (MEAN_7D, 14.6, "PRESENT"),
        (MEAN_7D, None, "NOT_FOUND"),
        ("restaurant_profile__cuisine", "greek", "PRESENT"),
    ],
)
def test_a_value_that_its_own_reading_does_not_give_is_a_bug(
    stack: Stack, feature: str, value: Any, status: str
) -> None:
    found = again(stack, served(predict(stack), feature, value, status))
    assert verdicts(found).pop(feature) is Verdict.BUG
    assert set(verdicts(found)) <= {feature, ANSWER}
    assert not found.explained


def test_an_answer_that_its_model_does_not_give_is_a_bug(stack: Stack) -> None:
    prediction = predict(stack)
    found = again(stack, msgspec.structs.replace(prediction, eta_minutes=prediction.eta_minutes + 0.001))
    assert verdicts(found) == {ANSWER: Verdict.BUG}
    assert finding(found, ANSWER).then == (prediction.eta_minutes, prediction.eta_minutes_p90)


def test_a_prefix_that_says_more_than_was_read_is_a_bug(stack: Stack) -> None:
    """The receipt claims an event that was not folded."""
    prediction = predict(stack)
    stack.push("order_placed", stack.order(1, placed_at=prediction.at))
    stack.fold()
    told = predict(stack).receipt.reads
    assert verdicts(again(stack, altered(prediction, reads=prediction.receipt.reads | told)))[ORDERS_10M] is Verdict.BUG


@pytest.mark.parametrize(("created_after", "cause"), [(1, Verdict.LATE_EVENT), (0, Verdict.LAG)])
def test_a_corrected_batch_row_is_late_or_was_not_materialized(
    stack: Stack, created_after: int, cause: Verdict
) -> None:
    prediction = predict(stack)
    made = START - BATCH_AGE_MS
    corrected = PREP_STATS | {"mean_prep_minutes_7d": 30.5}
    write_batch_rows(stack, STATS_ROWS, corrected, made, prediction.receipt.now + created_after)
    found = again(stack, prediction)
    assert verdicts(found) == {MEAN_7D: cause}
    assert (finding(found, MEAN_7D).then, finding(found, MEAN_7D).now) == (14.5, 30.5)


def test_a_batch_row_that_is_not_archived_is_a_bug(stack: Stack) -> None:
    shutil.rmtree(stack.settings.data / "batch" / STATS_ROWS)
    found = again(stack, predict(stack))
    assert {n for n, v in verdicts(found).items() if v is Verdict.BUG} == {
        f"{STATS_ROWS}__{name}" for name in PREP_STATS
    }


def test_a_batch_row_beyond_its_ttl_is_equally_missing(stack: Stack) -> None:
    stack.move(8 * 24 * HOUR)
    prediction = predict(stack)
    assert prediction.receipt.features[MEAN_7D] == Served(None, "OUTSIDE_MAX_AGE", START - BATCH_AGE_MS)
    assert verdicts(again(stack, prediction)) == {}
    write_batch_rows(stack, STATS_ROWS, PREP_STATS, stack.clock.now - HOUR, stack.clock.now - HOUR)
    assert finding(replay(stack.settings, sources(stack), prediction.event_id), MEAN_7D).verdict is Verdict.LAG


def stored(stack: Stack, prediction: Prediction) -> Prediction:
    """An answer that was made ahead."""
    receipt = Receipt(stack.clock.now, "", [], {}, {}, {}, StoredFrom("run", 12, START))
    return msgspec.structs.replace(prediction, mode="stored", receipt=receipt)


@pytest.mark.parametrize(
    ("kept", "verdict"),
    [((0.0, 0.001), Verdict.EQUAL), ((0.0, 0.0), Verdict.BUG), (None, Verdict.NOT_KEPT)],
)
def test_a_stored_answer_is_what_its_run_says(stack: Stack, kept: tuple[float, float] | None, verdict: Verdict) -> None:
    prediction = msgspec.structs.replace(stored(stack, predict(stack)), eta_minutes=0.0, eta_minutes_p90=0.001)

    def stored_eta(run: str, restaurant: int, hour: int) -> tuple[float, float] | None:
        return kept if (run, restaurant, hour) == ("run", 1, 12) else (99.0, 99.0)

    found = again(stack, prediction, sources(stack, stored_eta))
    assert [f.verdict for f in found.findings] == [verdict]


def test_a_stored_answer_of_another_hour_is_a_bug(stack: Stack) -> None:
    prediction = stored(stack, predict(stack))
    receipt = msgspec.structs.replace(prediction.receipt, stored=StoredFrom("run", 11, START))
    late = msgspec.structs.replace(prediction, receipt=receipt, eta_minutes=0.0, eta_minutes_p90=0.0)
    found = again(stack, late, sources(stack, lambda run, restaurant, hour: (0.0, 0.0)))
    assert [f.verdict for f in found.findings] == [Verdict.BUG]


def test_what_is_not_archived_yet_is_no_bug(stack: Stack) -> None:
    archive(stack)
    stack.push("order_placed", stack.order(1))
    stack.move(1000)
    prediction = predict(stack)
    log(stack, prediction)
    archive(stack, PREDICTIONS)

    def reach(topic: str, home: str) -> Any:
        return covered(stack.settings, topic, log_folder(stack.settings, topic) / home)

    found = replay(stack.settings, sources(stack, covered=reach), prediction.event_id)
    assert verdicts(found)[ORDERS_10M] is Verdict.NOT_ARCHIVED
    assert verdicts(replay(stack.settings, sources(stack), prediction.event_id))[ORDERS_10M] is Verdict.BUG
    archive(stack)
    assert verdicts(replay(stack.settings, sources(stack, covered=reach), prediction.event_id)) == {}


def test_a_log_that_no_file_is_of_is_unknown(stack: Stack) -> None:
    prediction = predict(stack)
    log(stack, prediction)
    archive(stack, PREDICTIONS)
    found = replay(stack.settings, sources(stack), prediction.event_id)
    assert finding(found, ORDERS_10M).verdict is Verdict.UNKNOWN_LOG


def test_an_id_tells_its_time_and_a_text_that_is_none_is_refused() -> None:
    assert made_at(prediction_id(START + 123)) == START + 123
    for text in ("", "x" * 26, "7" * 26, prediction_id(START)[:-1], prediction_id(START).lower()):
        with pytest.raises(NoPredictionId, match="is no prediction's id"):
            made_at(text)


# The commands and the audit.
@pytest.fixture
def tiffin(stack: Stack) -> Iterator[Callable[..., Any]]:
    """The commands, on the stack's folder and server."""
    url = stack.settings.redis_url
    assert url is not None
    with pytest.MonkeyPatch.context() as patch, quietly():
        patch.setenv("COLUMNS", "200")
        patch.setenv("TIFFIN_REPO", str(stack.settings.repo))
        patch.setenv("REDIS_URL", url.get_secret_value())
        patch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
        settings.cache_clear()
        yield lambda *arguments: CliRunner().invoke(commands, arguments)
    settings.cache_clear()


SINCE = ("--since", "2026-03-01", "--until", "2026-03-02", "--sample", "1")


def test_replay_exits_with_1_for_a_bug_alone(stack: Stack, tiffin: Callable[..., Any]) -> None:
    fine = predict(stack)
    wrong = served(predict(stack, 2), ORDERS_10M, 7)
    log(stack, fine, wrong)
    done = tiffin("replay", fine.event_id)
    assert done.exit_code == 0, done.output
    assert ORDERS_10M in done.output
    done = tiffin("replay", wrong.event_id)
    assert done.exit_code == 1
    assert "its own part of the log says otherwise" in done.output
    unknown = tiffin("replay", prediction_id(START))
    assert unknown.exit_code == 1
    assert isinstance(unknown.exception, UnknownPrediction)


def test_an_audit_counts_by_feature_and_cause_and_exits_with_1_above_the_threshold(
    stack: Stack, tiffin: Callable[..., Any]
) -> None:
    first = predict(stack)
    log(stack, first, first, predict(stack, 2))
    stack.clock.now += 1000
    stack.push("order_placed", stack.order(1, placed_at=first.at))
    done = tiffin("audit", *SINCE, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["receipts"], told["compared"], told["mismatch_ratio"]) == (2, 42, 0.0), "published twice, counted once"
    assert told["features"][ORDERS_10M] == {"equal": 1, "late_event": 1}
    assert told["features"][ZONE_ORDERS_10M] == {"late_event": 2}
    log(stack, served(predict(stack, 3), ORDERS_10M, 39))
    done = tiffin("audit", *SINCE)
    assert done.exit_code == 1
    assert "is above 0.0" in str(done.exception)
    assert "bug: " in done.output
    assert tiffin("audit", *SINCE, "--threshold", "0.5").exit_code == 0
    metrics = (stack.settings.data / "metrics" / "parity.prom").read_text()
    bugs = sum(line.startswith('tiffin_parity_features{cause="bug"} 2.0') for line in metrics.splitlines())
    assert bugs == 1, "the feature, and the answer made of it"
    assert f"tiffin_parity_compared_features {63.0}" in metrics
    assert f"tiffin_parity_mismatch_ratio {2 / 63}" in metrics


def test_a_sample_has_all_of_a_restaurant_or_nothing(stack: Stack) -> None:
    for restaurant in (1, 2, 3):
        log(stack, *(predict(stack, restaurant) for _ in range(restaurant)))
    archive(stack)
    seen: set[int] = set()
    held = sources(stack)
    for seed in range(8):
        report = run(stack, held, sample=0.5, seed=seed, chunk=2)
        assert run(stack, held, sample=0.5, seed=seed).causes == report.causes
        seen.add(report.receipts)
    assert seen <= {0, 1, 2, 3, 4, 5, 6}
    assert len(seen) > 2
    assert run(stack, held, chunk=1).receipts == 6


def run(stack: Stack, held: Sources, **more: Any) -> AuditReport:
    return audit(stack.settings, held, START - HOUR, START + HOUR, **more)


def test_a_prediction_without_a_receipt_is_counted_and_stops_nothing(stack: Stack) -> None:
    wrong = json.loads(msgspec.json.encode(predict(stack))) | {"receipt": {"now": "then"}}
    stack.log.publish(PREDICTIONS, [order("x", START)._replace(value=json.dumps(wrong).encode())], stack.clock.now)
    log(stack, predict(stack))
    archive(stack)
    report = run(stack, sources(stack))
    assert (report.receipts, report.unreadable, report.ratio) == (1, 1, 0.0)


def test_an_audit_of_nothing_finds_nothing(stack: Stack) -> None:
    report = run(stack, sources(stack))
    assert (report.receipts, report.compared, report.ratio) == (0, 0, 0.0)
