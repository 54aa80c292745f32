"""One stream of events through Kafka and through Redis streams: the same features, the same dead letters."""

import base64
import random
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from feast import FeatureStore

from deploy.servers import KafkaServer
from feature_repo.clock import wall_clock
from feature_repo.stores.reading import Feature, ReadPlan, Status, Wanted, read
from feature_repo.stores.redis_client import Redis
from feature_repo.stores.stream_store import StreamStore
from feature_repo.views import StreamView, stream_views
from feature_repo.windows import floor_hop
from ingestion.events import DEAD_LETTERS, EVENT_TYPES, TOPICS, event_key
from ingestion.kafka_log import KafkaLog
from ingestion.log import EventLog, Message, TopicPartition
from ingestion.redis_log import RedisLog
from ingestion.worker import Worker
from tests.conftest import LEASE_MS
from tests.repo import MINUTE, FakeClock, drain, quietly, wait_for
from tests.serving_stack import applied_folder, everything

pytestmark = pytest.mark.kafka

PARTITIONS = 3
RESTAURANTS, ZONES = range(1, 9), range(1, 4)
END = 2**52
Sent = tuple[str, Message]


@dataclass
class Home:
    """A log in one of its homes, folded into a project of its own."""

    log: EventLog
    project: str
    redis: Redis
    views: tuple[StreamView, ...]
    clock: FakeClock

    def __post_init__(self) -> None:
        self.log.create_topics(TOPICS, PARTITIONS)
        self.store = StreamStore(self.redis, self.project)

    def worker(self, group: str | None = None) -> Worker:
        """A worker of the project."""
        return Worker(self.log, self.store, self.views, self.clock, group)

    def publish(self, sent: Sequence[Sent]) -> None:
        """Append the messages in their order, topic by topic."""
        for topic in EVENT_TYPES:
            messages = [message for name, message in sent if name == topic]
            for start in range(0, len(messages), 40):
                self.log.publish(topic, messages[start : start + 40])

    def fold(self) -> None:
        """Have one worker fold everything that is in the log."""
        worker = self.worker()

        def step() -> bool:
            drain(worker)
            return self.folded()

        wait_for(step, "everything to be folded")
        worker.close()

    def folded(self) -> bool:
        """Whether progress is stored for everything that is in the log."""
        every = [where for topic in EVENT_TYPES for where in self.log.begins(topic)]
        return all(self._offset(where) >= self.log.offset_at(where, END) for where in every)

    def features(self) -> dict[tuple[str, int], Feature]:
        """Every stream feature of every entity, at the clock's instant."""
        found: dict[tuple[str, int], Feature] = {}
        for view in self.views:
            ids = list(RESTAURANTS if view.join_keys == ("restaurant_id",) else ZONES)
            plan = ReadPlan(self.project, [Wanted(view, tuple(view.features), view.join_keys)])
            answer = read(self.redis, plan, {view.join_keys[0]: ids}, self.clock.now)
            assert answer.instant == self.clock.now
            for name, column in zip(view.features, answer.columns[0], strict=True):
                found |= {(name, entity): feature for entity, feature in zip(ids, column, strict=True)}
        return found

    def values(self) -> dict[tuple[str, int], tuple[Any, Status]]:
        """The same without their ages, which speak of when the worker last looked."""
        return {place: (feature.value, feature.status) for place, feature in self.features().items()}

    def dead(self) -> list[dict[str, Any]]:
        """The dead letters."""
        return [msgspec.json.decode(record.value) for record in everything(self.log, DEAD_LETTERS)]

    def _offset(self, where: TopicPartition) -> int:
        views = [view for view in self.views if where.topic in view.topics]
        found = [self.store.progress(*where, view.tiles_hash) for view in views]
        return min(-1 if progress is None else progress.offset for progress in found)


@pytest.fixture
def homes(
    kafka_server: KafkaServer, redis_client: Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Home, Home]]:
    """(on Kafka, on Redis streams), on one clock that stands still."""
    with quietly():
        feast = FeatureStore(repo_path=str(applied_folder(tmp_path_factory.getbasetemp())))
        views = stream_views(feast.list_stream_feature_views())
    clock, prefix = FakeClock(wall_clock()), f"homes-{uuid.uuid4().hex[:8]}-"
    kafka = KafkaLog(kafka_server.bootstrap_servers, prefix, session_timeout_ms=LEASE_MS)
    yield (
        Home(kafka, "on_kafka", redis_client, views, clock),
        Home(RedisLog(redis_client, prefix), "on_redis", redis_client, views, clock),
    )
    kafka.close()


def event(dice: random.Random, number: int, now: int) -> Sent:
    """An event of the last 35 minutes, of any topic."""
    topic = dice.choice(list(EVENT_TYPES))
    restaurant, at = dice.choice(RESTAURANTS), now - dice.randrange(35 * MINUTE)
    placed = at - dice.randrange(30 * MINUTE)
    fields: dict[str, Any] = {"event_id": f"e{number}", "order_id": f"o{number % 90}", "restaurant_id": restaurant}
    if topic == "courier_status":
        status = dice.choice(["available", "busy", "offline"])
        fields = {"event_id": f"e{number}", "courier_id": dice.randrange(20), "status": status, "at": at}
    elif topic == "order_placed":
        fields |= {"customer_id": None, "placed_at": at, "item_count": 1, "basket_total": dice.randrange(9999) / 100}
    elif topic == "order_ready":
        fields |= {"placed_at": placed, "ready_at": at}
    else:
        fields |= {"courier_id": 1, "placed_at": placed, "delivered_at": at}
    if topic != "order_ready":
        fields["zone_id"] = dice.choice(ZONES)
    return topic, Message(event_key(topic, fields), msgspec.json.encode(fields))


