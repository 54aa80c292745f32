"""What each home of the event log does beyond the contract: drills, retention, transactions, a frozen broker."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from kafka import KafkaProducer

from deploy.servers import KafkaServer
from feature_repo.stores.redis_client import Redis
from ingestion.events import PREDICTIONS
from ingestion.kafka_log import KafkaLog
from ingestion.log import LogUnavailable, PositionGone, TopicPartition
from ingestion.redis_log import RedisLog
from tests.event_log_tools import DEADLINE_S, TOPIC, from_begin, messages, read, settle


@pytest.mark.kafka
def test_a_kafka_that_freezes_is_said_in_time_and_found_again(kafka_server: KafkaServer) -> None:
    log = KafkaLog(kafka_server.bootstrap_servers, "frozen-")
    log.create_topics([TOPIC], 1)
    log.publish(TOPIC, messages(10))
    reader = log.consumer([TOPIC], None, from_begin)
    read(10, reader)
    kafka_server.pause()
    try:
        asks = (reader.ends, lambda: log.publish(TOPIC, messages(1)), lambda: log.partitions(TOPIC))
        with ThreadPoolExecutor() as pool:
            for answer in [pool.submit(ask) for ask in asks]:
                with pytest.raises(LogUnavailable):
                    answer.result(timeout=DEADLINE_S)
        assert reader.poll(200, 10) == {}
    finally:
        kafka_server.resume()
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            log.publish(TOPIC, messages(1))
            break
        except LogUnavailable:
            assert time.monotonic() < deadline
    reader.close()
    log.close()


@pytest.mark.kafka
def test_a_drills_clock_stamps_the_records_of_kafka(kafka_server: KafkaServer) -> None:
    log = KafkaLog(kafka_server.bootstrap_servers, f"drill-{time.time_ns()}-", producer_clock=True)
    log.create_topics([TOPIC], 1)
    log.publish(TOPIC, messages(2), append_ms=1_000_000)
    reader = log.consumer([TOPIC], None, from_begin)
    (records,) = read(2, reader)
    reader.close()
    log.close()
    assert [record.append_ms for record in records] == [1_000_000] * 2


def test_a_redis_member_that_falls_silent_loses_its_partitions_and_learns_of_it(redis_client: Redis) -> None:
    log = RedisLog(redis_client, lease_ms=1_000)  # Kafka's client keeps its membership alive on its own thread
    log.create_topics([TOPIC], 4)
    lost: list[TopicPartition] = []
    silent = log.consumer([TOPIC], "group", from_begin, lost.extend)
    settle(lambda: len(silent.assignment()) == 4, silent)
    other = log.consumer([TOPIC], "group", from_begin)
    settle(lambda: len(other.assignment()) == 4, other)
    assert lost == []
    log.publish(TOPIC, messages(20))
    assert silent.poll(0, 500) == {}
    assert sorted(lost) == sorted(other.assignment())
    assert silent.assignment() == frozenset()
    silent.close()
    other.close()


def test_a_drills_clock_stamps_the_records_of_redis_and_never_runs_backwards(redis_client: Redis) -> None:
    log = RedisLog(redis_client, retention_ms=None)
    log.create_topics([TOPIC], 1)
    for append_ms in (1_000_000, 2_000_000, 1_500_000):
        log.publish(TOPIC, messages(1), append_ms)
    (records,) = read(3, log.consumer([TOPIC], None, from_begin))
    assert [record.append_ms for record in records] == [1_000_000, 2_000_000, 2_000_000]
    assert all(a.offset < b.offset for a, b in pairwise(records))


def test_redis_goes_on_to_the_next_millisecond_before_a_sequence_number_outgrows_an_offset(redis_client: Redis) -> None:
    log = RedisLog(redis_client, retention_ms=None)
    log.create_topics([TOPIC], 1)
    log.publish(TOPIC, messages(1), 1_000_000)
    redis_client.xadd(f"log:{TOPIC}:0", {"k": b"", "v": b"1"}, id=f"1000000-{2**20 - 1}")
    log.publish(TOPIC, messages(1), 1_000_000)
    (records,) = read(3, log.consumer([TOPIC], None, from_begin))
    assert [record.append_ms for record in records] == [1_000_000, 1_000_000, 1_000_001]


def test_redis_keeps_predictions_for_an_hour_and_events_as_long_as_it_is_told(redis_client: Redis) -> None:
    log = RedisLog(redis_client, retention_ms=24 * 3_600_000)
    log.create_topics([TOPIC, PREDICTIONS], 1)
    for topic in (TOPIC, PREDICTIONS):
        for hour in range(5):
            log.publish(topic, messages(2), 1_000_000 + hour * 3_600_000)
    left = []
    for topic in (TOPIC, PREDICTIONS):
        reader = log.consumer([topic], None, lambda gained, topic=topic: log.begins(topic))  # type: ignore[misc]
        left.append(sum(map(len, reader.poll(200, 100).values())))
        reader.close()
    assert left == [10, 4]


def test_redis_trims_what_is_older_than_its_retention_and_says_who_missed_it(redis_client: Redis) -> None:
    log = RedisLog(redis_client, retention_ms=10_000)
    log.create_topics([TOPIC], 1)
    where = TopicPartition(TOPIC, 0)
    log.publish(TOPIC, messages(5), 1_000_000)
    up_to_date, behind = (log.consumer([TOPIC], None, from_begin) for _ in range(2))
    read(5, up_to_date)
    behind.poll(0, 2)
    log.publish(TOPIC, messages(5), 1_020_000)
    log.publish(TOPIC, messages(5), 1_020_000)  # trims: the first 5 are now older than the retention
    assert len(read(10, up_to_date)[0]) == 10
    begin = log.begins(TOPIC)[where]
    assert 1_000_000 << 20 < begin <= 1_020_000 << 20
    with pytest.raises(PositionGone) as gone:
        behind.poll(0, 100)
    assert (gone.value.where, gone.value.begin) == (where, begin)
    behind.seek(where, begin)
    assert len(read(10, behind)[0]) == 10


@pytest.mark.kafka
def test_kafka_says_who_stands_where_nothing_is_left(kafka_server: KafkaServer) -> None:
    log = KafkaLog(kafka_server.bootstrap_servers, f"gone-{time.time_ns()}-")
    log.create_topics([TOPIC], 1)
    log.publish(TOPIC, messages(5))
    where = TopicPartition(TOPIC, 0)
    reader = log.consumer([TOPIC], None, lambda gained: dict.fromkeys(gained, 99))
    with pytest.raises(PositionGone) as gone:
        read(5, reader)
    assert (gone.value.where, gone.value.position, gone.value.begin) == (where, 99, 0)
    reader.seek(where, 0)
    assert len(read(5, reader)[0]) == 5
    reader.close()
    log.close()


@pytest.mark.kafka
def test_what_others_write_to_kafka_in_transactions_counts_when_it_is_committed(kafka_server: KafkaServer) -> None:
    prefix = f"transactions-{time.time_ns()}-"
    log = KafkaLog(kafka_server.bootstrap_servers, prefix)
    log.create_topics([TOPIC], 1)
    with KafkaProducer(bootstrap_servers=kafka_server.bootstrap_servers, transactional_id="other") as producer:
        producer.init_transactions()
        for end in (producer.commit_transaction, producer.abort_transaction, producer.commit_transaction):
            producer.begin_transaction()
            producer.send(prefix + TOPIC, end.__name__.encode(), b"key")
            producer.flush()
            end()
    reader = log.consumer([TOPIC], None, from_begin)
    (records,) = read(2, reader)
    assert [record.value for record in records] == [b"commit_transaction"] * 2
    where = TopicPartition(TOPIC, 0)
    settle(lambda: reader.position(where) == reader.ends()[where] == 6, reader)
    reader.close()
    log.close()


@pytest.mark.kafka
def test_a_record_of_kafka_without_a_value_is_an_empty_one(kafka_server: KafkaServer) -> None:
    log = KafkaLog(kafka_server.bootstrap_servers, "empty-")
    log.create_topics([TOPIC], 1)
    with KafkaProducer(bootstrap_servers=kafka_server.bootstrap_servers) as producer:
        producer.send("empty-" + TOPIC, None, b"k").get(DEADLINE_S)
    consumer = log.consumer([TOPIC], None, from_begin)
    ((record,),) = read(1, consumer)
    assert (record.key, record.value) == (b"k", b"")
    consumer.close()
    log.close()
