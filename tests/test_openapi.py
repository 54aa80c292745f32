"""The OpenAPI document is true: requests made up from it, right and wrong ones, are answered as it says."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok
from schemathesis.schemas import BaseSchema

from serving.problems import ProblemDetails
from tests.repo import MINUTE
from tests.serving_stack import UNKNOWN, Stack, problem, running

EXAMPLES = 25
"""Requests of each kind a route."""

METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS")
ROUTES = (
    "GET /health",
    "GET /live",
    "GET /ready",
    "GET /v1/eta/{restaurant_id}",
    "GET /v1/predictions/{prediction_id}",
    "GET /v1/recommendations/{customer_id}",
    "POST /get-online-features",
    "POST /push",
    "POST /v1/eta",
    "POST /v1/eta/batch",
    "POST /v1/events/{topic}",
    "POST /write-to-online-store",
)
"""Every route; a new one is added here."""

RIGHT: dict[str, dict[str, Any]] = {
    "GET /health": {},
    "GET /live": {},
    "GET /ready": {},
    "GET /v1/eta/{restaurant_id}": {"path_parameters": {"restaurant_id": 1}, "query": {"require": "streaming"}},
    "POST /v1/eta": {"body": {"restaurant_id": 1, "zone_id": 1, "order_id": "o1", "customer_id": 7}},
    "POST /v1/eta/batch": {"body": {"orders": [{"restaurant_id": 1}, {"restaurant_id": UNKNOWN}]}},
    "POST /get-online-features": {
        "body": {"entities": {"restaurant_id": [1, UNKNOWN]}, "features": ["restaurant_recent_orders:orders_10m"]}
    },
}
"""Requests of each route that reads, which are answered with 200."""

load_all_checks()
CONFORMS: list[Any] = CHECKS.get_by_names(
    [
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "missing_required_header",
    ]
)
REFUSES: list[Any] = CHECKS.get_by_names(["negative_data_rejection"])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that predicts; what these requests write is not looked at."""
    with running(tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("openapi")) as stack:
        stack.push("order_placed", stack.order())
        stack.fold()
        yield stack


@pytest.fixture(scope="module")
def api(stack: Stack) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{stack.url}/openapi.json")


def is_answered(response: Response, case: Case[Any]) -> None:
    """No fault of ours; and what is refused, or cannot be had now, is told as problem details."""
    assert response.status_code not in (500, 502, 504), response.text
    if response.status_code >= 400 and case.path != "/ready":  # which answers with its checks
        assert response.headers["content-type"] == ["application/problem+json"]
        found = ProblemDetails.model_validate(response.json())
        assert found.status == response.status_code
        assert found.title
        assert found.detail


def operation_of(api: BaseSchema, route: str) -> Any:
    method, path = route.split()
    return api[path][method]


def test_every_route_is_asked(api: BaseSchema) -> None:
    documented = set()
    for found in api.get_all_operations():
        assert isinstance(found, Ok), found
        documented.add(f"{found.ok().method.upper()} {found.ok().path}")
    assert sorted(documented) == sorted(ROUTES)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: str(mode.value))
def test_requests_are_answered_as_the_document_says(api: BaseSchema, route: str, mode: GenerationMode) -> None:
    operation = operation_of(api, route)
    if mode is GenerationMode.NEGATIVE and not (operation.body or list(operation.iter_parameters())):
        return  # there is nothing to send wrong

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case[Any]) -> None:
        response = case.call(timeout=20)
        is_answered(response, case)
        case.validate_response(response, checks=CONFORMS)
        if route == "POST /v1/eta/batch" and response.status_code == 200:  # each order has its own outcome
            problems = [outcome["problem"] for outcome in response.json()["outcomes"]]
            assert mode is GenerationMode.POSITIVE or any(found and found["status"] == 422 for found in problems)
        else:
            case.validate_response(response, checks=REFUSES)

    ask()


@pytest.mark.parametrize("route", RIGHT)
def test_the_answer_to_a_right_request_is_as_documented(api: BaseSchema, route: str) -> None:
    case = operation_of(api, route).Case(**RIGHT[route], media_type="application/json")
    response = case.call(timeout=20)
    assert response.status_code == 200, response.text
    case.validate_response(response, checks=CONFORMS)


def test_the_answer_of_a_receipt_is_as_documented(api: BaseSchema, stack: Stack) -> None:
    made = {"prediction_id": stack.eta()["prediction_id"]}
    case = operation_of(api, "GET /v1/predictions/{prediction_id}").Case(path_parameters=made)
    response = case.call(timeout=20)
    assert response.status_code == 200, response.text
    case.validate_response(response, checks=CONFORMS)


def test_a_server_that_is_not_ready_says_so_as_documented(api: BaseSchema, stack: Stack) -> None:
    stack.clock.now += 24 * 60 * MINUTE  # no worker has folded since
    try:
        case = operation_of(api, "GET /ready").Case()
        response = case.call(timeout=20)
        assert response.status_code == 503, response.text
        case.validate_response(response, checks=CONFORMS)
    finally:
        stack.clock.now -= 24 * 60 * MINUTE


@pytest.mark.parametrize("route", [route for route in ROUTES if route.startswith("POST")])
def test_an_example_of_the_document_is_a_request_that_is_understood(api: BaseSchema, stack: Stack, route: str) -> None:
    operation = operation_of(api, route)
    schemas = [body.definition["schema"] for body in operation.body]
    for body in (schema["example"] for schema in schemas if "example" in schema):
        answer = stack.post(operation.path, body)
        late = "ahead of its arrival" in answer.text  # the example's instant, for a clock that shows another year
        assert answer.status_code == 200 or late, answer.text


def test_methods_that_are_not_documented_are_refused_with_those_that_are(stack: Stack) -> None:
    values = {"restaurant_id": 1, "prediction_id": "x", "customer_id": 1, "topic": "order_placed"}
    routes = [route.split() for route in ROUTES]
    for path in sorted({path.format(**values) for _, path in routes}):
        known = {method for method, pattern in routes if re.fullmatch(re.sub(r"{\w+}", "[^/]+", pattern), path)}
        for method in sorted(set(METHODS) - known):
            answer = stack.http.request(method, path)
            problem(answer, 405)
            allowed = set(answer.headers["allow"].split(", "))
            assert allowed, path
            assert allowed <= known, path  # where two routes match a path, those of the first
