"""What was known at an instant and what is known now: late and corrected events and rows are the difference."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from feature_repo.stores.redis_client import Redis, connect
from ingestion.events import parse
from ingestion.log import Message, Record
from ingestion.parity import oracle
from ingestion.parity.compare import TOLERANCE
from tests.repo import (
    COURIERS,
    DELIVERIES,
    HOP,
    ORDERS,
    START,
    VIEWS,
    Lab,
    Repo,
    at,
    courier,
    delivery,
    offline,
    order,
)
from tests.test_offline import write, write_profile

RESTAURANTS, ZONES = (7, 8), (3, 4)
DAY = timedelta(days=1)


def close(truth: float | int | None, value: Any) -> bool:
    """Equal, numbers with a fraction up to the tolerance; pandas' missing value is null."""
    if truth is None or pd.isna(value):
        return truth is None and bool(pd.isna(value))
    return truth == value if isinstance(truth, int) else math.isclose(truth, float(value), rel_tol=TOLERANCE)


@pytest.fixture(scope="module")
def client(repo: Repo) -> Iterator[Redis]:
    made = connect(repo.settings)
    yield made
    made.close()


@pytest.fixture
def lab(repo: Repo, client: Redis) -> Lab:
    return fresh(repo, client)


def fresh(repo: Repo, client: Redis) -> Lab:
    client.flushall()
    repo.forget_files()
    return Lab(repo, client)


def view_of(feature: str) -> str:
    return VIEWS.get(feature[:2], "couriers")


def features_of(lab: Lab) -> list[str]:
    """Every stream feature of the project."""
    return [feature for view in lab.views for feature in view.features]


Log = Mapping[str, Sequence[Record]]
"""All records, by topic."""


def log_of(lab: Lab) -> Log:
    return {topic: lab.records(topic) for topic in (ORDERS, DELIVERIES, COURIERS)}


def true(lab: Lab, log: Log, feature: str, entity: int, instant: int, arrival: bool) -> int | float | None:
    """What the oracle says: over the whole log, or over what was appended by the instant."""
    view = lab.view(view_of(feature))
    rows = [
        row
        for topic in view.topics
        for row in oracle.once(r for r in log[topic] if not arrival or r.append_ms <= instant)
    ]
    return oracle.value(view, feature, rows, [entity], instant)


def asked(repo: Repo, instants: Sequence[int], features: Sequence[str], arrival: bool) -> list[dict[str, Any]]:
    """Both restaurants with both zones, at each instant (ms)."""
    rows = pd.DataFrame([(r, z, at(t)) for t in instants for r, z in zip(RESTAURANTS, ZONES, strict=True)])
    rows.columns = pd.Index(["restaurant_id", "zone_id", "event_timestamp"])
    refs = [f"{view_of(feature)}:{feature}" for feature in features]
    found = offline(repo, rows, refs, filter_by_created_timestamp=arrival)
    answers: list[dict[str, Any]] = found.to_dict("records")  # type: ignore[assignment]  # its keys are names
    return [row | {"instant": instants[i // len(RESTAURANTS)]} for i, row in enumerate(answers)]


def differences(lab: Lab, instants: Sequence[int], arrival: bool) -> list[tuple[Any, ...]]:
    """Where history does not say what the oracle says."""
    features, log = features_of(lab), log_of(lab)
    wrong = []
    for row in asked(lab.repo, instants, features, arrival):
        for feature in features:
            key = lab.view(view_of(feature)).join_keys[0]
            truth = true(lab, log, feature, row[key], row["instant"], arrival)
            if not close(truth, row[feature]):
                wrong.append((feature, row[key], row["instant"] - START, truth, row[feature]))
    return wrong


delays = st.one_of(
    st.just(0),
    st.integers(-HOP, 3 * HOP),
    st.integers(-HOP, 12 * HOP),
    st.sampled_from([k * HOP + d for k in (1, 2, 5, 7, 10) for d in (-1, 0, 1)]),
)
happenings = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, HOP), st.integers(0, 4 * HOP)),
        st.sampled_from(["order", "order", "order", "courier", "delivery", "again"]),
        delays,
        st.sampled_from(RESTAURANTS),
        st.sampled_from(ZONES),
        st.one_of(st.none(), st.sampled_from([0.0, 0.1, 1e9]), st.floats(0, 200)),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=14,
)


def play(lab: Lab, story: Sequence[tuple[int, str, int, int, int, float | None, int]]) -> None:
    """Append events, late and ahead of their time, and some of them again."""
    sent: list[tuple[str, Message]] = []
    for i, (wait, kind, delay, restaurant, zone, basket, dice) in enumerate(story):
        lab.clock.now += wait
        time = lab.clock.now - delay
        orders = [message for topic, message in sent if topic == ORDERS]
        if kind == "again" and sent:
            topic, message = sent[dice % len(sent)]
        elif kind == "delivery" and orders:
            topic, message = DELIVERIES, delivery(f"d{i}", orders[dice % len(orders)], time, zone)
        elif kind == "courier":
            topic, message = (
                COURIERS,
                courier(f"c{i}", time, dice % 2, zone, ("available", "busy", "offline")[dice % 3]),
            )
        else:
            fields = {"basket_total": basket, "item_count": dice % 4 or None, "customer_id": dice % 3 or None}
            topic, message = ORDERS, order(f"o{i}", time, restaurant, zone, **fields)
        lab.publish(message, topic=topic)
        sent.append((topic, message))


