"""The outermost layer of the app: counts requests and their time, and answers what failed by a fault of ours."""

import time
from functools import lru_cache
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import problems
from serving.metrics import REQUESTS, SECONDS


class Measured:
    """Middleware. A fault is answered here, for further out it would be counted by nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except ClientDisconnect:
            return
        except Exception as error:
            if status:  # too late: a part of the answer is on its way
                raise
            await problems.unexpected(Request(scope), error)(scope, receive, sent)
        if not status:  # nobody waits for the answer any more
            return
        path = getattr(scope.get("route"), "path", "unknown")  # the pattern, so that ids make no labels
        count(path, status, start)


def count(path: str, status: int, start: float) -> None:
    """Count an answer to a route's path that was begun at `start` (`perf_counter`)."""
    _counter(path, status).inc()
    _timer(path).observe(time.perf_counter() - start)


@lru_cache
def _counter(path: str, status: int) -> Any:
    return REQUESTS.labels(route=path, status=status)


@lru_cache
def _timer(path: str) -> Any:
    return SECONDS.labels(route=path)
