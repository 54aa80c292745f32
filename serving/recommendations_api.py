"""``/v1/recommendations``: restaurants for a customer, stored weekly or ranked when asked."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query

from serving.problems import Problem, ProblemDetails
from serving.recommendation_schemas import MAX_CANDIDATES, MAX_LIMIT, RecommendationMode, Recommendations
from serving.recommender import Asked, Near, Recommender
from serving.schemas import Id

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": ProblemDetails, "description": "Unknown customer, and nothing to fall back to"},
    422: {"model": ProblemDetails, "description": "Invalid request"},
    503: {"model": ProblemDetails, "description": "No recommendation in an accepted mode"},
}
_INT64 = {"ge": -(2**63), "le": 2**63 - 1}
_DEGREES = "Degrees; with the other of the two, and max_km"


def recommendations_router(recommender: Recommender) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["recommendations"])

    @router.get("/v1/recommendations/{customer_id}", responses=_PROBLEMS)
    async def recommendations(
        customer_id: Annotated[int, Path(**_INT64)],
        mode: Annotated[
            RecommendationMode,
            Query(description="stored: what the periodic job left; online: ranked now, from vectors"),
        ] = RecommendationMode.STORED,
        require: Annotated[
            Literal["online"] | None, Query(description="Refuse a stored answer to a request for an online one")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 10,
        zone_id: Annotated[
            int | None, Query(description="Where the customer is: what is popular there, and not everywhere", **_INT64)
        ] = None,
        restaurant_ids: Annotated[
            list[Id] | None,
            Query(
                min_length=1,
                max_length=MAX_CANDIDATES,
                description="Online: the candidates. Without them the customer's stored picks and what is popular",
            ),
        ] = None,
        closed: Annotated[
            list[Id] | None, Query(max_length=MAX_CANDIDATES, description="Restaurants to leave out")
        ] = None,
        latitude: Annotated[
            float | None, Query(ge=-90, le=90, allow_inf_nan=False, description=f"Online. {_DEGREES}")
        ] = None,
        longitude: Annotated[
            float | None, Query(ge=-180, le=180, allow_inf_nan=False, description=f"Online. {_DEGREES}")
        ] = None,
        max_km: Annotated[
            float | None,
            Query(
                gt=0,
                le=20_040,
                allow_inf_nan=False,
                description="Online: leave out what is farther away, as the crow flies. Unknown places are kept",
            ),
        ] = None,
    ) -> Recommendations:
        """Restaurants for a customer, the best first."""
        near = _near(latitude, longitude, max_km)
        if mode != RecommendationMode.ONLINE:
            only = {"require": require, "restaurant_ids": restaurant_ids, "latitude": latitude}
            for name, value in only.items():
                if value is not None:
                    raise _invalid(name, value, "it has a meaning only with mode=online")
        candidates = None if restaurant_ids is None else list(dict.fromkeys(restaurant_ids))
        asked = Asked(customer_id, mode, require is not None, limit, zone_id, candidates, frozenset(closed or ()), near)
        return await recommender.recommend(asked)

    return router


def _near(latitude: float | None, longitude: float | None, max_km: float | None) -> Near | None:
    """The three together, or none of them."""
    given = {"latitude": latitude, "longitude": longitude, "max_km": max_km}
    missing = [name for name, value in given.items() if value is None]
    if latitude is None or longitude is None or max_km is None:
        if len(missing) < len(given):
            raise _invalid(missing[0], None, "latitude, longitude and max_km go together: no distance can be told")
        return None
    return Near(latitude, longitude, max_km)


def _invalid(field: str, value: object, reason: str) -> Problem:
    errors = [{"field": field, "value": repr(value), "reason": reason}]
    return Problem(422, "Invalid request", f"{field} is {value!r}: {reason}. Nothing was recommended", errors=errors)
