"""The kill drill of stored predictions: batch jobs are killed at random points while readers read all the time.

Two jobs at a time write runs whose rows can be told from those of every other run, by the code that `tiffin
batch-predict` runs; whenever one is killed (SIGKILL) another begins. Readers hold every answer against what the run
that it names must say. Children are forked, so that hundreds of kills take minutes.
"""

import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.sharedctypes import Synchronized
from typing import Any, NamedTuple

from feature_repo.clock import wall_clock
from models.batch_predict import HOURS, Rows, run_chunks
from models.stored import ETA, KINDS, PICKS, Run, RunRefused, StoredPicks, StoredPredictions, StoredUnreachable

JOBS, READERS = 2, 2
CHUNKS, RESTAURANTS, CUSTOMERS, RANKS = 5, 40, 20, 3
_TIMEOUT_S = 30.0
_CALM_S = 30.0
"""The last job, which nobody kills, is done within so long."""

STAGES = ("waiting", "writing", "committing")
POINTS = ("between", *(f"{call} {stage}" for call in ("begin", "write", "publish") for stage in STAGES))
"""Where a job can be: between two calls; waiting to write, in the transaction, or ending it, in each of the calls."""

_context = multiprocessing.get_context("fork")
Point = Synchronized  # of int, an index of POINTS


class DrillError(RuntimeError):
    """The drill could not be carried out."""


class Figures(NamedTuple):
    """What a drill saw. `points` counts the kills by where they fell, `violations` tells what readers saw wrongly."""

    kills: int
    points: dict[str, int]
    runs_published: int
    reads: int
    violations: list[str]
    seconds: float


def made_up_run(kind: str, number: int) -> Run:
    """The run of this number; its name and its model say which it is."""
    version = f"v{number}"
    return Run(f"{kind}-{number}", kind, number * 3_600_000, "drill", version, number, number, started_ms=number)


def restaurants(number: int) -> range:
    """Which restaurants (in an ETA run) or customers (in a run of picks) a run knows: other ones in each."""
    return range(number % 5, number % 5 + RESTAURANTS)


def eta(number: int, restaurant: int, hour: int) -> tuple[float, float]:
    """What a run says of a restaurant in an hour."""
    median = number * 1_000.0 + restaurant + hour / 32
    return median, median + number


def chosen(number: int, customer: int) -> tuple[list[int], list[float]]:
    """What a run picks for a customer; customer -1 is what is popular."""
    return [number * 100 + customer + rank for rank in range(RANKS)], [
        number + 1.0 / (rank + 1) for rank in range(RANKS)
    ]


def rows_of(kind: str, number: int, chunk: int) -> Rows:
    """A chunk of a run: every CHUNKS-th restaurant or customer."""
    if kind == ETA:
        keys = [(r, hour) for r in restaurants(number)[chunk::CHUNKS] for hour in range(HOURS)]
        names = ("restaurant_id", "hour", "eta_minutes", "eta_minutes_p90")
        return {"etas": [dict(zip(names, (*key, *eta(number, *key)), strict=True)) for key in keys]}
    popular = [{"zone_id": None} | line for line in _lines(number, -1)] if chunk == 0 else []
    mine = [{"customer_id": c} | line for c in range(chunk, CUSTOMERS, CHUNKS) for line in _lines(number, c)]
    return {"picks": mine, "popular": popular}


def _lines(number: int, customer: int) -> list[dict[str, Any]]:
    pairs = zip(*chosen(number, customer), strict=True)
    return [{"rank": rank, "restaurant_id": r, "score": score} for rank, (r, score) in enumerate(pairs)]


def row_count(kind: str) -> int:
    """How many rows a run of a kind has."""
    return RESTAURANTS * HOURS if kind == ETA else (CUSTOMERS + 1) * RANKS


