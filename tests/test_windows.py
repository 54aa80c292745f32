"""The arithmetic of windows: on every prefix what numpy and plain Python say, whatever the order and the tiling."""

import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from feature_repo.windows import (
    DISTINCT_BOUND,
    FUNCTIONS,
    MAX_MAGNITUDE,
    SCALE,
    Aggregate,
    Layout,
    Observation,
    Part,
    PartValue,
    Tiles,
    empty,
    floor_hop,
    merge,
    observe,
    read_window,
    result,
    scaled,
)

HOP, WINDOW = 60, 300
EVERY = tuple(Aggregate(function, "x", function, WINDOW) for function in FUNCTIONS)
LAYOUT = Layout.of(HOP, EVERY)
Sample = tuple[int, int | None]
"""(time, value in whole units)"""


def observation(time: int, value: int | None, offset: int, partition: int = 0) -> Observation:
    hashed = hash(value) & (2**64 - 1)
    values = tuple(observe(part, value, hashed, time, partition, offset) for part in LAYOUT.parts)
    return Observation(time, partition, offset, values)


def tiles_of(samples: Sequence[Sample]) -> Tiles:
    tiles = Tiles()
    for offset, (time, value) in enumerate(samples):
        tiles.fold(LAYOUT, observation(time, value, offset))
    return tiles


def read_all(tiles: Tiles, instant: int) -> dict[str, Any]:
    return {a.function: read_window(LAYOUT, a, [tiles], instant) for a in EVERY}


