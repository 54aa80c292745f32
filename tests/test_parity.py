"""One meaning: what the worker folds and the reader sums is what history says, on random logs with random faults.

Counts must be equal. Sums, means, least, greatest and last values come of the same whole millionths on both sides, so
online they equal the exact fraction rounded once; DuckDB rounds a great sum before it divides, and the root of the
variance is rounded twice more: a few units in the last place, hence the tolerance of `CLOSE`.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from feature_repo.stores.reading import Status
from feature_repo.stores.redis_client import Redis, connect
from feature_repo.windows import floor_hop
from ingestion.events import Event, parse
from ingestion.log import Message
from ingestion.worker import Worker
from tests.repo import (
    COURIERS,
    DELIVERIES,
    HOP,
    ORDERS,
    PRESENCE_TTL,
    START,
    VIEWS,
    WINDOWS,
    Lab,
    Repo,
    applied_repo,
    at,
    courier,
    delivery,
    drain,
    offline,
    order,
    project_objects,
)

CLOSE = 1e-14
RESTAURANTS, ZONES = (1, 2, -9), (3, 4)
Row = tuple[int, int, Event]
"""An event with its partition and offset."""


@pytest.fixture(scope="module")
def repo(valkey: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    with applied_repo(tmp_path_factory.mktemp("repo"), valkey, project_objects()) as made:
        yield made


@pytest.fixture(scope="module")
def client(repo: Repo) -> Iterator[Redis]:
    made = connect(repo.settings)
    yield made
    made.close()


# What happens: the clock moves, events come (in bursts, on edges, early, late, again), workers work, stop and die.
stamps = st.one_of(
    st.just(("now", 0)),
    st.tuples(st.just("now"), st.integers(-3 * HOP, HOP)),  # up to the 60 s that a stamp may be ahead
    st.tuples(st.just("edge"), st.sampled_from([(k, d) for k in range(9) for d in (-1, 0, 1)])),
    st.tuples(st.just("now"), st.integers(-20 * HOP, -7 * HOP)),  # about and beyond the tiles kept
    st.just(("absolute", -1)),
)
baskets = st.one_of(
    st.none(), st.sampled_from([-0.0, 0.0, 0.1, 0.2, 1e9]), st.floats(0, 200), st.floats(0, 1e9), st.integers(0, 50)
)
orders = st.fixed_dictionaries(
    {
        "stamp": stamps,
        "restaurant": st.sampled_from(RESTAURANTS),
        "zone": st.sampled_from(ZONES),
        "basket_total": baskets,
        "item_count": st.one_of(st.none(), st.integers(0, 9), st.integers(0, 10**9)),
        "customer_id": st.one_of(st.none(), st.sampled_from([-(2**63), -1, 0, 1, 2**63 - 1])),
    }
)
couriers = st.fixed_dictionaries(
    {
        "stamp": stamps,
        "who": st.integers(1, 3),
        "zone": st.sampled_from(ZONES),
        "status": st.sampled_from(["available", "busy", "offline"]),
    }
)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("orders"), st.lists(orders, min_size=1, max_size=6)),
        st.tuples(st.just("couriers"), st.lists(couriers, min_size=1, max_size=4)),
        st.tuples(st.just("deliver"), st.tuples(st.integers(0, 10**6), stamps, st.sampled_from(ZONES))),
        st.tuples(st.just("again"), st.integers(0, 10**6)),
        st.tuples(st.just("wait"), st.one_of(st.just(HOP), st.integers(0, 90_000), st.integers(0, 8 * HOP))),
        st.tuples(st.just("wait to the edge"), st.sampled_from([-1, 0, 1])),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("die"), st.booleans()),
        st.tuples(st.just("read"), st.none()),
    ),
    min_size=4,
    max_size=25,
)


class Story:
    """Plays actions, and holds what is read against the oracle."""

    def __init__(self, repo: Repo, client: Redis) -> None:
        client.flushall()
        repo.forget_files()
        self.lab, self.sent = Lab(repo, client), list[tuple[str, Message]]()
        self.worker: Worker = self.lab.worker()
        self.worker.step(timeout_ms=0)

    def play(self, action: str, what: Any) -> None:
        clock = self.lab.clock
        match action:
            case "orders" | "couriers":
                for fields in what:
                    self._send(action, dict(fields))
            case "deliver":
                self._deliver(*what)
            case "again" if self.sent:
                topic, message = self.sent[what % len(self.sent)]
                self.lab.publish(message, topic=topic)
            case "wait":
                clock.now += what
            case "wait to the edge":
                clock.now = max(clock.now, floor_hop(clock.now, HOP) + HOP + what)
            case "step":
                self.worker.step(timeout_ms=0, max_records=what)
            case "die":
                if what:
                    self.worker.close()
                self.worker = self.lab.worker()
            case "read":
                drain(self.worker)
                self.check_online([clock.now])

    def _send(self, action: str, fields: dict[str, Any]) -> None:
        name, own = f"e{len(self.sent)}", self._stamped(*fields.pop("stamp"))
        made = order(name, own, **fields) if action == "orders" else courier(name, own, **fields)
        self._publish(ORDERS if action == "orders" else COURIERS, made)

    def _deliver(self, number: int, stamp: tuple[str, Any], zone: int) -> None:
        placed = [message for topic, message in self.sent if topic == ORDERS]
        if placed:
            own = self._stamped(*stamp)
            self._publish(DELIVERIES, delivery(f"e{len(self.sent)}", placed[number % len(placed)], own, zone))

    def _stamped(self, how: str, what: Any) -> int:
        now = self.lab.clock.now
        if how == "edge":
            return floor_hop(now, HOP) - int(what[0]) * HOP + int(what[1])
        return int(what) + (now if how == "now" else 0)

    def _publish(self, topic: str, message: Message) -> None:
        self.sent.append((topic, message))
        self.lab.publish(message, topic=topic)

    def once(self, topic: str) -> list[Row]:
        """The log's events, repeats left out, in the log's order."""
        rows: dict[str, Row] = {}
        for record in sorted(self.lab.records(topic), key=lambda r: r.offset):
            event = parse(topic, record.value, record.append_ms)
            rows.setdefault(event.event_id, (record.partition, record.offset, event))
        return list(rows.values())

    def check_online(self, instants: list[int]) -> list[dict[str, Any]]:
        """Online features at each instant equal the oracle's; gives them as rows of entities, instant and features."""
        ordered, moved, delivered = self.once(ORDERS), self.once(COURIERS), self.once(DELIVERIES)
        told, rows = ordered + [(2**16 + p, o, e) for p, o, e in delivered], []
        for instant in instants:
            self.lab.clock.now = instant
            self.worker.write_progress()
            restaurants = dict(zip(RESTAURANTS, self.lab.read("by_restaurant", *RESTAURANTS), strict=True))
            zones = dict(zip(ZONES, self.lab.read("by_zone", *ZONES), strict=True))
            present = dict(zip(ZONES, self.lab.read("couriers", *ZONES), strict=True))
            still_open = dict(zip(ZONES, self.lab.read("open_orders", *ZONES), strict=True))
            for restaurant, zone in product(RESTAURANTS, ZONES):
                found = {**restaurants[restaurant], **zones[zone], **present[zone], **still_open[zone]}
                true = {f"r_{k}": window(ordered, k, "restaurant_id", restaurant, instant) for k in WINDOWS}
                true |= {f"z_{k}": window(ordered, k, "zone_id", zone, instant) for k in WINDOWS}
                true |= {state: presence(moved, state, zone, instant) for state in ("available", "busy")}
                true["open"] = presence(told, ORDERS, zone, instant, "order_id")
                values = {name: feature.value for name, feature in found.items()}
                differences = {k: (values[k], true[k]) for k in true if not same(k, values[k], true[k])}
                assert differences == {}, f"online, oracle at {instant} of restaurant {restaurant}, zone {zone}"
                statuses = {name: Status.NULL_VALUE if true[name] is None else Status.PRESENT for name in true}
                assert {name: feature.status for name, feature in found.items()} == statuses
                rows.append({"restaurant_id": restaurant, "zone_id": zone, "instant": instant, **values})
        return rows


