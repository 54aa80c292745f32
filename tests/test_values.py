"""Values as they are stored: read off their bytes, and put into Feast's answers, as Feast's own messages would be."""

import math
from typing import Any

import pytest
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Null, Value
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.stores.feast_messages import answer, column_of, column_of_ids
from feature_repo.stores.features import Feature, Status
from feature_repo.stores.values import WIRE, from_proto, native, timestamp_bytes, to_proto, wire

WHOLE = st.integers(-(2**63), 2**63 - 1)
KINDS: dict[ValueType, st.SearchStrategy[Any]] = {
    ValueType.INT64: WHOLE | st.integers(-200, 200),
    ValueType.INT32: st.integers(-(2**31), 2**31 - 1),
    ValueType.DOUBLE: st.floats(allow_nan=False),
    ValueType.STRING: st.text(max_size=300),
    ValueType.BOOL: st.booleans(),
    ValueType.BYTES: st.binary(max_size=300),
    ValueType.UNIX_TIMESTAMP: st.integers(-(2**40), 2**40),
    ValueType.FLOAT_LIST: st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=200),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_value_read_off_its_bytes_is_that_of_its_message(kind: ValueType, data: st.DataObject) -> None:
    value = data.draw(KINDS[kind])
    message = to_proto(kind, value)
    assert wire(kind, value) == message.SerializeToString()
    assert native(wire(kind, value)) == from_proto(message)


def test_no_number_and_null_are_what_they_are() -> None:
    assert math.isnan(native(wire(ValueType.DOUBLE, math.nan)))
    assert wire(ValueType.DOUBLE, None) == b""
    for null in (b"", Value(null_val=Null.NULL).SerializeToString()):
        assert WIRE.is_null(null)
        assert native(null) is None
    for value in (Value(int64_val=0), Value(double_val=0.0), Value(string_val="")):
        assert not WIRE.is_null(value.SerializeToString())


@pytest.mark.parametrize("damaged", [b"\x20", b"\x20\x80", b"\x29\x00", b"\xff\xff"])
def test_damaged_bytes_are_no_value(damaged: bytes) -> None:
    with pytest.raises(Exception, match=r"parsing|decode|Error"):
        native(damaged)


@given(
    rows=st.lists(
        st.tuples(KINDS[ValueType.STRING], st.sampled_from(Status), st.none() | st.integers(-(2**40), 2**45)),
        max_size=300,
    )
)
def test_an_answer_put_together_is_the_answer_made_value_by_value(
    rows: list[tuple[str, Status, int | None]],
) -> None:
    expected = GetOnlineFeaturesResponse()
    expected.metadata.feature_names.val.extend(["id", "text"])
    metadata = expected.SerializeToString()
    ids, features = expected.results.add(), expected.results.add()
    for number, (text, status, event_ms) in enumerate(rows):
        ids.values.append(Value(int64_val=number) if number % 3 else Value())
        ids.statuses.append(FieldStatus.PRESENT if number % 3 else FieldStatus.NULL_VALUE)
        ids.event_timestamps.add()
        features.values.append(Value(string_val=text))
        features.statuses.append(FieldStatus.Value(status.name))
        stamp = features.event_timestamps.add()
        if event_ms is not None:
            stamp.ParseFromString(timestamp_bytes(event_ms * 1000))
    given_ids = [wire(ValueType.INT64, n if n % 3 else None) for n in range(len(rows))]
    column = [Feature(wire(ValueType.STRING, text), status, event_ms) for text, status, event_ms in rows]
    assert answer(metadata, [column_of_ids(given_ids), column_of(column)]) == expected
