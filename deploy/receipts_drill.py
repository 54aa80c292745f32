"""Every answer has a receipt, and every receipt replays: shown under load.

Predictions are asked for as fast as a few clients can, over HTTP. Each answered one must have its receipt in the log,
or be in the counter of what was dropped. Then all of them are audited: first those that were made while no events came,
which must be equal, feature by feature, to what is known now; then again after late events were pushed on purpose,
which must be named; then those that were made while events streamed in.
"""

import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from deploy.bootstrap import CITY_SEED
from deploy.chaos.truth import read_log
from deploy.processes import Process, wait
from deploy.whole_system import Say, whole_system
from feature_repo.clock import clock_of
from feature_repo.settings import Settings
from feature_repo.stores.hindsight import definitions_of
from ingestion.archive import catch_up
from ingestion.city import City
from ingestion.events import ARCHIVED, PREDICTIONS
from ingestion.live_city import WARM_UP_MS
from ingestion.log import open_log
from ingestion.push import api_url, get_json, push_all
from ingestion.simulator import live
from models.hindsight.answers import Answers
from models.hindsight.audit import AuditReport, audit
from models.hindsight.compare import Sources
from models.hindsight.verdicts import Verdict
from models.receipt import prediction_from
from models.registry import Registry
from models.stored import open_stored

CLIENTS = 4
BATCH = 50
LATE_EVENTS = 200
_MINUTE_MS = 60_000
_WAIT_S = 120.0
_TIMEOUT_S = 60.0
_COUNTERS = ("logged", "dropped")


class DrillError(RuntimeError):
    """The drill did not show what it should."""


def receipts(say: Say, count: int) -> dict[str, Any]:
    """`count` predictions under load and a fifth of it while events stream in; the figures. Raises DrillError."""
    with tempfile.TemporaryDirectory(prefix="tiffin-receipts-") as folder, whole_system(Path(folder), say) as system:
        home, (given, _) = Path(folder), system
        processes = [
            Process(words[0], home / words[0], [sys.executable, "-m", "tiffin", *words])
            for words in (("worker",), ("archive", "--every", "20"), ("serve",))
        ]
        try:
            for process in processes:
                process.start()
            return _Drill(given, say).run(count)
        finally:
            for process in processes:
                process.stop()


