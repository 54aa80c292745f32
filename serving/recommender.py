"""From what is stored and what the online store holds to a recommendation that says where it comes from.

Asked for an online answer that cannot be given, the stored one is: and says why. A stored answer of a customer whom
nobody knows is what is popular. Vectors are compared only with those of the same factorization and instant: while a
new one is being materialized, or for restaurants that nobody ordered from lately, there are others about. Candidates
that cannot be compared come last, by popularity; if none can, the answer is the stored one.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import structlog

from feature_repo.clock import Clock, iso
from feature_repo.stores.redis_client import STORE_DOWN
from models.recommend import rank
from models.stored import PICKS, Run, StoredPicks, StoredUnreachable
from serving.problems import Problem
from serving.recommendation_schemas import (
    MAX_CANDIDATES,
    LeftOut,
    Recommendation,
    RecommendationMode,
    Recommendations,
)
from serving.vector_reader import Found, NoVectors, Vector

_EARTH_KM = 6371.0088
_THREADS = 4
_WAITING = 64  # reads of the tables under way or waiting; the next one is refused, not queued

_log = structlog.get_logger(__name__)

ReadVectors = Callable[[int, Sequence[int], bool, int], Awaitable[Found]]
"""(customer, restaurants, whether places are wanted, now) to what was found; see `VectorReader`."""


class StoredLists(Protocol):
    """What is read of the stored predictions; each may raise StoredUnreachable."""

    def picks(self, customer_id: int) -> StoredPicks | None:
        """Those of a customer."""

    def popular(self, zone_id: int | None) -> StoredPicks | None:
        """Those of a zone, or of all."""

    def current(self, kind: str) -> Run | None:
        """The run that is published."""


class Near(NamedTuple):
    """Nothing farther away from here than `max_km`; degrees."""

    latitude: float
    longitude: float
    max_km: float


@dataclass(frozen=True)
class Asked:
    """A request. `restaurant_ids` None: the customer's picks and what is popular; no id is in it twice."""

    customer_id: int
    mode: RecommendationMode
    require_online: bool
    limit: int
    zone_id: int | None
    restaurant_ids: Sequence[int] | None
    closed: frozenset[int]
    near: Near | None


class _StepDown(Exception):
    """Why there is no online answer."""


class _Lists(NamedTuple):
    """The stored lists that have to do with a request."""

    picks: StoredPicks | None
    in_zone: StoredPicks | None
    everywhere: StoredPicks | None
    published: bool

    def candidates(self) -> list[int]:
        """The picks, and what is popular in the zone, or, without one, everywhere."""
        lists = (self.picks, self.in_zone or self.everywhere)
        return list(dict.fromkeys(i for found in lists if found for i in found.restaurants))[:MAX_CANDIDATES]

    def by_popularity(self, restaurant_ids: Iterable[int]) -> list[int]:
        """The most popular in the zone first, then everywhere, then by id."""
        places: dict[int, int] = {}
        for found in (self.in_zone, self.everywhere):
            for restaurant in found.restaurants if found else ():
                places.setdefault(restaurant, len(places))
        return sorted(restaurant_ids, key=lambda restaurant: (places.get(restaurant, len(places)), restaurant))


_NOTHING = _Lists(None, None, None, published=False)


