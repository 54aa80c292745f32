"""A feature by the part of the log that it was read from, by what is known now, and which events make the difference.

Held to the oracle, over the records below the prefix: it shares nothing with the SQL.
"""

from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from feature_repo.stores.duckdb_client import connect as connect_duckdb
from feature_repo.stores.hindsight import (
    Definition,
    Prefix,
    StreamAnswer,
    StreamQuestion,
    ask_stream,
    definitions_of,
)
from feature_repo.stores.hindsight_sql import HISTORY, LAG, LATE, OWN
from feature_repo.stores.progress import digest
from feature_repo.stores.redis_client import Redis, connect
from feature_repo.views import StreamView
from ingestion.event_files import append_history
from ingestion.events import parse
from ingestion.log import Record
from ingestion.parity import oracle
from tests.repo import COURIERS, DELIVERIES, HOP, ORDERS, START, Lab, Repo, courier, order, quietly
from tests.test_offline_arrival import RESTAURANTS, ZONES, close, fresh, happenings, log_of, play

TOPICS = (ORDERS, DELIVERIES, COURIERS)
Cut = Mapping[str, Sequence[int]]
"""Of each topic's partitions the offset below which everything counts."""


@pytest.fixture(scope="module")
def client(repo: Repo) -> Iterator[Redis]:
    made = connect(repo.settings)
    yield made
    made.close()


@pytest.fixture(scope="module")
def definitions(repo: Repo) -> dict[str, Definition]:
    with quietly():
        return definitions_of(repo.feast)


@pytest.fixture
def lab(repo: Repo, client: Redis) -> Lab:
    return fresh(repo, client)


def entity_of(view: StreamView, which: int) -> dict[str, object]:
    return {key: (RESTAURANTS if key == "restaurant_id" else ZONES)[which] for key in view.join_keys}


def ask(
    lab: Lab, definition: Definition, readings: Sequence[tuple[int, Cut, int, int, str | None]], detail: bool = False
) -> list[dict[str, StreamAnswer] | None]:
    """A view at (instant, cut, which entity, the reader's clock, the order asked about)."""
    view = definition.join.view
    assert isinstance(view, StreamView)
    logs = {topic: digest(lab.log.topic_identity(topic)) for topic in view.topics}
    questions = [
        StreamQuestion(entity_of(view, which), t, now, own, [Prefix(logs[topic], cut[topic]) for topic in view.topics])
        for t, cut, which, now, own in readings
    ]
    with connect_duckdb(lab.repo.settings) as connection:
        return ask_stream(connection, definition.join, questions, "order_id", detail)


def differing(rows: Sequence[oracle.Row], cut: Cut, instant: int) -> list[oracle.Row]:
    """The events that had happened by the instant and are not in the prefix."""
    return [r for r in rows if r.event.time <= instant and r.offset >= cut[r.event.topic][r.partition]]


