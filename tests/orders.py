"""Orders in the event log, as imported history, for what is learnt from who ordered where."""

from datetime import UTC, date, datetime

import numpy as np

from feature_repo.clock import from_ms, to_ms
from feature_repo.settings import Settings
from ingestion.event_files import append_history
from models.embeddings import Embeddings, Parameters, compute, stored_embeddings

DAY = 86_400_000
T = to_ms(datetime(2026, 3, 10, tzinfo=UTC))
"""A midnight."""
SMALL = Parameters(factors=4, regularization=1.0, alpha=4.0)


def day_of(instant: int) -> date:
    return from_ms(instant).date()


def placed(settings: Settings, *orders: tuple[int, int | None, int, int]) -> None:
    """Orders of (instant, customer, restaurant, zone); equal ones at one instant are one event."""
    at = np.array([order[0] for order in orders], np.int64)
    names = ["p" + "-".join(map(str, order)) for order in orders]
    columns = {"event_time": at, "event_id": names, "order_id": names, "placed_at": at}
    ids = {
        name: [order[i] for order in orders] for i, name in ((1, "customer_id"), (2, "restaurant_id"), (3, "zone_id"))
    }
    append_history(
        settings,
        "order_placed",
        {**columns, **ids, "basket_total": [None] * len(orders), "item_count": [None] * len(orders)},
    )


def regulars(settings: Settings, days: int, customers: int = 40, restaurants: int = 30) -> None:
    """Every day until T each customer orders once: the even ones at even restaurants, the odd ones at odd ones."""
    dice = np.random.default_rng(1)
    orders: list[tuple[int, int | None, int, int]] = []
    for day in range(days, 0, -1):
        for customer in range(1, customers + 1):
            restaurant = 2 * int(dice.integers(restaurants // 2)) + customer % 2
            orders.append((T - day * DAY + customer * 1000, customer, restaurant, restaurant // 10))
    placed(settings, *orders)


def embed(settings: Settings, as_of: int = T, parameters: Parameters = SMALL) -> Embeddings:
    """The embeddings as of a midnight, computed a moment later and stored."""
    compute(settings, day_of(as_of), as_of + 1, parameters)
    return stored_embeddings(settings, day_of(as_of), as_of + 1)
