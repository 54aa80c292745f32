"""Each rung on orders of the past: the same orders, and for the stored rung what the midnight before knew."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from feature_repo.clock import from_ms
from ingestion.event_files import append_history
from models.backtest import TrainedSince, backtest
from models.batch_predict import instants
from models.registry import Registry
from tests.hindsight_tools import PROFILE, PROFILE_ROWS, STATS_ROWS, write_batch_rows
from tests.repo import MINUTE, START
from tests.serving_stack import PREP_STATS, Stack

DAY_MS = 24 * 60 * MINUTE
TOOK = (20.0, 45.0, 30.0)


def write_orders(stack: Stack, placed: list[int]) -> None:
    """Orders at restaurant 1, and their deliveries."""
    count = len(placed)
    common = {"order_id": [f"o{i}" for i in range(count)], "restaurant_id": [1] * count, "zone_id": [1] * count}
    nothing: list[object] = [None] * count
    orders = {"customer_id": nothing, "basket_total": nothing, "item_count": nothing}
    append_history(
        stack.settings,
        "order_placed",
        common | orders | {"event_id": [f"p{i}" for i in range(count)], "placed_at": placed, "event_time": placed},
    )
    delivered = [at + round(took * MINUTE) for at, took in zip(placed, TOOK, strict=True)]
    append_history(
        stack.settings,
        "order_delivered",
        common
        | {"event_id": [f"d{i}" for i in range(count)], "courier_id": nothing, "placed_at": placed}
        | {"delivered_at": delivered, "delivery_minutes": list(TOOK), "event_time": delivered},
    )


def test_the_stored_rung_knows_what_the_midnight_before_knew_and_all_are_measured_on_the_same_orders(
    stack: Stack,
) -> None:
    midnight = START // DAY_MS * DAY_MS + DAY_MS
    for view, values in ((PROFILE_ROWS, PROFILE), (STATS_ROWS, PREP_STATS)):
        write_batch_rows(stack, view, values, midnight - DAY_MS, midnight - DAY_MS)
    noon = {name: value * 2 for name, value in PREP_STATS.items()}
    write_batch_rows(stack, STATS_ROWS, noon, midnight + DAY_MS // 2, midnight + DAY_MS // 2)
    placed = [midnight + hour * 60 * MINUTE + 7 * MINUTE for hour in (9, 13, 14)]
    write_orders(stack, placed)
    day = from_ms(midnight)
    streaming, batch, stored = backtest(stack.store, stack.settings, day, day + timedelta(days=1), {})
    assert [rung.name for rung in (streaming, batch, stored)] == ["streaming", "batch_features", "stored"]
    assert {rung.orders for rung in (streaming, batch, stored)} == {3}
    model = Registry(stack.settings.data / "models").load("eta_batch")

    def expected(features: list[dict[str, float]], at: list[int]) -> float:
        known = {f"{PROFILE_ROWS}__{n}": v for n, v in PROFILE.items() if isinstance(v, int | float)}
        rows = [
            model.vector.row(known | {f"{STATS_ROWS}__{n}": v for n, v in one.items()}, instant)
            for one, instant in zip(features, at, strict=True)
        ]
        median, _ = model.predict(np.concatenate(rows))
        return float(np.abs(median - np.array(TOOK)).mean())

    asked = [at - 1 for at in placed]
    assert batch.figures["mae"] == pytest.approx(expected([PREP_STATS, noon, noon], asked))
    middles = [instants(midnight)[hour] for hour in (9, 13, 14)]
    assert stored.figures["mae"] == pytest.approx(expected([PREP_STATS] * 3, middles))


def test_a_model_is_not_measured_on_what_it_was_trained_on(stack: Stack) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    with pytest.raises(TrainedSince, match="would know the answers"):
        backtest(stack.store, stack.settings, long_ago, from_ms(START), {})
