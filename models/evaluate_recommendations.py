"""Recommendations measured on later orders: learnt before an instant, held against what customers ordered after it.

Of each customer who ordered in the test range ten restaurants are asked for; those that the customer then ordered from
should be among them. Parameters are chosen on the end of the training time, never on the test range.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import product
from typing import NamedTuple

import numpy as np
from rich.table import Table

from feature_repo.clock import from_ms
from feature_repo.progress_bar import Advance
from feature_repo.settings import Settings
from models.embeddings import Parameters, factorize
from models.order_history import Ints, NoOrders, OrderCounts, order_counts, order_span
from models.recommendation_methods import Lists, Methods, picked

FACTORS, REGULARIZATIONS, ALPHAS = (16, 32, 64), (30.0, 100.0, 300.0), (20.0, 40.0, 80.0, 160.0)
"""What `tune` tries, each with each."""

VALIDATION = 4
"""The last one in so many parts of the training time is what parameters are chosen on."""


class Metrics(NamedTuple):
    """Of customers: the share with a hit among ten, and the mean share of their restaurants that is among the ten."""

    customers: int
    hit_rate: float
    recall: float


@dataclass(frozen=True)
class Evaluation:
    """What came out: metrics by group of customers and method, by which parameters, on which orders."""

    parameters: Parameters
    train: OrderCounts
    test: OrderCounts
    metrics: Mapping[str, Mapping[str, Metrics]]


def measure(lists: Lists, customers: Ints, test: OrderCounts) -> Metrics:
    """Hit rate and recall of a list a customer. `customers` ascend, and each has orders in `test`."""
    if not len(customers):
        return Metrics(0, float("nan"), float("nan"))
    theirs = np.isin(test.customer_id, customers)
    pairs = np.unique(np.stack([test.customer_id[theirs], test.restaurant_id[theirs]], axis=1), axis=0)
    row = np.searchsorted(customers, pairs[:, 0])
    found = (lists[row] == pairs[:, 1:2]).any(axis=1)
    hits = np.bincount(row, weights=found, minlength=len(customers))
    wanted = np.bincount(row, minlength=len(customers))
    return Metrics(len(customers), float((hits > 0).mean()), float((hits / wanted).mean()))


def evaluate(
    settings: Settings,
    test_from: datetime,
    until: datetime,
    now_ms: int,
    advance: Advance,
    parameters: Parameters | None = None,
) -> Evaluation:
    """Measure every method on orders placed in [test_from, until), both aware; learnt on those before.

    Without `parameters` they are chosen by `tune`. Raises NoOrders if a part of it is empty, NoEmbeddings if no order
    before names its customer.
    """
    chosen = parameters or tune(settings, test_from, now_ms, advance, Parameters())
    train = order_counts(settings, _since(settings, test_from, chosen.days), test_from, now_ms)
    test = _named(order_counts(settings, test_from, until, now_ms))
    made = factorize(train, chosen)
    customers = np.unique(test.customer_id)
    known = np.isin(customers, made.customer_id)
    lists = Methods(made, train, test).lists(customers)
    groups = {"all": np.ones(len(customers), np.bool_), "with history": known, "new": ~known}
    return Evaluation(
        chosen,
        train,
        test,
        {
            group: {method: measure(found[rows], customers[rows], test) for method, found in lists.items()}
            for group, rows in groups.items()
        },
    )


def tune(settings: Settings, until: datetime, now_ms: int, advance: Advance, base: Parameters) -> Parameters:
    """Those of the grid with the greatest recall on the last quarter of the `base.days` before `until`.

    What counts is the picks of customers known by then; of equals the first. Raises NoOrders as `evaluate` does.
    """
    since = _since(settings, until, base.days)
    border = until - (until - since) / VALIDATION
    before = order_counts(settings, since, border, now_ms)
    after = _named(order_counts(settings, border, until, now_ms))
    candidates = [
        replace(base, factors=factors, regularization=regularization, alpha=alpha)
        for factors, regularization, alpha in product(FACTORS, REGULARIZATIONS, ALPHAS)
    ]
    recalls = []
    for candidate in candidates:
        made = factorize(before, candidate)
        customers = np.intersect1d(after.customer_id, made.customer_id)
        recalls.append(measure(picked(made, customers), customers, after).recall)
        advance(len(recalls), len(candidates))
    return candidates[int(np.nanargmax(recalls))]


def report(found: Evaluation) -> Table:
    """The figures as a table, with the ranges and counts of orders and the parameters above it."""
    p = found.parameters
    title = (
        f"{_described(found.train.of_customers())} to learn from, {_described(found.test)} to test on; "
        f"{p.factors} factors, regularization {p.regularization:g}, alpha {p.alpha:g}"
    )
    table = Table("customers", "method", "hit rate@10", "recall@10", title=title, title_justify="left")
    for group, by_method in found.metrics.items():
        for method, metrics in by_method.items():
            if metrics.customers:
                figures = f"{metrics.hit_rate:.3f}", f"{metrics.recall:.3f}"
                table.add_row(f"{group} ({metrics.customers})", method, *figures)
        table.add_section()
    return table


def _since(settings: Settings, until: datetime, days: int) -> datetime:
    """`days` before `until`, or where history begins."""
    return max(until - timedelta(days=days), from_ms(order_span(settings)[0]))


def _described(counts: OrderCounts) -> str:
    since, until = (f"{from_ms(t):%Y-%m-%d %H:%M}" for t in (counts.since_ms, counts.until_ms))
    return f"{counts.total} orders from {since} until {until}"


def _named(counts: OrderCounts) -> OrderCounts:
    named = counts.of_customers()
    if not len(named.orders):
        raise NoOrders(
            f"no order from {from_ms(counts.since_ms).isoformat()} until {from_ms(counts.until_ms).isoformat()} names "
            "its customer: nothing can be measured"
        )
    return named
