"""``GET /v1/predictions/{prediction_id}``: what a prediction was made from."""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Path, Response

from feature_repo.clock import iso
from ingestion.log import LogUnavailable
from models.prediction_ids import PATTERN, NoPredictionId, made_at
from models.receipt import Prediction
from serving.modes import Mode
from serving.plain_route import JSON, content_of
from serving.problems import Problem, ProblemDetails
from serving.receipts import ReceiptLog
from serving.schemas import FeatureReceipt, ModelUsed, ReceiptShown

MAX_LOOKUPS = 4
"""So many predictions are looked up at once; events come in by the same threads."""

Find = Callable[[str], Prediction | None]
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": ProblemDetails, "description": "No such prediction is kept"},
    422: {"model": ProblemDetails, "description": "Invalid request"},
    503: {"model": ProblemDetails, "description": "The log cannot be reached, and the archive has no such prediction"},
}


def predictions_router(receipts: ReceiptLog, find: Find) -> APIRouter:
    """The route. What is not among `receipts`' last ones is looked up by `find`; either in a thread."""
    router = APIRouter(tags=["predictions"])
    few = CapacityLimiter(MAX_LOOKUPS)

    @router.get(
        "/v1/predictions/{prediction_id}", responses={200: content_of(ReceiptShown, "The receipt"), **_PROBLEMS}
    )
    async def receipt(prediction_id: Annotated[str, Path(pattern=PATTERN)]) -> Response:
        """The receipt of a prediction: its model, its features with their status, and what each was read from."""
        prediction = await to_thread.run_sync(_found, receipts, find, prediction_id, limiter=few)
        return Response(msgspec.json.encode(_shown(prediction)), media_type=JSON)

    return router


def _found(receipts: ReceiptLog, find: Find, prediction_id: str) -> Prediction:
    try:
        prediction = receipts.recent(prediction_id) or find(prediction_id)
    except NoPredictionId as error:
        errors = [{"field": "prediction_id", "value": repr(prediction_id), "reason": str(error)}]
        raise Problem(422, "Invalid request", str(error), errors=errors) from None
    except LogUnavailable as error:
        detail = f"prediction {prediction_id} is not in the archive, and the log cannot be read: {error}. Try again"
        raise Problem(503, "Event log unavailable", detail) from None
    if prediction is None:
        at = iso(made_at(prediction_id))
        detail = f"no prediction {prediction_id} of {at} is in the archive or the log: its receipt was never kept"
        raise Problem(404, "Unknown prediction", detail)
    return prediction


def _shown(prediction: Prediction) -> ReceiptShown:
    receipt = prediction.receipt
    features = {
        name: FeatureReceipt(
            value=served.value,
            status=served.status,
            age_seconds=None if served.event_ms is None else (prediction.at - served.event_ms) / 1000,
            window_from=None if served.since is None else iso(served.since),
        )
        for name, served in receipt.features.items()
    }
    return ReceiptShown(
        prediction_id=prediction.event_id,
        restaurant_id=prediction.restaurant_id,
        zone_id=prediction.zone_id,
        customer_id=prediction.customer_id,
        order_id=prediction.order_id,
        eta_minutes=prediction.eta_minutes,
        eta_minutes_p90=prediction.eta_minutes_p90,
        mode=Mode(prediction.mode),
        stepped_down=receipt.stepped_down,
        as_of=iso(prediction.at),
        read_at=iso(receipt.now),
        model=ModelUsed(name=prediction.model, version=prediction.model_version),
        definition_hash=receipt.definition,
        features=features,
        reads=msgspec.to_builtins(receipt.reads),
        stored=None if receipt.stored is None else msgspec.to_builtins(receipt.stored),
        shadow=None if receipt.shadow is None else msgspec.to_builtins(receipt.shadow),
    )
