"""Errors as RFC 9457 problem details: field, value, consequence; never a stack trace."""

import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

PROBLEM = "application/problem+json"
_REFERENCE = {"$ref": "#/components/schemas/ProblemDetails"}
SHOWN = 200  # characters of a refused value that are shown
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_NAMED = re.compile(r"(?:required|unknown) field `(.*)`$", re.DOTALL)
_log = structlog.get_logger(__name__)


class ProblemDetails(BaseModel):
    """The body of every error (media type application/problem+json)."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] = Field(default_factory=list)


class Problem(Exception):
    """An answer that is a problem."""

    def __init__(self, status: int, title: str, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail, self.extra = status, title, detail, extra


def problem_response(
    status: int,
    title: str,
    detail: str,
    extra: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem details answer."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **(extra or {})}
    return JSONResponse(body, status, headers, media_type=PROBLEM)


def invalid(error: ValidationError | RequestValidationError) -> Problem:
    """What a request's validation found, field by field."""
    errors = []
    for found in error.errors():
        field = ".".join(str(place) for place in found["loc"] if place not in ("body", "query", "path")) or "body"
        errors.append({"field": field, "value": repr(found.get("input"))[:SHOWN], "reason": found["msg"]})
    first = errors[0]
    detail = f"{first['field']} is {first['value']}: {first['reason']}. Nothing was predicted or stored"
    return Problem(422, "Invalid request", detail, errors=errors)


def refusal(problem: Problem) -> JSONResponse:
    """The answer that a problem is."""
    return problem_response(problem.status, problem.title, problem.detail, problem.extra)


def undecodable(document: bytes, error: Exception) -> Problem:
    """What was wrong with a JSON document that was to be decoded: the field, its value and why."""
    reason, _, path = str(error).partition(" - at `$")
    field, value = "body", document[:SHOWN].decode(errors="replace")
    if isinstance(error, msgspec.ValidationError):
        way: list[str | int] = [int(i) if i else name for name, i in _STEP.findall(path.removesuffix("`"))]
        if named := _NAMED.search(reason):
            way.append(named[1])
        field, value = ".".join(map(str, way)) or field, _part(document, way)
    detail = f"{field} is {value}: {reason}. Nothing was predicted or stored"
    return Problem(422, "Invalid request", detail, errors=[{"field": field, "value": value, "reason": reason}])


def _part(document: bytes, way: Sequence[str | int]) -> str:
    """What lies in a document at the end of a way, to be shown."""
    try:
        part = msgspec.json.decode(document)
        for step in way:
            part = part[step]
    except LookupError:
        return "missing"
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):  # it cannot be read: its beginning is shown
        return document[:SHOWN].decode(errors="replace")
    return repr(part)[:SHOWN]


def unexpected(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that failed by a fault of ours; the fault is logged, and stays in the log."""
    return refusal(fault(request, error))


def fault(request: Request, error: Exception) -> Problem:
    """The problem that is told of a fault of ours; the fault is logged, and stays in the log."""
    trace = "".join(traceback.format_exception(error))  # plain: structlog's own, with locals, takes seconds
    _log.error("request failed", path=request.url.path, exception=trace)
    return Problem(500, "Internal error", "The request failed here, not by its content; it was logged")


def install(app: FastAPI) -> None:
    """Answer every refusal of the app as a problem; `unexpected` is for the outermost of its own middleware."""

    async def problem(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Problem)
        return refusal(error)

    async def validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return await problem(request, invalid(error))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return problem_response(error.status_code, str(error.detail), detail, headers=error.headers)

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    described = app.openapi
    app.openapi = lambda: _as_problems(described())  # type: ignore[method-assign] # FastAPI's own way to change it


def _as_problems(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with problem details under their media type: FastAPI puts every model under JSON's."""
    for path in document["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                if content.get("application/json", {}).get("schema") == _REFERENCE:
                    response["content"] = {PROBLEM: content["application/json"]}
    return document
