"""From what is stored and what the online store holds to a recommendation that says where it comes from.

Asked for an online answer that cannot be given, the stored one is: and says why. A stored answer of a customer whom
nobody knows is what is popular. Vectors are compared only with those of the same factorization and instant: while a
new one is being materialized, or for restaurants that nobody ordered from lately, there are others about. Candidates
that cannot be compared come last, by popularity; if none can, the answer is the stored one.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from feature_repo.clock import Clock, iso
from models.recommend import rank
from serving.breaker import Breaker, Patience, Unavailable
from serving.problems import Problem
from serving.recommendation_schemas import (
    MAX_CANDIDATES,
    LeftOut,
    Recommendation,
    RecommendationMode,
    Recommendations,
)
from serving.stored_lists import ListReader, Lists
from serving.vector_reader import Found, NoVectors, Vector

_EARTH_KM = 6371.0088

Places = Mapping[int, tuple[float, float]]
"""Where restaurants are, in degrees."""

ReadVectors = Callable[[int, Sequence[int], bool, int, Patience], Awaitable[Found]]
"""(customer, restaurants, whether places are wanted, now, how to wait) to what was found; see `VectorReader`."""


class Near(NamedTuple):
    """Nothing farther away from here than `max_km`; degrees."""

    latitude: float
    longitude: float
    max_km: float


@dataclass(frozen=True)
class Asked:
    """A request. `restaurant_ids` None: those of `Lists.candidates`; no id is in it twice."""

    customer_id: int
    mode: RecommendationMode
    require_online: bool
    limit: int
    zone_id: int | None
    restaurant_ids: Sequence[int] | None
    closed: frozenset[int]
    near: Near | None


class _StepDown(Exception):
    """Why there is no online answer; `places` are those that were read all the same."""

    def __init__(self, why: str, places: Places | None = None) -> None:
        super().__init__(why)
        self.places = places or {}


class Recommender:
    """Answers requests from `read_vectors`, behind `breaker`, for which it waits at most `read_s`, and from `lists`."""

    def __init__(
        self, read_vectors: ReadVectors, breaker: Breaker, lists: ListReader, clock: Clock, read_s: float
    ) -> None:
        self._read_vectors, self._breaker, self._stored = read_vectors, breaker, lists
        self._clock, self._read_s = clock, read_s

    async def recommend(self, asked: Asked) -> Recommendations:
        """The answer to a request. Raises Problem: 404 where nothing is known, 503 where it cannot be looked up."""
        if asked.mode == RecommendationMode.STORED:
            return await self._from_tables(asked, [], {})
        try:
            return await self._online(asked)
        except _StepDown as why:
            reason = f"{RecommendationMode.ONLINE}: {why}"
            if asked.require_online:
                raise _unavailable(asked, reason) from None
            return await self._from_tables(asked, [reason], why.places)

    async def _online(self, asked: Asked) -> Recommendations:
        lists = None
        if asked.restaurant_ids is None:
            lists = await self._lists(asked, [])
            candidates = lists.candidates()[:MAX_CANDIDATES]
            if not candidates:
                raise _nothing(asked, lists, [])
        else:
            candidates = list(asked.restaurant_ids)
        open_ones = [restaurant for restaurant in candidates if restaurant not in asked.closed]
        now = self._clock()
        found = await self._read(asked, open_ones, now)
        reached, unknown = _within(asked.near, open_ones, found.places)
        customer = found.customer
        if isinstance(customer, str):
            raise _StepDown(f"customer_id {asked.customer_id} has no vector to rank by ({customer})", found.places)
        comparable = [i for i in reached if _comparable(customer, found.restaurants.get(i))]
        if reached and not comparable:
            raise _StepDown(_why_incomparable(customer, [found.restaurants.get(i) for i in reached]), found.places)
        ranked = _ranked(customer, comparable, found.restaurants)
        rest = set(reached) - set(comparable)
        if rest:
            lists = lists or await self._lists_or_nothing(asked)
            ranked += [Recommendation(restaurant_id=i, score=None) for i in lists.by_popularity(rest)]
        shown = ranked[: asked.limit]
        return Recommendations(
            customer_id=asked.customer_id,
            mode=RecommendationMode.ONLINE,
            recommendations=shown,
            as_of=iso(customer.event_ms),
            age_seconds=(now - customer.event_ms) / 1000,
            run_id=None,
            factorization=customer.factorization,
            fallback=None,
            candidates=len(candidates),
            left_out=LeftOut(closed=len(candidates) - len(open_ones), too_far=len(open_ones) - len(reached)),
            not_comparable=len(rest),
            place_unknown=[r.restaurant_id for r in shown if r.restaurant_id in unknown],
        )

    async def _from_tables(self, asked: Asked, stepped_down: list[str], places: Places) -> Recommendations:
        lists = await self._lists(asked, stepped_down)
        source, fallback = lists.best()
        if source is None:
            raise _nothing(asked, lists, stepped_down)
        scored = dict(zip(source.restaurants, source.scores, strict=True))
        candidates = source.restaurants
        if asked.restaurant_ids is not None:
            wanted = set(asked.restaurant_ids)
            candidates = [i for i in candidates if i in wanted]
            candidates += lists.by_popularity(wanted - scored.keys())
        open_ones = [i for i in candidates if i not in asked.closed]
        reached, unknown = _within(asked.near, open_ones, places)
        shown = [Recommendation(restaurant_id=i, score=_finite(scored.get(i))) for i in reached[: asked.limit]]
        return Recommendations(
            customer_id=asked.customer_id,
            mode=RecommendationMode.STORED,
            recommendations=shown,
            as_of=iso(source.run.as_of_ms),
            age_seconds=(self._clock() - source.run.as_of_ms) / 1000,
            run_id=source.run.run_id,
            fallback=fallback,
            stepped_down=stepped_down,
            candidates=len(candidates),
            left_out=LeftOut(closed=len(candidates) - len(open_ones), too_far=len(open_ones) - len(reached)),
            not_comparable=sum(i not in scored for i in reached),
            place_unknown=[r.restaurant_id for r in shown if r.restaurant_id in unknown],
        )

    async def _read(self, asked: Asked, restaurant_ids: Sequence[int], now: int) -> Found:
        near, wait = asked.near is not None, Patience(self._read_s)
        try:
            return await self._breaker.run(
                lambda: self._read_vectors(asked.customer_id, restaurant_ids, near, now, wait)
            )
        except (Unavailable, NoVectors) as error:
            raise _StepDown(str(error)) from None

    async def _lists(self, asked: Asked, stepped_down: list[str]) -> Lists:
        """What is stored for a request. Raises Problem if that cannot be read."""
        try:
            return await self._look_up(asked)
        except Unavailable as error:
            why = [*stepped_down, f"{RecommendationMode.STORED}: {error}"]
            raise _unavailable(asked, "; ".join(why)) from None

    async def _lists_or_nothing(self, asked: Asked) -> Lists:
        """The same where an answer can do without."""
        try:
            return await self._look_up(asked)
        except Unavailable:
            return Lists()

    async def _look_up(self, asked: Asked) -> Lists:
        popular = asked.mode == RecommendationMode.ONLINE  # candidates, or the order of those that cannot be compared
        return await self._stored.read(asked.customer_id, asked.zone_id, popular)


def kilometres(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """The great-circle distance of two places in degrees, by the haversine formula.

    >>> round(kilometres(52.5, 13.4, 48.1, 11.6))  # Berlin to Munich
    505
    """
    south, north = math.radians(latitude), math.radians(other_latitude)
    apart = math.radians(other_longitude - longitude)
    half = math.sin((north - south) / 2) ** 2 + math.cos(south) * math.cos(north) * math.sin(apart / 2) ** 2
    return 2 * _EARTH_KM * math.asin(math.sqrt(min(1.0, half)))


def _within(near: Near | None, restaurant_ids: list[int], places: Places) -> tuple[list[int], set[int]]:
    """Those that are not too far away, and those of which nobody knows; the latter are among the former."""
    if near is None:
        return restaurant_ids, set()
    unknown = {i for i in restaurant_ids if i not in places}
    here = near.latitude, near.longitude
    return [i for i in restaurant_ids if i in unknown or kilometres(*here, *places[i]) <= near.max_km], unknown


def _comparable(customer: Vector, restaurant: Vector | None) -> bool:
    return (
        restaurant is not None
        and (restaurant.factorization, restaurant.event_ms) == (customer.factorization, customer.event_ms)
        and len(restaurant.values) == len(customer.values)
    )


def _why_incomparable(customer: Vector, restaurants: Sequence[Vector | None]) -> str:
    others = [found for found in restaurants if found is not None]
    if not others:
        return f"none of {len(restaurants)} candidates has a vector"
    newest = max(others, key=lambda found: found.event_ms)
    return (
        f"the customer's vector is of factorization {customer.factorization} as of {iso(customer.event_ms)}, the "
        f"candidates' of others (the newest is {newest.factorization} as of {iso(newest.event_ms)}): they cannot be "
        "compared until all are materialized"
    )


def _ranked(customer: Vector, restaurant_ids: list[int], vectors: Mapping[int, Vector]) -> list[Recommendation]:
    if not restaurant_ids:
        return []
    stacked = np.stack([vectors[i].values for i in restaurant_ids])
    found = rank(customer.values, np.array(restaurant_ids, np.int64), stacked)
    return [
        Recommendation(restaurant_id=i, score=score)
        for i, score in zip(found.restaurant_id.tolist(), found.score.tolist(), strict=True)
    ]


def _finite(score: float | None) -> float | None:
    """JSON has no NaN."""
    return score if score is not None and math.isfinite(score) else None


def _unavailable(asked: Asked, why: str) -> Problem:
    return Problem(503, "No recommendation in an accepted mode", f"customer_id {asked.customer_id}: {why}")


def _nothing(asked: Asked, lists: Lists, stepped_down: list[str]) -> Problem:
    """The problem of a request that there is nothing stored for."""
    if not lists.published:
        why = "stored: no run of picks was published yet (`tiffin picks` does it)"
        return _unavailable(asked, "; ".join([*stepped_down, why]))
    detail = f"customer_id {asked.customer_id} is unknown, and the published run knows of nothing popular"
    return Problem(404, "Unknown customer", "; ".join([detail, *stepped_down]))
