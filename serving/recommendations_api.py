"""``/v1/recommendations``: restaurants for a customer, stored weekly or ranked when asked."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from serving.metrics import RECOMMENDATIONS
from serving.problems import Problem, ProblemDetails
from serving.recommendation_schemas import RecommendationMode, RecommendationQuery, Recommendations
from serving.recommender import Asked, Near, Recommender

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": ProblemDetails, "description": "Unknown customer, and nothing to fall back to"},
    422: {"model": ProblemDetails, "description": "Invalid request"},
    503: {"model": ProblemDetails, "description": "No recommendation in an accepted mode"},
}


def recommendations_router(recommender: Recommender) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["recommendations"])

    @router.get("/v1/recommendations/{customer_id}", responses=_PROBLEMS)
    async def recommendations(
        customer_id: Annotated[int, Path(ge=-(2**63), le=2**63 - 1)], query: Annotated[RecommendationQuery, Query()]
    ) -> Recommendations:
        """Restaurants for a customer, the best first."""
        answer = await recommender.recommend(_asked(customer_id, query))
        RECOMMENDATIONS.labels(mode=answer.mode, fallback=answer.fallback or "none").inc()
        return answer

    return router


def _asked(customer_id: int, query: RecommendationQuery) -> Asked:
    """The request. Raises Problem for what does not go together."""
    near = _near(query.latitude, query.longitude, query.max_km)
    if query.mode != RecommendationMode.ONLINE:
        for name in ("require", "restaurant_ids", "latitude"):
            if (value := getattr(query, name)) is not None:
                raise _invalid(name, value, "it has a meaning only with mode=online")
    return Asked(
        customer_id=customer_id,
        mode=query.mode,
        require_online=query.require is not None,
        limit=query.limit,
        zone_id=query.zone_id,
        restaurant_ids=None if query.restaurant_ids is None else list(dict.fromkeys(query.restaurant_ids)),
        closed=frozenset(query.closed),
        near=near,
    )


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
