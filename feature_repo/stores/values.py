"""Between Feast's ``Value`` messages and Python's own values."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType
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
}


def to_proto(kind: ValueType, value: Any) -> Value:
    """`value` as a message of the scalar type `kind`; None gives the null value. Raises KeyError for other types."""
    if value is None:
        return Value()
    field, convert = _FIELDS[kind]
    return Value(**{field: convert(value)})


def from_proto(message: Value) -> Any:
    """The Python value of a message: a scalar, a list, a dictionary, or None for null."""
    field = message.WhichOneof("val")
    if field is None or field == "null_val":
        return None
    value = getattr(message, field)
    inner = getattr(value, "val", value)
    return list(inner) if inner is not value else value


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


@dataclass(frozen=True)
class Form:
    """The form that read values are given in."""

    stored: Callable[[bytes], Any]
    """Of a serialized ``Value``."""
    computed: Callable[[ValueType, Any], Any]
    """Of a number that was computed from tiles."""
    is_null: Callable[[Any], bool]


NATIVE = Form(
    stored=lambda data: from_proto(Value.FromString(data)),
    computed=lambda kind, value: value,
    is_null=lambda value: value is None,
)
"""Python's own values; null is None."""

PROTO = Form(
    stored=Value.FromString,
    computed=to_proto,
    is_null=lambda value: value.WhichOneof("val") in (None, "null_val"),
)
"""Feast's messages; null is the empty message."""
