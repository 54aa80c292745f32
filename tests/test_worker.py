"""The worker: whatever is killed, repeated, lost or emptied, every event of the log counts once; silence is known."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from feature_repo.stores import layout
from feature_repo.stores.progress import Progress
from feature_repo.stores.reading import Status
from feature_repo.stores.redis_client import STORE_DOWN
from feature_repo.stores.stream_store import StreamStore
from feature_repo.stores.tile_codec import unpack_header
from ingestion.folding import LostPartition, WindowFolder
from ingestion.log import LogUnavailable, Message, TopicPartition
from ingestion.partitioner import partition_of
from ingestion.worker import Worker
from tests.repo import (
    COURIERS,
    LONG_WINDOW,
    MINUTE,
    ORDERS,
    PRESENCE_TTL,
    PROJECT,
    START,
    Lab,
    courier,
    drain,
    order,
)

SECOND = 1000


@pytest.fixture
def worker(lab: Lab) -> Worker:
    """A worker that found the log empty."""
    made = lab.worker()
    drain(made)
    return made


def store_keys(client: Any) -> list[bytes]:
    """Every key but the log's."""
    return [key for key in client.scan_iter() if not key.startswith((b"log:", b"lease", b"group:"))]


def snapshot(client: Any) -> dict[bytes, bytes]:
    """The whole store, as it is now."""
    dumped = {key: client.dump(key) for key in store_keys(client)}
    return {key: data for key, data in dumped.items() if data is not None}


def restore(client: Any, kept: Mapping[bytes, bytes]) -> None:
    """The store as it was: what came later is lost, as after a crash of a Redis that had not written it to disk."""
    for key in store_keys(client):
        client.delete(key)
    for key, data in kept.items():
        client.restore(key, 0, data)


def make_log_anew(lab: Lab) -> None:
    """Delete every topic and make it again."""
    client: Any = lab.client
    client.delete(*client.keys("log:*"))
    lab.create_topics()


def stored(lab: Lab, topic: str = ORDERS, restaurant: int = 7) -> Progress:
    """The progress of the restaurants' view in a restaurant's partition."""
    partition = partition_of(str(restaurant).encode(), lab.partitions)
    found = lab.store.progress(topic, partition, lab.view("by_restaurant").tiles_hash)
    assert found is not None
    return found


def counts(lab: Lab, *restaurants: int) -> list[object]:
    return [row["r_orders_7m"].value for row in lab.read("by_restaurant", *restaurants)]


def test_what_cannot_be_taken_goes_to_the_dead_letters_while_the_partition_goes_on(lab: Lab, worker: Worker) -> None:
    lab.publish(
        order("a", START),
        Message(b"7", b"{no json"),
        order("b", START, item_count="two"),
        order("c", START + 2 * MINUTE),
        order("d", START),
    )
    drain(worker)
    assert counts(lab, 7) == [2]
    letters = [msgspec.json.decode(record.value) for record in lab.records("dead_letters")]
    by_field = {letter["field"]: letter for letter in letters}
    assert set(by_field) == {"event", "item_count", "placed_at"}
    assert "not JSON" in by_field["event"]["reason"]
    assert "120.0 s ahead of its arrival" in by_field["placed_at"]["reason"]
    partition = partition_of(b"7", lab.partitions)
    assert {(letter["topic"], letter["partition"]) for letter in letters} == {(ORDERS, partition)}
    assert worker.counts.dead == 3


def test_a_repeated_event_counts_once(lab: Lab, worker: Worker) -> None:
    lab.publish(order("a", START), order("a", START))
    drain(worker)
    lab.clock.now += MINUTE
    lab.publish(order("a", START), order("b", START))
    drain(worker)
    assert counts(lab, 7) == [2]
    assert worker.counts.repeats == 2


def test_a_repeat_is_known_by_the_worker_that_comes_next(lab: Lab, worker: Worker) -> None:
    lab.publish(order("a", START), order("b", START - 6 * MINUTE))
    drain(worker)
    worker.close()
    lab.publish(order("b", START - 6 * MINUTE), order("a", START), order("c", START))
    drain(lab.worker())
    assert counts(lab, 7) == [3]


