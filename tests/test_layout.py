"""Keys and fields of the online store are byte for byte those of Feast; what cannot be a key is refused by name."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType
from hypothesis import example, given
from hypothesis import strategies as st

from feature_repo.stores import layout
from feature_repo.stores.layout import BadEntity, feature_field, key_builder, project_keys
from feature_repo.views import PresenceView, WindowView
from feature_repo.windows import Aggregate, Layout

FIELDS = {
    ValueType.INT64: "int64_val",
    ValueType.INT32: "int32_val",
    ValueType.STRING: "string_val",
    ValueType.BYTES: "bytes_val",
    ValueType.UNIX_TIMESTAMP: "unix_timestamp_val",
}
IDS: dict[ValueType, st.SearchStrategy[Any]] = {
    ValueType.INT64: st.integers(-(2**63), 2**63 - 1),
    ValueType.INT32: st.integers(-(2**31), 2**31 - 1),
    ValueType.STRING: st.text(max_size=40),
    ValueType.BYTES: st.binary(max_size=40),
    ValueType.UNIX_TIMESTAMP: st.integers(-(2**63), 2**63 - 1),
}
AGGREGATES = (Aggregate("n", "x", "count", 60_000),)
WINDOWS = WindowView(
    "orders",
    ("id",),
    (ValueType.INT64,),
    {"n": ValueType.INT64},
    "topic",
    AGGREGATES,
    Layout.of(60_000, AGGREGATES),
    1,
    "h",
)


def feast_key(project: str, names: Sequence[str], kinds: Sequence[ValueType], ids: Sequence[Any]) -> bytes:
    """What Feast makes of it: it sorts the names itself."""
    values = [Value(**{FIELDS[kind]: value}) for kind, value in zip(kinds, ids, strict=True)]
    return bytes(_redis_key(project, EntityKey(join_keys=names, entity_values=values), 3))


@given(
    data=st.data(),
    keys=st.dictionaries(st.text(min_size=1, max_size=12), st.sampled_from(list(FIELDS)), min_size=1, max_size=3),
    project=st.sampled_from(["tiffin", "größer", "a:b"]),
)
def test_keys_are_those_of_feast(data: st.DataObject, keys: dict[str, ValueType], project: str) -> None:
    names = sorted(keys)
    kinds = [keys[name] for name in names]
    ids = [data.draw(IDS[kind]) for kind in kinds]
    assert key_builder(project, names, kinds)(ids) == feast_key(project, names, kinds, ids)


@example(moment=datetime(1425, 1, 1, microsecond=1, tzinfo=UTC))  # in floating point the microsecond is lost
@given(moment=st.datetimes(timezones=st.none() | st.just(UTC) | st.just(ZoneInfo("Asia/Kathmandu"))))
def test_instants_may_be_datetimes_and_are_what_feast_makes_of_them(moment: datetime) -> None:
    (value,) = python_values_to_proto_values([moment], ValueType.UNIX_TIMESTAMP)
    build = key_builder("p", ["id"], [ValueType.UNIX_TIMESTAMP])
    assert build([moment]) == feast_key("p", ["id"], [ValueType.UNIX_TIMESTAMP], [value.unix_timestamp_val])


@pytest.mark.parametrize("given_id", [np.int64(7), np.int32(7), np.uint8(7), 7])
def test_numpys_whole_numbers_are_whole_numbers(given_id: object) -> None:
    build = key_builder("p", ["id"], [ValueType.INT64])
    assert build([given_id]) == feast_key("p", ["id"], [ValueType.INT64], [7])


@pytest.mark.parametrize(
    ("kind", "given_id", "message"),
    [
        (ValueType.INT64, None, "restaurant_id: None is not a whole number"),
        (ValueType.INT64, "7", "restaurant_id: '7' is not a whole number"),
        (ValueType.INT64, 7.0, "restaurant_id: 7.0 is not a whole number"),
        (ValueType.INT64, True, "restaurant_id: True is not a whole number"),
        (ValueType.INT64, float("nan"), "restaurant_id: nan is not a whole number"),
        (ValueType.INT64, 2**63, "restaurant_id: 9223372036854775808 does not fit into 64 bits"),
        (ValueType.INT32, 2**31, "restaurant_id: 2147483648 does not fit into 32 bits"),
        (ValueType.INT32, -(2**31) - 1, "does not fit into 32 bits"),
        (ValueType.STRING, None, "restaurant_id: None is not text"),
        (ValueType.STRING, 7, "restaurant_id: 7 is not text"),
        (ValueType.STRING, b"x", "is not text"),
        (ValueType.BYTES, "x", "restaurant_id: 'x' is not bytes"),
        (ValueType.BYTES, None, "restaurant_id: None is not bytes"),
        (ValueType.UNIX_TIMESTAMP, "now", "restaurant_id: 'now' is neither a datetime nor whole seconds"),
        (ValueType.UNIX_TIMESTAMP, 1.5, "restaurant_id: 1.5 is neither a datetime nor whole seconds"),
        (ValueType.UNIX_TIMESTAMP, pd.NaT, "restaurant_id: NaT is neither a datetime nor whole seconds"),
        (ValueType.UNIX_TIMESTAMP, 2**63, "is neither a datetime nor whole seconds"),
        (ValueType.STRING, "\ud800", "restaurant_id: '.ud800' is not text that UTF-8 can hold"),
    ],
)
def test_an_id_that_can_be_no_key_is_refused_by_the_join_keys_name(
    kind: ValueType, given_id: object, message: str
) -> None:
    with pytest.raises(BadEntity, match=message):
        key_builder("p", ["restaurant_id"], [kind])([given_id])


def test_a_bad_id_among_several_join_keys_is_refused_too() -> None:
    build = key_builder("p", ["a", "b"], [ValueType.INT64, ValueType.STRING])
    with pytest.raises(BadEntity, match="b: None"):
        build([1, None])


@pytest.mark.parametrize("kind", [ValueType.DOUBLE, ValueType.BOOL, ValueType.FLOAT_LIST, ValueType.UUID])
def test_join_keys_of_other_types_are_refused_when_the_view_is_compiled(kind: ValueType) -> None:
    with pytest.raises(BadEntity, match=f"id: {kind.name} join keys are not supported"):
        key_builder("p", ["id"], [kind])


@given(view=st.text(max_size=20), feature=st.text(max_size=20))
def test_feature_fields_are_those_of_feast(view: str, feature: str) -> None:
    assert feature_field(view, feature) == _mmh3(f"{view}:{feature}")


def test_the_event_time_lies_where_feast_looks_for_it() -> None:
    assert layout.time_field("profile") == b"_ts:profile"


def test_tile_fields_differ_by_partition_definition_and_view_and_never_hide_a_feature() -> None:
    others = [replace(WINDOWS, name="other"), replace(WINDOWS, tiles_hash="g"), replace(WINDOWS, topic="t")]
    fields = [layout.tiles_field(view, p) for view in (WINDOWS, *others) for p in (0, 1, 2**16 - 1)]
    assert len(set(fields)) == 12
    assert {len(field) for field in fields} == {6}, "features' fields have 4 bytes"


def test_the_logs_of_a_presence_view_are_numbered_by_topic_then_partition() -> None:
    view = PresenceView("v", ("z",), (ValueType.INT64,), {}, ("a", "b"), "m", "topic", {}, 1, 1, "h")
    numbers = [layout.log_number(view, topic, partition) for topic in ("a", "b") for partition in (0, 1, 2**16 - 1)]
    assert numbers == sorted(set(numbers))
    assert max(numbers) < 2**32


def test_a_projects_keys_are_known_and_no_others() -> None:
    kinds = [ValueType.INT64, ValueType.STRING]
    ours = project_keys("tiffin", [["id"], ["a", "b"]])
    one = key_builder("tiffin", ["id"], [ValueType.INT64])([7])
    two = key_builder("tiffin", ["a", "b"], kinds)([7, "tiffin"])
    streams = [layout.progress_key("tiffin", "t"), layout.seen_key("tiffin", "t", 0, 1, 2)]
    assert [ours(key) for key in (one, two, *streams)] == [True] * 4
    foreign = [
        key_builder("tiffin", ["other"], [ValueType.INT64])([7]),
        key_builder("2tiffin", ["id"], [ValueType.INT64])([7]),
        key_builder("x", ["a", "b"], kinds)([7, "tiffin"]),
        layout.progress_key("tiffin2", "t"),
        b"log:order_placed:0",
        b"",
        one[:20],
    ]
    assert [ours(key) for key in foreign] == [False] * len(foreign)


@given(key=st.binary(max_size=60))
def test_any_bytes_may_be_asked_about(key: bytes) -> None:
    head = layout._head(["id"])
    assert not project_keys("tiffin", [["id"]])(key)
    project_keys("tiffin", [["id"]])(head + key)


def test_groups_of_several_join_keys_are_told_apart() -> None:
    assert layout.group_name([1, 2]) != layout.group_name([12])
    assert layout.group_name([3]) == "3"
