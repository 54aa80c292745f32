"""What is answered about recommendations, and what of a request decides it."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_CANDIDATES = 500
MAX_LIMIT = 50


Id = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class RecommendationMode(StrEnum):
    """Where a recommendation comes from."""

    STORED = "stored"
    """From the SQL table that the periodic job left."""
    ONLINE = "online"
    """Ranked at request time, from the vectors in the online store."""


class RecommendationQuery(BaseModel):
    """What a request may say; `restaurant_ids`, `require` and the last three have a meaning only online."""

    model_config = ConfigDict(extra="forbid")

    mode: RecommendationMode = Field(
        default=RecommendationMode.STORED,
        description="stored: what the periodic job left; online: ranked now, from vectors",
    )
    require: Literal["online"] | None = Field(
        default=None, description="Refuse a stored answer to a request for an online one"
    )
    limit: int = Field(default=10, ge=1, le=MAX_LIMIT)
    zone_id: Id | None = Field(
        default=None,
        description="Where the customer is. What is popular there is the fallback and, online, the candidates",
    )
    restaurant_ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_CANDIDATES)] | None = Field(
        default=None,
        description="Online: the candidates. Without them what is popular in the zone; without one, picks and popular",
    )
    closed: list[Id] = Field(default=[], max_length=MAX_CANDIDATES, description="Restaurants to leave out")
    latitude: float | None = Field(default=None, ge=-90, le=90, allow_inf_nan=False, description="Degrees; with max_km")
    longitude: float | None = Field(
        default=None, ge=-180, le=180, allow_inf_nan=False, description="Degrees; with max_km"
    )
    max_km: float | None = Field(
        default=None,
        gt=0,
        le=20_040,
        allow_inf_nan=False,
        description="Online: leave out what is farther away, as the crow flies; unknown places are kept",
    )


class Recommendation(BaseModel):
    """A restaurant. Scores compare within one answer alone."""

    restaurant_id: int
    score: float | None = Field(
        description="The higher the better: of vectors, or, in a fallback, how many orders there were. Null where "
        "there is nothing to compare: such restaurants come last, by how much is ordered there"
    )


class LeftOut(BaseModel):
    """How many candidates were left out, and why."""

    closed: int = 0
    too_far: int = 0


class Recommendations(BaseModel):
    """Restaurants for a customer, the best first, with where they come from and how old that is."""

    customer_id: int
    mode: RecommendationMode
    recommendations: list[Recommendation]
    as_of: str = Field(description="Nothing that happened from this instant on is in it")
    age_seconds: float
    run_id: str | None = Field(description="The run of the batch job that a stored answer is of")
    factorization: str | None = Field(default=None, description="Whose vectors an online answer was ranked by")
    fallback: Literal["popular_in_zone", "popular"] | None = Field(
        description="What a customer gets of whom nothing is known"
    )
    stepped_down: list[str] = Field(default_factory=list, description="Why the answer is not the online one asked for")
    candidates: int = Field(description="How many restaurants there were to choose from, before any was left out")
    left_out: LeftOut
    not_comparable: int = Field(default=0, description="Candidates without a score, ranked behind the others")
    place_unknown: list[int] = Field(
        default_factory=list,
        description="Those recommended although it could not be told whether they lie within max_km",
    )
