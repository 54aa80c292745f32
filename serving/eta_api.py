"""``/v1/eta``: predictions for a restaurant, an order, or up to 500 orders."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ValidationError

from serving.bodies import read_body
from serving.ladder import Ladder
from serving.metrics import PREDICTIONS, REFUSALS
from serving.modes import Mode
from serving.problems import Problem, ProblemDetails, invalid
from serving.schemas import AnyOrders, Eta, Order, Orders, Outcome, Outcomes

Body = TypeVar("Body", bound=BaseModel)
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": ProblemDetails, "description": "Unknown restaurant"},
    413: {"model": ProblemDetails, "description": "Too large"},
    422: {"model": ProblemDetails, "description": "Invalid request"},
    503: {"model": ProblemDetails, "description": "No prediction in an accepted mode"},
}


def eta_router(ladder: Ladder) -> APIRouter:
    """The routes. Bodies are read whatever their content type is called: people with curl leave it out."""
    router = APIRouter(tags=["predictions"])

    @router.get("/v1/eta/{restaurant_id}", responses=_PROBLEMS)
    async def eta_of_restaurant(
        restaurant_id: Annotated[int, Path(ge=-(2**63), le=2**63 - 1)],
        require: Annotated[Mode | None, Query(description="Refuse an answer of a lower mode")] = None,
    ) -> Eta:
        """When an order placed at the restaurant now would arrive."""
        (answer,) = await _predict(ladder, [Order(restaurant_id=restaurant_id, require=require)])
        if isinstance(answer, Problem):
            raise answer
        return answer

    @router.post("/v1/eta", responses=_PROBLEMS, openapi_extra=_body_of(Order))
    async def eta_of_order(request: Request) -> Eta:
        """When one order would arrive."""
        (answer,) = await _predict(ladder, [await _read(request, Order)])
        if isinstance(answer, Problem):
            raise answer
        return answer

    @router.post("/v1/eta/batch", responses=_PROBLEMS, openapi_extra=_body_of(Orders))
    async def eta_of_orders(request: Request) -> Outcomes:
        """When each of up to 500 orders would arrive; each has its own outcome."""
        orders = [_order(document) for document in (await _read(request, AnyOrders)).orders]
        good = [order for order in orders if isinstance(order, Order)]
        predicted = iter(await _predict(ladder, good) if good else [])
        answers = [next(predicted) if isinstance(order, Order) else order for order in orders]
        return Outcomes(outcomes=[_outcome(i, answer) for i, answer in enumerate(answers)])

    return router


async def _predict(ladder: Ladder, orders: Sequence[Order]) -> list[Eta | Problem]:
    answers = await ladder.predict(orders)
    for answer in answers:
        if isinstance(answer, Problem):
            REFUSALS.labels(status=answer.status).inc()
        else:
            PREDICTIONS.labels(mode=answer.mode).inc()
    return answers


async def _read(request: Request, model: type[Body]) -> Body:
    try:
        return model.model_validate_json(await read_body(request))
    except ValidationError as error:
        raise invalid(error) from None


def _order(document: object) -> Order | Problem:
    """An order of a batch, or what is wrong with it: the others have nothing to do with it."""
    try:
        return Order.model_validate(document)
    except ValidationError as error:
        REFUSALS.labels(status=422).inc()
        return invalid(error)


def _outcome(index: int, answer: Eta | Problem) -> Outcome:
    if isinstance(answer, Eta):
        return Outcome(index=index, eta=answer)
    problem = {"title": answer.title, "status": answer.status, "detail": answer.detail, **answer.extra}
    return Outcome(index=index, problem=problem)


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """`schema` with its references put in place: FastAPI registers only the models of its own parameters."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
        return {key: _inlined(value, definitions) for key, value in schema.items()}
    return [_inlined(value, definitions) for value in schema] if isinstance(schema, list) else schema
