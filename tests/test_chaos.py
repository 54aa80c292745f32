"""The crash drill: its short form on real servers; and its judgement, which must see what is wrong and nothing else."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from feast import Entity, Field, StreamFeatureView
from feast.types import Int64
from pydantic import SecretStr

from deploy.chaos.events import RESTAURANTS, ZONES, EventMaker
from deploy.chaos.figures import ZERO
from deploy.chaos.honesty import Judge, Sighting
from deploy.chaos.killer import WEIGHTS, planned
from deploy.chaos.truth import Truth, compare_archive
from deploy.servers import ValkeyServer, free_port, why_no_kafka
from feature_repo.settings import Settings
from feature_repo.stores.redis_client import connect
from feature_repo.views import StreamView, compile_view
from ingestion.archive import Archiver
from ingestion.event_files import log_folder
from ingestion.events import EVENT_TYPES, TOPICS, BadEvent, parse
from ingestion.log import EventLog, Message, Record
from ingestion.redis_log import RedisLog
from tests.repo import START, FakeClock, quietly, wait_for

with quietly():
    from deploy.chaos import definitions

KILLS = 12
TICK_MS = 500


@pytest.fixture(autouse=True)
def _kafka_if_needed(request: pytest.FixtureRequest) -> None:
    lacking = why_no_kafka() if request.node.get_closest_marker("kafka") else None
    if lacking is not None and os.environ.get("TIFFIN_REQUIRE_KAFKA") != "1":
        pytest.skip(lacking)


def processes_of(folder: Path) -> list[str]:
    """The command lines of this machine's processes that name the folder."""
    lines = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(folder) in line]


@pytest.mark.kafka
def test_killing_everything_loses_nothing_counts_nothing_twice_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tiffin", "chaos", "--kills", str(KILLS), "--seed", "5"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr[-2000:]
    figures = json.loads(done.stdout)
    assert {name: figures[name] for name in ZERO} == dict.fromkeys(ZERO, 0), done.stderr[-2000:]
    assert done.returncode == 0
    assert figures["kills"] == sum(figures["kinds"].values()) == KILLS
    assert figures["kinds"].keys() == WEIGHTS.keys()
    assert figures["events"] > 1000
    assert figures["records"] > figures["events"]  # repeats, and records that are no events
    assert figures["nonempty"] > figures["checks"] / 2
    assert figures["decided"] > 0
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