@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(story=happenings, data=st.data())
def test_the_prefix_and_what_is_known_now_are_the_oracles(
    repo: Repo,
    client: Redis,
    definitions: dict[str, Definition],
    story: list[tuple[int, str, int, int, int, float | None, int]],
    data: st.DataObject,
) -> None:
    lab = fresh(repo, client)
    play(lab, story)
    lab.archive()
    log = log_of(lab)
    rows = {topic: oracle.once(log[topic]) for topic in TOPICS}
    appended = {(r.topic, r.partition, r.offset): r.append_ms for found in log.values() for r in found}
    times = [row.event.time for found in rows.values() for row in found]
    moments = sorted({t + d for t in [*times, *(t + k * HOP for t in times for k in (2, 5, 10))] for d in (-1, 0, 1)})
    readings = [
        (
            data.draw(st.sampled_from(moments)),
            {topic: [data.draw(cuts(log[topic], p)) for p in range(lab.partitions)] for topic in TOPICS},
            data.draw(st.integers(0, 1)),
            START + data.draw(st.integers(-HOP, 10 * HOP)),
            None,
        )
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    for view in lab.views:
        answers = ask(lab, definitions[view.name], readings)
        every = [row for topic in view.topics for row in rows[topic]]
        for (t, cut, which, now, _), answer in zip(readings, answers, strict=True):
            below = [
                row
                for topic in view.topics
                for row in oracle.once(r for r in log[topic] if r.offset < cut[topic][r.partition])
            ]
            ids = list(entity_of(view, which).values())
            missing = differing(every, cut, t)
            late = [r for r in missing if appended[r.event.topic, r.partition, r.offset] > now]
            assert answer is not None
            for feature, told in answer.items():
                said = (view.name, feature, ids, t - START, cut, told)
                assert close(oracle.value(view, feature, below, ids, t), told.then), said
                assert close(oracle.value(view, feature, every, ids, t), told.now), said
                assert told.then == told.now or told.why, said
                assert not told.why & LATE or late, said
                assert not told.why & LAG or len(late) < len(missing), said
                assert not told.why & (HISTORY | OWN), said


def cuts(records: Sequence[Record], partition: int) -> st.SearchStrategy[int]:
    """Offsets to cut a partition at: before or behind any of its records."""
    offsets = [record.offset for record in records if record.partition == partition]
    return st.sampled_from([0, *(offset + d for offset in offsets for d in (0, 1))])


def whole(lab: Lab) -> Cut:
    """A cut behind everything."""
    return {topic: [2**62] * lab.partitions for topic in TOPICS}


def nothing(lab: Lab) -> Cut:
    return {topic: [0] * lab.partitions for topic in TOPICS}


def test_events_are_named_with_what_they_are_to_the_reader(lab: Lab, definitions: dict[str, Definition]) -> None:
    lab.publish(order("in time", START - 1000), at=START - 1000)
    cut = {
        topic: [max([r.offset + 1 for r in log_of(lab)[topic] if r.partition == p], default=0) for p in (0, 1)]
        for topic in TOPICS
    }
    lab.publish(order("not folded", START - 900), at=START - 10)
    lab.publish(order("at once", START - 700), at=START)
    lab.publish(order("late", START - 800), at=START + 1)
    lab.archive()
    for view, feature in (("by_restaurant", "r_orders_5m"), ("by_zone", "z_orders_5m"), ("open_orders", "open")):
        (answer,) = ask(lab, definitions[view], [(START, cut, 0, START, "order in time")], detail=True)
        assert answer is not None
        told = answer[feature]
        assert (told.then, told.now, told.why) == (1, 4, LATE | LAG | OWN), view
        assert [(e.id, e.appended - START, e.why) for e in told.events] == [
            ("in time", -1000, OWN),
            ("not folded", -10, LAG),
            ("at once", 0, LAG),
            ("late", 1, LATE),
        ]


def test_an_event_out_of_a_window_makes_no_difference_to_it(lab: Lab, definitions: dict[str, Definition]) -> None:
    """Five minutes do not reach it, seven do."""
    lab.publish(order("a", START - 6 * HOP), at=START - 6 * HOP)
    lab.archive()
    (answer,) = ask(lab, definitions["by_restaurant"], [(START, nothing(lab), 0, START, None)])
    assert answer is not None
    assert (answer["r_orders_5m"].why, answer["r_orders_7m"].why) == (0, LAG)


def test_a_member_that_has_moved_makes_a_difference_where_it_was_and_where_it_is(
    lab: Lab, definitions: dict[str, Definition]
) -> None:
    lab.publish(courier("c1", START - 2000, zone=3, status="busy"), topic=COURIERS, at=START - 2000)
    cut = {
        COURIERS: [max([r.offset + 1 for r in log_of(lab)[COURIERS] if r.partition == p], default=0) for p in (0, 1)]
    }
    lab.publish(courier("c2", START - 1000, zone=4, status="available"), topic=COURIERS, at=START - 1000)
    lab.archive()
    asked = [(START, cut, 0, START, None), (START, cut, 1, START, None)]
    was, is_ = ask(lab, definitions["couriers"], asked)
    assert was is not None
    assert is_ is not None
    assert {f: (told.then, told.now, told.why) for f, told in was.items()} == {
        "available": (0, 0, 0),
        "busy": (1, 0, LAG),
    }
    assert {f: (told.then, told.now, told.why) for f, told in is_.items()} == {
        "available": (0, 1, LAG),
        "busy": (0, 0, 0),
    }


def test_history_lies_in_no_prefix(lab: Lab, definitions: dict[str, Definition]) -> None:
    event = parse(ORDERS, order("a", START - HOP).value, START - HOP)
    append_history(lab.repo.settings, ORDERS, {n: [v] for n, v in {**event.columns, "event_time": event.time}.items()})
    for view, feature in (("by_restaurant", "r_orders_5m"), ("open_orders", "open")):
        (answer,) = ask(lab, definitions[view], [(START, whole(lab), 0, START, "order a")])
        assert answer is None, "no file says whose offsets the log's are"
        lab.publish(order("b", START - HOP, 8, 4), at=START - HOP)
        lab.archive()
        (answer,) = ask(lab, definitions[view], [(START, whole(lab), 0, START, "order a")])
        assert answer is not None
        assert (answer[feature].then, answer[feature].now, answer[feature].why) == (0, 1, HISTORY)
        for name in ("date=2026-03-01/0-*", "date=2026-03-01/1-*", "first-log"):
            for file in (lab.repo.settings.data / "log" / ORDERS).glob(name):
                file.unlink()


def test_offsets_of_two_logs_do_not_meet(repo: Repo, client: Redis, definitions: dict[str, Definition]) -> None:
    """The topic is made anew, and an event sent again: in the second log it is no repeat."""
    lab = fresh(repo, client)
    lab.publish(order("a", START - 2 * HOP), at=START - 2 * HOP)
    lab.archive()
    old = digest(lab.log.topic_identity(ORDERS))
    client.flushall()
    lab = Lab(repo, client)
    lab.publish(order("a", START - 2 * HOP), order("b", START - HOP), order("c", START - HOP), at=START - HOP)
    lab.archive()
    join = definitions["by_restaurant"].join
    asked = [
        StreamQuestion({"restaurant_id": 7}, START, START, None, [Prefix(log, [2**62, 2**62])])
        for log in (old, digest(lab.log.topic_identity(ORDERS)), 12345)
    ]
    with connect_duckdb(repo.settings) as connection:
        before, after, unknown = ask_stream(connection, join, asked, "order_id")
    assert unknown is None
    assert before is not None
    assert after is not None
    assert (before["r_orders_5m"].then, after["r_orders_5m"].then) == (1, 3)
    assert before["r_orders_5m"].now == after["r_orders_5m"].now == 3, "an id that was sent again counts once now"
    assert before["r_orders_5m"].why == after["r_orders_5m"].why == HISTORY, "each lacks the other's"