class _Drill:
    def __init__(self, given: Settings, say: Say) -> None:
        self._given, self._say, self._clock = given, say, clock_of(given)
        self._city = City.build(CITY_SEED)
        self._sources: Sources | None = None
        self._answered = 0

    def run(self, count: int) -> dict[str, Any]:
        if not wait(lambda: self._status() is not None, _WAIT_S):
            raise DrillError("the API does not answer")
        now = self._clock()
        pushed = push_all(self._given, live(self._city, now - WARM_UP_MS, now))
        if not wait(lambda: self._status() == 200, _WAIT_S):
            raise DrillError("predictions cannot be made in the best mode")
        self._say(f"pushed {pushed} events of the last hours; asking for {count} predictions")
        began = self._clock()
        figures: dict[str, Any] = {"quiet": self._load(count)}
        ended = self._clock() + 1
        quiet = self._audit(began, ended)
        figures["quiet"] |= _shown(quiet)
        self._say(f"pushing {LATE_EVENTS} orders that were placed before those predictions")
        self._push_late(began)
        late = self._audit(began, ended)
        figures["after_late_events"] = _shown(late)
        began = self._clock()
        figures["streaming"] = self._load(count // 5, events=True)
        figures["streaming"] |= _shown(self._audit(began, self._clock() + 1))
        self._check(figures)
        return figures

    def _check(self, figures: dict[str, Any]) -> None:
        for name, phase in figures.items():
            if phase["mismatch_ratio"]:
                raise DrillError(f"{name}: features that are not what the log says: {phase}")
        if set(figures["quiet"]["causes"]) - {Verdict.EQUAL.value}:
            raise DrillError(f"without events coming nothing may differ: {figures['quiet']}")
        if not figures["after_late_events"]["causes"].get(Verdict.LATE_EVENT.value):
            raise DrillError(f"late events are not named: {figures['after_late_events']}")

    def _load(self, count: int, events: bool = False) -> dict[str, Any]:
        """Ask for so many predictions; every one answered must be logged or counted as dropped."""
        before, stop = self._counted(), threading.Event()
        pushing = threading.Thread(target=self._push_live, args=(stop,), daemon=True)
        if events:
            pushing.start()
        clients = [_Client(self._given, self._city, count // CLIENTS, seed) for seed in range(CLIENTS)]
        began = time.monotonic()
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        seconds = time.monotonic() - began
        stop.set()
        if events:
            pushing.join()
        ids = [one for client in clients for one in client.ids]
        modes = sum((client.modes for client in clients), Counter[str]())
        problems = sum(client.problems for client in clients)
        waited = wait(lambda: sum(self._counted()) - sum(before) >= len(ids), _WAIT_S)
        logged, dropped = (now - then for now, then in zip(self._counted(), before, strict=True))
        kept = self._logged_ids()
        missing = len(set(ids) - kept)
        if not waited or logged + dropped != len(ids) or missing != dropped:
            raise DrillError(
                f"{len(ids)} answers: {logged:.0f} logged, {dropped:.0f} dropped, but {missing} are not in the log"
            )
        return {
            "predictions": len(ids),
            "modes": dict(modes),
            "problems": problems,
            "a_second": round(len(ids) / seconds),
            "logged": int(logged),
            "dropped": int(dropped),
        }

    def _audit(self, since: int, until: int) -> AuditReport:
        log = open_log(self._given)
        try:
            catch_up(log, self._given, self._clock, list(ARCHIVED))
        finally:
            log.close()
        if self._sources is None:
            from feature_repo.feast_quietly import open_store  # noqa: PLC0415  # Feast takes seconds

            models = Registry(self._given.data / "models")
            self._sources = Sources(
                definitions_of(open_store(self._given)), Answers(models, open_stored(self._given).eta_of_run)
            )
        began = time.monotonic()
        report = audit(self._given, self._sources, since, until)
        self._say(f"audited {report.receipts} predictions in {time.monotonic() - began:.0f} s: {dict(report.causes)}")
        return report

    def _push_late(self, before: int) -> None:
        dice = random.Random(1)
        orders = [
            {
                "event_id": f"late-{i}",
                "order_id": f"late-{i}",
                "restaurant_id": (r := dice.choice(self._city.restaurants)).restaurant_id,
                "zone_id": r.zone_id,
                "customer_id": None,
                "placed_at": before - dice.randrange(_MINUTE_MS),
                "basket_total": 20.0,
                "item_count": 1,
            }
            for i in range(LATE_EVENTS)
        ]
        push_all(self._given, (("order_placed", order) for order in orders))

    def _push_live(self, stop: threading.Event) -> None:
        since = self._clock() - WARM_UP_MS // 16  # again, which changes nothing, and what came since
        while not stop.is_set():
            until = self._clock()
            push_all(self._given, live(self._city, since, until))
            since = until
            stop.wait(0.2)

    def _status(self) -> int | None:
        try:
            return get_json(self._given, "/ready")[0]
        except RuntimeError:
            return None

    def _counted(self) -> tuple[float, float]:
        text = httpx.get(f"{api_url(self._given)}/metrics", timeout=_TIMEOUT_S).text
        found = dict.fromkeys(_COUNTERS, 0.0)
        for line in text.splitlines():
            for name in _COUNTERS:
                if line.startswith(f'tiffin_receipts_total{{outcome="{name}"}}'):
                    found[name] = float(line.rpartition(" ")[2])
        return found["logged"], found["dropped"]

    def _logged_ids(self) -> set[str]:
        log = open_log(self._given)
        try:
            return {prediction_from(record.value).event_id for record in read_log(log, [PREDICTIONS])[PREDICTIONS]}
        finally:
            log.close()


class _Client(threading.Thread):
    """Asks for `count` predictions, one or `BATCH` at a time, as fast as they are answered."""

    def __init__(self, given: Settings, city: City, count: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._url, self._city, self._count, self._dice = api_url(given), city, count, random.Random(seed)
        self.ids: list[str] = []
        self.modes: Counter[str] = Counter()
        self.problems = 0

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=_TIMEOUT_S) as http:
            while self._count > 0:
                orders = self._orders(min(self._count, self._dice.choice((1, BATCH))))
                self._count -= len(orders)
                if len(orders) == 1:
                    self._take([http.post("/v1/eta", content=msgspec.json.encode(orders[0])).json()])
                    continue
                answer = http.post("/v1/eta/batch", content=msgspec.json.encode({"orders": orders})).json()
                self._take([outcome["eta"] or {} for outcome in answer["outcomes"]])

    def _orders(self, count: int) -> list[dict[str, Any]]:
        return [{"restaurant_id": self._dice.choice(self._city.restaurants).restaurant_id} for _ in range(count)]

    def _take(self, answers: Sequence[dict[str, Any]]) -> None:
        for answer in answers:
            if "prediction_id" in answer:
                self.ids.append(answer["prediction_id"])
                self.modes[answer["mode"]] += 1
            else:
                self.problems += 1


def _shown(report: AuditReport) -> dict[str, Any]:
    causes = {verdict.value: count for verdict, count in report.causes.items() if count}
    return {"audited": report.receipts, "compared": report.compared, "causes": causes, "mismatch_ratio": report.ratio}
