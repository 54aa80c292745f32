"""Values packed a column at a time are, byte for byte, what Feast's own messages are."""

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from feature_repo.stores import packing
from feature_repo.stores.values import timestamp_bytes


def feasts(values: list[Any], kind: ValueType) -> list[bytes]:
    return [bytes(message.SerializeToString()) for message in python_values_to_proto_values(values, kind)]


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        (ValueType.DOUBLE, pa.array([1.5, 0.0, -0.0, None, math.nan, math.inf, 5e-324, -1e300])),
        (ValueType.FLOAT, pa.array([1.5, 0.0, None, math.nan, -math.inf], pa.float32())),
        (ValueType.INT64, pa.array([0, 1, 127, 128, -1, 2**63 - 1, -(2**63), None])),
        (ValueType.INT32, pa.array([0, 300, -1, 2**31 - 1, -(2**31), None], pa.int32())),
        (ValueType.STRING, pa.array(["", "thaï", "x" * 127, "y" * 128, "z" * 70_000, None])),
        (ValueType.DOUBLE, pa.array([1, 2, None], pa.int64())),
        (ValueType.BOOL, pa.array([True, False, None])),
        (ValueType.BYTES, pa.array([b"\x00\xff", b"", None])),
        (ValueType.FLOAT_LIST, pa.array([[1.0, 2.0], []], pa.list_(pa.float32()))),
        (ValueType.UNIX_TIMESTAMP, pa.array([datetime(2026, 1, 1, tzinfo=UTC)], pa.timestamp("us", "UTC"))),
    ],
)
def test_a_column_of_values_is_feasts_messages(kind: ValueType, column: pa.Array) -> None:
    assert packing.serialized_values(column, kind).to_pylist() == feasts(column.to_pylist(), kind)
    assert packing.serialized_values(column.slice(1), kind).to_pylist() == feasts(column.to_pylist()[1:], kind)


def test_a_column_of_instants_is_protobufs_timestamps() -> None:
    micros = [0, 1, -1, 999_999, 1_000_000, -1_000_000, -1_500_000, 10**15, -(10**15), 2**53 + 1]
    assert packing.serialized_instants(np.array(micros)).to_pylist() == [timestamp_bytes(one) for one in micros]


def test_words_are_those_of_rediss_protocol_and_lie_one_behind_the_other() -> None:
    words = packing.words(pa.array([b"", b"ab", b"\r\n$3"], pa.binary()))
    assert words.to_pylist() == [b"$0\r\n\r\n", b"$2\r\nab\r\n", b"$4\r\n\r\n$3\r\n"]
    assert bytes(packing.data_of(words, 1, 3)) == b"$2\r\nab\r\n$4\r\n\r\n$3\r\n"
    assert bytes(packing.data_of(words.slice(1), 0, 1)) == packing.word(b"ab")