def bad_events(now: int) -> list[tuple[str, bytes, str]]:
    """(topic, bytes, the field at fault)."""
    order = {"event_id": "x", "order_id": "x", "restaurant_id": 1, "placed_at": now, "ready_at": now}
    return [
        ("order_placed", b"\xff\x00 no JSON", "event"),
        ("order_placed", b"", "event"),
        ("order_placed", msgspec.json.encode(order), "zone_id"),
        ("order_ready", msgspec.json.encode(order | {"ready_at": now - 1}), "ready_at"),
        ("order_ready", msgspec.json.encode(order | {"ready_at": now + 60 * MINUTE}), "ready_at"),
        ("order_delivered", b"[]", "event"),
        ("courier_status", b'{"event_id":1,"courier_id":1,"zone_id":1,"status":"asleep","at":0}', "status"),
    ]


def stream(now: int, count: int = 400) -> list[Sent]:
    """Events out of order, one in eight sent again later, and bad ones in between, in restaurants' own partitions."""
    dice = random.Random(11)
    sent = [event(dice, number, now) for number in range(count)]
    for again in dice.sample(sent, count // 8):
        sent.insert(dice.randrange(len(sent)), again)
    for topic, value, _ in bad_events(now):
        sent.insert(dice.randrange(len(sent)), (topic, Message(b"1", value)))
    return sent


def orders_in_the_last_ten_minutes(sent: Sequence[Sent], now: int) -> Counter[int]:
    """By restaurant, counted the plain way."""
    ids: dict[str, int] = {}
    for topic, message in sent:
        if topic == "order_placed":
            try:
                found = msgspec.json.decode(message.value)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if "zone_id" in found and found["placed_at"] >= floor_hop(now, MINUTE) - 10 * MINUTE:
                ids[found["event_id"]] = found["restaurant_id"]
    return Counter(ids.values())


@contextmanager
def at_work(home: Home, group: str, name: str) -> Iterator[tuple[Worker, threading.Event]]:
    """A member of the group in a thread, as `tiffin worker` runs it, and what tells it to stop."""
    worker, told = home.worker(group), threading.Event()
    thread = threading.Thread(target=worker.run, args=(told.is_set,), name=name)
    thread.start()
    try:
        yield worker, told
    finally:
        told.set()
        thread.join(30)
        assert not thread.is_alive(), f"{name} did not stop"


def test_both_homes_give_equal_features(homes: tuple[Home, Home]) -> None:
    sent = stream(homes[0].clock.now)
    for home in homes:
        home.publish(sent)
        home.fold()
    kafka, redis = homes[0].values(), homes[1].values()
    assert kafka == redis
    expected = orders_in_the_last_ten_minutes(sent, homes[0].clock.now)
    assert sum(expected.values()) > 10
    assert {r: kafka["orders_10m", r][0] for r in RESTAURANTS} == {r: expected[r] for r in RESTAURANTS}
    assert all(status in (Status.PRESENT, Status.NULL_VALUE) for _, status in kafka.values())
    assert len({value for value, _ in kafka.values()}) > 20, "they say something"


def test_bad_bytes_lie_in_dead_letters_and_their_partitions_go_on(homes: tuple[Home, Home]) -> None:
    now = homes[0].clock.now
    letters: list[Any] = []
    for home in homes:
        for topic, value, _ in bad_events(now):
            home.log.publish(topic, [Message(b"1", value)])
        after = {"event_id": "after", "order_id": "o", "restaurant_id": 1, "zone_id": 1, "customer_id": 1}
        after |= {"placed_at": now, "basket_total": None, "item_count": None}
        home.log.publish("order_placed", [Message(b"1", msgspec.json.encode(after))])
        home.fold()
        assert home.values()["orders_10m", 1] == (1, Status.PRESENT)
        dead = home.dead()
        assert all(letter["reason"] for letter in dead)
        letters.append(
            sorted((d["topic"], base64.b64decode(d["raw"]), d["field"], d["partition"], d["value"]) for d in dead)
        )
    assert letters[0] == letters[1]
    assert [letter[:3] for letter in letters[0]] == sorted(bad_events(now))


def test_a_worker_takes_over_from_one_that_leaves(homes: tuple[Home, Home]) -> None:
    kafka, redis = homes
    sent = stream(kafka.clock.now)
    first, second = sent[: len(sent) // 2], sent[len(sent) // 2 :]
    every = {where for topic in EVENT_TYPES for where in kafka.log.begins(topic)}
    with ExitStack() as ends:
        one, tell_one = ends.enter_context(at_work(kafka, "group", "one"))
        wait_for(lambda: len(one._held) == len(every), "the first to hold all")
        other, _ = ends.enter_context(at_work(kafka, "group", "other"))
        wait_for(lambda: bool(one._held) and bool(other._held) and not one._held.keys() & other._held.keys(), "shares")
        kafka.publish(first)
        wait_for(kafka.folded, "the first half to be folded")
        assert one.counts.events > 0
        assert other.counts.events > 0
        tell_one.set()
        kafka.publish(second)
        wait_for(lambda: other._held.keys() == every, "the other to hold all")
        wait_for(kafka.folded, "the second half to be folded")
    redis.publish(first)
    redis.publish(second)
    redis.fold()
    assert kafka.values() == redis.values()
    assert len({letter["event_id"] for letter in kafka.dead()}) == len(bad_events(0))
