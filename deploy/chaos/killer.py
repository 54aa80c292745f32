"""Which process is killed when: at random, but each kind of kill at least once."""

import random
import time
from collections.abc import Callable, Sequence

from deploy.chaos import ChaosError
from deploy.chaos.system import SESSION_TIMEOUT_MS, Keeper, System

WEIGHTS = {
    "worker": 30,
    "worker_paused": 9,
    "redis": 25,
    "redis_emptied": 5,
    "kafka": 10,
    "archive": 21,
}
"""The kinds of kills, and how often each comes."""

_MEAN_WAIT_S, _LONGEST_WAIT_S = 3.0, 10.0
_PAUSED_S = (SESSION_TIMEOUT_MS / 1000 + 0.5, SESSION_TIMEOUT_MS / 1000 + 4.0)
_IN_THE_GROUP_S = 8.0  # a worker that has run for so long holds partitions, which a pause makes it lose
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

    def __init__(self, system: System, dice: random.Random) -> None:
        self._system, self._dice = system, dice

    def wait(self) -> None:
        """Wait for a random time: mostly a few seconds, at times hardly at all."""
        time.sleep(min(self._dice.expovariate(1 / _MEAN_WAIT_S), _LONGEST_WAIT_S))

    def strike(self, kind: str, check: Callable[[], None]) -> None:
        """One kill of the kind. Raises ChaosError if what is to be killed stays away, and what `check` raises."""
        system = self._system
        match kind:
            case "worker":
                self._running(system.workers, 0, check).strike()
            case "worker_paused":
                self._running(system.workers, _IN_THE_GROUP_S, check).pause(self._dice.uniform(*_PAUSED_S))
            case "redis" | "redis_emptied":
                self._running([system.valkey], 0, check).strike(empty=kind == "redis_emptied")
            case "kafka":
                self._running([system.kafka], 0, check).strike()
            case "archive":
                self._running([system.archive], 0, check).strike()
            case _:
                raise ValueError(f"{kind}: no such kind of kill")

    def _running(self, keepers: Sequence[Keeper], seconds: float, check: Callable[[], None]) -> Keeper:
        """The one that has been up for longest, once it has been so for so many seconds."""
        deadline = time.monotonic() + _BACK_S
        while True:
            check()
            longest, which = max((keeper.up_seconds or 0.0, i) for i, keeper in enumerate(keepers))
            if longest > seconds:
                return keepers[which]
            if time.monotonic() > deadline:
                names = ", ".join(keeper.process.name for keeper in keepers)
                raise ChaosError(f"{names}: not running again for {_BACK_S:.0f} s")
            time.sleep(0.02)