def test_a_whole_batch_under_new_offsets_counts_once(lab: Lab, worker: Worker) -> None:
    batch = [order(f"e{i}", START - i * SECOND, restaurant=i % 5) for i in range(100)]
    lab.publish(*batch)
    drain(worker, max_records=7)
    lab.clock.now += SECOND
    lab.publish(*batch)
    drain(worker, max_records=11)
    assert counts(lab, *range(5)) == [20] * 5


def test_a_repeat_of_an_event_that_no_window_reaches_changes_nothing(lab: Lab, worker: Worker) -> None:
    """Its id is forgotten by then: what keeps it out is that its tile is gone."""
    lab.publish(order("a", START))
    drain(worker)
    lab.clock.now += 3 * LONG_WINDOW
    lab.publish(order("b", lab.clock.now))
    drain(worker)
    lab.publish(order("a", START))
    drain(worker)
    assert worker.counts.late == 2, "once in the restaurant's tiles, once in the zone's"
    assert counts(lab, 7) == [1]


def test_ids_that_no_window_reaches_are_forgotten_in_memory_and_in_the_store(lab: Lab, worker: Worker) -> None:
    for i in range(40):
        lab.clock.now = START + i * MINUTE
        lab.publish(order(f"e{i}", lab.clock.now))
        drain(worker)
    buckets = [key for key in store_keys(lab.client) if b":seen:" in key]
    assert 0 < len(buckets) <= PRESENCE_TTL // MINUTE + 4, "the longest reach of the topic's views"


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_worker_that_died_between_fields_and_progress_leaves_nothing_lost_or_doubled(
    lab: Lab, worker: Worker, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`written`: died before any field, after the first view's fields, or after all fields but before the ids."""
    lab.publish(*(order(f"e{i}", START, restaurant=i % 3) for i in range(30)))
    worker.step(timeout_ms=0, max_records=10)
    worker.write_progress()
    calls = 0
    if written < 2:
        send_fields = StreamStore.send_fields

        def dying(self: StreamStore, writes: Any) -> list[bool]:
            nonlocal calls
            calls += 1
            if calls > written:
                raise KeyboardInterrupt
            answers = send_fields(self, writes)
            self.settle()
            return answers

        monkeypatch.setattr(StreamStore, "send_fields", dying)
    else:
        monkeypatch.setattr(StreamStore, "note_seen", _die)
    with pytest.raises(KeyboardInterrupt):
        worker.step(timeout_ms=0)
    monkeypatch.undo()
    lab.publish(order("e29", START, restaurant=2), order("e12", START, restaurant=0))
    drain(lab.worker(), max_records=4)
    assert counts(lab, 0, 1, 2) == [10, 10, 10]
    assert lab.value("z_orders_7m", 3) == 30


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_two_workers_of_a_group_hand_their_partitions_over(lab: Lab) -> None:
    first = lab.worker("workers")
    drain(first)
    lab.publish(*(order(f"a{i}", START, restaurant=i) for i in range(20)))
    drain(first)
    second = lab.worker("workers")
    shares = _until_shared(first, second)
    assert len(shares) == 3 * lab.partitions, "three topics of two partitions, each held by one of them"
    lab.publish(*(order(f"b{i}", START, restaurant=i) for i in range(20)))
    lab.publish(*(order(f"a{i}", START, restaurant=i) for i in range(20)))
    for each in (first, second):
        drain(each)
    assert counts(lab, *range(20)) == [2] * 20
    first.close()
    second.close()
    third = lab.worker("workers")
    lab.publish(*(order(f"c{i}", START, restaurant=i) for i in range(20)))
    drain(third)
    assert counts(lab, *range(20)) == [3] * 20
    third.close()


def _until_shared(first: Worker, second: Worker) -> list[TopicPartition]:
    """Step both until each holds a share: who holds what."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        first.step(timeout_ms=10)
        second.step(timeout_ms=10)
        held = [set(worker.held()) for worker in (first, second)]
        if all(held) and not held[0] & held[1] and sum(map(len, held)) == 6:
            return [where for share in held for where in share]
    raise AssertionError("the partitions were never shared")


def test_after_redis_lost_its_last_second_everything_is_folded_again(lab: Lab, worker: Worker) -> None:
    lab.publish(order("a", START), order("b", START, restaurant=8))
    drain(worker)
    kept = snapshot(lab.client)
    lab.publish(order("c", START), order("d", START, restaurant=8))
    drain(worker)
    restore(lab.client, kept)
    drain(worker)
    drain(worker)
    assert counts(lab, 7, 8) == [2, 2]


def test_events_that_come_after_a_loss_do_not_cover_up_what_was_lost(lab: Lab, worker: Worker) -> None:
    """The next batch is folded before the worker next looks at its progress."""
    lab.publish(order("a", START), order("b", START, restaurant=8))
    drain(worker)
    kept = snapshot(lab.client)
    lab.publish(order("c", START), order("d", START, restaurant=8))
    drain(worker)
    restore(lab.client, kept)
    lab.publish(order("e", START), order("f", START, restaurant=8))
    _go_on(worker)
    assert counts(lab, 7, 8) == [3, 3]


def test_a_loss_is_noticed_though_no_progress_was_written_since(lab: Lab, worker: Worker) -> None:
    """What is lost may be the last batch alone; the progress before it may be the last that a worker wrote."""
    lab.publish(order("a", START), order("b", START, restaurant=8))
    drain(worker)
    kept = snapshot(lab.client)
    lab.publish(order("c", START), order("d", START, restaurant=8))
    worker.step(timeout_ms=0)
    restore(lab.client, kept)
    lab.publish(order("e", START))
    _go_on(worker)
    assert counts(lab, 7, 8) == [3, 2]


def test_a_loss_is_noticed_where_the_field_is_not_held_in_memory(
    lab: Lab, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.folding.FieldCache.put", lambda *_: None)
    test_events_that_come_after_a_loss_do_not_cover_up_what_was_lost(lab, worker)


def _go_on(worker: Worker) -> None:
    """What `run` does: step, recover from what it may meet, step again."""
    for _ in range(6):
        try:
            drain(worker)
        except (LogUnavailable, LostPartition, *STORE_DOWN) as error:
            worker.recover(error)


def test_an_emptied_store_is_folded_anew_under_a_higher_epoch(lab: Lab, worker: Worker) -> None:
    lab.publish(order("a", START), order("a", START), order("b", START))
    lab.publish(courier("x", START), topic=COURIERS)
    drain(worker)
    epoch = stored(lab).epoch
    for key in store_keys(lab.client):
        lab.client.delete(key)
    lab.clock.now += SECOND
    lab.publish(order("c", START))
    _go_on(worker)
    assert stored(lab).epoch > epoch
    assert counts(lab, 7) == [3]
    assert lab.value("available", 3) == 1
    assert stored(lab).covered_from <= START - LONG_WINDOW


def test_while_an_emptied_store_is_refolded_nothing_is_served_as_known(lab: Lab, worker: Worker) -> None:
    lab.publish(*(order(f"e{i}", START) for i in range(10)))
    drain(worker)
    lab.client.delete(*store_keys(lab.client))
    lab.clock.now += MINUTE
    fresh = lab.worker()
    for _ in range(3):
        fresh.step(timeout_ms=0, max_records=2)
        (row,) = lab.read("by_restaurant", 7)
        assert {feature.status for feature in row.values()} == {Status.OUTSIDE_MAX_AGE}
    drain(fresh)
    assert counts(lab, 7) == [10]


def test_a_topic_made_anew_begins_a_new_epoch(lab: Lab, worker: Worker) -> None:
    lab.publish(order("a", START), order("b", START))
    lab.publish(courier("x", START, zone=3), courier("y", START, who=2, zone=4), topic=COURIERS)
    drain(worker)
    make_log_anew(lab)
    lab.clock.now += SECOND
    lab.publish(order("a", lab.clock.now))
    lab.publish(courier("z", lab.clock.now, who=1, zone=4), topic=COURIERS)
    worker.close()
    drain(lab.worker())
    assert counts(lab, 7) == [1]
    assert lab.value("z_orders_7m", 3) == 1
    assert [row["available"].value for row in lab.read("couriers", 3, 4)] == [0, 1]


def test_without_epochs_what_a_dead_log_held_would_still_count(
    lab: Lab, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above finds a worker that folds into whatever field it meets."""
    read = WindowFolder._read

    def of_any_epoch(self: WindowFolder, partition: int, epoch: int, data: bytes | None) -> object:
        return read(self, partition, unpack_header(data).epoch if data else epoch, data)

    monkeypatch.setattr(WindowFolder, "_read", of_any_epoch)
    with pytest.raises(AssertionError, match=r"\[3\] == \[1\]"):
        test_a_topic_made_anew_begins_a_new_epoch(lab, worker)


def test_a_worker_that_lost_its_partition_without_knowing_changes_nothing(lab: Lab, worker: Worker) -> None:
    lab.publish(*(order(f"e{i}", START) for i in range(6)))
    worker.step(timeout_ms=0, max_records=3)
    other = lab.worker()
    drain(other)
    lab.publish(order("f", START), order("e2", START))
    for each in (worker, other, worker):
        _go_on(each)
    assert counts(lab, 7) == [7]


def test_a_stopped_worker_makes_its_features_outside_and_never_zero(lab: Lab, worker: Worker) -> None:
    lab.publish(order("a", START))
    drain(worker)
    lab.clock.now += 10 * SECOND
    assert lab.read("by_restaurant", 7)[0]["r_orders_7m"].status == Status.PRESENT
    lab.clock.now += 1
    for view, entity in (("by_restaurant", 7), ("by_zone", 3), ("couriers", 3)):
        for feature in lab.read(view, entity)[0].values():
            assert (feature.value, feature.status) == (None, Status.OUTSIDE_MAX_AGE)
            assert feature.event_ms == START


def test_a_partition_without_a_worker_makes_the_whole_topic_outside(lab: Lab, worker: Worker) -> None:
    key, field = layout.progress_key(PROJECT, ORDERS), layout.progress_field(lab.view("by_zone").tiles_hash, 1)
    lab.client.hdel(key, field)  # type: ignore[arg-type]  # redis-py types names as text
    assert lab.read("by_zone", 3)[0]["z_orders_7m"].status == Status.OUTSIDE_MAX_AGE


def test_a_window_slides_to_zero_though_nothing_is_written(lab: Lab, worker: Worker) -> None:
    lab.publish(order("a", START))
    drain(worker)
    before = {key: data for key, data in snapshot(lab.client).items() if b"restaurant_id" in key}
    assert before
    lab.clock.now += 10 * MINUTE
    drain(worker)
    after = snapshot(lab.client)
    assert {key: after[key] for key in before} == before
    (row,) = lab.read("by_restaurant", 7)
    assert (row["r_orders_7m"].value, row["r_orders_7m"].status) == (0, Status.PRESENT)
    assert row["r_orders_7m"].event_ms == lab.clock.now, "it speaks of the instant up to which silence is known"
    assert (row["r_basket_mean"].value, row["r_basket_mean"].status) == (None, Status.NULL_VALUE)
    assert (row["r_basket_sum"].value, row["r_basket_sum"].status) == (0.0, Status.PRESENT)


def test_a_restaurant_without_events_has_known_zeros(lab: Lab, worker: Worker) -> None:
    (row,) = lab.read("by_restaurant", 12345)
    assert (row["r_orders_7m"].value, row["r_orders_7m"].status) == (0, Status.PRESENT)
    assert (row["r_items_max"].value, row["r_items_max"].status) == (None, Status.NULL_VALUE)


def test_where_the_log_has_dropped_events_a_new_epoch_covers_nothing_before_itself(lab: Lab) -> None:
    lab.publish(order("old", START))
    lab.clock.now += 5 * MINUTE
    lab.publish(order("new", lab.clock.now))
    trimmed = TopicPartition(ORDERS, partition_of(b"7", lab.partitions))
    _drop_before(lab, trimmed, lab.clock.now)
    worker = lab.worker()
    drain(worker)
    assert lab.read("by_restaurant", 7)[0]["r_orders_7m"].status == Status.OUTSIDE_MAX_AGE
    lab.clock.now += LONG_WINDOW + MINUTE
    drain(worker)
    assert lab.read("by_restaurant", 7)[0]["r_orders_7m"].status == Status.PRESENT, "nothing dropped is reached now"


def test_what_the_log_has_dropped_is_folded_out_of_the_archive(lab: Lab) -> None:
    """Bad records at the edges of files, a repeat across log and archive, and files of one event each."""
    lab.repo.forget_files()
    for i in range(8):
        lab.clock.now = START + i * MINUTE
        lab.publish(
            Message(b"7", b"{no json"), order(f"e{i}", lab.clock.now), order(f"e{i // 2}", START + i // 2 * MINUTE)
        )
        if i < 6:
            lab.archive()
    trimmed = TopicPartition(ORDERS, partition_of(b"7", lab.partitions))
    _drop_before(lab, trimmed, START + 5 * MINUTE)
    worker = lab.worker()
    worker.step(timeout_ms=0)
    assert lab.read("by_restaurant", 7)[0]["r_orders_7m"].status == Status.OUTSIDE_MAX_AGE, "it is under way"
    drain(worker)
    assert row_of(lab) == (8, Status.PRESENT)
    assert stored(lab).covered_from <= START
    lab.publish(order("e0", START), order("e7", lab.clock.now), order("f", lab.clock.now))
    drain(lab.worker())
    assert row_of(lab) == (9, Status.PRESENT)


def test_a_refold_out_of_the_archive_that_was_cut_off_goes_on_there(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.repo.forget_files()
    monkeypatch.setattr("ingestion.archive_reader.CHUNK", 2)
    lab.publish(*(order(f"e{i}", START) for i in range(9)))
    lab.archive()
    lab.clock.now += MINUTE
    lab.publish(order("f", lab.clock.now))
    _drop_before(lab, TopicPartition(ORDERS, partition_of(b"7", lab.partitions)), lab.clock.now)
    cut = lab.worker()
    for _ in range(3):
        cut.step(timeout_ms=0)
    before = stored(lab)
    worker = lab.worker()
    drain(worker)
    assert stored(lab).epoch == before.epoch
    assert row_of(lab) == (10, Status.PRESENT)


def test_a_gap_between_archive_and_log_is_not_covered_up(lab: Lab) -> None:
    lab.repo.forget_files()
    lab.publish(order("archived", START))
    lab.archive()
    lab.publish(order("lost", START))
    lab.clock.now += MINUTE
    lab.publish(order("there", lab.clock.now))
    _drop_before(lab, TopicPartition(ORDERS, partition_of(b"7", lab.partitions)), lab.clock.now)
    drain(lab.worker())
    assert row_of(lab) == (None, Status.OUTSIDE_MAX_AGE)


def row_of(lab: Lab) -> tuple[object, Status]:
    feature = lab.read("by_restaurant", 7)[0]["r_orders_7m"]
    return feature.value, feature.status


def _drop_before(lab: Lab, where: TopicPartition, instant: int) -> None:
    """Trim a partition as the log itself does: it remembers the last offset that is gone."""
    stream = f"log:{where.topic}:{where.partition}"
    gone: Any = lab.client.xrevrange(stream, max=f"({instant}-0", count=1)
    lab.client.hset(f"log:{where.topic}", f"gone:{where.partition}", gone[0][0])
    lab.client.xtrim(stream, minid=str(instant), approximate=False)


def test_presence_of_a_dead_log_is_forgotten_though_the_worker_died_before_it_could(
    lab: Lab, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new epoch stood in the store already, so the next worker finds nothing to distrust."""
    lab.publish(courier("x", START), topic=COURIERS)
    drain(worker)
    make_log_anew(lab)
    lab.clock.now += SECOND
    monkeypatch.setattr(StreamStore, "purge_presence", _die)
    with pytest.raises(KeyboardInterrupt):
        drain(lab.worker())
    monkeypatch.undo()
    drain(lab.worker())
    assert lab.value("available", 3) == 0


def test_a_log_made_anew_earlier_in_time_is_read_at_its_own_time(lab: Lab, worker: Worker) -> None:
    """As in a drill that is played again: nothing of the log that is gone may move the readers' instant."""
    lab.publish(courier("x", START), topic=COURIERS)
    drain(worker)
    make_log_anew(lab)
    lab.clock.now = START - 60 * MINUTE
    lab.publish(courier("y", lab.clock.now), topic=COURIERS)
    drain(lab.worker())
    assert lab.value("available", 3) == 1