def window(rows: list[Row], feature: str, key: str, entity: int, instant: int) -> float | int | None:
    """The oracle of windows: the definition, in plain Python and exact fractions of whole millionths."""
    column, function, length = WINDOWS[feature]
    first = instant - instant % HOP - length
    inside = [
        (e.time, p, o, e.columns[column])
        for p, o, e in rows
        if e.columns[key] == entity and first <= e.time <= instant and e.columns[column] is not None
    ]
    if function in ("count", "count_distinct"):
        return len(inside) if function == "count" else len({value for *_, value in inside})
    numbers: list[Fraction] = [Fraction(math.floor(v * 10**6 + 0.5), 10**6) for *_, v in sorted(inside)]  # type: ignore[operator]
    if not numbers:
        return 0 if function == "sum" else None
    mean = sum(numbers, Fraction(0)) / len(numbers)
    if function == "std":
        return math.sqrt(sum((n - mean) ** 2 for n in numbers) / len(numbers))
    return float(
        {"sum": mean * len(numbers), "mean": mean, "min": min(numbers), "max": max(numbers), "last": numbers[-1]}[
            function
        ]
    )


def presence(rows: list[Row], state: str, zone: int, instant: int, member: str = "courier_id") -> int:
    """The oracle of presence: of each member the latest event until the instant; an order's state is its topic."""
    ordered = sorted((row for row in rows if row[2].time <= instant), key=lambda r: (r[2].time, r[0], r[1]))
    latest = {event.columns[member]: event for _, _, event in ordered}
    return sum(
        event.columns["zone_id"] == zone
        and event.columns.get("status", event.topic) == state
        and event.time >= instant - PRESENCE_TTL
        for event in latest.values()
    )


