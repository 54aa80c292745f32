"""The outermost layer of the server: the plain routes are served here, all others by the app.

A request that is for the app passes a dozen layers of it; a prediction is made in less time than that takes. Whatever
is served here is counted, timed and refused as the app does it.
"""

import time

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving import problems
from serving.measured import count
from serving.plain_route import PlainRoute


class FrontDoor:
    """The whole server."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._plain = {
            (method, route.path): route.endpoint
            for route in app.routes
            if isinstance(route, PlainRoute)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; what is no request is the app's."""
        endpoint = self._plain.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        start, request = time.perf_counter(), Request(scope, receive)
        try:
            response: Response = await endpoint(request)
        except ClientDisconnect:  # nobody waits for the answer any more
            return
        except problems.Problem as problem:
            response = problems.refusal(problem)
        except Exception as error:
            response = problems.unexpected(request, error)
        await response(scope, receive, send)
        count(scope["path"], response.status_code, start)
