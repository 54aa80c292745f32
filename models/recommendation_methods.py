"""The ways to recommend that are held against each other: ours, and simpler ones that they must be better than.

Everything that decides a list comes from before the test, but for the zone of a request, which is told, as a client
would tell it: the zone in which the customer then ordered most.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.embeddings import Embeddings
from models.order_history import Ints, OrderCounts
from models.recommend import PICKS, Scores, chunks, scores

STORED = "stored picks"
STORED_NEW = "stored picks, new restaurants only"
ONLINE = "online, zones ordered in before"
ONLINE_TOLD = "online, zone of the request"
BEFORE = "ordered from most before"
POPULAR = "popular"
POPULAR_ZONE = "popular, zone ordered in most"
POPULAR_TOLD = "popular, zone of the request"

NOTHING = np.iinfo(np.int64).min
"""Stands in a list where there are fewer restaurants than it has room for."""

_CHUNK = 4096

Flags = NDArray[np.bool_]
Lists = Ints
"""[customers, PICKS] of restaurant ids, the best first, each at most once."""


def table(counts: OrderCounts, rows: Ints, row_ids: Ints, columns: Ints, column_ids: Ints) -> Scores:
    """Orders by two of their columns, as [rows, columns]; `rows` and `columns` ascend, others are left out."""
    kept = np.isin(row_ids, rows) & np.isin(column_ids, columns)
    filled = np.zeros((len(rows), len(columns)))
    np.add.at(
        filled, (np.searchsorted(rows, row_ids[kept]), np.searchsorted(columns, column_ids[kept])), counts.orders[kept]
    )
    return filled


def lists_of(score: Callable[[Ints], Scores], customers: Ints, restaurants: Ints) -> Lists:
    """The best restaurants of each customer by `score`, which gives [customers, restaurants]; -inf is left out."""
    made = [np.full((0, PICKS), NOTHING)]
    for rows in chunks(len(customers), _CHUNK):
        found = score(customers[rows])
        order = np.argsort(-found, axis=1, kind="stable")[:, :PICKS]
        best = np.where(np.isfinite(np.take_along_axis(found, order, axis=1)), restaurants[order], NOTHING)
        made.append(np.pad(best, ((0, 0), (0, PICKS - best.shape[1])), constant_values=NOTHING))
    return np.concatenate(made)


def picked(made: Embeddings, customers: Ints) -> Lists:
    """The picks of customers who all have a vector."""
    return lists_of(lambda who: _by_vectors(made, who), customers, made.restaurant_id)


class Methods:
    """A list of each customer by every method. A customer without a vector gets what is popular, as when served."""

    def __init__(self, made: Embeddings, train: OrderCounts, test: OrderCounts) -> None:
        self._made, self._named = made, train.of_customers()
        self._restaurants, self._zones = made.restaurant_id, np.unique(train.zone_id)
        self._in_zone = table(train, self._zones, train.zone_id, self._restaurants, train.restaurant_id)
        self._everywhere = self._in_zone.sum(axis=0)
        self._test = test
        self.by_name: dict[str, Callable[[Ints], Scores]] = {
            STORED: self._stored,
            STORED_NEW: lambda who: np.where(self._ordered(who) > 0, -np.inf, self._stored(who)),
            ONLINE: lambda who: self._among(who, self._zones_of(self._named, who) > 0),
            ONLINE_TOLD: lambda who: self._among(who, self._told(who)),
            BEFORE: self._before,
            POPULAR: lambda who: np.tile(self._everywhere, (len(who), 1)),
            POPULAR_ZONE: lambda who: self._popular(self._main(self._zones_of(self._named, who))),
            POPULAR_TOLD: lambda who: self._popular(self._told(who)),
        }

    def lists(self, customers: Ints) -> dict[str, Lists]:
        """The lists of these customers, by method."""
        return {name: lists_of(score, customers, self._restaurants) for name, score in self.by_name.items()}

    def _stored(self, who: Ints) -> Scores:
        return np.where(self._known(who), _by_vectors(self._made, who), self._everywhere)

    def _among(self, who: Ints, zones: Flags) -> Scores:
        """By vectors, among the restaurants of these zones ([customers, zones]); what is popular there without one."""
        reached = zones.astype(np.float64) @ (self._in_zone > 0) > 0
        ranked = np.where(reached, _by_vectors(self._made, who), -np.inf)
        return np.where(self._known(who), ranked, self._popular(zones))

    def _before(self, who: Ints) -> Scores:
        nearby = self._popular(self._main(self._zones_of(self._named, who)))
        tie_break: Scores = nearby / (1 + nearby.max())  # below 1: it decides between equal counts alone
        return self._ordered(who) + tie_break

    def _popular(self, zones: Flags) -> Scores:
        """Orders from each restaurant in these zones; everywhere for a customer with none."""
        some = zones.any(axis=1, keepdims=True)
        return np.where(some, zones.astype(np.float64) @ self._in_zone, self._everywhere)

    def _told(self, who: Ints) -> Flags:
        return self._main(self._zones_of(self._test, who))

    def _known(self, who: Ints) -> Flags:
        """[customers, 1]: who has a vector."""
        return np.isin(who, self._made.customer_id).reshape(-1, 1)

    def _ordered(self, who: Ints) -> Scores:
        named = self._named
        return table(named, who, named.customer_id, self._restaurants, named.restaurant_id)

    def _zones_of(self, counts: OrderCounts, who: Ints) -> Scores:
        return table(counts, who, counts.customer_id, self._zones, counts.zone_id)

    @staticmethod
    def _main(orders: Scores) -> Flags:
        """True in the zone with most orders (the lowest of equals), nowhere for a customer without any."""
        most = np.zeros(orders.shape, np.bool_)
        most[np.arange(len(orders)), orders.argmax(axis=1)] = True
        return most & orders.any(axis=1, keepdims=True)


def _by_vectors(made: Embeddings, who: Ints) -> Scores:
    """Scores of every restaurant; zeros for customers without a vector."""
    place = np.searchsorted(made.customer_id, who).clip(max=len(made.customer_id) - 1)
    known = made.customer_id[place] == who
    return np.where(known.reshape(-1, 1), scores(made.customer_vectors[place], made.restaurant_vectors), 0.0)
