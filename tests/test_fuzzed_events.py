"""Ten thousand mixed payloads, in the log and over HTTP: each is counted once, and told why if it is not taken."""

import base64
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore

from feature_repo.clock import wall_clock
from feature_repo.settings import Settings
from feature_repo.stores.reading import ReadPlan, Wanted, read
from feature_repo.stores.redis_client import Redis
from feature_repo.stores.stream_store import StreamStore
from feature_repo.views import StreamView, stream_views
from feature_repo.windows import floor_hop
from ingestion.archive import Archiver
from ingestion.dead_letters import MAX_RAW
from ingestion.events import DEAD_LETTERS, EVENT_TYPES, TOPICS, Event, parse
from ingestion.log import EventLog, Message, Record
from ingestion.redis_log import RedisLog
from ingestion.worker import Worker
from serving.bodies import MAX_BYTES
from tests.conftest import LogHome
from tests.event_fuzz import HUGE, RESTAURANTS, ZONES, Payload, payloads
from tests.repo import MINUTE, quietly
from tests.serving_stack import Stack, applied_folder, everything, running

COUNT = 10_000
KAFKA_TAKES = 1_000_000
"""Bytes of the longest record that a broker takes by default, with something left for its head."""
CHUNK = 500
DEADLINE_S = 120.0
SINGLY = 700
"""So many payloads that could stand in an array are sent alone all the same."""

Place = tuple[str, int, int]
"""Topic, partition and offset."""


def place(record: Record) -> Place:
    return record.topic, record.partition, record.offset


def project_views(base: Path) -> tuple[str, tuple[StreamView, ...]]:
    """The project's name and its stream views, compiled."""
    with quietly():
        store = FeatureStore(repo_path=str(applied_folder(base)))
        return store.project, stream_views(store.list_stream_feature_views())


def publish(log: EventLog, sent: Sequence[Payload]) -> None:
    for topic in EVENT_TYPES:
        messages = [Message(payload.key, payload.value) for payload in sent if payload.topic == topic]
        for start in range(0, len(messages), CHUNK):
            log.publish(topic, messages[start : start + CHUNK])


