"""Circuit breakers: what is slow or down is asked again now and then, by one request, instead of by all of them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog

from serving.metrics import BREAKER_OPEN

T = TypeVar("T")
TICKS = 10
logger = structlog.get_logger(__name__)

FAILURES = 3
"""So many failures in a row open a breaker."""

OPEN_S = 1.0
"""For so long nothing is asked of what is behind it; then one call tries (half-open)."""


class Unavailable(Exception):
    """What is behind a breaker cannot be had; says what, and why."""


class Breaker:
    """Guards one thing that may be slow or down. Not thread-safe: for one event loop.

    `failing` are the exceptions that say that it is down; others pass and count for nothing. `monotonic` gives seconds.
    """

    def __init__(
        self, name: str, failing: tuple[type[Exception], ...], monotonic: Callable[[], float], open_s: float = OPEN_S
    ) -> None:
        self._name, self._monotonic, self._open_s = name, monotonic, open_s
        self._failing: tuple[type[Exception], ...] = (TimeoutError, *failing)
        self._failures, self._reason = 0, ""
        self._opened: float | None = None  # when it was opened, or tried last
        self._trying = False
        BREAKER_OPEN.labels(of=name).set_function(lambda: float(self._opened is not None))

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result. Raises Unavailable if it fails, or is not made since too many failed just before.

        A call bounds its own time: by TimeoutError, which counts as a failure.
        """
        trial = self._enter()
        try:
            result = await call()
        except self._failing as error:
            if trial or self._opened is None:  # one that was under way when it opened says nothing new
                self._failed(error)
            raise Unavailable(f"{self._name}: {self._reason}") from None
        except BaseException:
            if trial:
                self._trying = False  # nothing was learnt: the next one may try
            raise
        if trial or self._opened is None:
            self._succeeded()
        return result

    def _enter(self) -> bool:
        """Whether the call is the one that tries, of an open breaker."""
        if self._opened is None:
            return False
        if self._trying or self._monotonic() - self._opened < self._open_s:
            raise Unavailable(
                f"{self._name}: {self._reason}, and is not asked again before {self._open_s:g} s are over"
            )
        self._trying = True
        return True

    def _failed(self, error: Exception) -> None:
        # Callers are told no more: what the error says of addresses and paths is for the log.
        self._reason = "it does not answer in time" if isinstance(error, TimeoutError) else "it cannot be reached"
        self._failures += 1
        if self._opened is not None:
            self._opened, self._trying = self._monotonic(), False
        elif self._failures >= FAILURES:
            self._opened = self._monotonic()
            logger.warning("breaker opened", of=self._name, error=repr(error))

    def _succeeded(self) -> None:
        if self._opened is not None:
            logger.info("breaker closed", of=self._name)
        self._failures, self._opened, self._trying = 0, None, False


class Patience:
    """How long one request is willing to wait for something, in all: `seconds`, however often it asks.

    It waits in `TICKS` parts, and a part counts as no more than its length: the rest was the event loop's own work for
    others, which is not the fault of what is waited for.
    """

    def __init__(self, seconds: float) -> None:
        self._left, self._tick = seconds, seconds / TICKS

    async def __call__(self, awaited: Awaitable[T]) -> T:
        """The result. Raises TimeoutError when what was left is over; what the caller does between is not counted."""
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(awaited)
        try:
            while self._left > 0:
                begun, part = loop.time(), min(self._tick, self._left)
                await asyncio.wait((task,), timeout=part)
                self._left -= min(loop.time() - begun, part)
                if task.done():
                    return task.result()
            raise TimeoutError
        finally:
            if not task.done():
                task.add_done_callback(_forget)
                task.cancel()


def _forget(task: "asyncio.Future[Any]") -> None:
    """Look at how a task that was given up has ended, so that nobody is warned that none did."""
    if not task.cancelled():
        task.exception()
