"""The drill from its start to its figures."""

import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from feast import FeatureStore

from deploy.chaos.comparison import Comparison, compare_history, compare_online, read_at_several, wait_folded
from deploy.chaos.guard import guarded_home
from deploy.chaos.honesty import Judge, Sighting, Watcher
from deploy.chaos.killer import Killer, planned
from deploy.chaos.load import Load
from deploy.chaos.reader import FeatureReader
from deploy.chaos.system import System
from deploy.chaos.truth import Truth, archived_count, compare_archive, parsing_count, read_log
from feature_repo.clock import Clock, iso, wall_clock
from feature_repo.feast_quietly import apply_definitions, open_store
from feature_repo.progress_bar import bar
from feature_repo.settings import Settings
from feature_repo.stores.redis_client import connect
from feature_repo.views import StreamView, stream_views
from ingestion.events import TOPICS
from ingestion.log import EventLog, open_log

READY_S = 120.0
FOLDED_S = 300.0
ARCHIVED_S = 120.0
SHOWN = 10
_CLOCK_SLACK_MS = 1000

ZERO = ("lost", "duplicated", "mismatches", "dishonest", "archive_wrong", "dead_letters_missing")
"""The figures of a drill that must be 0."""


@dataclass
class Figures:
    """What a drill has found; see `as_json` for what the figures count."""

    kills: Counter[str]
    seed: int
    seconds: float = 0.0
    events: int = 0
    records: int = 0
    lost: int = 0
    duplicated: int = 0
    archive_wrong: int = 0
    dead_letters_missing: int = 0
    online: Comparison = field(default_factory=Comparison)
    history: Comparison = field(default_factory=Comparison)
    dishonest: Sequence[Sighting] = ()
    more: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The figures by name.

        `events` are the distinct ones in the log, `records` all that lies there. `lost`: records that the archive does
        not have, and acknowledged events that the log does not have; `duplicated`: offsets that the archive has more
        than once; `archive_wrong`: archived rows that are not what lies in the log. `mismatches`: features, online or
        from history, that are not what the log says, of `checks`, of which `nonempty` were neither null nor 0.
        `dishonest`: of the entities read during the drill and served as computed (`fresh`), those that no prefix of the
        log gives; of `decided` every feature could be decided. `unavailable` of the `reads` met no Redis.
        """
        both = (self.online, self.history)
        return {
            "kills": self.kills.total(),
            "events": self.events,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "mismatches": sum(len(each.mismatches) for each in both),
            "dishonest": len(self.dishonest),
            "archive_wrong": self.archive_wrong,
            "dead_letters_missing": self.dead_letters_missing,
            "checks": sum(each.checks for each in both),
            "nonempty": sum(each.nonempty for each in both),
            "instants": len(self.history.instants),
            "records": self.records,
            "kinds": dict(sorted(self.kills.items())),
            "seed": self.seed,
            "seconds": round(self.seconds),
            **self.more,
        }


def chaos(kills: int, seed: int, keep: bool = False, clock: Clock = wall_clock) -> dict[str, Any]:
    """Run a drill of so many kills; its figures (see `Figures.as_json`).

    Everything runs in a temporary folder on ports of its own, and is ended whatever happens; the folder stays with
    `keep`, and where figures that must be 0 are not, or the drill fails. Raises ChaosError, ServiceError, or ValueError
    for fewer kills than there are kinds.
    """
    plan = planned(kills, random.Random(seed))
    began = time.monotonic()
    with guarded_home() as home:
        system = System(home.path, seed)
        try:
            with system.settings() as given, system.servers():
                drill = _Drill(given, system, seed, clock)
                try:
                    figures = drill.run(plan)
                finally:
                    drill.close()
        except Exception:
            _say(f"what the processes said is in {home.path}")
            home.keep()
            raise
        figures.seconds = time.monotonic() - began
        found = figures.as_json()
        _explain(figures)
        if keep or any(found[name] for name in ZERO):
            _say(f"what the processes said is in {home.path}")
            home.keep()
        return found


class _Drill:
    """One drill, over servers that run."""

    def __init__(self, given: Settings, system: System, seed: int, clock: Clock) -> None:
        with redirect_stdout(sys.stderr):  # standard output is for the figures
            apply_definitions(given)
        self._given, self._system, self._seed, self._clock = given, system, seed, clock
        self._store: FeatureStore = open_store(given)
        self._views: tuple[StreamView, ...] = stream_views(self._store.list_stream_feature_views())
        self._clients = (connect(given), connect(given))  # one a thread that reads
        self._reader = FeatureReader(self._clients[0], self._store.project)
        self._log: EventLog = open_log(given)

    def run(self, plan: Sequence[str]) -> Figures:
        """Load, kills, and what became of it."""
        self._log.create_topics(TOPICS, self._given.partitions)
        self._system.start()
        wait_folded(self._reader, self._views, self._clock, self._clock(), READY_S)
        load = Load(self._log, self._clock, self._seed)
        watching = FeatureReader(self._clients[1], self._store.project)
        watcher = Watcher(watching, self._views, self._clock, self._seed)
        load.start()
        watcher.start()
        kill_seconds = self._kill(plan, load)
        load.finish()
        _say("the load has ended: waiting until all of it is folded")
        wait_folded(self._reader, self._views, self._clock, self._clock() + _CLOCK_SLACK_MS, FOLDED_S)
        watcher.finish()
        figures = Figures(Counter(plan), self._seed)
        _say("reading every entity at several instants")
        served = list(read_at_several(self._reader, self._views, self._clock, min(70.0, max(10.0, kill_seconds / 8))))
        _say("comparing with the log")
        truth = Truth(read_log(self._log, TOPICS))
        figures.events, figures.records = truth.events, sum(map(len, truth.records.values()))
        self._compare_archive(truth, figures)
        figures.lost += truth.lost_of(load.acknowledged)
        figures.dead_letters_missing = truth.dead_letters_missing()
        figures.online = compare_online(served, truth)
        figures.history = compare_history(self._store, self._views, figures.online.instants, truth)
        verdict = Judge(truth).verdict(watcher.sightings)
        figures.dishonest = verdict.dishonest
        figures.more = {
            "reads": watcher.reads,
            "unavailable": watcher.unavailable,
            "fresh": len(watcher.sightings),
            "decided": verdict.decided,
            "published_again": load.retries,
            "workers": len(self._system.workers),
            "died_unkilled": sum(keeper.died for keeper in self._system.keepers),
        }
        return figures

    def close(self) -> None:
        """Give up the connections."""
        self._log.close()
        for client in self._clients:
            client.close()

    def _kill(self, plan: Sequence[str], load: Load) -> float:
        killer = Killer(self._system, load, random.Random(self._seed + 1))
        began = time.monotonic()
        with bar("killing") as advance:
            for number, kind in enumerate(plan):
                killer.wait()
                killer.strike(kind)
                _note(self._given, self._clock(), kind)
                advance(number + 1, len(plan))
        return time.monotonic() - began

    def _compare_archive(self, truth: Truth, figures: Figures) -> None:
        due, deadline = parsing_count(truth.records), time.monotonic() + ARCHIVED_S
        while archived_count(self._given) < due and time.monotonic() < deadline:
            time.sleep(1.0)
        archived = compare_archive(self._given, truth.records)
        figures.lost, figures.duplicated, figures.archive_wrong = archived.lost, archived.duplicated, archived.wrong


def _note(given: Settings, now: int, kind: str) -> None:
    """Keep when what was killed, beside what the processes have said."""
    with (given.repo.parent / "kills.log").open("a") as file:
        file.write(f"{iso(now)} {kind}\n")


def _explain(figures: Figures) -> None:
    """The first of what is wrong, one a line."""
    for side in (figures.online, figures.history):
        for wrong in side.mismatches[:SHOWN]:
            _say(
                f"{wrong.side}: {wrong.feature} of {wrong.ids} at {iso(wrong.instant)} is {wrong.found}, "
                f"the log says {wrong.truth}"
            )
    for seen in figures.dishonest[:SHOWN]:
        _say(
            f"dishonest: {seen.view.name} of {seen.ids} at {iso(seen.instant)} was served as {dict(seen.values)} "
            f"(asked at {iso(seen.asked)}, answered at {iso(seen.answered)}): no prefix of the log gives this"
        )


def _say(text: str) -> None:
    sys.stderr.write(f"chaos: {text}\n")
