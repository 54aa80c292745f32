"""Between Feast's ``Value`` messages and Python's own values."""

import datetime as dt
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any, SupportsIndex

import pandas as pd
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import NULL_TIMESTAMP_INT_VALUE, feast_value_type_to_python_type, python_values_to_proto_values
from feast.value_type import ValueType
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_FIELDS = {
    ValueType.INT64: ("int64_val", int),
    ValueType.INT32: ("int32_val", int),
    ValueType.DOUBLE: ("double_val", float),
    ValueType.FLOAT: ("float_val", float),
    ValueType.STRING: ("string_val", str),
    ValueType.BOOL: ("bool_val", bool),
    ValueType.BYTES: ("bytes_val", bytes),
}
_DOUBLE = struct.Struct("<d")
_DOUBLE_TAG, _INT64_TAG = 0x29, 0x20  # the fields 5 and 4 of `Value`, fixed and of variable length
_DOUBLE_HEAD, _DOUBLE_BYTES, _VARINT_BYTES = bytes((_DOUBLE_TAG,)), 9, 11
_NULL = b"\x98\x01"  # its field 19
_SCALARS = {field for field, _ in _FIELDS.values()} | {"unix_timestamp_val"}


def to_proto(kind: ValueType, value: Any) -> Value:
    """`value` as a message of the type `kind`, as Feast converts it; None gives the null value.

    Raises TypeError or ValueError for a value that is not of that type.
    """
    if value is None:
        return Value()
    if kind == ValueType.UNIX_TIMESTAMP:
        return Value(unix_timestamp_val=whole_seconds(value))
    if kind not in _FIELDS:
        (message,) = python_values_to_proto_values([value], kind)
        return message
    field, convert = _FIELDS[kind]
    return Value(**{field: convert(value)})


def from_proto(message: Value) -> Any:
    """The Python value of a message, or None for null; an instant is seconds since the epoch, a list a list."""
    field = message.WhichOneof("val")
    if field is None or field == "null_val":
        return None
    value = getattr(message, field)
    if field in _SCALARS:
        return value
    if field.endswith("_list_val") and (len(value.val) == 0 or not isinstance(value.val[0], Message)):
        return list(value.val)
    return feast_value_type_to_python_type(message)  # maps, sets, decimals, lists of lists


def whole_seconds(moment: object) -> int:
    """An instant in whole seconds since the epoch: of a datetime (naive is UTC), or of such a number.

    Fractions are cut off as Feast does: towards the epoch, of seconds in floating point. Centuries away from it a
    last microsecond is lost to that, and the key has to be Feast's there, too. Raises TypeError for anything else.
    """
    if isinstance(moment, dt.datetime) and not pd.isna(moment):  # NaT is a datetime, too
        return int((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp())
    if isinstance(moment, bool) or not isinstance(moment, SupportsIndex):
        raise TypeError(f"{moment!r} is neither a datetime nor whole seconds since the epoch")
    return index(moment)


def serialized(message: Value) -> bytes:
    """A message as it is stored; what Feast writes for a missing instant is stored as null."""
    if message.WhichOneof("val") == "unix_timestamp_val" and message.unix_timestamp_val == NULL_TIMESTAMP_INT_VALUE:
        return b""
    return bytes(message.SerializeToString())


def micros(moment: dt.datetime) -> int:
    """Microseconds since the epoch; a naive datetime is UTC, as everywhere in Feast."""
    return ((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)) - _EPOCH) // _MICROSECOND


def from_micros(micros_since_epoch: int) -> dt.datetime:
    """The aware UTC datetime of microseconds since the epoch."""
    return _EPOCH + micros_since_epoch * _MICROSECOND


def timestamp_bytes(micros_since_epoch: int) -> bytes:
    """A serialized ``Timestamp`` message."""
    seconds, rest = divmod(micros_since_epoch, 1_000_000)
    return bytes(Timestamp(seconds=seconds, nanos=rest * 1000).SerializeToString())


def timestamp_micros(data: bytes) -> int:
    """The instant of a serialized ``Timestamp`` message, in microseconds since the epoch."""
    message = Timestamp.FromString(data)
    return int(message.seconds) * 1_000_000 + int(message.nanos) // 1000


@lru_cache(4096)
def stamp_ms(data: bytes) -> int:
    """The same in whole milliseconds; rows that were computed together have it in common."""
    return timestamp_micros(data) // 1000


def native(data: bytes) -> Any:
    """The Python value of a serialized ``Value``; the common kinds are read off its bytes."""
    tag = data[0] if data else 0
    if tag == _DOUBLE_TAG and len(data) == _DOUBLE_BYTES:
        return _DOUBLE.unpack_from(data, 1)[0]
    if tag == _INT64_TAG and 1 < len(data) <= _VARINT_BYTES:
        value = shift = 0
        for byte in data[1:]:
            value |= (byte & 0x7F) << shift
            shift += 7
        if byte < 0x80:
            return value - 2**64 if value >= 2**63 else value
    return from_proto(Value.FromString(data))


def wire(kind: ValueType, value: Any) -> bytes:
    """A value of a type as a serialized ``Value``; None gives the null value, which has no bytes."""
    if value is None:
        return b""
    if kind == ValueType.INT64 and 0 <= value < 0x80:
        return bytes((_INT64_TAG, value))
    if kind == ValueType.DOUBLE:
        return _DOUBLE_HEAD + _DOUBLE.pack(value)
    return bytes(to_proto(kind, value).SerializeToString())


@dataclass(frozen=True)
class Form:
    """The form that read values are given in."""

    stored: Callable[[bytes], Any]
    """Of a serialized ``Value``."""
    computed: Callable[[ValueType, Any], Any]
    """Of a number that was computed from tiles."""
    is_null: Callable[[Any], bool]


NATIVE = Form(
    stored=native,
    computed=lambda kind, value: value,
    is_null=lambda value: value is None,
)
"""Python's own values; null is None."""

WIRE = Form(
    stored=lambda data: data,
    computed=wire,
    is_null=lambda data: not data or data.startswith(_NULL),
)
"""Feast's messages, serialized, as they are stored; null has no bytes, or is a null that Feast wrote."""
