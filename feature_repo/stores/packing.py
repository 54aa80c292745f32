"""Columns of bytes: Feast's serialized values and the words of Redis's protocol, a whole column at a time.

Each function takes and gives Arrow arrays of binary values, a value a row; so nothing is done row by row in Python.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

Bytes = npt.NDArray[np.uint8]

_FLOATS = {ValueType.DOUBLE: ("<f8", pa.float64()), ValueType.FLOAT: ("<f4", pa.float32())}
_WHOLES = {ValueType.INT64: pa.int64(), ValueType.INT32: pa.int32()}
_SAMPLE = {
    ValueType.DOUBLE: Value(double_val=1),
    ValueType.FLOAT: Value(float_val=1),
    ValueType.INT64: Value(int64_val=1),
    ValueType.INT32: Value(int32_val=1),
    ValueType.STRING: Value(string_val="1"),
}
_TAGS = {kind: message.SerializeToString()[0] for kind, message in _SAMPLE.items()}
_LONGEST_VARINT = 10
_SECONDS, _NANOS = 0x08, 0x10  # the tags of the two fields of a Timestamp


def serialized_values(column: pa.Array, kind: ValueType) -> pa.Array:
    """A feature's values as ``Value`` messages, as Feast would make them of Python's; null and NaN are empty bytes."""
    if kind in _FLOATS and column.type == _FLOATS[kind][1]:
        there = pc.and_kleene(column.is_valid(), pc.invert(pc.is_nan(column))).fill_null(False)
        packed = fixed(column.fill_null(0).to_numpy(zero_copy_only=False).astype(_FLOATS[kind][0]))
        return _where(there, joined(bytes([_TAGS[kind]]), packed))
    if kind in _WHOLES and column.type == _WHOLES[kind]:
        numbers = varints(column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64))
        return _where(column.is_valid(), joined(bytes([_TAGS[kind]]), numbers))
    if kind == ValueType.STRING and column.type == pa.string():
        text = column.cast(pa.binary()).fill_null(b"")
        lengths = varints(pc.binary_length(text).to_numpy(zero_copy_only=False).astype(np.int64))
        return _where(column.is_valid(), joined(bytes([_TAGS[kind]]), lengths, text))
    values = column.to_pylist()
    if pa.types.is_map(column.type):  # Arrow gives pairs, Feast wants dictionaries
        values = [None if pairs is None else dict(pairs) for pairs in values]
    return pa.array([m.SerializeToString() for m in python_values_to_proto_values(values, kind)], pa.binary())


def serialized_instants(micros: npt.NDArray[np.int64]) -> pa.Array:
    """Instants in µs since the epoch as ``Timestamp`` messages."""
    seconds, rest = np.divmod(micros, 1_000_000)
    parts = []
    for tag, numbers in ((_SECONDS, seconds), (_NANOS, rest * 1000)):
        parts.append(_where(pa.array(numbers != 0), joined(bytes([tag]), varints(numbers))))
    return joined(*parts)


def fixed(numbers: npt.NDArray[np.generic]) -> pa.Array:
    """Numbers as they lie in memory; of an array of rows, each row as one value."""
    rows = np.ascontiguousarray(numbers).reshape(len(numbers), -1)
    width = rows.shape[1] * rows.itemsize
    buffers = [None, pa.py_buffer(rows.tobytes())]
    return pa.Array.from_buffers(pa.binary(width), len(rows), buffers).cast(pa.binary())


def varints(numbers: npt.NDArray[np.int64]) -> pa.Array:
    """Whole numbers as protobuf's varints; negative ones take ten bytes."""
    rest = numbers.astype(np.uint64)
    digits = np.empty((len(rest), _LONGEST_VARINT), np.uint8)
    lengths = np.ones(len(rest), np.int32)
    for i in range(_LONGEST_VARINT):
        digits[:, i] = rest & np.uint64(0x7F)
        rest = rest >> np.uint64(7)
        more = rest != 0
        digits[more, i] |= 0x80
        lengths += more
    offsets = np.zeros(len(rest) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    data = digits[np.arange(_LONGEST_VARINT) < lengths[:, None]]
    return pa.Array.from_buffers(pa.binary(), len(rest), [None, pa.py_buffer(offsets), pa.py_buffer(data.tobytes())])


def joined(*parts: pa.Array | bytes) -> pa.Array:
    """Row by row, one part behind the other; bytes are the same in every row."""
    scalars = [pa.scalar(part, pa.binary()) if isinstance(part, bytes) else part for part in parts]
    return pc.binary_join_element_wise(*scalars, pa.scalar(b"", pa.binary()))


def words(values: pa.Array) -> pa.Array:
    """Values as words of a command in Redis's protocol: their length and they themselves."""
    lengths = pc.binary_length(values).cast(pa.string()).cast(pa.binary())
    return joined(b"$", lengths, b"\r\n", values, b"\r\n")


def word(value: bytes) -> bytes:
    """One such word."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def data_of(values: pa.Array, start: int, stop: int) -> "memoryview[int]":
    """The bytes of the rows from `start` up to `stop`, one behind the other, where they lie."""
    _, offsets, data = values.buffers()
    places = np.frombuffer(offsets, np.int32, len(values) + 1, values.offset * 4)
    return memoryview(data)[places[start] : places[stop]]


def _where(condition: pa.Array, values: pa.Array) -> pa.Array:
    return pc.if_else(condition, values, pa.scalar(b"", pa.binary()))
