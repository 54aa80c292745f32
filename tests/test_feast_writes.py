"""``/write-to-online-store``: what is written of a batch view, and what is refused."""

import asyncio
import json
from datetime import timedelta

import msgspec
import pytest
from feast import Field, StreamFeatureView
from feast.types import Int64

from feature_repo.clock import iso
from feature_repo.stores import layout
from feature_repo.stores.online import TiffinOnlineStore
from serving.feast_api import FeastWrites
from serving.feast_bodies import MAX_ROWS, RowsSent, decode
from tests.feast_tools import CUISINE, KINDS, WRITE, apply_every_kind, ask, sent
from tests.repo import quietly
from tests.serving_stack import Stack, batch_view, problem


def test_a_write_says_how_many_rows_were_new(stack: Stack) -> None:
    answer = stack.post(WRITE, sent(stack, {}, {"restaurant_id": 51}))
    assert answer.json() == {"feature_view_name": "restaurant_profile", "rows": 2, "written": 2}
    older: dict[str, object] = {"event_timestamp": iso(stack.clock.now - 1)}
    answer = stack.post(WRITE, sent(stack, older, {"restaurant_id": 52}))
    assert answer.json() == {"feature_view_name": "restaurant_profile", "rows": 2, "written": 1}


def test_times_may_be_called_as_the_source_calls_them_and_without_offset_are_utc(stack: Stack) -> None:
    document = sent(stack, {"event_timestamp": "2026-03-01T11:00:00", "created": None})
    document["df"]["event_time"] = document["df"].pop("event_timestamp")
    assert stack.post(WRITE, document).status_code == 200
    found = ask(stack, {"entities": {"restaurant_id": [50]}, "features": [CUISINE]})
    assert found["cuisine"]["event_timestamps"] == ["2026-03-01T11:00:00Z"]


@pytest.mark.parametrize(
    ("column", "value", "field"),
    [
        ("restaurant_id", None, "df.restaurant_id[1]"),
        ("restaurant_id", "50", "df.restaurant_id[1]"),
        ("restaurant_id", 1.5, "df.restaurant_id[1]"),
        ("restaurant_id", 2**63, "df.restaurant_id[1]"),
        ("zone_id", "2", "df.zone_id[1]"),
        ("zone_id", 2.0, "df.zone_id[1]"),
        ("zone_id", True, "df.zone_id[1]"),
        ("zone_id", 10**400, "df.zone_id[1]"),
        ("cuisine", 7, "df.cuisine[1]"),
        ("cuisine", ["thai"], "df.cuisine[1]"),
        ("latitude", "north", "df.latitude[1]"),
        ("latitude", False, "df.latitude[1]"),
        ("latitude", 10**400, "df.latitude[1]"),
        ("event_timestamp", None, "df.event_timestamp[1]"),
        ("event_timestamp", 1_772_366_400_000, "df.event_timestamp[1]"),
        ("event_timestamp", "yesterday", "df.event_timestamp[1]"),
        ("event_timestamp", "0001-01-01T00:00:00+14:00", "df.event_timestamp[1]"),
        ("event_timestamp", "9999-12-31T23:59:59-14:00", "df.event_timestamp[1]"),
        ("event_timestamp", "99999-01-01T00:00:00", "df.event_timestamp[1]"),
    ],
)
def test_a_value_that_cannot_be_written_refuses_all_rows_and_is_named(
    shared: Stack, column: str, value: object, field: str
) -> None:
    document = sent(shared, {}, {"restaurant_id": 51})
    document["df"][column][1] = value
    refused = problem(shared.post(WRITE, json.dumps(document).encode()), 422)
    assert refused["errors"][0]["field"] == field
    assert field in refused["detail"]
    found = ask(shared, {"entities": {"restaurant_id": [50, 51]}, "features": [CUISINE]})
    assert found["cuisine"]["statuses"] == ["NOT_FOUND"] * 2, "nothing was written"


def test_columns_must_be_those_of_the_view_and_equally_long(shared: Stack) -> None:
    def refused(status: int = 422, **columns: object) -> str:
        document = sent(shared, {})
        document["df"] = {n: c for n, c in (document["df"] | columns).items() if c is not None}
        return str(problem(shared.post(WRITE, document), status)["detail"])

    assert "df.cuisine is missing" in refused(cuisine=None)
    assert "df.restaurant_id is missing" in refused(restaurant_id=None)
    assert "df.event_timestamp is missing" in refused(event_timestamp=None)
    assert "df.cuisin " in refused(cuisin=["thai"])
    assert "df.latitude is 2 rows: df.restaurant_id has 1" in refused(latitude=[1.0, 2.0])
    assert "df.latitude" in refused(latitude=1.0)
    assert str(MAX_ROWS) in refused(413, **{name: [1] * (MAX_ROWS + 1) for name in sent(shared, {})["df"]})


