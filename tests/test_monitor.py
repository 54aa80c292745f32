"""The monitor: quality, drift and parity of the last hours, measured anew in each round."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from feature_repo.stores.hindsight import definitions_of
from ingestion.archive import catch_up
from ingestion.events import ARCHIVED
from models.hindsight.answers import Answers
from models.hindsight.compare import Sources
from models.monitor import Monitor
from models.registry import Registry
from tests.hindsight_tools import archive_batch
from tests.repo import MINUTE
from tests.serving_stack import Stack
from tests.test_receipt_dataset import asked, delivered
from tests.test_receipts import logged


def shown(monitor: Monitor) -> dict[str, float]:
    """The metrics by name and labels."""
    registry = CollectorRegistry()
    registry.register(monitor)
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def watching(stack: Stack) -> Monitor:
    answers = Answers(Registry(stack.settings.data / "models"))
    return Monitor(stack.settings, lambda: Sources(definitions_of(stack.store), answers), sample=1.0)


def test_what_was_promised_and_what_came_true_are_metrics(stack: Stack) -> None:
    archive_batch(stack)
    monitor = watching(stack)
    monitor.look(stack.clock.now, hours=1)
    assert shown(monitor)["tiffin_measured_at_seconds"] == stack.clock.now / 1000
    assert "tiffin_eta_mae_minutes" not in str(shown(monitor)), "nothing was predicted"
    asked(stack, "a")
    promised = logged(stack, 1)[0].eta_minutes
    stack.push("order_placed", stack.order(1, order_id="a"))
    gone = delivered(stack, "a", promised + 4.0)
    stack.move(round((promised + 5.0) * MINUTE))
    stack.push("order_delivered", gone)
    asked(stack, "b")
    logged(stack, 2)
    catch_up(stack.log, stack.settings, stack.clock, list(ARCHIVED))
    monitor.look(stack.clock.now + 1, hours=24)
    found = shown(monitor)
    assert found['tiffin_eta_outcomes{mode="all",zone="all"}'] == 1
    assert found['tiffin_eta_mae_minutes{mode="streaming",zone="1"}'] == pytest.approx(4.0, abs=0.001)
    assert found['tiffin_eta_bias_minutes{mode="all",zone="1"}'] == pytest.approx(-4.0, abs=0.001)
    assert found["tiffin_parity_mismatch_ratio"] == 0.0
    assert found["tiffin_parity_compared_features"] > 10
    assert found['tiffin_parity_features{cause="bug"}'] == 0
    drifts = [name for name in found if name.startswith("tiffin_feature_psi")]
    assert any('feature="restaurant_recent_orders__orders_10m"' in name for name in drifts)


def test_a_round_that_fails_leaves_what_was_and_is_counted(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = watching(stack)
    monitor.look(stack.clock.now, hours=1)

    def fails(*_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("models.monitor.quality", fails)
    monitor.look(stack.clock.now + MINUTE, hours=1)
    found = shown(monitor)
    assert found["tiffin_measuring_failures"] == 1
    assert found["tiffin_measured_at_seconds"] == stack.clock.now / 1000