class Judge:
    """Holds what a reader gets against what the named run must say; `violations` are its words, one for each."""

    def __init__(self) -> None:
        self.reads = 0
        self.violations: list[str] = []
        self._seen = dict.fromkeys(KINDS, 0)

    def etas(self, run: Run | None, hour: int, found: Mapping[int, tuple[float, float]]) -> None:
        """An answer about every restaurant that any run knows, in an hour."""
        number = self._number(ETA, run)
        expected = {r: eta(number, r, hour) for r in restaurants(number)} if number else {}
        if found != expected:
            wrong = sorted(r for r in found.keys() | expected.keys() if found.get(r) != expected.get(r))
            self.violations.append(f"eta-{number}, hour {hour}: {len(wrong)} rows are wrong, the first of {wrong[0]}")

    def picks(self, customer: int, found: StoredPicks | None) -> None:
        """An answer about a customer, or, -1, about what is popular."""
        number = self._number(PICKS, None if found is None else found.run)
        if found is not None and (found.restaurants, found.scores) != chosen(number, customer):
            self.violations.append(f"picks-{number}, customer {customer}: {found.restaurants}, {found.scores}")

    def _number(self, kind: str, run: Run | None) -> int:
        """Which run this is; 0 for none. It must be whole, published, and none before one that was seen."""
        self.reads += 1
        number = 0 if run is None else int(run.run_id.rpartition("-")[2])
        if number < self._seen[kind]:
            self.violations.append(f"{kind}-{number} was read after {kind}-{self._seen[kind]}")
        self._seen[kind] = max(number, self._seen[kind])
        if run is not None:
            sound = made_up_run(kind, number)._replace(published_ms=run.published_ms, rows=row_count(kind))
            if run != sound or run.published_ms is None:
                self.violations.append(f"{run} is not {sound}, published")
        return number


class _Watched(StoredPredictions):
    """Stored predictions that show, in memory that outlives the process, at which point they are."""

    def __init__(self, url: str, point: "Point[int]") -> None:
        super().__init__(url, _TIMEOUT_S)
        self._point, self._call = point, ""

    def begin(self, run: Run) -> frozenset[int]:
        with self._within("begin"):
            return super().begin(run)

    def write(self, run: Run, chunk: int, rows: Rows) -> None:
        with self._within("write"):
            super().write(run, chunk, rows)

    def publish(self, run: Run, now_ms: int, chunks: int | None = None) -> int:
        with self._within("publish"):
            return super().publish(run, now_ms, chunks)

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        with super()._writing() as connection:
            self._at("writing")
            yield connection
            self._at("committing")

    @contextmanager
    def _within(self, call: str) -> Iterator[None]:
        self._call = call
        self._at("waiting")
        yield
        self._point.value = 0

    def _at(self, stage: str) -> None:
        self._point.value = POINTS.index(f"{self._call} {stage}")


def run_next(stored: StoredPredictions, kind: str) -> int:
    """Do the run after the one that is published, or go on with it; its number."""
    current = stored.current(kind)
    number = 1 if current is None else int(current.model_version[1:]) + 1
    chunks = [partial(rows_of, kind, number, chunk) for chunk in range(CHUNKS)]
    run_chunks(stored, made_up_run(kind, number), chunks, wall_clock)
    return number


def _job(url: str, point: "Point[int]", turn: int) -> None:
    """Runs of each kind in turn, until killed."""
    stored = _Watched(url, point)
    while True:
        with suppress(RunRefused):  # the other job was quicker
            run_next(stored, KINDS[turn % len(KINDS)])
        turn += 1


def _reader(url: str, seed: int, parent: int, report: Connection) -> None:
    """Read until told to stop (or orphaned), then report."""
    stored, judge, dice = StoredPredictions(url, _TIMEOUT_S), Judge(), random.Random(seed)  # noqa: S311
    everyone = list(range(RESTAURANTS + 5))
    while not report.poll() and os.getppid() == parent:
        try:
            hour, customer = dice.randrange(HOURS), dice.randrange(CUSTOMERS)
            judge.etas(*_about(stored, everyone, hour))
            judge.picks(customer, stored.picks(customer))
            judge.picks(-1, stored.popular(None))
        except StoredUnreachable as error:
            judge.violations.append(str(error))
    report.send((judge.reads, judge.violations))


def _about(
    stored: StoredPredictions, everyone: list[int], hour: int
) -> tuple[Run | None, int, dict[int, tuple[float, float]]]:
    run, found = stored.etas(everyone, hour)
    return run, hour, found


