"""The bytes of a stream view's field in the online store: a header, and the tiles by column.

    header   epoch (8 bytes), offset of the last event folded in (8 bytes), big-endian: what the fence compares
    body     newest event time, number of the first hop, count of tiles,
             a width code a column, then the columns: hop numbers, then the parts'

Columns are whole numbers in the narrowest width that fits, so a field is small, and one `struct` call reads it whole.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from feature_repo.windows import COUNT, DISTINCT, LAST, SQUARES, SUM, Columns, Layout, PartValue, Tiles

HEADER = struct.Struct(">QQ")
_BODY = struct.Struct("<BqqH")
_VERSION = 1
_WIDTHS = (("B", 0, 2**8), ("H", 0, 2**16), ("I", 0, 2**32), ("i", -(2**31), 2**31), ("q", -(2**63), 2**63))
_OF_BITS = "B" * 9 + "H" * 8 + "I" * 16 + "q" * 31  # of a number with so many bits and no sign
_WIDE = "w"  # 16 bytes, signed: sums of squares outgrow 64 bits
_CODES = frozenset(code for code, _, _ in _WIDTHS) | {_WIDE}
_NEUTRAL_IS_ZERO = (COUNT, SUM, SQUARES)


class Header(NamedTuple):
    """Of which epoch a field is, and the offset of the last event folded into it."""

    epoch: int
    offset: int


class CorruptField(ValueError):
    """Bytes in the online store that are no field of ours."""


def pack_header(header: Header) -> bytes:
    """The 16 bytes that the fence compares."""
    return HEADER.pack(header.epoch, header.offset)


def unpack_header(data: bytes) -> Header:
    """The header of a field. Raises CorruptField for fewer than 16 bytes."""
    if len(data) < HEADER.size:
        raise CorruptField(f"{len(data)} bytes are too short for a header")
    return Header(*HEADER.unpack_from(data))


def pack(header: Header, layout: Layout, tiles: Tiles) -> bytes:
    """A field's bytes. `tiles` must hold at least one tile."""
    assert tiles.newest is not None
    by_hop = tiles.by_hop
    hops = sorted(by_hop)
    first = hops[0]
    columns: list[Sequence[int]] = [[hop - first for hop in hops]]
    hashes: list[int] = []
    for part, values in zip(layout.parts, zip(*map(by_hop.__getitem__, hops), strict=True), strict=True):
        if part.kind in _NEUTRAL_IS_ZERO:
            columns.append(values)  # whole numbers, by windows.empty
        else:
            columns += _columns(part.kind, values, hashes)
    codes = "".join(map(_width, columns))
    head = (_VERSION, tiles.newest, first, len(hops), codes.encode())
    if _WIDE not in codes:
        body = _whole(codes, len(hops), len(hashes)).pack(*head, *chain.from_iterable(columns), *hashes)
        return HEADER.pack(*header) + body
    out = [pack_header(header), _BODY.pack(*head[:4]), head[4]]
    for code, column in zip(codes, columns, strict=True):
        if code == _WIDE:
            out += [value.to_bytes(16, "little", signed=True) for value in column]
        else:
            out.append(struct.pack(f"<{len(column)}{code}", *column))
    out.append(struct.pack(f"<{len(hashes)}Q", *hashes))
    return b"".join(out)


@lru_cache(maxsize=4096)
def _whole(codes: str, count: int, hashes: int) -> struct.Struct:
    """All of a field behind its header, without wide columns."""
    columns = "".join(f"{count}{code}" for code in codes)
    return struct.Struct(f"{_BODY.format}{len(codes)}s{columns}{hashes}Q")


def unpack(layout: Layout, partition: int, data: bytes) -> Tiles:
    """The tiles in a field's bytes; `partition` is the one the field is of. Raises CorruptField."""
    found = unpack_columns(layout, partition, data)
    tiles = zip(found.steps, zip(*found.parts, strict=True), strict=True)
    return Tiles(found.newest, {found.first + step: list(tile) for step, tile in tiles})


