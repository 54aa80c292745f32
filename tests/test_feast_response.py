"""The answer without a message says what Feast says of the message, to the type of each value."""

import math
from collections.abc import Sequence
from typing import Any

from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import DoubleList, Int64List, StringList, Value
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.stores import feast_messages
from feature_repo.stores.feast_response import Column, LazyResponse
from feature_repo.stores.features import Feature, Status

WHOLE = st.integers(-(2**63), 2**63 - 1)
MOMENTS = st.integers(-(10**10), 10**10)
ONE = {
    ValueType.DOUBLE: st.floats().map(lambda x: Value(double_val=x)),
    ValueType.FLOAT: st.floats(width=32).map(lambda x: Value(float_val=x)),
    ValueType.INT64: (st.integers(0, 300) | WHOLE).map(lambda x: Value(int64_val=x)),
    ValueType.INT32: st.integers(-(2**31), 2**31 - 1).map(lambda x: Value(int32_val=x)),
    ValueType.BOOL: st.booleans().map(lambda x: Value(bool_val=x)),
    ValueType.STRING: st.text().map(lambda x: Value(string_val=x)),
    ValueType.BYTES: st.binary().map(lambda x: Value(bytes_val=x)),
    ValueType.UNIX_TIMESTAMP: MOMENTS.map(lambda x: Value(unix_timestamp_val=x)),
    ValueType.UUID: st.uuids().map(lambda x: Value(string_val=str(x))),
    ValueType.DOUBLE_LIST: st.lists(st.floats()).map(lambda x: Value(double_list_val=DoubleList(val=x))),
    ValueType.INT64_LIST: st.lists(WHOLE).map(lambda x: Value(int64_list_val=Int64List(val=x))),
    ValueType.STRING_LIST: st.lists(st.text()).map(lambda x: Value(string_list_val=StringList(val=x))),
}
KINDS = st.sampled_from(list(ONE))


def features(kind: ValueType) -> st.SearchStrategy[Feature]:
    values = (ONE[kind] | st.just(Value())).map(lambda value: value.SerializeToString())
    return st.builds(Feature, values, st.sampled_from(Status), st.none() | st.integers(0, 4_000_000_000_000))


COLUMNS = st.tuples(st.integers(0, 5), st.lists(KINDS, max_size=4)).flatmap(
    lambda drawn: st.tuples(
        st.just(drawn[1]),
        st.tuples(*(st.lists(features(kind), min_size=drawn[0], max_size=drawn[0]) for kind in drawn[1])),
    )
)


def both(kinds: Sequence[ValueType], columns: Sequence[list[Feature]]) -> tuple[LazyResponse, OnlineResponse]:
    names = [f"f{i}" for i in range(len(kinds))]
    named = GetOnlineFeaturesResponse()
    named.metadata.feature_names.val.extend(names)

    def made() -> GetOnlineFeaturesResponse:
        return feast_messages.answer(named.SerializeToString(), [feast_messages.column_of(c) for c in columns])

    types = dict(zip(names, kinds, strict=True))
    told = [Column(n, [f.value for f in c], [f.event_ms for f in c]) for n, c in zip(names, columns, strict=True)]
    return LazyResponse(told, types, made), OnlineResponse(made(), feature_types=types)


def with_types(value: Any) -> Any:
    """What tells 1 from 1.0 and True, and NaN from what is none."""
    if isinstance(value, dict):
        return {key: with_types(one) for key, one in value.items()}
    if isinstance(value, list):
        return [with_types(one) for one in value]
    return type(value), "nan" if isinstance(value, float) and math.isnan(value) else value


@given(COLUMNS)
def test_it_says_what_feast_says(drawn: tuple[list[ValueType], tuple[list[Feature], ...]]) -> None:
    lazy, feasts = both(*drawn)
    for stamps in (False, True):
        assert with_types(lazy.to_dict(stamps)) == with_types(feasts.to_dict(stamps))
    assert list(lazy.to_dict()) == list(feasts.to_dict())
    assert lazy.proto == feasts.proto
    assert with_types(lazy.to_dict(True)) == with_types(feasts.to_dict(True))


def test_it_comes_as_a_frame_and_a_table() -> None:
    rows = [Feature(Value(double_val=x).SerializeToString(), Status.PRESENT, 1_700_000_000_123) for x in (1.5, -2.0)]
    lazy, feasts = both([ValueType.DOUBLE], [rows])
    assert lazy.to_df(True).equals(feasts.to_df(True))
    assert lazy.to_arrow().equals(feasts.to_arrow())


def test_what_is_changed_in_the_message_is_told() -> None:
    lazy, _ = both([ValueType.INT64], [[Feature(Value(int64_val=3).SerializeToString(), Status.PRESENT, None)]])
    lazy.proto.results[0].values[0].int64_val = 4
    assert lazy.to_dict() == {"f0": [4]}
    lazy.proto = GetOnlineFeaturesResponse()
    assert lazy.to_dict() == {}