def same(name: str, a: Any, b: Any) -> bool:
    """Equal; a standard deviation but for its last places."""
    if isinstance(a, float) and isinstance(b, float) and name.endswith("_std"):
        return math.isclose(a, b, rel_tol=CLOSE)
    return (type(a) is type(b) and bool(a == b)) or (isinstance(a, float) and b == 0 and a == 0)


def close(a: Any, b: Any) -> bool:
    """Equal up to the tolerance; null is null on both sides."""
    if a is None or pd.isna(b):
        return a is None and bool(pd.isna(b))
    return bool(a == b) if isinstance(a, int) else math.isclose(a, float(b), rel_tol=CLOSE)


@examples(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(story=actions, later=st.lists(st.integers(0, 12 * HOP), min_size=2, max_size=4))
def test_online_equals_history_and_the_oracle_whatever_happens(
    repo: Repo, client: Redis, story: list[tuple[str, Any]], later: list[int]
) -> None:
    told = Story(repo, client)
    for action, what in story:
        told.play(action, what)
    drain(told.worker)
    now = told.lab.clock.now
    edge = floor_hop(now, HOP) + 2 * HOP
    rows = told.check_online(sorted({now, *(now + wait for wait in later), edge - 1, edge, edge + 1}))
    told.lab.archive()
    names = [name for name in rows[0] if name not in ("restaurant_id", "zone_id", "instant")]
    entities = pd.DataFrame({k: [row[k] for row in rows] for k in ("restaurant_id", "zone_id")})
    entities["event_timestamp"] = [at(row["instant"]) for row in rows]
    table = offline(repo, entities, [f"{VIEWS.get(name[:2], 'couriers')}:{name}" for name in names])
    history = table.to_dict("records")
    differences = [
        (name, row["restaurant_id"], row["zone_id"], row["instant"] - START, row[name], past[name])
        for row, past in zip(rows, history, strict=True)
        for name in names
        if not close(row[name], past[name])
    ]
    assert differences == [], "feature, restaurant, zone, instant, online, offline"
