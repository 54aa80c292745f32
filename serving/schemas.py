"""What is asked and answered over HTTP. What predictions are asked and answered by is encoded by msgspec: it is hot."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from pydantic import BaseModel, Field

from feature_repo.stores.reading import Status
from serving.modes import Mode

MAX_ORDERS = 500
Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=256)] | Id


class Order(Struct, frozen=True, forbid_unknown_fields=True):
    """An order to predict for. `zone_id` defaults to the restaurant's own.

    With `order_id` the prediction is held against the order's delivery later on.
    """

    restaurant_id: Id
    zone_id: Id | None = None
    order_id: Name | None = None
    customer_id: Id | None = None
    require: Annotated[Mode | None, Meta(description="Refuse an answer of a lower mode")] = None


class Orders(Struct, frozen=True, forbid_unknown_fields=True):
    """Up to 500 orders, each answered for itself."""

    orders: Annotated[list[Order], Meta(min_length=1, max_length=MAX_ORDERS)]


class AnyOrders(Struct, frozen=True, forbid_unknown_fields=True):
    """`Orders` that are still to be looked at, each for itself."""

    orders: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=MAX_ORDERS)]


class FeatureValue(Struct, frozen=True):
    """A feature as it was served. `age_seconds` is how old what it speaks of is, at `as_of`; null if unknown."""

    value: int | float | str | list[float] | None
    status: Annotated[str, Meta(extra_json_schema={"enum": [status.name for status in Status]})]
    age_seconds: float | None


class ModelUsed(Struct, frozen=True):
    """The model that predicted."""

    name: str
    version: str


class StoredRun(Struct, frozen=True):
    """The batch run that a stored prediction is of, and the hour of the day (UTC) that it was made for."""

    run_id: str
    hour: int
    computed_as_of: str
    age_seconds: float


class Eta(Struct, frozen=True):
    """When the order is expected, in minutes from `as_of`, and from what."""

    prediction_id: str
    restaurant_id: int
    eta_minutes: float
    eta_minutes_p90: float
    mode: Mode
    stepped_down: Annotated[list[str], Meta(description="Why no better mode answered; empty in the best one")]
    as_of: str
    model: ModelUsed
    features: Annotated[dict[str, FeatureValue], Meta(description="What it was made from; empty where it was stored")]
    stored: Annotated[StoredRun | None, Meta(description="Of which batch run it is, where it was stored")] = None


class Outcome(Struct, frozen=True):
    """One order of a batch: an answer or a problem."""

    index: int
    eta: Eta | None = None
    problem: dict[str, Any] | None = None


class Outcomes(Struct, frozen=True):
    """A batch's answers, in the order asked."""

    outcomes: list[Outcome]


class FeatureReceipt(Struct, frozen=True):
    """A feature as it was served; `window_from` is where its window begins, null of what is no window."""

    value: int | float | str | list[float] | None
    status: Annotated[str, Meta(extra_json_schema={"enum": [status.name for status in Status]})]
    age_seconds: float | None
    window_from: str | None


class ReceiptShown(Struct, frozen=True):
    """A prediction with what it was made from.

    `as_of` is the instant that the answer holds at, `read_at` the reader's clock. `reads` says, by view, what was read:
    of a batch row its event and created time (µs since the epoch), of a stream by topic and partition the epoch, the
    offset below which all was folded before the read began, and the last offset in what was read.
    """

    prediction_id: str
    restaurant_id: int
    zone_id: int | None
    customer_id: int | None
    order_id: str | None
    eta_minutes: float
    eta_minutes_p90: float
    mode: Mode
    stepped_down: list[str]
    as_of: str
    read_at: str
    model: ModelUsed
    definition_hash: str
    features: dict[str, FeatureReceipt]
    reads: dict[str, Any]
    stored: dict[str, Any] | None
    shadow: dict[str, Any] | None


class EventOutcome(BaseModel):
    """One event: in the log, or refused with the field and the reason."""

    index: int
    status: Literal["accepted", "refused"]
    event_id: str | None = None
    partition: int | None = None
    field: str | None = None
    value: str | None = None
    reason: str | None = None


class EventsTaken(BaseModel):
    """What became of the events that were sent."""

    topic: str
    accepted: int
    refused: int
    outcomes: list[EventOutcome]


class ResponseMetadata(BaseModel):
    """The names of the columns, and, if they were asked for, the versions of the views."""

    feature_names: list[str]
    feature_view_metadata: list[dict[str, Any]] = Field(default_factory=list)


class FeatureVector(BaseModel):
    """A column of an answer, a row of the request each. `event_timestamps` is 1970-01-01T00:00:00Z where none is known.

    Bytes are base64; numbers that JSON has not are the texts NaN, Infinity and -Infinity.
    """

    values: list[Any]
    statuses: list[Annotated[str, Field(json_schema_extra={"enum": [status.name for status in Status]})]]
    event_timestamps: list[str]


class OnlineFeatures(BaseModel):
    """Features as Feast's server answers them: the entity columns, then the features."""

    metadata: ResponseMetadata
    results: list[FeatureVector]


class RowsWritten(BaseModel):
    """How many rows were sent, and how many of them replaced what was stored: the others were older."""

    feature_view_name: str
    rows: int
    written: int
