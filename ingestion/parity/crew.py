"""The workers of a story: real ones, and what comes between them and the store.

All that stories know of `ingestion.worker` is here.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from feature_repo.clock import Clock
from feature_repo.stores.redis_client import STORE_DOWN
from feature_repo.stores.stream_store import StreamStore
from feature_repo.views import StreamView
from ingestion.folding import LostPartition
from ingestion.log import EventLog, LogUnavailable
from ingestion.parity.story import WORKERS, Interruption, Step
from ingestion.worker import Worker

_INTERRUPTED = (LogUnavailable, LostPartition, *STORE_DOWN)  # what a worker recovers from
_EVERYTHING = 5000
_ROUNDS = 50


class _Death(BaseException):
    """A worker's process ends here."""


class _Shaken:
    """A `StreamStore` whose calls are counted, so that something can happen at one of them."""

    def __init__(self, store: StreamStore) -> None:
        self._store = store
        self._calls, self._at, self._after = 0, -1, False
        self._happen: Callable[[], None] = lambda: None

    def shake(self, interruption: Interruption | None, happen: Callable[[], None]) -> None:
        """From now on, count calls anew; `happen` is called at the one that `interruption` names."""
        self._calls, self._happen = 0, happen
        self._at, self._after = (interruption.call, interruption.after) if interruption else (-1, False)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not callable(method):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            number, self._calls = self._calls, self._calls + 1
            if number == self._at and not self._after:
                self._happen()
            answer = method(*args, **kwargs)
            if number == self._at and self._after:
                self._happen()
            return answer

        return call


class Crew:
    """Up to `WORKERS` workers on one log and one store, each of which folds every partition. None is there at first."""

    def __init__(self, log: EventLog, store: StreamStore, views: Sequence[StreamView], clock: Clock) -> None:
        self._log, self._views, self._clock = log, views, clock
        self._stores = [_Shaken(store) for _ in range(WORKERS)]
        self._workers: list[Worker | None] = [None] * WORKERS

    def step(self, step: Step) -> None:
        """Make one worker's step, with its interruption. A worker that is not there begins."""
        who, what = step.worker, step.interruption
        self._stores[who].shake(what, lambda: self._happen(step))
        try:
            self._attempt(who, lambda worker: worker.step(timeout_ms=0, max_records=step.max_records))
        except _Death:
            self._workers[who] = None
        finally:
            self._stores[who].shake(None, lambda: None)

    def leave(self, who: int, hands_over: bool) -> None:
        """A worker ends: closed, or just gone."""
        if hands_over and self._workers[who] is not None:
            self._attempt(who, lambda worker: worker.close())
        self._workers[who] = None

    def settle(self) -> None:
        """Let the first worker fold all there is, until it finds nothing new, and say so."""
        quiet = 0
        for _ in range(_ROUNDS):
            found = self._attempt(0, lambda worker: worker.step(timeout_ms=0, max_records=_EVERYTHING))
            self.write_progress()
            quiet = quiet + 1 if found == 0 else 0
            if quiet == 2:  # in the first, it may have seen that another has been further, and let a partition go
                break

    def write_progress(self) -> None:
        """The first worker says how far it is."""
        self._attempt(0, lambda worker: worker.write_progress())

    def close(self) -> None:
        """End those that are there."""
        for who in range(WORKERS):
            self.leave(who, hands_over=True)

    def _attempt(self, who: int, do: Callable[[Worker], int | None]) -> int | None:
        """What a worker's own loop does: go on with what is stored, whatever the error was. None if there was one."""
        try:
            return do(self._there(who))
        except _INTERRUPTED as error:
            self._there(who).recover(error)
            return None

    def _there(self, who: int) -> Worker:
        worker = self._workers[who]
        if worker is None:
            store = cast(StreamStore, self._stores[who])
            worker = Worker(self._log, store, self._views, self._clock, group=None)
            self._workers[who] = worker
        return worker

    def _happen(self, step: Step) -> None:
        assert step.interruption is not None
        match step.interruption.what:
            case "rival":
                self.step(Step(1 - step.worker, _EVERYTHING))  # so it comes further
            case "fails":
                raise STORE_DOWN[0]("the store does not answer")
            case "dies":
                raise _Death
