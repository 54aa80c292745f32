"""Feast's answer to an online read, of which no message is made before somebody asks for it.

Feast makes a message of every value and then, for ``to_dict``, Python's own of every message. Most callers want the
second alone.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from feast.online_response import TIMESTAMP_POSTFIX, OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from feast.value_type import ValueType

_DOUBLE_TAG, _DOUBLE_SIZE = b"\x29", 9
_INT64_TAG, _SMALL_SIZE = b"\x20", 2


class Column(NamedTuple):
    """A column of an answer: serialized values, and the times that they speak of in ms (None: unknown), a row each."""

    name: str
    values: Sequence[bytes]
    times: Sequence[int | None]


class LazyResponse(OnlineResponse):
    """An answer by its columns, and what makes the message of it."""

    def __init__(
        self, columns: Sequence[Column], kinds: Mapping[str, ValueType], made: Callable[[], GetOnlineFeaturesResponse]
    ) -> None:
        # Not Feast's: that wants the message.
        self._columns, self._feature_types, self._made = columns, dict(kinds), made
        self._proto: GetOnlineFeaturesResponse | None = None

    @property
    def proto(self) -> GetOnlineFeaturesResponse:
        """The message; from when it was asked for, all is told by it, so that what is changed in it is seen."""
        if self._proto is None:
            self._proto = self._made()
        return self._proto

    @proto.setter
    def proto(self, message: GetOnlineFeaturesResponse) -> None:
        self._proto = message

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """See Feast's `OnlineResponse`."""
        if self._proto is not None:
            told: dict[str, Any] = super().to_dict(include_event_timestamps)
            return told
        found: dict[str, Any] = {}
        for name, values, times in self._columns:
            found[name] = python_values(values, self._feature_types.get(name))
            if include_event_timestamps:
                found[name + TIMESTAMP_POSTFIX] = [0 if ms is None else ms // 1000 for ms in times]
        return found


def python_values(values: Sequence[bytes], kind: ValueType | None) -> list[Any]:
    """Of serialized ``Value`` messages what Feast makes of them: one by one, but for columns of the common kinds."""
    count, sizes = len(values), set(map(len, values))
    if sizes == {_DOUBLE_SIZE}:
        joined = b"".join(values)
        if joined[::_DOUBLE_SIZE] == _DOUBLE_TAG * count:
            return list(_doubles(count).unpack(joined))
    elif sizes == {_SMALL_SIZE}:
        joined = b"".join(values)
        if joined[::_SMALL_SIZE] == _INT64_TAG * count:
            numbers = joined[1::_SMALL_SIZE]
            if numbers.isascii():  # whole in one byte
                return list(numbers)
    return [feast_value_type_to_python_type(Value.FromString(value), kind) for value in values]


@lru_cache(512)
def _doubles(count: int) -> struct.Struct:
    return struct.Struct("<" + "xd" * count)
