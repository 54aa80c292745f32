"""Rows of a batch view as Feast's clients write them: columns of JSON values, in the types that the view declares."""

import base64
import binascii
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from feast import FeatureView
from feast.protos.feast.types import Value_pb2
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType
from msgspec import Raw

from feature_repo.stores import layout
from feature_repo.stores.batch_rows import Row
from feature_repo.stores.values import micros, to_proto
from feature_repo.views import BatchView
from serving.feast_bodies import Columns, plain, refused

EVENT_TIME, CREATED = "event_timestamp", "created"
"""What Feast's client calls the columns of times, whatever the view's source calls them."""

_FLOAT32_MAX = 3.4028234663852886e38
_FIRST_US, _LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999  # the years 1 to 9999, UTC
_FEASTS_ERRORS = (TypeError, ValueError, KeyError, AttributeError, ArithmeticError)


def batch_rows(table: FeatureView, view: BatchView, project: str, given: Columns) -> list[Row]:
    """The rows in `given`, whose columns are the view's join keys, its features and its times.

    Raises Problem, naming the column and the row, for a column that is missing or unknown, an id that can be no key,
    and a value of another type.
    """
    source = table.batch_source
    event = _time_column(given, source.timestamp_field if source else None, EVENT_TIME)
    created = _time_column(given, source.created_timestamp_column if source else None, CREATED)
    for name in (*view.join_keys, *view.features, event):
        if name not in given:
            raise refused(f"df.{name}", "missing", f"{view.name} cannot be written without it")
    known = {*view.join_keys, *view.features, event, created}
    for name in given:
        if name not in known:
            raise refused(f"df.{name}", "given", f"{view.name} has no such column: it would be lost")
    key = layout.key_builder(project, view.join_keys, view.key_types)
    ids = list(zip(*(map(plain, given[name]) for name in view.join_keys), strict=True))
    for i, row in enumerate(ids):
        try:
            key(row)
        except layout.BadEntity as error:
            name = view.join_keys[0] if len(view.join_keys) == 1 else " or ".join(view.join_keys)
            raise refused(f"df.{name}[{i}]", row[0] if len(row) == 1 else row, str(error)) from None
    values = [list(_column(name, kind, given[name])) for name, kind in view.features.items()]
    events = [_instant(f"df.{event}[{i}]", raw) for i, raw in enumerate(given[event])]
    times = given.get(created, ())
    createds = [_created(f"df.{created}[{i}]", raw) for i, raw in enumerate(times)] if times else [None] * len(ids)
    names = list(view.features)
    return [
        Row(row, dict(zip(names, cells, strict=True)), event_us, created_us)
        for row, cells, event_us, created_us in zip(ids, zip(*values, strict=True), events, createds, strict=True)
    ]


def _time_column(given: Columns, declared: str | None, usual: str) -> str:
    return declared if declared and declared in given else usual


def _column(name: str, kind: ValueType, cells: Sequence[Raw]) -> Iterator[bytes]:
    for i, raw in enumerate(cells):
        value = plain(raw)
        try:
            yield value_of(kind, value).SerializeToString()
        except _FEASTS_ERRORS as error:
            raise refused(f"df.{name}[{i}]", value, f"not a value of type {kind.name} ({error})") from None


def _instant(place: str, raw: Raw) -> int:
    """Microseconds since the epoch; without an offset it is UTC, as everywhere in Feast."""
    text = plain(raw)
    try:
        instant = micros(datetime.fromisoformat(text))
    except (TypeError, ValueError):
        raise refused(place, text, "not an ISO 8601 date and time") from None
    if not _FIRST_US <= instant <= _LAST_US:
        raise refused(place, text, "no instant of the years 1 to 9999, UTC: it could not be kept")
    return instant


def _created(place: str, raw: Raw) -> int | None:
    return None if plain(raw) is None else _instant(place, raw)


def value_of(kind: ValueType, value: Any) -> Value:
    """`value`, as Feast's client or its server puts it into JSON, as a message of type `kind`; null is the null value.

    Raises ValueError, or what Feast raises for the types that are converted by it.
    """
    if kind in _LISTS and value is not None:
        convert = _SCALARS[_LISTS[kind]]
        items = Value_pb2.__dict__[_LIST_MESSAGES[_LISTS[kind]]](val=[convert(item) for item in _list(value)])
        return Value(**{f"{kind.name.lower()}_val": items})
    if kind in _SCALARS and value is not None:
        value = _SCALARS[kind](value)
    return to_proto(kind, value)


def _whole(bits: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError("a whole number, without a point, is needed")
        if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise ValueError(f"it does not fit into {bits} bits")
        return value

    return convert


def _real(greatest: float) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        if value in ("NaN", "Infinity", "-Infinity"):  # JSON has no other way to say them
            return float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("a number is needed")
        number = float(value)
        if abs(number) > greatest:
            raise ValueError(f"it is greater than {greatest}")
        return number

    return convert


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text is needed")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is needed")
    return value


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(_text(value), validate=True)
    except binascii.Error as error:
        raise ValueError(f"base64 is needed: {error}") from None


def _seconds(value: Any) -> int:
    """A UNIX_TIMESTAMP: whole seconds since the epoch, or ISO 8601."""
    if isinstance(value, str):
        return micros(datetime.fromisoformat(value)) // 1_000_000
    return _whole(64)(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list is needed")
    return value


_SCALARS: dict[ValueType, Callable[[Any], Any]] = {
    ValueType.INT64: _whole(64),
    ValueType.INT32: _whole(32),
    ValueType.DOUBLE: _real(math.inf),
    ValueType.FLOAT: _real(_FLOAT32_MAX),
    ValueType.STRING: _text,
    ValueType.BOOL: _truth,
    ValueType.BYTES: _bytes,
    ValueType.UNIX_TIMESTAMP: _seconds,
}
_LIST_MESSAGES = {
    ValueType.INT64: "Int64List",
    ValueType.INT32: "Int32List",
    ValueType.DOUBLE: "DoubleList",
    ValueType.FLOAT: "FloatList",
    ValueType.STRING: "StringList",
    ValueType.BOOL: "BoolList",
    ValueType.BYTES: "BytesList",
    ValueType.UNIX_TIMESTAMP: "Int64List",
}
_LISTS = {ValueType[f"{kind.name}_LIST"]: kind for kind in _LIST_MESSAGES}
