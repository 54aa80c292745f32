"""A drill on recorded history: its events through log, worker and store again, on one clock, and predictions asked.

Producer, worker and API share a clock that starts at the drill's first instant and runs `rate` times as fast.
Before an order's event is published, a prediction is asked for over HTTP; what came true is compared at the end.
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from deploy.environment import settings_named
from deploy.stack import Stack, running
from feature_repo.clock import Clock, clock_of, from_ms, to_ms
from feature_repo.feast_quietly import open_store
from feature_repo.settings import Settings, settings
from ingestion.events import EVENT_TYPES, TOPICS, event_key
from ingestion.importer import events_of
from ingestion.log import EventLog, Message, open_log
from ingestion.push import post_json
from models.dataset import Dataset, build
from models.registry import Registry

WARM_UP_MS = 4 * 3_600_000
"""Events this long before the start are replayed too, so that windows are full and couriers known."""
ASKED_AHEAD_SECONDS = 0.05
"""A prediction is asked so much real time before its order: the answer's instant must come before it."""
READY_SECONDS = 30.0
"""Real time that worker and API have before the clock shows the drill's start."""
_DAY_MS = 86_400_000
_LATEST_LABEL_MS = 4 * 3_600_000
_PROCESSES = (("worker",), ("serve",))
SERVICE = "eta_streaming"


class DrillError(RuntimeError):
    """The drill did not do what it says."""


@dataclass
class Outcome:
    """What a drill saw: the answers by order, and how far the producer was behind the clock (ms of the drill)."""

    published: int = 0
    answers: dict[str, Any] = field(default_factory=dict)
    problems: Counter[int] = field(default_factory=Counter)
    behind_ms: list[int] = field(default_factory=list)
    materialized_day: int | None = None
    nightly: list[subprocess.Popen[bytes]] = field(default_factory=list)


def drill(file: Path, mapping: Path, start_ms: int, end_ms: int, rate: float) -> dict[str, Any]:
    """Replay the events of `start_ms` <= t < `end_ms` of an import's source (ms since the epoch); the figures.

    Definitions, batch features and models must be in place (`tiffin apply`, `import`, `batch-features`, `train`).
    """
    until = end_ms + _LATEST_LABEL_MS
    events = list(events_of(settings(), file, mapping, after_ms=start_ms - WARM_UP_MS, until_ms=until))
    labels = {e["order_id"]: _minutes(e) for topic, e in events if topic == "order_delivered"}
    outcome = Outcome()
    with _drill_clock(start_ms, rate) as (given, clock):
        log = open_log(given)
        log.create_topics(TOPICS, given.partitions)
        with running(given, _PROCESSES) as stack:
            for topic, event in events:
                at = _time(topic, event)
                if at >= end_ms:
                    break
                asked = topic == "order_placed" and at >= start_ms and event["order_id"] in labels
                _replay(log, stack, clock, outcome, topic, event, given if asked else None)
        log.close()
        if any(job.wait(60) for job in outcome.nightly):
            raise DrillError(
                "materializing at midnight failed: the predictions after it used yesterday's batch features"
            )
        return _figures(given, outcome, labels, start_ms, end_ms)


def _replay(
    log: EventLog,
    stack: Stack,
    clock: Clock,
    outcome: Outcome,
    topic: str,
    event: dict[str, Any],
    ask: Settings | None,
) -> None:
    """Wait for the event's time, ask for a prediction if it is an order to ask for, then publish the event."""
    at = _time(topic, event)
    if ask is not None:
        _wait(clock, at - round(ASKED_AHEAD_SECONDS * 1000 * ask.clock_rate))
        if not outcome.answers and not outcome.problems:
            stack.wait_ready()
        if at // _DAY_MS != outcome.materialized_day:  # what the nightly job would do
            outcome.materialized_day = at // _DAY_MS
            command = [sys.executable, "-m", "tiffin", "materialize"]
            job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            outcome.nightly.append(job)
        order = {"restaurant_id": event["restaurant_id"], "order_id": event["order_id"]}
        status, answer = post_json(ask, "/v1/eta", order)
        if status == 200:
            outcome.answers[event["order_id"]] = answer
        else:
            outcome.problems[status] += 1
    _wait(clock, at)
    if ask is not None:
        outcome.behind_ms.append(clock() - at)
    message = Message(event_key(topic, event), msgspec.json.encode(event))
    log.publish(topic, [message], append_ms=clock())
    outcome.published += 1