@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(story=happenings, data=st.data())
def test_history_is_the_oracles_over_the_whole_log_and_over_what_had_arrived(
    repo: Repo, client: Redis, story: list[tuple[int, str, int, int, int, float | None, int]], data: st.DataObject
) -> None:
    lab = fresh(repo, client)
    play(lab, story)
    lab.archive()
    records = [record for found in log_of(lab).values() for record in found]
    events = [parse(r.topic, r.value, r.append_ms).time for r in records]
    moments = sorted({t + d for t in [*events, *(r.append_ms for r in records)] for d in (-1, 0, 1)})
    near = data.draw(st.lists(st.sampled_from(moments), min_size=3, max_size=6, unique=True))
    far = data.draw(st.lists(st.integers(START - 12 * HOP, lab.clock.now + 12 * HOP), min_size=2, max_size=3))
    assert differences(lab, near + far, arrival=False) == [], "feature, entity, instant, oracle, what is known now"
    assert differences(lab, near + far, arrival=True) == [], "feature, entity, instant, oracle, what had arrived"


@pytest.fixture(scope="module")
def late(repo: Repo, client: Redis) -> Lab:
    """Events in time, and two minutes later some that happened before them, or right after them."""
    lab = fresh(repo, client)
    first = order("a", START, 7, 3, basket_total=10.0, item_count=5, customer_id=1)
    lab.publish(first)
    lab.publish(courier("ca", START, 1, 3, "available"), courier("cb", START, 2, 3, "busy"), topic=COURIERS)
    lab.clock.now += 90_000
    lab.publish(order("b", START + 1000, 7, 3, basket_total=40.0, item_count=1, customer_id=2))
    lab.publish(order("c", START - 1000, 7, 3, basket_total=2.0, item_count=9, customer_id=3))
    lab.publish(delivery("d", first, START + 2000), topic=DELIVERIES)
    moved = courier("cc", START + 1000, 1, 3, "busy"), courier("cd", START + 1000, 2, 3, "available")
    lab.publish(*moved, courier("ce", START + 2000, 2, 3, "busy"), topic=COURIERS)
    lab.archive()
    return lab


FEATURES = [
    *(f"r_basket_{f}" for f in ("sum", "mean", "min", "max", "std", "last")),
    *("r_items_known", "r_customers", "r_baskets_distinct", "z_orders_5m", "available", "busy", "open"),
]


@pytest.mark.parametrize("feature", FEATURES)
def test_a_late_event_is_known_now_and_was_not_known_then(late: Lab, feature: str) -> None:
    before, after = START + 60_000, START + 90_000
    (now,), (then,) = ([row[feature] for row in asked(late.repo, [before], [feature], a)][:1] for a in (False, True))
    assert now != then, "the late events make a difference"
    log = log_of(late)
    entity = RESTAURANTS[0] if feature.startswith("r_") else ZONES[0]
    assert close(true(late, log, feature, entity, before, arrival=False), now)
    assert close(true(late, log, feature, entity, before, arrival=True), then)
    (now,), (then,) = ([row[feature] for row in asked(late.repo, [after], [feature], a)][:1] for a in (False, True))
    assert now == then, "from their arrival on they are known"


@examples(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.integers(-3, 40)), min_size=1, max_size=6),
    hours=st.lists(st.integers(-1, 60), min_size=1, max_size=5),
)
def test_of_batch_rows_the_newest_one_known_counts(repo: Repo, rows: list[tuple[int, int]], hours: list[int]) -> None:
    repo.forget_files()
    noon, hour = at(START), timedelta(hours=1)
    write_profile(repo, *((noon + e * hour, noon + (e + late) * hour, float(i)) for i, (e, late) in enumerate(rows)))
    frame = pd.DataFrame({"restaurant_id": [7] * len(hours), "event_timestamp": [noon + h * hour for h in hours]})
    for arrival in (False, True):
        found = offline(repo, frame, ["profile:prep"], filter_by_created_timestamp=arrival)["prep"].tolist()
        for hour_asked, value in zip(hours, found, strict=True):
            known = [
                (event, event + late, i)
                for i, (event, late) in enumerate(rows)
                if event <= hour_asked and (not arrival or event + late <= hour_asked)
            ]
            newest = max(known, default=None)
            fresh_enough = newest is not None and hour_asked - newest[0] <= 24
            assert close(float(newest[2]) if newest and fresh_enough else None, value), (arrival, hour_asked)


def test_a_row_that_does_not_say_when_it_was_created_was_never_known(repo: Repo) -> None:
    repo.forget_files()
    noon = at(START)
    columns = {
        "restaurant_id": [7, 7],
        "event_time": [noon, noon - DAY / 2],
        "created": [None, noon],
        "prep": [2.0, 1.0],
    }
    write(repo, "profile", "000", columns)
    frame = pd.DataFrame({"restaurant_id": [7], "event_timestamp": [noon + DAY / 4]})
    assert offline(repo, frame, ["profile:prep"])["prep"].tolist() == [2.0]
    assert offline(repo, frame, ["profile:prep"], filter_by_created_timestamp=True)["prep"].tolist() == [1.0]
