"""``/v1/eta``: predictions for a restaurant, an order, or up to 500 orders."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from fastapi import Path, Query, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from serving.bodies import JSON_ERRORS, read_body
from serving.gathering import Answer, Gathering, Predict, each_by_itself
from serving.metrics import PREDICTIONS, REFUSALS
from serving.modes import Mode
from serving.plain_route import JSON, PlainRoute, body_of, content_of
from serving.problems import Problem, ProblemDetails, fault, undecodable
from serving.schemas import AnyOrders, Eta, Order, Orders, Outcome, Outcomes

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": ProblemDetails, "description": "Unknown restaurant"},
    413: {"model": ProblemDetails, "description": "Too large"},
    422: {"model": ProblemDetails, "description": "Invalid request"},
    503: {"model": ProblemDetails, "description": "No prediction in an accepted mode"},
}
_COUNTED: Mapping[Mode, Any] = {mode: PREDICTIONS.labels(mode=mode) for mode in Mode}
_ENCODER = msgspec.json.Encoder()
_ORDER, _ORDERS = msgspec.json.Decoder(Order), msgspec.json.Decoder(AnyOrders)


def eta_routes(predict: Predict) -> list[BaseRoute]:
    """The routes. Bodies are read whatever their content type is called: people with curl leave it out."""
    gathering = Gathering(predict)

    async def eta_of_restaurant(
        restaurant_id: Annotated[int, Path(ge=-(2**63), le=2**63 - 1)],
        require: Annotated[Mode | None, Query(description="Refuse an answer of a lower mode")] = None,
    ) -> Response:
        """When an order placed at the restaurant now would arrive."""
        return _response(await gathering.answer(Order(restaurant_id, require=require)))

    async def eta_of_order(request: Request) -> Response:
        """When one order would arrive."""
        return _response(await gathering.answer(_decoded(_ORDER, await read_body(request))))

    async def eta_of_orders(request: Request) -> Response:
        """When each of up to 500 orders would arrive; each has its own outcome."""
        orders = [_order(document) for document in _decoded(_ORDERS, await read_body(request)).orders]
        good = [order for order in orders if isinstance(order, Order)]
        found = await each_by_itself(predict, good) if good else []
        predicted = (_own_outcome(request, answer) for answer in found)
        answers = [next(predicted) if isinstance(order, Order) else order for order in orders]
        outcomes = Outcomes([_outcome(i, _counted(answer)) for i, answer in enumerate(answers)])
        return Response(_ENCODER.encode(outcomes), media_type=JSON)

    return [
        PlainRoute(
            "/v1/eta",
            eta_of_order,
            methods=["POST"],
            tags=["predictions"],
            responses={200: content_of(Eta, "The prediction"), **_PROBLEMS},
            openapi_extra=body_of(Order),
        ),
        PlainRoute(
            "/v1/eta/batch",
            eta_of_orders,
            methods=["POST"],
            tags=["predictions"],
            responses={200: content_of(Outcomes, "An outcome an order"), **_PROBLEMS},
            openapi_extra=body_of(Orders),
        ),
        APIRoute(
            "/v1/eta/{restaurant_id}",
            eta_of_restaurant,
            methods=["GET"],
            tags=["predictions"],
            responses={200: content_of(Eta, "The prediction"), **_PROBLEMS},
        ),
    ]


def _decoded(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except JSON_ERRORS as error:
        raise undecodable(body, error) from None


def _order(document: msgspec.Raw) -> Order | Problem:
    """An order of a batch, or what is wrong with it: the others have nothing to do with it."""
    try:
        return _ORDER.decode(document)
    except JSON_ERRORS as error:
        return undecodable(bytes(document), error)


def _response(answer: Answer) -> Response:
    _counted(answer)
    if isinstance(answer, Problem):
        raise answer
    return Response(_ENCODER.encode(answer), media_type=JSON)


def _counted(answer: Answer) -> Answer:
    if isinstance(answer, Problem):
        REFUSALS.labels(status=answer.status).inc()
    else:
        _COUNTED[answer.mode].inc()
    return answer


def _own_outcome(request: Request, answer: Answer | Exception) -> Answer:
    """What becomes of an order among others: a fault that it brings out is its own problem."""
    return answer if isinstance(answer, Eta | Problem) else fault(request, answer)


def _outcome(index: int, answer: Answer) -> Outcome:
    if isinstance(answer, Eta):
        return Outcome(index, eta=answer)
    problem = {"title": answer.title, "status": answer.status, "detail": answer.detail, **answer.extra}
    return Outcome(index, problem=problem)