def by_numpy(samples: Sequence[Sample], instant: int) -> dict[str, Any]:
    """The same by the definition: the values with floor(t) - W <= time <= t."""
    first = math.floor(instant / HOP) * HOP - WINDOW
    inside = [(t, o, v) for o, (t, v) in enumerate(samples) if first <= t <= instant and v is not None]
    values = np.array([v for *_, v in inside], dtype=np.float64)
    found: dict[str, Any] = {
        "count": len(values),
        "sum": float(values.sum()),
        "count_distinct": len(set(values.tolist())),
        **dict.fromkeys(("mean", "std", "min", "max", "last")),
    }
    if len(values):
        found |= {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
        found["last"] = max(inside)[2]
    return found


samples = st.lists(
    st.tuples(
        st.integers(-700, 700) | st.sampled_from([-301, -300, -1, 0, 59, 60, 300]), st.none() | st.integers(-99, 99)
    ),
    max_size=25,
)


@given(history=samples, wait=st.integers(0, 500))
def test_on_every_prefix_a_window_is_what_numpy_says(history: list[Sample], wait: int) -> None:
    for end in range(len(history) + 1):
        prefix = history[:end]
        instant = max((t for t, _ in prefix), default=0) + wait
        found, true = read_all(tiles_of(prefix), instant), by_numpy(prefix, instant)
        for name in ("count", "count_distinct", "min", "max", "last", "sum"):
            assert found[name] == true[name], name
        for name in ("mean", "std"):
            assert found[name] == (None if true[name] is None else pytest.approx(true[name], abs=1e-9)), name


@pytest.mark.parametrize("instant", [600, 601, 659, -600, -599, -1])
@pytest.mark.parametrize(
    ("from_start", "counted"),
    [(-1, 0), (0, 1), (1, 1)],
    ids=["one before the edge", "at the edge", "one after the edge"],
)
def test_the_trailing_edge_is_the_floor_of_the_instant_less_the_window(
    instant: int, from_start: int, counted: int
) -> None:
    time = floor_hop(instant, HOP) - WINDOW + from_start
    assert read_all(tiles_of([(time, 5)]), instant)["count"] == counted


@pytest.mark.parametrize("instant", [0, 59, 60, -1, 12345])
def test_an_event_at_the_very_instant_is_counted(instant: int) -> None:
    assert read_all(tiles_of([(instant, 5), (instant - 1, 5)]), instant)["count"] == 2


def test_a_window_slides_by_whole_hops_while_nothing_arrives() -> None:
    tiles = tiles_of([(0, 1), (59, 2), (60, 3)])
    counts = [read_all(tiles, instant)["count"] for instant in (60, 300, 359, 360, 419, 420)]
    assert counts == [3, 3, 3, 1, 1, 0]


def test_over_no_events_count_sum_and_count_distinct_are_zero_and_the_others_null() -> None:
    empty_window = {"count": 0, "sum": 0, "count_distinct": 0, **dict.fromkeys(["mean", "min", "max", "std", "last"])}
    assert read_all(Tiles(), 0) == empty_window
    assert read_all(tiles_of([(0, None)]), 0) == empty_window, "nulls are skipped"
    assert read_all(tiles_of([(0, 7)]), 10_000) == empty_window


@given(history=samples, data=st.data())
def test_the_order_of_events_within_the_tiles_kept_does_not_matter(history: list[Sample], data: st.DataObject) -> None:
    newest = max((t for t, _ in history), default=0)
    kept = [o for o, (t, _) in enumerate(history) if t // HOP >= newest // HOP - LAYOUT.hops_kept]
    one, other = Tiles(), Tiles()
    for target, order in ((one, kept), (other, data.draw(st.permutations(kept)))):
        for offset in order:
            assert target.fold(LAYOUT, observation(*history[offset], offset))
    assert one == other


def test_a_late_event_is_refused_and_changes_nothing() -> None:
    tiles = tiles_of([(600, 1)])
    before = repr(tiles)
    assert tiles.fold(LAYOUT, observation(300, 9, 7)), "in the oldest tile that a window can reach"
    assert not tiles.fold(LAYOUT, observation(299, 9, 8))
    assert not tiles.fold(LAYOUT, observation(-1, 9, 9))
    assert repr(tiles_of([(600, 1)])) == before
    assert sorted(tiles.by_hop) == [5, 10]


def test_tiles_that_no_window_reaches_are_dropped() -> None:
    tiles = tiles_of([(hop * HOP, 1) for hop in range(50)])
    assert sorted(tiles.by_hop) == list(range(49 - LAYOUT.hops_kept, 50))


def test_of_equal_times_the_later_in_the_log_is_last_even_across_partitions() -> None:
    last = Aggregate("last", "x", "last", WINDOW)
    for order in permutations([(0, 5, 1), (1, 4, 2), (1, 5, 3)]):
        tiles = {0: Tiles(), 1: Tiles()}
        for partition, offset, value in order:
            tiles[partition].fold(LAYOUT, observation(7, value, offset, partition))
        assert read_window(LAYOUT, last, tiles.values(), 7) == 3


@given(
    history=st.lists(st.tuples(st.integers(0, 299), st.integers(-9, 9), st.integers(0, 2)), max_size=20),
)
def test_partitions_merge_to_what_one_alone_would_hold(history: list[tuple[int, int, int]]) -> None:
    parts = {0: Tiles(), 1: Tiles(), 2: Tiles()}
    for offset, (time, value, partition) in enumerate(history):
        parts[partition].fold(LAYOUT, observation(time, value, offset))
    alone = tiles_of([(time, value) for time, value, _ in history])
    for aggregate in EVERY:
        assert read_window(LAYOUT, aggregate, parts.values(), 299) == read_window(LAYOUT, aggregate, [alone], 299)


values: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("count", "sum", "squares"), st.integers(-(2**70), 2**70)),
    **dict.fromkeys(("min", "max"), st.none() | st.integers(-(2**60), 2**60)),
    "last": st.none() | st.tuples(*[st.integers(-3, 3)] * 4),
    "distinct": st.frozensets(st.integers(0, 9)),
}


@pytest.mark.parametrize("kind", values)
@examples(max_examples=50)
@given(data=st.data())
def test_merging_commutes_and_associates_and_empty_is_neutral(kind: str, data: st.DataObject) -> None:
    a, b, c = (data.draw(values[kind]) for _ in range(3))
    assert merge(kind, a, b) == merge(kind, b, a)
    assert merge(kind, merge(kind, a, b), c) == merge(kind, a, merge(kind, b, c))
    assert merge(kind, a, empty(kind)) == merge(kind, empty(kind), a) == a


