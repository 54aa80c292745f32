"""The archive: every record of the log in a file once, whoever archives, whatever dies, and gaps said aloud."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs

from feature_repo.clock import to_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import parquet_files
from feature_repo.stores.redis_client import Redis
from ingestion import archive
from ingestion.archive import Archiver
from ingestion.event_files import covered, publish_events
from ingestion.events import arrow_schema
from ingestion.log import EventLog, LogConsumer, LogUnavailable, Message, PositionGone, StartAt
from ingestion.redis_log import RedisLog

TOPIC = "order_ready"
NOON = to_ms(datetime(2026, 3, 1, 12, tzinfo=UTC))
MIDNIGHT = to_ms(datetime(2026, 3, 2, tzinfo=UTC))


class FakeClock:
    """A clock that moves when it is told to."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(TIFFIN_REPO=tmp_path)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOON)


@pytest.fixture
def log(redis_client: Redis) -> Iterator[EventLog]:
    """An embedded log with one partition, in which records are kept for a minute."""
    log = RedisLog(redis_client, retention_ms=60_000)
    log.create_topics([TOPIC], 1)
    yield log
    log.close()


def message(name: str, at: int, **more: object) -> Message:
    event = {"event_id": name, "order_id": name, "restaurant_id": 7, "placed_at": at - 60_000, "ready_at": at}
    return Message(b"7", msgspec.json.encode({**event, **more}))


def publish(log: EventLog, *names: str, at: int = NOON) -> None:
    log.publish(TOPIC, [message(name, at) for name in names], append_ms=at)


def archiver(log: EventLog, settings: Settings, clock: FakeClock, max_rows: int = 50_000) -> Archiver:
    return Archiver(log, settings, clock, [TOPIC], max_rows=max_rows, max_seconds=300)


def rows(settings: Settings) -> list[dict[str, Any]]:
    files = parquet_files(settings.data / "log" / TOPIC)
    read = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
    return sorted(read, key=lambda row: (row["partition"], row["offset"]))


def names(settings: Settings) -> list[str]:
    return [row["event_id"] for row in rows(settings)]


def drain(archiver: Archiver) -> None:
    while archiver.step(timeout_ms=50):
        pass


def test_records_are_archived_with_their_place_and_what_was_parsed(
    event_log: EventLog, settings: Settings, clock: FakeClock
) -> None:
    event_log.create_topics([TOPIC], 2)
    now = to_ms(datetime.now(UTC))
    sent = {f"e{i}": message(f"e{i}", now - 1000 + i, cook="Ann") for i in range(40)}
    event_log.publish(TOPIC, [m._replace(key=str(i).encode()) for i, m in enumerate(sent.values())])
    subject = archiver(event_log, settings, clock)
    read = 0
    while read < len(sent):
        read += subject.step(timeout_ms=500)

    subject.flush()
    subject.close()

    stored = rows(settings)
    assert sorted(row["event_id"] for row in stored) == sorted(sent)
    assert {row["partition"] for row in stored} == {0, 1}
    assert {(row["prep_minutes"], row["extra"]) for row in stored} == {(1.0, '{"cook":"Ann"}')}
    assert all(row["event_time"] == row["ready_at"] <= row["append_time"] for row in stored)
    for file in parquet_files(settings.data / "log" / TOPIC):
        assert pq.read_schema(file).equals(arrow_schema(TOPIC))


def test_a_file_is_published_when_it_is_full(log: EventLog, settings: Settings, clock: FakeClock) -> None:
    publish(log, "a", "b", "c", "d", "e")
    drain(archiver(log, settings, clock, max_rows=2))

    assert names(settings) == ["a", "b", "c", "d"]
    assert len(parquet_files(settings.data)) == 2


def test_a_file_is_published_when_its_first_event_has_waited(
    log: EventLog, settings: Settings, clock: FakeClock
) -> None:
    subject = archiver(log, settings, clock)
    publish(log, "a")
    drain(subject)
    clock.now += 299_999
    drain(subject)
    assert names(settings) == []

    clock.now += 1
    drain(subject)
    assert names(settings) == ["a"]


def test_a_new_append_date_is_a_new_file(log: EventLog, settings: Settings, clock: FakeClock) -> None:
    publish(log, "a", "b", at=MIDNIGHT - 1)
    publish(log, "c", at=MIDNIGHT)
    subject = archiver(log, settings, clock)
    drain(subject)
    subject.flush()

    dates = [file.parent.name for file in parquet_files(settings.data)]
    assert dates == ["date=2026-03-01", "date=2026-03-02"]
    assert names(settings) == ["a", "b", "c"]


def test_a_bad_record_is_left_out_but_covered(log: EventLog, settings: Settings, clock: FakeClock) -> None:
    publish(log, "a")
    log.publish(TOPIC, [Message(b"7", b"nonsense")], append_ms=NOON)
    subject = archiver(log, settings, clock)
    drain(subject)
    subject.flush()

    assert names(settings) == ["a"]
    assert covered(settings, TOPIC)[0] == rows(settings)[0]["offset"] + 1
    assert archiver(log, settings, clock).step(timeout_ms=50) == 0, "the bad record is not read again"


def test_nothing_but_bad_records_makes_no_file(log: EventLog, settings: Settings, clock: FakeClock) -> None:
    log.publish(TOPIC, [Message(b"7", b"nonsense")], append_ms=NOON)
    subject = archiver(log, settings, clock)
    drain(subject)
    clock.now += 300_000
    drain(subject)
    subject.flush()

    assert parquet_files(settings.data) == []


