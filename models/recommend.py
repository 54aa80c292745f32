"""Which restaurants to recommend: by vectors, and by how much is ordered there. Pure: arrays in, arrays out.

Higher scores first; of equal scores the lower restaurant_id. Scores are rounded, so that a product computed for one
customer and one computed for thousands at once do not order the same restaurants differently by their last bits.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.order_history import Ints, OrderCounts

RESTAURANTS, CUSTOMERS = "restaurant_embedding", "customer_embedding"
"""The feature views of the vectors."""
SIDES = {RESTAURANTS: "restaurant", CUSTOMERS: "customer"}
"""What their columns begin with: ``_id``, ``_vector``, ``_factorization``."""

DAYS = 28
"""How much history vectors and popularity are made of."""
PICKS = 10
"""Restaurants stored for a customer."""
POPULAR = 200
"""Restaurants stored for a zone, and for all of them together."""
Scores = NDArray[np.float64]
_DECIMALS = 6


class Ranked(NamedTuple):
    """Restaurants, the best first, and their scores."""

    restaurant_id: Ints
    score: Scores


def scores(customer_vectors: NDArray[np.float32], restaurant_vectors: NDArray[np.float32]) -> Scores:
    """How well restaurants suit customers: [customers, restaurants] of dot products, in double precision, rounded.

    Only vectors of one factorization can be compared: the caller sees to that.
    """
    product = customer_vectors.astype(np.float64) @ restaurant_vectors.astype(np.float64).T
    return np.asarray(np.round(product, _DECIMALS))


def rank(customer_vector: NDArray[np.float32], restaurant_id: Ints, vectors: NDArray[np.float32]) -> Ranked:
    """All candidates (`vectors` is [candidates, factors]), the best for the customer first."""
    found = scores(customer_vector[None, :], vectors)[0]
    order = np.lexsort((restaurant_id, -found))
    return Ranked(restaurant_id[order], found[order])


def picks(
    customer_vectors: NDArray[np.float32], restaurant_id: Ints, vectors: NDArray[np.float32], count: int = PICKS
) -> tuple[Ints, Scores]:
    """The `count` best restaurants of each customer, and their scores: two arrays [customers, at most count].

    `restaurant_id` must ascend: that decides between equals. Raises ValueError if it does not.
    """
    if np.any(np.diff(restaurant_id) <= 0):
        raise ValueError("restaurant_id does not ascend: equal scores would be in no certain order")
    found = scores(customer_vectors, vectors)
    order = np.argsort(-found, axis=1, kind="stable")[:, :count]
    return restaurant_id[order], np.take_along_axis(found, order, axis=1)


def popular(counts: OrderCounts, count: int = POPULAR) -> dict[int | None, Ranked]:
    """The restaurants with most orders, in each zone and (None) in all of them; the score is how many.

    Orders without a customer count like the others.
    """
    zones = {zone: counts.zone_id == zone for zone in np.unique(counts.zone_id).tolist()}
    return {None: _most(counts.restaurant_id, counts.orders, count)} | {
        zone: _most(counts.restaurant_id[rows], counts.orders[rows], count) for zone, rows in zones.items()
    }


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of `size` that cover `total` rows."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _most(restaurant_id: Ints, orders: Ints, count: int) -> Ranked:
    ids, place = np.unique(restaurant_id, return_inverse=True)
    sums = np.bincount(place, weights=orders, minlength=len(ids)).astype(np.float64)
    order = np.lexsort((ids, -sums))[:count]
    return Ranked(ids[order], sums[order])