def drill(url: str, kills: int, seed: int, say: Callable[[str], None]) -> Figures:
    """Kill so many jobs on the database of `url`, which must hold no runs; then let one end, and look at everything.

    Raises DrillError if the database is in use, or a job ends by itself.
    """
    began = time.monotonic()
    _check_empty(url)
    dice = random.Random(seed)  # noqa: S311
    readers = [_start_reader(url, dice.randrange(2**31)) for _ in range(READERS)]
    jobs: list[tuple[ForkProcess, Point[int]]] = []
    points: Counter[str] = Counter()
    try:
        for killed in range(kills):
            while len(jobs) < JOBS:
                jobs.append(_start_job(url, killed + len(jobs)))
            process, point = jobs.pop(dice.randrange(len(jobs)))
            _wait_for_the_moment(process, point, dice)
            process.kill()
            process.join()
            points[POINTS[point.value]] += 1
            if (killed + 1) % max(1, kills // 10) == 0:
                say(f"{killed + 1} of {kills} kills, {time.monotonic() - began:.0f} s")
    finally:
        for process, _ in jobs:
            process.kill()
            process.join()
    judge = _last_runs(url)
    for process, pipe in readers:
        pipe.send(None)
        if not pipe.poll(_CALM_S):
            process.kill()
            raise DrillError("a reader does not end: a read is not bounded")
        reads, violations = pipe.recv()
        process.join()
        judge.reads += reads
        judge.violations += violations
    stored = StoredPredictions(url, _TIMEOUT_S)
    published = sum(run.published_ms is not None for kind in KINDS for run in stored.history(kind))
    stored.close()
    return Figures(
        kills, dict(points.most_common()), published, judge.reads, judge.violations, time.monotonic() - began
    )


def _check_empty(url: str) -> None:
    stored = StoredPredictions(url, _TIMEOUT_S)
    known = [run for kind in KINDS for run in stored.history(kind)]
    stored.close()  # nothing is open when children are forked
    if known:
        raise DrillError(f"the database holds runs ({known[0].run_id}): the drill needs an empty one of its own")


def _start_job(url: str, turn: int) -> "tuple[ForkProcess, Point[int]]":
    point: Point[int] = _context.Value("i", 0, lock=False)  # bare memory: no lock to die with
    process = _context.Process(target=_job, args=(url, point, turn), daemon=True)
    process.start()
    return process, point


def _start_reader(url: str, seed: int) -> tuple[ForkProcess, Connection]:
    ours, theirs = _context.Pipe()
    process = _context.Process(target=_reader, args=(url, seed, os.getpid(), theirs), daemon=True)
    process.start()
    return process, ours


def _wait_for_the_moment(process: ForkProcess, point: "Point[int]", dice: random.Random) -> None:
    """A random while; every other time until the job is at a point of the dice's, and a moment longer."""
    time.sleep(dice.uniform(0.0, 0.25))
    if dice.random() < 0.5:
        wanted, deadline = dice.randrange(len(POINTS)), time.monotonic() + 5.0
        while point.value != wanted and time.monotonic() < deadline:
            time.sleep(0)
        if dice.random() < 0.5:
            time.sleep(dice.uniform(0.0, 0.002))
    if not process.is_alive():
        raise DrillError(f"a job ended by itself, with exit code {process.exitcode}: what it said stands above")


def _last_runs(url: str) -> Judge:
    """After the last kill a run of each kind is done to its end, and everything in it must be right."""
    judge, stored = Judge(), StoredPredictions(url, _TIMEOUT_S)
    for kind in KINDS:
        number = run_next(stored, kind)
        current = stored.current(kind)
        if current is None or current.run_id != made_up_run(kind, number).run_id:
            judge.violations.append(f"{kind}-{number} was published, and {current} is what readers see")
    for hour in range(HOURS):
        judge.etas(*_about(stored, list(range(RESTAURANTS + 5)), hour))
    for customer in range(CUSTOMERS):
        judge.picks(customer, stored.picks(customer))
    judge.picks(-1, stored.popular(None))
    stored.close()
    return judge
