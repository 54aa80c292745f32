"""Feast's answer to an online read, put together from serialized values, and parsed once as a whole.

Making the message value by value takes several times as long as reading the features does.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse

from feature_repo.stores.features import Feature, Status
from feature_repo.stores.values import timestamp_bytes

_VALUES, _STATUSES, _TIMES = b"\x0a", b"\x12", b"\x1a"  # fields 1, 2 and 3 of a column, each of a given length
_COLUMN = b"\x12"  # field 2 of the answer
_SHORT = 0x80
_FEAST = {status: FieldStatus.Value(status.name) for status in Status}
assert all(number < _SHORT for number in _FEAST.values())
_LENGTHS = [bytes((length,)) for length in range(_SHORT)]


def column_of(features: Sequence[Feature]) -> bytes:
    """A column of features, a row each, whose values are serialized."""
    return column(
        [feature.value for feature in features],
        [_FEAST[feature.status] for feature in features],
        [_time(feature.event_ms) for feature in features],
    )


def column_of_ids(values: Sequence[bytes]) -> bytes:
    """A column of what was given, serialized."""
    known, unknown = _FEAST[Status.PRESENT], _FEAST[Status.NULL_VALUE]
    return column(values, [known if value else unknown for value in values], [_TIMES + b"\0"] * len(values))


def column(values: Iterable[bytes], statuses: Sequence[int], times: Iterable[bytes]) -> bytes:
    """A column of serialized values, Feast's statuses, and times as `_time` makes them."""
    body = b"".join(
        [
            *[b"%b%b%b" % (_VALUES, _length(value), value) for value in values],
            _STATUSES,
            _varint(len(statuses)),
            bytes(statuses),
            *times,
        ]
    )
    return b"%b%b%b" % (_COLUMN, _length(body), body)


def answer(metadata: bytes, columns: Iterable[bytes]) -> GetOnlineFeaturesResponse:
    """The whole answer: serialized metadata, then the columns."""
    return GetOnlineFeaturesResponse.FromString(b"".join([metadata, *columns]))


@lru_cache(4096)
def _time(event_ms: int | None) -> bytes:
    stamp = b"" if event_ms is None else timestamp_bytes(event_ms * 1000)
    return b"%b%b%b" % (_TIMES, _length(stamp), stamp)


def _length(data: bytes) -> bytes:
    size = len(data)
    return _LENGTHS[size] if size < _SHORT else _varint(size)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= _SHORT:
        out.append(number & 0x7F | _SHORT)
        number >>= 7
    out.append(number)
    return bytes(out)