def unpack_columns(layout: Layout, partition: int, data: bytes) -> Columns:
    """The same by column."""
    try:
        version, newest, first, count = _BODY.unpack_from(data, HEADER.size)
        if version != _VERSION:
            raise CorruptField(f"version {version} of a tile field is unknown")
        start = HEADER.size + _BODY.size
        width = 1 + (len(layout.parts) if layout.plain else sum(_COLUMNS_OF.get(p.kind, 1) for p in layout.parts))
        codes = data[start : start + width].decode("ascii")
        if count == 0 or not _CODES.issuperset(codes):
            raise CorruptField(f"a tile field of {count} tiles with width codes {codes!r} is unknown")
        columns, end = _read_columns(data, start + width, codes, count)
        if end == len(data) and layout.plain:
            return Columns(newest, first, columns[0], columns[1:])
        return Columns(newest, first, columns[0], _parts(layout, partition, columns, data[end:]))
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise CorruptField(f"a tile field of {len(data)} bytes cannot be read: {error}") from None


_COLUMNS_OF = {"min": 2, "max": 2, LAST: 4}  # a flag beside what may be null; last: flag, time, offset, value


def _columns(kind: str, values: Sequence[PartValue], hashes: list[int]) -> list[list[int]]:
    if kind in _NEUTRAL_IS_ZERO:
        return [list(values)]  # type: ignore[arg-type]  # whole numbers, by windows.empty
    if kind == DISTINCT:
        for value in values:
            hashes.extend(sorted(value))  # type: ignore[arg-type]  # sets, by windows.empty
        return [[len(value) for value in values]]  # type: ignore[arg-type]
    present = [int(value is not None) for value in values]
    if kind == LAST:
        rows = [(0, 0, 0, 0) if value is None else value for value in values]
        return [present, *([row[i] for row in rows] for i in (0, 2, 3))]  # type: ignore[index]
    return [present, [0 if value is None else value for value in values]]  # type: ignore[misc]


def _width(column: Sequence[int]) -> str:
    low, high = min(column), max(column)
    if low >= 0:
        return _OF_BITS[high.bit_length()] if high < 2**63 else _WIDE
    for code, least, bound in _WIDTHS:
        if least <= low and high < bound:
            return code
    return _WIDE


@lru_cache(4096)
def _form(codes: str, count: int) -> struct.Struct:
    return struct.Struct("<" + "".join(f"{count}{code}" for code in codes))


def _read_columns(data: bytes, start: int, codes: str, count: int) -> tuple[list[Sequence[int]], int]:
    if _WIDE not in codes:
        form = _form(codes, count)
        flat = form.unpack_from(data, start)
        return [flat[i : i + count] for i in range(0, len(flat), count)], start + form.size
    columns: list[Sequence[int]] = []
    for code in codes:
        size = 16 if code == _WIDE else struct.calcsize(f"<{code}")
        if start + size * count > len(data):
            raise CorruptField(f"a tile field of {len(data)} bytes ends within a column")
        if code == _WIDE:
            places = range(start, start + 16 * count, 16)
            columns.append([int.from_bytes(data[at : at + 16], "little", signed=True) for at in places])
        else:
            columns.append(struct.unpack_from(f"<{count}{code}", data, start))
        start += size * count
    return columns, start


def _parts(layout: Layout, partition: int, columns: list[Sequence[int]], rest: bytes) -> list[Sequence[PartValue]]:
    hashes = struct.unpack_from(f"<{len(rest) // 8}Q", rest)
    parts: list[Sequence[PartValue]] = []
    at, used = 1, 0
    for part in layout.parts:
        if part.kind in _NEUTRAL_IS_ZERO:
            parts.append(columns[at])
            at += 1
        elif part.kind == DISTINCT:
            sets: list[PartValue] = []
            for size in columns[at]:
                sets.append(frozenset(hashes[used : used + size]))
                used += size
            parts.append(sets)
            at += 1
        elif part.kind == LAST:
            flags, times, offsets, values = columns[at : at + 4]
            rows = zip(flags, times, offsets, values, strict=True)
            parts.append([(time, partition, offset, value) if flag else None for flag, time, offset, value in rows])
            at += 4
        else:
            flags, values = columns[at : at + 2]
            parts.append([value if flag else None for flag, value in zip(flags, values, strict=True)])
            at += 2
    if 8 * used != len(rest):
        raise CorruptField(f"{len(rest)} bytes of distinct values do not hold the {used} that are counted")
    return parts
