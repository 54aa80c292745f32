"""Routes of FastAPI's OpenAPI document that Starlette serves: FastAPI's own work would cost half of a request."""

from typing import Any

import msgspec
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

JSON = "application/json"


class PlainRoute(APIRoute):
    """The endpoint takes the request and gives the response: nothing is read, checked or converted for it.

    So all that is documented of the body and the answers is what the route is given.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that matched."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response: Response = await self.endpoint(Request(scope, receive))
        await response(scope, receive, send)


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type that msgspec encodes, in one piece: FastAPI knows the names of its own models alone."""
    schema = msgspec.json.schema(kind)
    whole: dict[str, Any] = _inlined(schema, schema.pop("$defs", {}))
    return whole


def content_of(kind: Any, description: str) -> dict[str, Any]:
    """What a route's `responses` say of an answer, and of a body."""
    return {"description": description, "content": {JSON: {"schema": schema_of(kind)}}}


def body_of(kind: Any) -> dict[str, Any]:
    """A route's `openapi_extra` for a body that it reads by itself."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema_of(kind)}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            return {**_inlined(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions), **rest}
        return {key: _inlined(value, definitions) for key, value in schema.items()}
    return [_inlined(value, definitions) for value in schema] if isinstance(schema, list) else schema