def test_an_archiver_that_died_is_followed_by_one_that_misses_nothing(
    log: EventLog, settings: Settings, clock: FakeClock
) -> None:
    publish(log, "a", "b", "c")
    drain(archiver(log, settings, clock, max_rows=2))  # dies with "c" in its buffer
    publish(log, "d")
    subject = archiver(log, settings, clock, max_rows=2)
    drain(subject)

    assert names(settings) == ["a", "b", "c", "d"]


def test_of_two_archivers_one_writes_and_the_other_goes_on_behind_it(
    log: EventLog, settings: Settings, clock: FakeClock
) -> None:
    first, second = archiver(log, settings, clock), archiver(log, settings, clock)
    publish(log, "a", "b")
    drain(first)
    drain(second)
    publish(log, "c")
    drain(second)

    first.flush()
    second.flush()
    assert names(settings) == ["a", "b"], "the second's file, which begins at the same record, is not written"

    drain(second)
    second.flush()
    assert names(settings) == ["a", "b", "c"]


def test_the_name_decides_when_both_publish_at_once(
    log: EventLog, settings: Settings, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(log, "a", "b")
    first, second = archiver(log, settings, clock), archiver(log, settings, clock)
    drain(first)
    drain(second)

    def late(*args: Any, **more: Any) -> Path:
        monkeypatch.undo()
        first.flush()
        return publish_events(*args, **more)

    monkeypatch.setattr(archive, "publish_events", late)
    second.flush()

    assert names(settings) == ["a", "b"]


def test_a_full_disk_loses_nothing(
    log: EventLog, settings: Settings, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **more: object) -> Path:
        raise OSError(28, "No space left on device")

    publish(log, "a", "b", "c")
    subject = archiver(log, settings, clock, max_rows=2)
    monkeypatch.setattr(archive, "publish_events", full)
    with pytest.raises(OSError, match="No space"):
        drain(subject)
    monkeypatch.undo()

    drain(subject)
    subject.flush()
    assert names(settings) == ["a", "b", "c"]


def test_records_that_retention_ate_are_said_aloud_and_passed_over(
    log: EventLog, settings: Settings, clock: FakeClock
) -> None:
    publish(log, "a")
    subject = archiver(log, settings, clock)
    drain(subject)
    subject.flush()
    subject.close()
    publish(log, "lost", at=NOON + 1000)
    publish(log, "kept", at=NOON + 600_000)

    with capture_logs() as said:
        for _ in range(3):
            subject.step(timeout_ms=50)
    subject.flush()

    assert names(settings) == ["a", "kept"]
    (error,) = [entry for entry in said if entry["log_level"] == "error"]
    assert error["event"] == "the log dropped records before they were archived"
    assert (error["first_lost"], error["topic"], error["partition"]) == (rows(settings)[0]["offset"] + 1, TOPIC, 0)
    assert error["first_lost"] <= error["last_lost"] < rows(settings)[1]["offset"]


def test_a_log_that_ends_before_its_archive_is_said_aloud(
    log: EventLog, redis_client: Redis, settings: Settings, clock: FakeClock
) -> None:
    publish(log, "a")
    first = archiver(log, settings, clock)
    drain(first)
    first.flush()
    redis_client.delete(f"log:{TOPIC}:0")  # the records are gone, the topic is the same
    publish(log, "of an older clock", at=NOON - 86_400_000)

    with capture_logs() as said:
        archiver(log, settings, clock).step(timeout_ms=50)

    assert [entry["event"] for entry in said if entry["log_level"] == "error"] == [
        "the log ends before its archive: nothing of this partition is archived until it has caught up"
    ]


def test_a_topic_that_was_made_anew_is_archived_beside_the_one_before_it(
    log: EventLog, redis_client: Redis, settings: Settings, clock: FakeClock
) -> None:
    for generation in ("a", "b"):
        publish(log, generation)
        subject = archiver(log, settings, clock)
        drain(subject)
        subject.flush()
        subject.close()
        redis_client.flushall()
        log.create_topics([TOPIC], 1)
    publish(log, "c", at=NOON - 86_400_000)
    subject = archiver(log, settings, clock)
    drain(subject)
    subject.flush()
    assert sorted(names(settings)) == ["a", "b", "c"]


class BrokenLog(RedisLog):
    """A log that is not there for the first consumers asked for."""

    failures = 2

    def consumer(self, topics: Sequence[str], group: str | None, start_at: StartAt, *rest: Any) -> Any:
        if self.failures:
            self.failures -= 1
            raise LogUnavailable("nobody answers")
        return super().consumer(topics, group, start_at, *rest)


def test_run_waits_for_the_log_and_flushes_when_it_is_stopped(
    redis_client: Redis, settings: Settings, clock: FakeClock
) -> None:
    log = BrokenLog(redis_client)
    log.create_topics([TOPIC], 1)
    publish(log, "a", "b")
    steps = iter([False] * 4)

    archiver(log, settings, clock).run(lambda: next(steps, True), timeout_ms=50)

    assert names(settings) == ["a", "b"]
    assert log.failures == 0


def test_a_log_that_lies_wholly_before_its_archive_stops_the_step(
    log: EventLog, settings: Settings, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = archiver(log, settings, clock)
    subject.step(timeout_ms=0)
    consumer: LogConsumer = subject._connected()
    (where,) = consumer.assignment()

    def gone(timeout_ms: int, max_records: int) -> None:
        raise PositionGone(where, position=90, begin=10)

    monkeypatch.setattr(consumer, "poll", gone)
    with capture_logs() as said, pytest.raises(PositionGone, match="offset 90"):
        subject.step()

    assert [entry["log_level"] for entry in said] == ["error"]