def test_a_view_that_nobody_may_write_is_refused_by_name(shared: Stack) -> None:
    document = sent(shared, {})
    assert "nowhere" in problem(shared.post(WRITE, document | {"feature_view_name": "nowhere"}), 404)["detail"]
    stream = problem(shared.post(WRITE, document | {"feature_view_name": "zone_recent_orders"}), 422)["detail"]
    assert "zone_recent_orders" in stream
    assert "/v1/events/order_placed" in stream
    found = ask(shared, {"entities": {"zone_id": [1]}, "features": ["zone_recent_orders:zone_orders_10m"]})
    assert found["zone_orders_10m"]["values"] == [1]


def test_rows_are_kept_as_long_as_those_that_feast_writes(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack.store.config.online_store, "key_ttl_seconds", 1000)
    online = TiffinOnlineStore(stack.settings, stack.clock)
    rows = decode(msgspec.json.encode(sent(stack, {})), RowsSent)
    assert FeastWrites(stack.store, online).write(rows)["written"] == 1
    asyncio.run(online.close())
    view = batch_view(stack.store, "restaurant_profile")
    key = layout.key_builder(stack.store.project, view.join_keys, view.key_types)([50])
    left = stack.redis.execute_command("HTTL", key, "FIELDS", 1, layout.time_field(view.name))  # type: ignore[no-untyped-call]
    assert 0 < left[0] <= 1000


def test_a_stream_view_whose_rows_are_pushed_is_written_like_a_batch_view(stack: Stack) -> None:
    with quietly():
        pushed = StreamFeatureView(
            name="restaurant_mood",
            entities=[stack.store.get_entity("restaurant")],
            ttl=timedelta(days=1),
            source=stack.store.get_data_source("order_placed"),
            timestamp_field="event_time",
            schema=[Field(name="mood", dtype=Int64)],
        )
        stack.store.apply([pushed])
    df = {"restaurant_id": [1], "mood": [7], "event_timestamp": [iso(stack.clock.now)]}
    answer = stack.post(WRITE, {"feature_view_name": "restaurant_mood", "df": df, "allow_registry_cache": False})
    assert answer.json() == {"feature_view_name": "restaurant_mood", "rows": 1, "written": 1}
    found = ask(stack, {"entities": {"restaurant_id": [1]}, "features": ["restaurant_mood:mood"]})
    assert found["mood"]["values"] == [7]


def test_every_type_of_feature_comes_back_as_it_was_sent(stack: Stack) -> None:
    apply_every_kind(stack)
    df: dict[str, list[object]] = {name: [value, None] for name, (_, value) in KINDS.items()}
    df |= {"restaurant_id": [1, 2], "event_timestamp": [iso(stack.clock.now)] * 2}
    answer = stack.post(WRITE, {"feature_view_name": "every_kind", "df": df, "allow_registry_cache": False})
    assert answer.status_code == 200, answer.text
    features = [f"every_kind:{name}" for name in KINDS]
    found = ask(stack, {"entities": {"restaurant_id": [1, 2]}, "features": features})
    assert {name: found[name]["values"][0] for name in KINDS} == {name: value for name, (_, value) in KINDS.items()}
    assert all(found[name]["statuses"] == ["PRESENT", "NULL_VALUE"] for name in KINDS)
    for name, wrong in {"raw": "no base64!", "wholes": [1, None], "short": 1e300, "truth": 1, "document": "{"}.items():
        refused = stack.post(WRITE, {"feature_view_name": "every_kind", "df": df | {name: [wrong, None]}})
        assert problem(refused, 422)["errors"][0]["field"] == f"df.{name}[0]"


def test_numbers_that_json_has_not_are_told_as_texts(stack: Stack) -> None:
    assert stack.post(WRITE, sent(stack, {"latitude": "Infinity", "longitude": "NaN"})).status_code == 200
    features = ["restaurant_profile:latitude", "restaurant_profile:longitude"]
    found = ask(stack, {"entities": {"restaurant_id": [50]}, "features": features})
    assert [found["latitude"]["values"], found["longitude"]["values"]] == [["Infinity"], ["NaN"]]
