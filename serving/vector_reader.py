"""Reads vectors, and where restaurants are, from the online store for ranking at request time."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from feast import FeatureStore
from feast.errors import FeastObjectNotFoundException
from numpy.typing import NDArray

from feature_repo.stores.reading import Feature, ReadPlan, Status, Wanted, read_async
from feature_repo.stores.redis_pipe import RedisPipe
from feature_repo.views import BatchView, compile_view, online_versioning
from models.recommend import CUSTOMERS, RESTAURANTS, SIDES
from serving.breaker import Patience

PROFILE, PLACE = "restaurant_profile", ("latitude", "longitude")


class NoVectors(RuntimeError):
    """The definitions have no vectors to read; says what is missing and what to do."""


class Vector(NamedTuple):
    """A vector, the factorization that it is of, and the instant (ms) that it is as of."""

    values: NDArray[np.float32]
    factorization: str
    event_ms: int


class Found(NamedTuple):
    """What was read. A customer without a sound vector is the reason why, in a few words; restaurants are left out.

    `places` has (latitude, longitude) of the restaurants whose place is known, if they were asked for.
    """

    customer: Vector | str
    restaurants: Mapping[int, Vector]
    places: Mapping[int, tuple[float, float]]


class VectorReader:
    """Reads, in one pipeline, a customer's vector, restaurants' vectors, and their places.

    What the registry lacks is told by the first read: a server whose definitions have no vectors answers all else.
    """

    def __init__(self, pipe: RedisPipe, store: FeatureStore) -> None:
        self._pipe = pipe
        self._plans: dict[bool, ReadPlan] = {}
        self._lacking: str | None = None
        try:
            vectors = [_wanted(store, view, _columns(view)) for view in (CUSTOMERS, RESTAURANTS)]
            place = _wanted(store, PROFILE, PLACE)
        except NoVectors as error:
            self._lacking = str(error)
            return
        self._plans = {False: ReadPlan(store.project, vectors), True: ReadPlan(store.project, [*vectors, place])}

    async def __call__(
        self, customer_id: int, restaurant_ids: Sequence[int], places: bool, now: int, wait: Patience
    ) -> Found:
        """The newest of each, at `now` (ms). Raises NoVectors, one of `redis_client.STORE_DOWN`, what `wait` raises."""
        if self._lacking is not None:
            raise NoVectors(self._lacking)
        rows = {"customer_id": [customer_id], "restaurant_id": list(restaurant_ids)}
        answer = await read_async(self._pipe, self._plans[places], rows, now, wait=wait)
        (customer,) = (_vector(*row) for row in zip(*answer.columns[0], strict=True))
        restaurants = {
            restaurant: vector
            for restaurant, *row in zip(restaurant_ids, *answer.columns[1], strict=True)
            if isinstance(vector := _vector(*row), Vector)
        }
        known = zip(restaurant_ids, *answer.columns[2], strict=True) if places else ()
        return Found(customer, restaurants, {restaurant: at for restaurant, *row in known if (at := _place(*row))})


def _columns(view: str) -> tuple[str, str]:
    return f"{SIDES[view]}_vector", f"{SIDES[view]}_factorization"


def _wanted(store: FeatureStore, name: str, features: tuple[str, ...]) -> Wanted:
    try:
        found = store.registry.get_any_feature_view(name, store.project, allow_cache=True)
    except FeastObjectNotFoundException:
        raise NoVectors(f"the registry has no feature view {name}") from None
    view = compile_view(found, online_versioning(store.config))  # type: ignore[arg-type] # it is one of ours
    missing = set(features) - view.features.keys()
    if missing or not isinstance(view, BatchView) or len(view.join_keys) != 1:
        lacks = f"no feature {min(missing)}" if missing else "other join keys than expected"
        raise NoVectors(f"{name} has {lacks}: apply the definitions, and restart the server")
    return Wanted(view, features, view.join_keys)


def _vector(values: Feature, factorization: Feature) -> Vector | str:
    """A vector, or why it is none."""
    if values.status != Status.PRESENT or factorization.status != Status.PRESENT or values.event_ms is None:
        worse = values if values.status != Status.PRESENT else factorization
        return worse.status.name
    array = np.asarray(values.value, dtype=np.float32)
    if not len(array) or not np.isfinite(array).all():
        return "not finite"
    return Vector(array, str(factorization.value), values.event_ms)


def _place(latitude: Feature, longitude: Feature) -> tuple[float, float] | None:
    place = latitude.value, longitude.value
    if any(not isinstance(degrees, float) or not math.isfinite(degrees) for degrees in place):
        return None
    return place
