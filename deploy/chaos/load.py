"""The load: events published without pause, again when it is not known whether they came, every tenth batch twice."""

import random
import threading
import time

from deploy.chaos import ChaosError
from deploy.chaos.events import EventMaker
from feature_repo.clock import Clock
from ingestion.log import EventLog, LogUnavailable, Message

EVENTS_A_SECOND = 250
TWICE_EVERY = 10
RUSH = 2000
_RETRY_S = 0.2
_GIVE_UP_S = 120.0


class Load(threading.Thread):
    """Publishes until `finish`. Afterwards `acknowledged` holds each (topic, bytes) that the log has acknowledged."""

    def __init__(self, log: EventLog, clock: Clock, seed: int) -> None:
        super().__init__(name="load", daemon=True)
        self._log, self._clock, self._maker = log, clock, EventMaker(random.Random(seed))
        self._finish = threading.Event()
        self._rush_at: float | None = None
        self._failure: Exception | None = None
        self.acknowledged: set[tuple[str, bytes]] = set()
        self.retries = 0

    def run(self) -> None:
        """Publish batches at the load's rate, or as fast as the log takes them."""
        number = 0
        try:
            while not self._finish.is_set():
                began = time.monotonic()
                if self._rush_at is not None and began >= self._rush_at:
                    self._rush_at = None
                    self._send(*self._maker.rush(self._clock(), RUSH), times=1)
                topic, messages = self._maker.batch(self._clock())
                self._send(topic, messages, times=2 if number % TWICE_EVERY == 0 else 1)
                number += 1
                self._finish.wait(max(0.0, began + len(messages) / EVENTS_A_SECOND - time.monotonic()))
        except Exception as error:
            self._failure = error

    def finish(self) -> None:
        """Stop after the present batch. Raises what the load failed with."""
        self.abandon()
        self.join()
        self.check()

    def abandon(self) -> None:
        """Stop, sooner or later."""
        self._finish.set()

    def rush(self, after: float = 0) -> None:
        """Many orders at once, so many seconds from now: workers will have their hands full."""
        self._rush_at = time.monotonic() + after

    def wait_rush(self, seconds: float) -> None:
        """Wait until the rush begins, but not longer than so many seconds."""
        deadline = time.monotonic() + seconds
        while self._rush_at is not None and time.monotonic() < deadline:
            time.sleep(0.005)

    def check(self) -> None:
        """Raise what the load failed with, if it did."""
        if self._failure is not None:
            raise self._failure

    def _send(self, topic: str, messages: list[Message], times: int) -> None:
        """Publish a batch so many times; what was acknowledged is noted, what is given up at the end is not."""
        if all(self._published(topic, messages) for _ in range(times)):
            self.acknowledged.update((topic, message.value) for message in messages)

    def _published(self, topic: str, messages: list[Message]) -> bool:
        deadline = time.monotonic() + _GIVE_UP_S
        while not self._finish.is_set():
            try:
                self._log.publish(topic, messages)
            except LogUnavailable as error:
                self.retries += 1
                if time.monotonic() > deadline:
                    raise ChaosError(f"the log took no batch for {_GIVE_UP_S:.0f} s: {error}") from error
                time.sleep(_RETRY_S)
            else:
                return True
        return False