def step_until(step: Callable[[], object], done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        step()
        assert time.monotonic() < deadline


def archive(log: EventLog, settings: Settings, count: int) -> dict[Place, dict[str, Any]]:
    """What an archiver makes of the log's `count` records: the rows of its files, by their place."""
    archiver = Archiver(log, settings, wall_clock, tuple(EVENT_TYPES))
    taken = 0

    def step() -> None:
        nonlocal taken
        taken += archiver.step()

    step_until(step, lambda: taken >= count)
    archiver.flush()
    archiver.close()
    rows: dict[Place, dict[str, Any]] = {}
    for topic in EVENT_TYPES:
        for file in (settings.data / "log" / topic).rglob("*.parquet"):
            for row in pq.ParquetFile(file).read(["partition", "offset", "event_id"]).to_pylist():
                where = (topic, row["partition"], row["offset"])
                assert where not in rows, "archived twice"
                rows[where] = row
    return rows


def letters_of(log: EventLog) -> dict[Place, dict[str, Any]]:
    """The dead letters, by the place that they say."""
    letters = [json.loads(record.value) for record in everything(log, DEAD_LETTERS)]
    by_place = {(letter["topic"], letter["partition"], letter["offset"]): letter for letter in letters}
    assert len(by_place) == len(letters), "a record died twice"
    return by_place


def test_whatever_is_in_the_log_is_folded_and_archived_or_a_dead_letter(
    log_home: LogHome, redis_client: Redis, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    log, now = log_home.log, wall_clock()
    project, views = project_views(tmp_path_factory.getbasetemp())
    sent = payloads(COUNT, now, longest=HUGE if isinstance(log, RedisLog) else KAFKA_TAKES - 10_000)
    log.create_topics(TOPICS, 3)
    publish(log, sent)
    worker = Worker(log, StreamStore(redis_client, project), views, wall_clock, group=None)
    counts = worker.counts
    step_until(worker.step, lambda: counts.events + counts.repeats + counts.dead >= COUNT)

    records = {place(record): record for topic in EVENT_TYPES for record in everything(log, topic)}
    archived, dead = archive(log, Settings(TIFFIN_REPO=tmp_path), COUNT), letters_of(log)
    assert len(records) == COUNT
    assert (counts.events + counts.repeats, counts.dead) == (len(archived), len(dead))
    assert archived.keys() | dead.keys() == records.keys()
    assert not archived.keys() & dead.keys()
    assert min(len(archived), len(dead)) > COUNT / 4, "a mixture"
    for where, letter in dead.items():
        value = records[where].value
        assert base64.b64decode(letter["raw"]) == value[:MAX_RAW]
        assert letter["raw_bytes"] == len(value)
        assert letter["field"]
        assert letter["reason"]
    must = {(payload.topic, payload.value): payload.good for payload in sent}
    astray = [
        (record.topic, record.value[:300], dead.get(where))
        for where, record in records.items()
        if must[record.topic, record.value] not in (None, where in archived)
    ]
    assert astray == []
    worker.write_progress()
    check_features(redis_client, project, views, [parse_of(records[where]) for where in archived])
    worker.close()


def parse_of(record: Record) -> tuple[Record, Event]:
    return record, parse(record.topic, record.value, record.append_ms)


def check_features(
    client: Redis, project: str, views: Sequence[StreamView], taken: Sequence[tuple[Record, Event]]
) -> None:
    """Hold some features against what was taken: orders of restaurants by window, and couriers by their last word."""
    by_name = {view.name: view for view in views}
    orders, couriers = by_name["restaurant_recent_orders"], by_name["zone_couriers"]
    wanted = [
        Wanted(orders, ("orders_30m",), ("restaurant_id",)),
        Wanted(couriers, ("couriers_available", "couriers_busy"), ("zone_id",)),
    ]
    ids: dict[str, list[object]] = {"restaurant_id": list(range(RESTAURANTS)), "zone_id": [0] * RESTAURANTS}
    ids["zone_id"][:ZONES] = range(ZONES)
    answer = read(client, ReadPlan(project, wanted), ids, wall_clock())
    (counted,), (available, busy) = answer.columns
    start = floor_hop(answer.instant, MINUTE) - 30 * MINUTE
    placed = {
        (event.event_id, event.columns["restaurant_id"])
        for record, event in taken
        if record.topic == "order_placed" and event.time >= start
    }
    expected = Counter(restaurant for _, restaurant in placed)
    assert [feature.value for feature in counted] == [expected[restaurant] for restaurant in range(RESTAURANTS)]
    last: dict[object, tuple[tuple[int, int], object]] = {}
    for record, event in taken:
        if record.topic == "courier_status":
            said = (event.columns["zone_id"], event.columns["status"])
            who = event.columns["courier_id"]
            last[who] = max(
                last.get(who, ((0, 0), None)), ((event.time, record.offset), said), key=lambda pair: pair[0]
            )
    states = Counter(said for (at, _), said in last.values() if at > answer.instant - 4 * 60 * MINUTE)
    assert [f.value for f in available[:ZONES]] == [states[zone, "available"] for zone in range(ZONES)]
    assert [f.value for f in busy[:ZONES]] == [states[zone, "busy"] for zone in range(ZONES)]


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Iterator[Stack]:
    """The API, with nothing in the log."""
    with running(tmp_path_factory.getbasetemp(), tmp_path) as stack:
        yield stack


def requests_of(sent: Sequence[Payload]) -> Iterator[tuple[str, list[Payload], bytes]]:
    """Bodies to post: what can be an element of an array mostly in arrays, all else alone."""
    arrays: dict[str, list[Payload]] = {topic: [] for topic in EVENT_TYPES}
    alone = 0
    for payload in sent:
        is_array = payload.value.lstrip()[:1] == b"["
        if not element(payload.value) or (alone < SINGLY and not is_array) or len(payload.value) > MAX_BYTES:
            alone += element(payload.value)
            yield payload.topic, [payload], payload.value
            continue
        waiting = arrays[payload.topic]
        if len(waiting) == CHUNK or sum(len(p.value) + 1 for p in [*waiting, payload]) + 2 > MAX_BYTES:
            yield payload.topic, waiting, array(waiting)
            waiting = arrays[payload.topic] = []
        waiting.append(payload)
    for topic, waiting in arrays.items():
        yield topic, waiting, array(waiting)


def array(elements: Sequence[Payload]) -> bytes:
    return b"[" + b",".join(payload.value for payload in elements) + b"]"


def element(value: bytes) -> bool:
    """Whether a decoder can pass over it as an element of an array."""
    try:
        return len(msgspec.json.decode(b"[" + value + b"]", type=list[msgspec.Raw])) == 1
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def outcomes_of(answer: httpx.Response, count: int) -> list[str]:
    """Of each of `count` payloads that were sent ``accepted`` or ``refused``, which must be with field and reason."""
    assert answer.status_code in (200, 413, 422), answer.text[:500]
    document = answer.json()
    if "outcomes" not in document:
        assert document["detail"]
        return ["refused"] * count
    outcomes = document["outcomes"]
    assert [outcome["index"] for outcome in outcomes] == list(range(count))
    assert (document["accepted"] + document["refused"], answer.status_code == 200) == (count, not document["refused"])
    assert all(outcome["field"] and outcome["reason"] for outcome in outcomes if outcome["status"] == "refused")
    return [outcome["status"] for outcome in outcomes]


def test_whatever_is_sent_over_http_is_in_the_log_or_refused_with_a_reason(stack: Stack) -> None:
    sent = payloads(COUNT, stack.clock.now)
    accepted: dict[str, list[bytes]] = {topic: [] for topic in EVENT_TYPES}
    refused, astray = 0, []
    for topic, batch, body in requests_of(sent):
        statuses = outcomes_of(stack.post(f"/v1/events/{topic}", body), len(batch))
        for payload, status in zip(batch, statuses, strict=True):
            if status == "accepted":
                accepted[topic].append(payload.value)
            refused += status == "refused"
            if payload.good not in (None, status == "accepted"):
                astray.append((topic, payload.value[:300], status))
    assert astray == []
    taken = sum(map(len, accepted.values()))
    assert taken + refused == COUNT
    assert min(taken, refused) > COUNT / 4, "a mixture"
    for topic, values in accepted.items():
        logged = Counter(record.value.strip() for record in stack.records(topic))
        assert logged == Counter(value.strip() for value in values), "an array's elements bear no space around them"
    stack.fold()
    counts = stack.worker.counts
    assert (counts.events + counts.repeats, counts.dead) == (taken, 0), "what the API takes, the worker folds"
    assert stack.records(DEAD_LETTERS) == []
    assert stack.get("/live").json() == {"status": "live"}
