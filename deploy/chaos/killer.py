"""Which process is killed when: at random, but each kind of kill at least once."""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial

from deploy.chaos import ChaosError
from deploy.chaos.load import Load
from deploy.chaos.system import SESSION_TIMEOUT_MS, Keeper, System

WEIGHTS = {
    "worker": 26,
    "worker_paused": 14,
    "redis": 18,
    "redis_emptied": 5,
    "redis_rolled_back": 9,
    "kafka": 9,
    "archive": 19,
}
"""The kinds of kills, and how often each comes. A Redis rolled back has lost what was appended to its file last."""

_MEAN_WAIT_S, _LONGEST_WAIT_S = 2.5, 10.0
_LOST_S = SESSION_TIMEOUT_MS / 1000
_PAUSED_S = (0.5, 6.0)  # longer than the session's timeout
_TAKEN_OVER_S = 1.5
_ROLLED_BACK_S = (0.1, 1.0)
_IN_THE_GROUP_S = 8.0  # workers that have run for so long hold partitions; a paused one loses its to the other
_RUSH_S, _INTO_RUSH_S = 3.0, (0.05, 0.35)
_UNSEEN_S = 1.5  # for Redis to come back in; shorter than the session's timeout
_BACK_S = 90.0


def planned(kills: int, dice: random.Random) -> list[str]:
    """So many kinds in random order, every kind at least once. Raises ValueError for fewer kills than kinds."""
    if kills < len(WEIGHTS):
        raise ValueError(f"{kills} kills: fewer than there are kinds ({', '.join(WEIGHTS)}), so some would not be seen")
    kinds = [*WEIGHTS, *dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=kills - len(WEIGHTS))]
    dice.shuffle(kinds)
    return kinds


class Killer:
    """Kills what it finds running: also what has only just come back, and while something else is still down."""

    def __init__(self, system: System, load: Load, dice: random.Random) -> None:
        self._system, self._load, self._dice = system, load, dice

    def wait(self) -> None:
        """Wait for a random time: mostly a few seconds, at times hardly at all."""
        time.sleep(min(self._dice.expovariate(1 / _MEAN_WAIT_S), _LONGEST_WAIT_S))

    def strike(self, kind: str) -> None:
        """One kill of the kind. Raises ChaosError if what is to be killed stays away, and what the load failed with."""
        system, server = self._system, self._system.valkey_server
        match kind:
            case "worker":
                self._at_work(0).strike()
            case "worker_paused":
                self._at_work(_IN_THE_GROUP_S).pause(_LOST_S + self._dice.uniform(*_PAUSED_S))
                self._load.rush(after=_LOST_S + _TAKEN_OVER_S)  # what the one that wakes knows nothing of
            case "redis":
                self._running([system.valkey]).strike()
            case "redis_emptied":
                self._replace(server.empty)
            case "redis_rolled_back":
                self._running([system.valkey])
                earlier = server.appended()
                self._rush_now()
                time.sleep(self._dice.uniform(*_ROLLED_BACK_S))
                self._replace(partial(server.cut, earlier))
            case "kafka":
                self._running([system.kafka]).strike()
            case "archive":
                self._running([system.archive]).strike()
            case _:
                raise ValueError(f"{kind}: no such kind of kill")

    def _replace(self, change: Callable[[], None]) -> None:
        """Kill Redis and bring it back changed: as often as not between two commands of workers that see none of it."""
        valkey, unseen = self._running([self._system.valkey]), self._dice.random() < 0.5
        if unseen:
            for worker in self._system.workers:
                if worker.up_seconds is not None:
                    worker.pause(_UNSEEN_S)
        valkey.strike(change, at_once=unseen)

    def _at_work(self, seconds: float) -> Keeper:
        """A worker, mostly in the middle of a rush: half done is what its end must not leave anything."""
        self._running(self._system.workers, seconds)
        if self._dice.random() < 0.7:
            self._rush_now()
        return self._running(self._system.workers, seconds)

    def _rush_now(self) -> None:
        self._load.rush()
        self._load.wait_rush(_RUSH_S)
        time.sleep(self._dice.uniform(*_INTO_RUSH_S))

    def _running(self, keepers: Sequence[Keeper], seconds: float = 0) -> Keeper:
        """The one that has been up for longest, once all of them have been so for so many seconds, if any."""
        deadline = time.monotonic() + _BACK_S
        while True:
            self._load.check()
            up = [(keeper.up_seconds or 0.0, i) for i, keeper in enumerate(keepers)]
            if max(up)[0] > 0 and min(up)[0] >= seconds:
                return keepers[max(up)[1]]
            if time.monotonic() > deadline:
                names = ", ".join(keeper.process.name for keeper in keepers)
                raise ChaosError(f"{names}: not running again for {_BACK_S:.0f} s")
            time.sleep(0.02)
