"""Events by column: what is taken, refused, known as a repeat and folded is the same as one event after the other."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from feature_repo.stores.progress import digest
from feature_repo.stores.stream_store import PresenceEvent, presence_calls
from feature_repo.windows import FUNCTIONS, MAX_MAGNITUDE, Aggregate, Layout, Observation, Tiles, observe
from ingestion.event_columns import EventColumns, Placed, parse_records
from ingestion.events import EVENT_TYPES, MAX_BYTES, BadEvent, Event, Scalar, parse
from ingestion.grouping import Grouper
from ingestion.log import Record, Records
from ingestion.seen import SeenIds, digests
from tests.event_fuzz import payloads

MINUTE, NOW, PARTITION = 60_000, 1_772_000_000_000, 3
COLUMNS = {topic: (*kind.schema.__struct_fields__, *kind.derived) for topic, kind in EVENT_TYPES.items()}
AGGREGATES = [Aggregate(f"x_{function}", "x", function, 3 * MINUTE) for function in FUNCTIONS]
LAYOUT = Layout.of(MINUTE, [*AGGREGATES, Aggregate("n", "name", "count", MINUTE)])
NUMBERS = st.one_of(
    st.none(),
    st.sampled_from([0.0, -0.0, 1.0, 0.5e-6, MAX_MAGNITUDE, -MAX_MAGNITUDE]),
    st.floats(-MAX_MAGNITUDE, MAX_MAGNITUDE),
)


def records_of(topic: str, values: Sequence[bytes], appended: int = NOW) -> Records:
    return Records.of([Record(topic, PARTITION, 7 + 2 * i, appended + i, b"k", v) for i, v in enumerate(values)])


def one_by_one(records: Records) -> tuple[list[Placed], list[tuple[int, str, str, str]]]:
    events, refused = [], []
    for record in records:
        try:
            events.append((record.offset, parse(record.topic, record.value, record.append_ms)))
        except BadEvent as error:
            refused.append((record.offset, error.field, repr(error.value), error.reason))
    return events, refused


def assert_parsed_alike(records: Records) -> None:
    events, refused = one_by_one(records)
    found, bad = parse_records(records, COLUMNS[records.topic])
    assert [(r.offset, error.field, repr(error.value), error.reason) for r, error in bad] == refused
    assert repr(list(found)) == repr([(at, event._replace(columns=_sorted(event, found))) for at, event in events])


def _sorted(event: Event, like: EventColumns) -> dict[str, Scalar]:
    return {name: event.columns[name] for name in like.columns}


@pytest.mark.parametrize("topic", EVENT_TYPES)
@pytest.mark.parametrize("share", ["all", "good"])
def test_mixed_payloads_are_taken_and_refused_as_they_are_one_by_one(topic: str, share: str) -> None:
    mixed = [each for each in payloads(6_000, NOW, longest=2 * MAX_BYTES) if each.topic == topic]
    records = records_of(topic, [each.value for each in mixed if share == "all" or each.good])
    assert_parsed_alike(records)


@pytest.mark.parametrize(
    "values",
    [
        [b'{"event_id":"a","courier_id":1,"zone_id":1,"status":"busy","at":1},{"event_id":"b"', b'"courier_id":2}'],
        [b'{"event_id":"a","courier_id":1,"zone_id":1,"status":"busy","at":1', b"}"],
        [b'{"event_id":"\xc3', b'\xa9","courier_id":1,"zone_id":1,"status":"busy","at":1}'],
        [b'{"event_id":"a","courier_id":1,"zone_id":1,"status":"busy","at":"2026-02-25T06:13:20Z"}'] * 2,
        [b'{"event_id":9,"courier_id":1,"zone_id":1,"status":"busy","at":1}'] * 2,
        [b'{"event_id":"a","courier_id":1,"zone_id":1,"status":"asleep","at":1}'] * 2,
        [b'{"event_id":"a","courier_id":1,"zone_id":1,"status":"busy","at":%d}' % (NOW + MINUTE), b""],
        [b'{"event_id":"a","courier_id":1,"zone_id":1,"status":"busy","at":%d}' % 10**30],
        [b'{"event_id":"a","courier_id":1,"zone_id":1,"status":"busy","at":1,"x":%s}' % (b"[" * 99 + b"]" * 99)] * 9,
        [b'{"event_id":"a","courier_id":1,"zone_id":1,"status":"busy","at":1,"x":%s}' % (b"[" * 100 + b"]" * 100)],
        [b'{"event_id":"a","courier_id":1,"zone_id":1,"status":"busy","at":1,"x":"%s"}' % (b"x" * MAX_BYTES), b"{}"],
        [b""],
    ],
)
def test_records_that_would_make_sense_together_or_nearly_do_are_told_apart(values: list[bytes]) -> None:
    assert_parsed_alike(records_of("courier_status", values))


def test_of_no_records_there_are_no_events() -> None:
    found, refused = parse_records(records_of("order_placed", [b"{}"])[1:], COLUMNS["order_placed"])
    assert (len(found), refused) == (0, [])


def test_hashes_of_many_ids_are_those_of_each() -> None:
    texts = ["", "a", "ü", "東京", "x" * 256, "\x00"]
    assert digests(texts).tolist() == [digest(text) for text in texts]


@examples(max_examples=200, deadline=None)
@given(
    given_ids=st.lists(st.tuples(st.integers(0, 12), st.integers(-3, 6)), max_size=40),
    cuts=st.lists(st.integers(1, 12), max_size=12),
    again=st.integers(0, 10),
)
def test_repeats_are_the_same_however_events_are_batched(
    given_ids: list[tuple[int, int]], cuts: list[int], again: int
) -> None:
    """Some are seen again at their own offsets, as by a worker that resumes."""
    events = [(2**64 - 1 - who, offset, NOW + minute * MINUTE) for offset, (who, minute) in enumerate(given_ids)]
    events += events[:again]
    alone, together = SeenIds(MINUTE), SeenIds(MINUTE)
    expected = [i for i, event in enumerate(events) if not alone.is_repeat(*event)]
    found, at = [], 0
    for size in [*cuts, len(events)]:
        batch = events[at : at + size]
        hashed = np.array([event[0] for event in batch], np.uint64)
        offsets, times = (np.array([event[i] for event in batch], np.int64) for i in (1, 2))
        places = together.fresh(hashed, offsets, times)
        found += [at + i for i in (range(len(batch)) if places is None else places)]
        at += len(batch)
    assert found == expected
    assert (together.newest, len(together)) == (alone.newest, len(alone))
    assert sorted(together.prune()) == sorted(alone.prune())
    assert len(together) == len(alone)


def observed(time: int, offset: int, columns: dict[str, Scalar]) -> Observation:
    values = [
        observe(part, value, digest(repr(value or 0)) if part.kind == "distinct" else 0, time, PARTITION, offset)
        for part in LAYOUT.parts
        for value in [columns[part.column]]
    ]
    return Observation(time, PARTITION, offset, tuple(values))


@examples(max_examples=300, deadline=None)
@given(
    happened=st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 9 * MINUTE), NUMBERS, st.sampled_from(["a", None])), max_size=40
    ),
    cuts=st.lists(st.integers(1, 12), max_size=8),
    back=st.integers(0, 5),
    nulls=st.booleans(),
    few=st.sampled_from([0, 6]),
)
def test_folding_by_column_is_folding_one_event_after_the_other(
    happened: list[tuple[int, int, float | None, str | None]], cuts: list[int], back: int, nulls: bool, few: int
) -> None:
    """For every function, over late events and such that come again: a batch overlaps the last by `back` of them."""
    events = [
        (offset, Event("t", f"e{offset}", time, {"who": who, "x": x if nulls else x or 0.0, "name": name}))
        for offset, (who, time, x, name) in enumerate(happened)
    ]
    alone = {who: Tiles() for who in (1, 2, 3)}
    late = 0
    for offset, event in events:
        late += not alone[int(event.columns["who"] or 0)].fold(LAYOUT, observed(event.time, offset, {**event.columns}))
    together = {who: Tiles() for who in alone}
    folded, found_late, at = dict.fromkeys(alone, -1), 0, 0
    for size in [*cuts, len(events)]:
        batch = events[max(0, at - back) : at + size]
        at += size
        if batch:
            columns = EventColumns.of(batch, ("x", "name"))
            known = {who: folded[who] for who in folded}
            for who, entity in Grouper(LAYOUT, few)(PARTITION, columns, [event.columns["who"] for _, event in batch]):
                assert isinstance(who, int)
                folded[who], behind = entity.fold(together[who], known[who])
                found_late += behind
    assert together == alone
    assert found_late >= late
    assert back or found_late == late


def test_sums_that_outgrow_64_bits_are_exact() -> None:
    count = 20_000
    events = [(i, Event("t", "e", i, {"x": float(MAX_MAGNITUDE), "name": "a"})) for i in range(count)]
    ((_, entity),) = Grouper(LAYOUT)(PARTITION, EventColumns.of(events, ("x", "name")), [1] * count)
    tiles = Tiles()
    assert entity.fold(tiles, -1) == (count - 1, 0)
    sums = dict(zip(((part.column, part.kind) for part in LAYOUT.parts), tiles.by_hop[0], strict=True))
    assert sums["x", "sum"] == count * 10**15
    assert sums["x", "squares"] == count * 10**30


def test_calls_of_presence_hold_the_latest_of_each_member_and_speak_for_all_events_before_their_end() -> None:
    dice = random.Random(5)
    events = [
        PresenceEvent(f"m{dice.randrange(3000)}", dice.randrange(500), offset, "busy", "1") for offset in range(9000)
    ]
    times, offsets = np.array([e.time for e in events]), np.array([e.offset for e in events])
    begin = 0
    for moves, newest, last in presence_calls([e.member for e in events], times, offsets, events.__getitem__):
        spoken_for = events[begin : last + 1]
        latest: dict[str, PresenceEvent] = {}
        for event in sorted(spoken_for, key=lambda event: (event.time, event.offset)):
            latest[event.member] = event
        assert {move.member: move for move in moves} == latest
        assert len(moves) == len(latest) <= 1000
        assert newest == max(event.time for event in spoken_for)
        begin = last + 1
    assert begin == len(events)


def test_records_by_column_are_the_records() -> None:
    records = [Record("t", 1, offset, offset * 2, b"k" if offset % 2 else None, b"v%d" % offset) for offset in range(9)]
    columns = Records.of(records)
    assert list(columns) == records
    assert list(columns[2:5]) == records[2:5]
    assert columns[-1] == records[-1]
    assert list(Records.joined([columns[:4], columns[4:]])) == records
