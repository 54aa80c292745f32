"""The ladder under load: what predictions stand on is stopped, frozen, killed and taken away, and brought back.

All through it requests are made. Each phase waits until the rung that it should lead to answers, then holds that for
some seconds, in which no other rung may answer. At no time may a request end in anything but an answer, or a 503 where
there is nothing left to answer from.
"""

import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from deploy.bootstrap import CITY_SEED
from deploy.processes import Process, wait
from deploy.servers import ValkeyServer
from deploy.whole_system import Say, whole_system
from feature_repo.settings import Settings
from ingestion.city import City

NOTHING_LEFT = "503"
_TURN_S = 60.0
_THREADS = 4
_TIMEOUT_S = 30.0


class LadderError(RuntimeError):
    """The ladder did not do what it should; says in which phase."""


@dataclass
class Phase:
    """What was answered in a phase, before it settled and after: how often by which rung, after how many seconds."""

    name: str
    turning: Counter[str] = field(default_factory=Counter)
    turning_s: list[float] = field(default_factory=list)
    settled: Counter[str] = field(default_factory=Counter)
    settled_s: list[float] = field(default_factory=list)


class Load:
    """Threads that ask for predictions all the time, and tally the answers of the present phase."""

    def __init__(self, url: str, restaurants: Sequence[int]) -> None:
        self._url, self._restaurants = url, restaurants
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._phase, self._settled = Phase("start"), False
        self._threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(_THREADS)]
        self.last = ""
        """The rung of the last answer, or its status."""

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def turn(self, name: str) -> Phase:
        """Begin a phase."""
        with self._lock:
            self._phase, self._settled = Phase(name), False
            return self._phase

    def settle(self) -> None:
        """From now on only one rung may answer."""
        with self._lock:
            self._settled = True

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=_TIMEOUT_S) as http:
            place = number
            while not self._stop.is_set():
                with self._lock:
                    phase, settled = self._phase, self._settled
                begun = time.monotonic()
                answer = http.get(f"/v1/eta/{self._restaurants[place % len(self._restaurants)]}")
                took = time.monotonic() - begun
                said = answer.json()["mode"] if answer.status_code == 200 else str(answer.status_code)
                with self._lock:
                    if phase is not self._phase:  # it was under way when things changed
                        phase, settled = self._phase, False
                    (phase.settled if settled else phase.turning)[said] += 1
                    (phase.settled_s if settled else phase.turning_s).append(took)
                    self.last = said
                place += _THREADS


def climb(given: Settings, valkey: ValkeyServer, home: Path, restaurants: Sequence[int], hold_s: float) -> list[Phase]:
    """Go down and up the ladder; the phases. Stored predictions must be in SQLite, and everything but Kafka run here.

    Raises LadderError if a phase does not come to the rung that it should, another answers then, or a request fails.
    """
    worker = Process("worker", home / "worker", [sys.executable, "-m", "tiffin", "worker"])
    api = Process("serve", home / "serve", [sys.executable, "-m", "tiffin", "serve"])
    url = f"http://{given.host}:{given.port}"
    database = given.data / "predictions.db"
    turns: Sequence[tuple[str, Callable[[], object], str]] = (
        ("all is well", lambda: None, "streaming"),
        ("worker stopped", worker.stop, "batch_features"),
        ("worker back", worker.start, "streaming"),
        ("online store frozen", valkey.pause, "stored"),
        ("online store killed", valkey.kill, "stored"),
        ("stored table gone too", lambda: _rename(database, "tiffin_etas", "gone"), NOTHING_LEFT),
        ("stored table back", lambda: _rename(database, "gone", "tiffin_etas"), "stored"),
        ("online store back", valkey.start, "streaming"),
    )
    with _running(worker, api):
        if not wait(lambda: _answers(url), _TURN_S):
            raise LadderError(f"the API does not answer: see {api.log}")
        phases = []
        with Load(url, restaurants) as load:
            for name, act, expected in turns:
                phases.append(_turn(load, name, act, expected, hold_s))
    return phases


def _turn(load: Load, name: str, act: Callable[[], object], expected: str, hold_s: float) -> Phase:
    phase = load.turn(name)
    act()
    if not wait(lambda: load.last == expected and phase.turning[expected] >= 2 * _THREADS, _TURN_S):
        raise LadderError(f"{name}: {expected} was expected to answer, it was {dict(phase.turning)}")
    load.settle()
    time.sleep(hold_s)
    if set(phase.settled) != {expected}:
        raise LadderError(f"{name}: only {expected} may answer, it was {dict(phase.settled)}")
    allowed = {"streaming", "batch_features", "stored", *([NOTHING_LEFT] if "table" in name else [])}
    if name not in ("all is well", "stored table back") and set(phase.turning) - allowed:
        raise LadderError(f"{name}: on the way there were {dict(phase.turning)}")
    return phase


def ladder(say: Say, hold_s: float) -> dict[str, Any]:
    """The ladder climbed on a system of its own: of each phase the answers by rung, and the longest waits in ms.

    Raises LadderError.
    """
    with tempfile.TemporaryDirectory(prefix="tiffin-ladder-") as folder, whole_system(Path(folder), say) as system:
        given, valkey = system
        restaurants = [r.restaurant_id for r in City.build(CITY_SEED).restaurants]
        phases = climb(given, valkey, Path(folder), restaurants, hold_s)
        budget = given.budget_ms
    shown = {
        phase.name: {
            "on_the_way": dict(phase.turning),
            "on_the_way_ms_max": _ms(phase.turning_s, 1.0),
            "settled": dict(phase.settled),
            "settled_a_second": round(len(phase.settled_s) / hold_s),
            "settled_ms_p50": _ms(phase.settled_s, 0.5),
            "settled_ms_p99": _ms(phase.settled_s, 0.99),
            "settled_ms_max": _ms(phase.settled_s, 1.0),
        }
        for phase in phases
    }
    return {"budget_ms": budget, "phases": shown}


def _ms(seconds: Sequence[float], quantile: float) -> float:
    """A quantile of times, in ms."""
    return round(1000 * sorted(seconds)[min(len(seconds) - 1, int(quantile * len(seconds)))], 1)


@contextmanager
def _running(*processes: Process) -> Iterator[None]:
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            process.stop()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/live", timeout=1.0).status_code == 200
    except httpx.HTTPError:
        return False


def _rename(database: Path, table: str, name: str) -> None:
    with closing(sqlite3.connect(database, timeout=_TIMEOUT_S)) as connection, connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO {name}")