_DRILL = """
import sys, time
from pathlib import Path
from deploy.chaos.guard import guarded_home
from deploy.processes import Process

with guarded_home() as home:
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)", str(home.path)]
    Process("sleeper", home.path / "sleeper", sleeps).start()
    print(home.path, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_a_drill_has_started_ends_with_it_however_it_ends(how: signal.Signals, tmp_path: Path) -> None:
    drill = subprocess.Popen(
        [sys.executable, "-c", _DRILL],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert drill.stdout is not None
    with drill.stdout:
        home = Path(drill.stdout.readline().strip())
    assert any("time.sleep" in line for line in processes_of(home))
    drill.send_signal(how)
    drill.wait()
    wait_for(lambda: not home.exists() and not processes_of(home), "the drill to clear its folder away", 30)


def test_a_valkey_comes_back_as_it_was_cut_back_or_emptied(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, free_port())
    given = Settings(REDIS_URL=SecretStr(f"redis://127.0.0.1:{server.port}/0"))

    def keys(*new: str) -> set[bytes]:
        """What is stored, after `new` has been."""
        client = connect(given)
        for key in new:
            client.set(key, "")
        found: Any = client.keys()
        client.close()
        return set(found)

    try:
        server.start()
        keys("early")
        earlier = server.appended()
        keys("late")
        server.kill()
        server.start()
        assert keys() == {b"early", b"late"}  # a kill alone loses nothing
        server.kill()
        server.cut(earlier)
        server.start()
        assert keys() == {b"early"}
        server.kill()
        server.empty()
        server.start()
        assert keys() == set()
    finally:
        server.stop()


def test_every_kind_of_kill_is_in_every_plan_and_too_few_kills_are_refused() -> None:
    plans = [planned(kills, random.Random(kills)) for kills in (len(WEIGHTS), 12, 200)]
    assert [len(plan) for plan in plans] == [len(WEIGHTS), 12, 200]
    assert all(set(plan) == WEIGHTS.keys() for plan in plans)
    with pytest.raises(ValueError, match="6 kills: fewer than there are kinds"):
        planned(6, random.Random(1))


def test_the_load_has_events_of_every_topic_each_of_its_own_and_some_that_are_broken() -> None:
    maker, sent = EventMaker(random.Random(2)), list[tuple[str, Message]]()
    for _ in range(100):
        topic, messages = maker.batch(START)
        sent += [(topic, message) for message in messages]
    good, reasons = [], set()
    for topic, message in sent:
        try:
            good.append((topic, parse(topic, message.value, START)))
        except BadEvent as error:
            reasons.add((error.field, error.reason.partition(" ")[0]))
    assert len({message.value for _, message in sent}) == len(sent)
    assert len({event.event_id for _, event in good}) == len(good)
    assert {topic for topic, _ in good} == EVENT_TYPES.keys()
    assert len(reasons) >= 5
    assert {event.time - START == 0 for _, event in good} == {True, False}


def compiled(view: StreamFeatureView, entity: Entity) -> StreamView:
    with quietly():
        view.entity_columns = [Field(name=entity.join_key, dtype=Int64)]
        return compile_view(view)  # type: ignore[return-value]  # a stream view's compiled form is one


VIEWS = [
    compiled(definitions.drill_restaurant_orders, definitions.restaurant),
    compiled(definitions.restaurant_recent_prep, definitions.restaurant),
    compiled(definitions.drill_zone_orders, definitions.zone),
    compiled(definitions.zone_recent_deliveries, definitions.zone),
    compiled(definitions.zone_couriers, definitions.zone),
    compiled(definitions.zone_open_orders, definitions.zone),
]


def made_up_log(seconds: int, seed: int = 3) -> dict[str, list[Record]]:
    """What the load would leave in a log of two partitions, some of it twice."""
    dice, records = random.Random(seed), {topic: list[Record]() for topic in TOPICS}
    maker, offsets = EventMaker(dice), dict[tuple[str, int], int]()
    for now in range(START, START + seconds * 1000, TICK_MS):
        topic, messages = maker.batch(now)
        for message in messages * (2 if dice.random() < 0.1 else 1):
            partition = sum(message.key) % 2
            offset = offsets.get((topic, partition), 0)
            offsets[topic, partition] = offset + 1
            records[topic].append(Record(topic, partition, offset, now, message.key, message.value))
    return records


def prefix(records: dict[str, list[Record]], until: dict[tuple[str, int], int]) -> Truth:
    """What follows from the records of each partition that were appended at or before an instant."""
    return Truth({t: [r for r in its if r.append_ms <= until[t, r.partition]] for t, its in records.items()})


def sightings(records: dict[str, list[Record]], count: int, worst_ms: int) -> Iterator[Sighting]:
    """What would be served of random prefixes, the oldest of which lack the last `worst_ms`."""
    dice = random.Random(4)
    for _ in range(count):
        asked = START + dice.randrange(40_000, 60_000)
        behind = worst_ms - dice.randrange(2000)
        read = {(t, p): asked - dice.choice((behind, dice.randrange(behind))) for t in records for p in (0, 1)}
        read[dice.choice(list(read))] = asked - behind
        known = prefix(records, read)
        for view in VIEWS:
            ids = (dice.randint(1, RESTAURANTS if view.join_keys == ("restaurant_id",) else ZONES),)
            values = {name: known.value(view, name, ids, asked) for name in view.features}
            yield Sighting(view, ids, asked, asked + 5, asked, values)


def test_what_a_prefix_within_the_allowance_gives_is_never_called_dishonest() -> None:
    records = made_up_log(60)
    seen = list(sightings(records, 20, worst_ms=10_000))
    verdict = Judge(Truth(records)).verdict(seen)
    assert verdict.dishonest == []
    assert len(seen) / 2 < verdict.decided <= len(seen)
    assert sum(any(one.values.values()) for one in seen) > len(seen) / 2


def test_an_older_prefix_served_as_fresh_is_dishonest() -> None:
    records = made_up_log(60)
    seen = list(sightings(records, 20, worst_ms=35_000))
    dishonest = Judge(Truth(records)).verdict(seen).dishonest
    assert {one.view.name for one in dishonest} == {view.name for view in VIEWS}


def test_a_value_that_no_prefix_gives_is_dishonest_be_it_one_more_or_one_less() -> None:
    records = made_up_log(60)
    truth, off = Truth(records), list[Sighting]()
    names = {"restaurant_placed_20s", "zone_placed_20s", "couriers_busy", "zone_open_orders"}
    for one in sightings(records, 20, worst_ms=3000):
        for name in names & one.values.keys():
            value = one.values[name]
            assert isinstance(value, int)
            # Nothing more came for long: so what was served can only have been everything.
            late = one._replace(asked=START + 120_000, answered=START + 120_000)
            everything = truth.value(one.view, name, one.ids, one.instant)
            assert isinstance(everything, int)
            off += [late._replace(values={name: everything + more}) for more in (1, -1)]
    assert len(off) > 40
    assert Judge(truth).verdict(off).dishonest == off


def test_an_event_counted_twice_is_seen_where_prefixes_are_too_many_to_try() -> None:
    records = made_up_log(60)
    truth, view = Truth(records), VIEWS[2]
    asked = START + 60_000
    busiest = max(range(1, ZONES + 1), key=lambda zone: len(truth.entity(view, (zone,)).rows))
    most = truth.value(view, "zone_placed_20s", (busiest,), asked)
    assert isinstance(most, int)
    judge = Judge(truth)

    def dishonest(**values: Any) -> bool:
        return bool(judge.verdict([Sighting(view, (busiest,), asked, asked, asked, values)]).dishonest)

    assert not dishonest(zone_placed_20s=most)
    assert dishonest(zone_placed_20s=most + 1)
    assert dishonest(zone_basket_max_5m=None)
    assert dishonest(zone_basket_min_5m=-1.0)


@pytest.fixture
def archived(redis_client: Any, tmp_path: Path) -> tuple[Settings, dict[str, list[Record]]]:
    """A log and its archive, whole and right; of each topic several files."""
    given, clock = Settings(TIFFIN_REPO=tmp_path), FakeClock()
    log: EventLog = RedisLog(redis_client, retention_ms=None)
    log.create_topics(TOPICS, 2)
    archiver = Archiver(log, given, clock, list(EVENT_TYPES))
    maker = EventMaker(random.Random(6))
    for number in range(40):
        topic, messages = maker.batch(clock.now)
        log.publish(topic, messages, append_ms=clock.now)
        archiver.step(timeout_ms=0)
        if number % 10 == 9:
            archiver.flush()
    archiver.close()
    records: dict[str, list[Record]] = {topic: [] for topic in TOPICS}
    consumer = log.consumer(TOPICS, None, lambda gained: dict.fromkeys(gained, 0))
    while batches := consumer.poll(0, 1000):
        for batch in batches.values():
            records[batch[0].topic] += batch
    consumer.close()
    log.close()
    return given, records


def parquet(given: Settings) -> Sequence[Path]:
    return sorted(log_folder(given, "order_placed").rglob("*.parquet"))


def test_an_archive_that_has_each_offset_once_is_found_whole(
    archived: tuple[Settings, dict[str, list[Record]]],
) -> None:
    given, records = archived
    found = compare_archive(given, records)
    assert found.rows > 500
    assert (found.lost, found.duplicated, found.wrong) == (0, 0, 0)


def test_a_file_that_is_missing_is_lost_and_a_file_that_is_there_twice_is_duplicated(
    archived: tuple[Settings, dict[str, list[Record]]],
) -> None:
    given, records = archived
    first, *_, last = parquet(given)
    last.with_name("1-900000.parquet").write_bytes(first.read_bytes())
    last.unlink()
    found = compare_archive(given, records)
    assert found.lost > 0
    assert found.duplicated > 0
    assert found.wrong == 0


def test_a_row_that_is_not_what_lies_in_the_log_is_wrong(
    archived: tuple[Settings, dict[str, list[Record]]],
) -> None:
    given, records = archived
    first, *others = records["order_placed"]
    records["order_placed"] = [first._replace(append_ms=first.append_ms + 1), *others]
    assert compare_archive(given, records).wrong > 0


def test_an_acknowledged_message_that_is_not_in_the_log_is_lost() -> None:
    records = made_up_log(10)
    sent = [(topic, record.value) for topic, its in records.items() for record in its]
    assert Truth(records).lost_of(sent) == 0
    assert Truth(records).lost_of([*sent, ("order_placed", b"never came")]) == 1
    assert Truth(records).dead_letters_missing() > 0  # nobody has written any
