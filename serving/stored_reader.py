"""Stored predictions for the event loop: SQL in a few threads, bounded in number and time."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from feature_repo.clock import iso
from models.stored import ETA, Run, StoredPredictions, StoredUnreachable
from serving.breaker import Breaker, Patience, Unavailable

T = TypeVar("T")
THREADS = 4
MAX_ASKED = 64
"""So many questions may wait for the threads; further ones are refused at once."""

_HOUR_MS = 3_600_000
FAILING = (StoredUnreachable,)


class StoredEtas(NamedTuple):
    """What the published run says for the hour of the day that `at` (ms) lies in: (median, p90) by restaurant."""

    run: Run
    at: int
    hour: int
    minutes: dict[int, tuple[float, float]]


class StoredReader:
    """Reads `stored`, guarded by `breaker`; a run older than `max_age_ms` answers nobody."""

    def __init__(self, stored: StoredPredictions, breaker: Breaker, max_age_ms: int) -> None:
        self._stored, self._breaker, self._max_age_ms = stored, breaker, max_age_ms
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="stored")
        self._asked = 0

    async def etas(self, restaurants: Sequence[int], now: int, wait: Patience) -> StoredEtas:
        """What is stored for these restaurants at `now` (ms). Raises Unavailable, saying why."""
        hour = now // _HOUR_MS % 24
        run, minutes = await self.ask(lambda stored: stored.etas(restaurants, hour), wait)
        return StoredEtas(self._fresh(run, now), now, hour, minutes)

    async def run(self, now: int, wait: Patience) -> Run:
        """The run that answers. Raises Unavailable, saying why there is none."""
        return self._fresh(await self.ask(lambda stored: stored.current(ETA), wait), now)

    async def ask(self, question: Callable[[StoredPredictions], T], wait: Patience) -> T:
        """The answer of a question to the tables, from another thread. Raises Unavailable."""
        return await self._breaker.run(lambda: wait(self._submit(question)))

    def close(self) -> None:
        """Ask nothing more; a question that hangs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._stored.close()

    def _submit(self, question: Callable[[StoredPredictions], T]) -> "asyncio.Future[T]":
        if self._asked >= MAX_ASKED:
            raise Unavailable(f"stored predictions: {MAX_ASKED} questions are waiting already")
        self._asked += 1
        loop = asyncio.get_running_loop()
        future = self._threads.submit(question, self._stored)
        # When the thread is done with it, not when its asker has given up.
        future.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(self._answered))
        return asyncio.wrap_future(future)

    def _answered(self) -> None:
        self._asked -= 1

    def _fresh(self, run: Run | None, now: int) -> Run:
        if run is None:
            raise Unavailable("no run was published yet: `tiffin batch-predict` makes one")
        if now - run.as_of_ms > self._max_age_ms:
            hours = self._max_age_ms // _HOUR_MS
            raise Unavailable(f"run {run.run_id} is of {iso(run.as_of_ms)}, more than {hours} hours ago")
        return run
