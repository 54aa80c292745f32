"""The bytes of tiles: they come back as they went, and bytes that are none of ours are refused as such."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from feature_repo.stores import tile_codec
from feature_repo.stores.tile_codec import CorruptField, Header, pack, unpack, unpack_columns, unpack_header
from feature_repo.windows import FUNCTIONS, Aggregate, Layout, PartValue, Tiles, read_window, window_reader

HOP = 60_000
PARTITION = 3
AGGREGATES = {
    "every part": [Aggregate(f, c, f, 30 * HOP) for f in FUNCTIONS for c in ("a", "b")],
    "counts alone": [Aggregate("n", "a", "count", 30 * HOP)],
    "no wide column": [Aggregate(f, "a", f, 30 * HOP) for f in ("mean", "min", "last")],
    "sets": [Aggregate(f, "a", f, 30 * HOP) for f in ("count_distinct", "std")],
}
LAYOUTS = {name: Layout.of(HOP, aggregates) for name, aggregates in AGGREGATES.items()}

whole = st.one_of(st.integers(0, 300), st.integers(-(2**63), 2**63 - 1))
moment = st.integers(-(2**62), 2**62)
PARTS: dict[str, st.SearchStrategy[Any]] = {
    "count": st.integers(0, 2**40),
    "sum": whole | st.integers(-(2**100), 2**100),
    "squares": st.integers(0, 2**126),
    "min": st.none() | whole,
    "max": st.none() | whole,
    "last": st.none() | st.tuples(moment, st.just(PARTITION), st.integers(0, 2**62), whole),
    "distinct": st.frozensets(st.integers(0, 2**64 - 1), max_size=5),
}


@st.composite
def tile_sets(draw: st.DrawFn, layout: Layout) -> Tiles:
    """Any tiles: one or many, side by side or far apart, before 1970 too."""
    first = draw(st.integers(-(2**40), 2**40))
    steps = draw(st.sets(st.integers(0, 40) | st.integers(0, 2**33), min_size=1, max_size=31))
    by_hop: dict[int, list[PartValue]] = {
        first + step: [draw(PARTS[part.kind]) for part in layout.parts] for step in steps
    }
    return Tiles(draw(moment), by_hop)


@pytest.mark.parametrize("name", LAYOUTS)
@examples(max_examples=60, deadline=None)
@given(data=st.data(), epoch=st.integers(0, 2**64 - 1), offset=st.integers(0, 2**64 - 1))
def test_tiles_come_back_as_they_went(name: str, data: st.DataObject, epoch: int, offset: int) -> None:
    layout = LAYOUTS[name]
    tiles = data.draw(tile_sets(layout))
    packed = pack(Header(epoch, offset), layout, tiles)
    assert unpack_header(packed) == Header(epoch, offset)
    assert unpack(layout, PARTITION, packed) == tiles


@pytest.mark.parametrize("name", LAYOUTS)
@examples(max_examples=60, deadline=None)
@given(data=st.data(), ahead=st.integers(0, 40 * HOP))
def test_windows_are_the_same_of_columns_as_of_tiles(name: str, data: st.DataObject, ahead: int) -> None:
    layout = LAYOUTS[name]
    found = [data.draw(tile_sets(layout)) for _ in range(data.draw(st.integers(0, 3)))]
    columns = [unpack_columns(layout, PARTITION, pack(Header(1, 2), layout, tiles)) for tiles in found]
    newest = [max(tiles.by_hop) * HOP for tiles in found]
    instant = max(newest, default=0) + ahead
    for aggregate in AGGREGATES[name]:
        if aggregate.function == "std":  # there are no numbers with such a sum and such squares
            continue
        for hops in (1, 7, 30):
            shorter = replace(aggregate, window=hops * HOP)
            read = window_reader(layout, shorter)
            assert read(columns, instant) == read_window(layout, shorter, found, instant)


@pytest.mark.parametrize("count", [1, 31])
def test_counts_of_one_and_of_thirty_one_tiles_come_back(count: int) -> None:
    layout = LAYOUTS["counts alone"]
    tiles = Tiles(7, {hop: [hop + 1] for hop in range(count)})
    assert unpack(layout, 0, pack(Header(1, 2), layout, tiles)) == tiles


def test_a_tile_of_small_counts_costs_two_bytes() -> None:
    layout = LAYOUTS["counts alone"]
    sizes = [len(pack(Header(1, 2), layout, Tiles(7, {hop: [200] for hop in range(n)}))) for n in (1, 2, 31)]
    assert [size - sizes[0] for size in sizes] == [0, 2, 60]


def test_sums_of_squares_beyond_64_bits_come_back() -> None:
    layout = LAYOUTS["sets"]
    greatest = 2**127 - 1
    values: dict[str, PartValue] = {"count": 1, "sum": -(2**100), "squares": greatest}
    values["distinct"] = frozenset({2**64 - 1, 0})
    tiles = Tiles(0, {0: [values[part.kind] for part in layout.parts], 1: [0, frozenset(), 0, 0]})
    assert unpack(layout, 0, pack(Header(1, 2), layout, tiles)) == tiles


@pytest.mark.parametrize("bits", [8, 16, 31, 32, 63, 64])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_values_about_the_ends_of_every_width_come_back(bits: int, beyond: int, sign: int) -> None:
    layout = Layout.of(HOP, [Aggregate("s", "a", "sum", 30 * HOP)])
    tiles = Tiles(0, {0: [sign * 2**bits + beyond], 1: [0]})
    assert unpack(layout, 0, pack(Header(1, 2), layout, tiles)) == tiles


def test_headers_compare_as_their_bytes_do() -> None:
    headers = [Header(0, 0), Header(0, 2**63), Header(1, 0), Header(1, 255), Header(1, 256), Header(2**63, 1)]
    packed = [tile_codec.pack_header(header) for header in headers]
    assert packed == sorted(packed)
    assert {len(data) for data in packed} == {16}


@pytest.mark.parametrize("length", range(16))
def test_too_few_bytes_are_no_header(length: int) -> None:
    with pytest.raises(CorruptField, match="too short"):
        unpack_header(b"x" * length)


@pytest.mark.parametrize("name", LAYOUTS)
@examples(max_examples=150, deadline=None)
@given(data=st.data())
def test_cut_bytes_are_refused_and_changed_ones_never_raise_anything_else(name: str, data: st.DataObject) -> None:
    layout = LAYOUTS[name]
    good = pack(Header(1, 2), layout, data.draw(tile_sets(layout)))
    body = tile_codec.HEADER.size
    cut = good[: data.draw(st.integers(body, len(good) - 1))]
    with pytest.raises(CorruptField):
        unpack(layout, PARTITION, cut)
    at = data.draw(st.integers(body, len(good) - 1))
    changed = good[:at] + data.draw(st.binary(min_size=1, max_size=4)) + good[at + 1 :]
    _read_or_refuse(layout, changed)


@pytest.mark.parametrize("name", LAYOUTS)
@examples(max_examples=150, deadline=None)
@given(noise=st.binary(max_size=200))
def test_noise_never_raises_anything_but_corrupt_field(name: str, noise: bytes) -> None:
    _read_or_refuse(LAYOUTS[name], noise)
    _read_or_refuse(LAYOUTS[name], b"\0" * 16 + b"\1" + noise)


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_single_changed_byte_raises_anything_but_corrupt_field(name: str) -> None:
    layout = LAYOUTS[name]
    values: dict[str, PartValue] = {part.kind: 7 for part in layout.parts}
    values |= {"last": (1, PARTITION, 2, 3), "distinct": frozenset({5, 6}), "squares": 2**90}
    tile = [values[part.kind] for part in layout.parts]
    good = pack(Header(1, 2), layout, Tiles(9, {0: tile, 3: tile}))
    for at in range(tile_codec.HEADER.size, len(good)):
        for byte in range(256):
            _read_or_refuse(layout, good[:at] + bytes([byte]) + good[at + 1 :])


def test_a_version_of_tomorrow_is_refused() -> None:
    layout = LAYOUTS["counts alone"]
    good = bytearray(pack(Header(1, 2), layout, Tiles(7, {0: [1]})))
    good[16] = 2
    with pytest.raises(CorruptField, match="version 2"):
        unpack(layout, 0, bytes(good))


def _read_or_refuse(layout: Layout, data: bytes) -> None:
    """Read, or refuse with CorruptField; whatever else is raised fails the test."""
    try:
        tiles = unpack(layout, PARTITION, data)
    except CorruptField:
        return
    widths: Sequence[int] = [len(tile) for tile in tiles.by_hop.values()]
    assert set(widths) <= {len(layout.parts)}