def _figures(
    given: Settings, outcome: Outcome, labels: Mapping[str, float], start_ms: int, end_ms: int
) -> dict[str, Any]:
    """The drill in numbers; errors in minutes. `offline_mae`: the same model and orders, by features from history."""
    dataset = build(open_store(given), given, SERVICE, from_ms(start_ms), from_ms(end_ms))
    if not outcome.answers:
        raise DrillError(f"no order was answered ({dict(outcome.problems)}): there is nothing to compare")
    asked = dataset.take(np.array([order in outcome.answers for order in dataset.order_id]))
    orders = asked.order_id.tolist()  # without those whose label is impossible, as in training
    median, _ = Registry(given.data / "models").load(SERVICE).predict(asked.matrix)
    true = np.array([labels[order] for order in orders])
    eta = np.array([outcome.answers[order]["eta_minutes"] for order in orders])
    p90 = np.array([outcome.answers[order]["eta_minutes_p90"] for order in orders])
    return {
        "events": outcome.published,
        "predictions": len(outcome.answers),
        "with_a_label": len(orders),
        "problems": dict(outcome.problems),
        "modes": dict(Counter(outcome.answers[order]["mode"] for order in orders)),
        "mae": round(float(np.abs(eta - true).mean()), 2),
        "rmse": round(float(np.sqrt(((eta - true) ** 2).mean())), 2),
        "p90_coverage": round(float((true <= p90).mean()), 3),
        "offline_mae": round(float(np.abs(median - asked.label).mean()), 2),
        "features_equal_offline": _equal_share(given, outcome, asked),
        "producer_behind_ms_p99": int(np.percentile(outcome.behind_ms, 99)),
    }


def _wait(clock: Clock, until: int) -> None:
    while (ahead := until - clock()) > 0:
        time.sleep(min(0.005, ahead / 1000))


def _equal_share(given: Settings, outcome: Outcome, asked: Dataset) -> dict[str, float]:
    """Of each feature, the share of answers in which it was served as history gives it for the same instant.

    Answers whose instant is not before their order are left out: history has the order by then, the store had not.
    """
    placed = zip(asked.order_id, asked.event_ms, strict=True)
    answers = [
        answer
        for order, instant in placed
        if to_ms(datetime.fromisoformat((answer := outcome.answers[order])["as_of"])) <= instant
    ]
    rows = pd.DataFrame(
        {
            "restaurant_id": [a["restaurant_id"] for a in answers],
            "zone_id": [a["features"]["restaurant_profile__zone_id"]["value"] for a in answers],
            "event_timestamp": pd.to_datetime([a["as_of"] for a in answers], utc=True),
        }
    )
    store = open_store(given)
    service = store.get_feature_service(SERVICE)
    offline = store.get_historical_features(rows, service, full_feature_names=True).to_df()
    shares: dict[str, float] = {"answers": len(answers)}
    for name in answers[0]["features"] if answers else ():
        pairs = zip((a["features"][name]["value"] for a in answers), offline[name], strict=True)
        shares[name] = round(sum(_same(served, known) for served, known in pairs) / len(answers), 4)
    return shares


def _same(served: Any, known: Any) -> bool:
    return bool(pd.isna(known)) if served is None else bool(served == known)


@contextmanager
def _drill_clock(start_ms: int, rate: float) -> Iterator[tuple[Settings, Clock]]:
    """Settings and clock of a drill that shows its start in READY_SECONDS; children take them from the environment."""
    named = {
        "TIFFIN_CLOCK_START": from_ms(start_ms).isoformat(),
        "TIFFIN_CLOCK_ORIGIN": str(time.time() + READY_SECONDS),
        "TIFFIN_CLOCK_RATE": str(rate),
    }
    with settings_named(named) as given:
        yield given, clock_of(given)


def _time(topic: str, event: Mapping[str, Any]) -> int:
    return int(event[EVENT_TYPES[topic].time_field])


def _minutes(event: Mapping[str, Any]) -> float:
    return (int(event["delivered_at"]) - int(event["placed_at"])) / 60_000
