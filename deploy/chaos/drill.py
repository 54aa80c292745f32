"""The drill from its start to its figures."""

import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from typing import Any

from feast import FeatureStore

from deploy.chaos.comparison import read_at_several, wait_folded
from deploy.chaos.figures import ZERO, Evidence, judged, say
from deploy.chaos.guard import guarded_home
from deploy.chaos.honesty import Watcher
from deploy.chaos.killer import Killer, planned
from deploy.chaos.load import Load
from deploy.chaos.reader import FeatureReader
from deploy.chaos.system import System
from deploy.chaos.truth import archived_count, parsing_count, read_log
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
READING_S = (10.0, 70.0)
_CLOCK_SLACK_MS = 1000


def chaos(kills: int, seed: int, keep: bool = False, clock: Clock = wall_clock) -> dict[str, Any]:
    """Run a drill of so many kills; its figures (see `Figures.as_json`).

    Everything runs in a temporary folder on ports of its own, and is ended whatever happens; the folder stays with
    `keep`, and where figures that must be 0 are not, or the drill fails. Raises ChaosError, ServiceError, or ValueError
    for fewer kills than there are kinds.
    """
    plan, began = planned(kills, random.Random(seed)), time.monotonic()
    with guarded_home() as home:
        system = System(home.path, seed)
        try:
            with system.settings() as given:
                with redirect_stdout(sys.stderr):  # standard output is for the figures
                    apply_definitions(given)
                store = open_store(given)
                views = stream_views(store.list_stream_feature_views())
                with system.servers(), closing(_Drill(given, store, views, system, seed, clock)) as drill:
                    evidence = drill.run(plan)
                say("comparing with the log")
                figures = judged(given, store, views, Counter(plan), evidence)
        except Exception:
            say(f"what the processes said is in {home.path}")
            home.keep()
            raise
        found = figures.as_json() | {"seed": seed, "seconds": round(time.monotonic() - began)}
        figures.explain()
        if keep or any(found[name] for name in ZERO):
            say(f"what the processes said is in {home.path}")
            home.keep()
        return found


class _Drill:
    """One drill, over servers that run."""

    def __init__(
        self,
        given: Settings,
        store: FeatureStore,
        views: Sequence[StreamView],
        system: System,
        seed: int,
        clock: Clock,
    ) -> None:
        self._given, self._views, self._system, self._seed, self._clock = given, views, system, seed, clock
        self._clients = (connect(given), connect(given))  # one a thread that reads
        self._reader, watching = (FeatureReader(client, store.project) for client in self._clients)
        self._log: EventLog = open_log(given)
        self._load = Load(self._log, clock, seed)
        self._watcher = Watcher(watching, views, clock, seed)

    def run(self, plan: Sequence[str]) -> Evidence:
        """Load and kills; then the rest of the work done in peace, and what there is to see."""
        self._log.create_topics(TOPICS, self._given.partitions)
        self._system.start()
        self._wait_folded(READY_S)
        self._load.start()
        self._watcher.start()
        kill_seconds = self._kill(plan)
        self._load.finish()
        say("the load has ended: waiting until all of it is folded")
        self._wait_folded(FOLDED_S)
        self._watcher.finish()
        say("reading every entity at several instants")
        least, most = READING_S
        seconds = min(most, max(least, kill_seconds / 8))
        served = list(read_at_several(self._reader, self._views, self._clock, seconds))
        records = read_log(self._log, TOPICS)
        self._wait_archived(parsing_count(records))
        counts = {
            "reads": self._watcher.reads,
            "unavailable": self._watcher.unavailable,
            "fresh": len(self._watcher.sightings),
            "published_again": self._load.retries,
            "workers": len(self._system.workers),
            "died_unkilled": {keeper.process.name: keeper.died for keeper in self._system.keepers if keeper.died},
        }
        return Evidence(records, self._load.acknowledged, served, self._watcher.sightings, counts)

    def close(self) -> None:
        """Let load and watcher end, and give up the connections."""
        self._load.abandon()
        self._watcher.abandon()
        self._log.close()
        for client in self._clients:
            client.close()

    def _kill(self, plan: Sequence[str]) -> float:
        killer = Killer(self._system, self._load, random.Random(self._seed + 1))
        began = time.monotonic()
        # When what was killed lies beside what the processes say.
        with bar("killing") as advance, (self._given.repo.parent / "kills.log").open("a", buffering=1) as kept:
            for number, kind in enumerate(plan):
                killer.wait()
                kept.write(f"{iso(self._clock())} {kind}\n")
                killer.strike(kind)
                advance(number + 1, len(plan))
        return time.monotonic() - began

    def _wait_folded(self, seconds: float) -> None:
        """Wait until all that is in the log by now is folded."""
        wait_folded(self._reader, self._views, self._clock, self._clock() + _CLOCK_SLACK_MS, seconds)

    def _wait_archived(self, due: int) -> None:
        """Give the archive time to have so many rows: what it then lacks is lost."""
        deadline = time.monotonic() + ARCHIVED_S
        while archived_count(self._given) < due and time.monotonic() < deadline:
            time.sleep(1.0)