@given(sizes=st.lists(st.integers(0, DISTINCT_BOUND + 5), max_size=4))
def test_count_distinct_is_exact_up_to_its_bound_and_then_stays_there(sizes: list[int]) -> None:
    aggregate = Aggregate("d", "x", "count_distinct", WINDOW)
    total, at = empty("distinct"), 0
    for size in sizes:
        total = merge("distinct", total, frozenset(range(at, at + size)))
        at += size
    assert result(aggregate, [total]) == min(sum(sizes), DISTINCT_BOUND)
    assert len(total) < 2 * DISTINCT_BOUND + 5  # type: ignore[arg-type]  # a set; one tile's may be above the bound


@pytest.mark.parametrize(
    ("value", "whole"),
    [
        (0, 0),
        (-0.0, 0),
        (0.1, 100_000),
        (0.0000005, 1),
        (-0.0000005, 0),
        (-0.0000006, -1),
        (12.345678, 12_345_678),
        (MAX_MAGNITUDE, MAX_MAGNITUDE * SCALE),
        (float(MAX_MAGNITUDE), MAX_MAGNITUDE * SCALE),
        (-float(MAX_MAGNITUDE), -MAX_MAGNITUDE * SCALE),
    ],
)
def test_values_are_kept_as_whole_millionths_half_rounded_up(value: float, whole: int) -> None:
    assert scaled(value) == whole
    assert isinstance(scaled(value), int)


@given(value=st.floats(-MAX_MAGNITUDE, MAX_MAGNITUDE))
def test_a_scaled_value_is_exact_as_a_float_and_off_by_half_a_millionth_at_most(value: float) -> None:
    whole = scaled(value)
    assert abs(whole) <= 2**53
    assert abs(whole / SCALE - value) <= 0.5 / SCALE + abs(value) * 2**-52


@pytest.mark.parametrize("instant", [-121, -120, -60, -59, -1, 0, 1, 59, 60])
def test_the_floor_is_mathematical_before_1970_too(instant: int) -> None:
    assert floor_hop(instant, HOP) == math.floor(instant / HOP) * HOP


def test_great_values_add_up_without_loss() -> None:
    tiles = tiles_of([(i, MAX_MAGNITUDE - (i % 2)) for i in range(60)])
    found = read_all(tiles, 59)
    assert found["sum"] == 60 * MAX_MAGNITUDE - 30
    assert found["std"] == 0.5


@pytest.mark.parametrize(
    ("hop", "aggregate", "message"),
    [
        (7000, Aggregate("orders_10m", "x", "count", 600_000), "orders_10m: hop 7000 ms does not divide window 600000"),
        (60, Aggregate("p90", "x", "p90", 300), "p90: function 'p90' is not one of"),
        (60, Aggregate("none", "x", "sum", 0), "none: hop 60 ms does not divide window 0"),
        (0, Aggregate("any", "x", "sum", 60), "hop 0 ms is not positive"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_by_the_features_name(hop: int, aggregate: Aggregate, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout.of(hop, [EVERY[0], aggregate] if hop == 60 else [aggregate])


def test_text_in_a_part_that_needs_a_number_is_refused_by_the_columns_name() -> None:
    assert observe(Part("order_id", "count"), "a", 0, 0, 0, 0) == 1
    assert observe(Part("order_id", "distinct"), "a", 7, 0, 0, 0) == frozenset({7})
    with pytest.raises(TypeError, match="column 'order_id' holds text"):
        observe(Part("order_id", "sum"), "a", 0, 0, 0, 0)


def test_features_of_one_column_share_parts() -> None:
    parts: tuple[Part, ...] = LAYOUT.parts
    assert [part.kind for part in parts] == ["count", "distinct", "last", "max", "min", "squares", "sum"]
    none: list[PartValue] = [empty(part.kind) for part in parts]
    assert none == [0, frozenset(), None, None, None, 0, 0]