class Recommender:
    """Answers requests from `read_vectors` and `stored`, each within its time limit."""

    def __init__(
        self,
        read_vectors: ReadVectors,
        stored: StoredLists,
        clock: Clock,
        read_timeout_s: float = 1.0,
        stored_timeout_s: float = 2.0,
    ) -> None:
        self._read_vectors, self._stored, self._clock = read_vectors, stored, clock
        self._read_timeout_s, self._stored_timeout_s = read_timeout_s, stored_timeout_s
        self._pool = ThreadPoolExecutor(_THREADS, "recommendations")
        self._under_way = 0

    def close(self) -> None:
        """Let go of the threads; reads that have not begun are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def recommend(self, asked: Asked) -> Recommendations:
        """The answer to a request. Raises Problem: 404 where nothing is known, 503 where it cannot be looked up."""
        if asked.mode == RecommendationMode.STORED:
            return await self._from_tables(asked, [])
        try:
            return await self._online(asked)
        except _StepDown as why:
            reason = f"{RecommendationMode.ONLINE}: {why}"
            if asked.require_online:
                raise _unavailable(asked, reason) from None
            return await self._from_tables(asked, [reason])

    async def _online(self, asked: Asked) -> Recommendations:
        lists = None
        if asked.restaurant_ids is None:
            lists = await self._lists(asked, [])
            candidates = lists.candidates()
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
            raise _StepDown(f"customer_id {asked.customer_id} has no vector to rank by ({customer})")
        comparable = [i for i in reached if _comparable(customer, found.restaurants.get(i))]
        if reached and not comparable:
            raise _StepDown(_why_incomparable(customer, [found.restaurants.get(i) for i in reached]))
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

    async def _from_tables(self, asked: Asked, stepped_down: list[str]) -> Recommendations:
        lists = await self._lists(asked, stepped_down)
        source, fallback = _source(lists)
        if source is None:
            raise _nothing(asked, lists, stepped_down)
        listed: list[tuple[int, float | None]] = list(zip(source.restaurants, source.scores, strict=True))
        if asked.restaurant_ids is not None:
            listed = [(i, score) for i, score in listed if i in asked.restaurant_ids]
            others = set(asked.restaurant_ids) - {i for i, _ in listed}
            listed += [(i, None) for i in lists.by_popularity(others)]
        kept = [
            Recommendation(restaurant_id=i, score=None if score is None or not math.isfinite(score) else score)
            for i, score in listed
            if i not in asked.closed
        ]
        shown = kept[: asked.limit]
        return Recommendations(
            customer_id=asked.customer_id,
            mode=RecommendationMode.STORED,
            recommendations=shown,
            as_of=iso(source.run.as_of_ms),
            age_seconds=(self._clock() - source.run.as_of_ms) / 1000,
            run_id=source.run.run_id,
            fallback=fallback,
            stepped_down=stepped_down,
            candidates=len(listed),
            left_out=LeftOut(closed=len(listed) - len(kept)),
            not_comparable=sum(r.score is None for r in kept),
            place_unknown=[r.restaurant_id for r in shown] if asked.near else [],
        )

    async def _read(self, asked: Asked, restaurant_ids: Sequence[int], now: int) -> Found:
        try:
            async with asyncio.timeout(self._read_timeout_s):
                return await self._read_vectors(asked.customer_id, restaurant_ids, asked.near is not None, now)
        except TimeoutError:
            raise _StepDown(f"the online store did not answer within {self._read_timeout_s:g} s") from None
        except STORE_DOWN:
            raise _StepDown("the online store cannot be reached") from None
        except NoVectors as error:
            raise _StepDown(str(error)) from None

    async def _lists(self, asked: Asked, stepped_down: list[str]) -> _Lists:
        """What is stored for a request. Raises Problem if that cannot be read."""
        try:
            return await self._look_up(asked)
        except (StoredUnreachable, TimeoutError) as error:
            _log.warning("stored recommendations cannot be read", reason=str(error) or "timed out")
            why = [*stepped_down, f"{RecommendationMode.STORED}: the tables of stored predictions cannot be read"]
            raise _unavailable(asked, "; ".join(why)) from None

    async def _lists_or_nothing(self, asked: Asked) -> _Lists:
        """The same where an answer can do without."""
        try:
            return await self._look_up(asked)
        except (StoredUnreachable, TimeoutError):
            return _NOTHING

    async def _look_up(self, asked: Asked) -> _Lists:
        if self._under_way >= _WAITING:
            raise StoredUnreachable(f"{_WAITING} reads are waiting already")
        self._under_way += 1
        future = self._pool.submit(_read_lists, self._stored, asked)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._read_ended))
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._stored_timeout_s):
            return await asyncio.wrap_future(future)

    def _read_ended(self) -> None:
        self._under_way -= 1


def kilometres(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """The great-circle distance of two places in degrees, by the haversine formula.

    >>> round(kilometres(52.5, 13.4, 48.1, 11.6))  # Berlin to Munich
    505
    """
    south, north = math.radians(latitude), math.radians(other_latitude)
    apart = math.radians(other_longitude - longitude)
    half = math.sin((north - south) / 2) ** 2 + math.cos(south) * math.cos(north) * math.sin(apart / 2) ** 2
    return 2 * _EARTH_KM * math.asin(math.sqrt(min(1.0, half)))


def _read_lists(stored: StoredLists, asked: Asked) -> _Lists:
    """Runs in a thread."""
    picks = stored.picks(asked.customer_id)
    in_zone = None if asked.zone_id is None else stored.popular(asked.zone_id)
    everywhere = stored.popular(None)
    published = (picks or in_zone or everywhere or stored.current(PICKS)) is not None
    return _Lists(picks, in_zone, everywhere, published)


def _source(lists: _Lists) -> tuple[StoredPicks | None, Literal["popular_in_zone", "popular"] | None]:
    """The list to answer from, and what it falls back to."""
    if lists.picks is not None:
        return lists.picks, None
    if lists.in_zone is not None:
        return lists.in_zone, "popular_in_zone"
    return lists.everywhere, "popular"


def _within(
    near: Near | None, restaurant_ids: list[int], places: Mapping[int, tuple[float, float]]
) -> tuple[list[int], set[int]]:
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


def _unavailable(asked: Asked, why: str) -> Problem:
    return Problem(503, "No recommendation in an accepted mode", f"customer_id {asked.customer_id}: {why}")


def _nothing(asked: Asked, lists: _Lists, stepped_down: list[str]) -> Problem:
    """The problem of a request that there is nothing stored for."""
    if not lists.published:
        why = "stored: no run of picks was published yet (`tiffin picks` does it)"
        return _unavailable(asked, "; ".join([*stepped_down, why]))
    detail = f"customer_id {asked.customer_id} is unknown, and the published run knows of nothing popular"
    return Problem(404, "Unknown customer", "; ".join([detail, *stepped_down]))
