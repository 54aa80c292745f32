"""Feast's own remote client against our server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureStore
from feast.feature_view import FeatureViewState

from feature_repo.clock import from_ms
from tests.feast_tools import (
    BASKET,
    CUISINE,
    DAY,
    KINDS,
    ORDERS,
    PAST_LAG_MS,
    WRITE,
    ZONE,
    apply_every_kind,
    frame,
    read_by,
    remote,
    rows,
    sent,
)
from tests.repo import quietly
from tests.serving_stack import UNKNOWN, Stack


@pytest.fixture
def client(stack: Stack, tmp_path: Path) -> Iterator[FeatureStore]:
    """Feast's client of the test's own stack."""
    with quietly():
        store = remote(stack, tmp_path / "remote")
        yield store
        asyncio.run(store.close())


@pytest.fixture
def reader(shared: Stack, tmp_path: Path) -> Iterator[FeatureStore]:
    """Feast's client of the shared stack."""
    with quietly():
        store = remote(shared, tmp_path / "remote")
        yield store
        asyncio.run(store.close())


def test_feasts_client_reads_features_of_several_views(reader: FeatureStore) -> None:
    found = read_by(reader, [CUISINE, ZONE, ORDERS, BASKET, "restaurant_prep_stats:orders_28d"], rows(1, 3, 2))
    assert found == {
        "restaurant_id": [(1, "PRESENT"), (3, "PRESENT"), (2, "PRESENT")],
        "cuisine": [("thai", "PRESENT")] * 3,
        "zone_id": [(1, "PRESENT"), (2, "PRESENT"), (1, "PRESENT")],
        "orders_10m": [(1, "PRESENT"), (2, "PRESENT"), (0, "PRESENT")],
        "basket_mean_30m": [(20.0, "PRESENT"), (15.0, "PRESENT"), (None, "NULL_VALUE")],
        "orders_28d": [(400, "PRESENT")] * 3,
    }
    assert isinstance(found["basket_mean_30m"][0][0], float), "a float that is whole stays one"


def test_feasts_client_reads_a_feature_service_with_full_names(reader: FeatureStore) -> None:
    service = reader.get_feature_service("eta_streaming")
    entities = [{"restaurant_id": 3, "zone_id": 2}, {"restaurant_id": 2, "zone_id": 1}]
    found = read_by(reader, service, entities, full_feature_names=True)
    names = {f"{p.name}__{f.name}" for p in service.feature_view_projections for f in p.features}
    assert found.keys() == {"restaurant_id", "zone_id", *names}
    assert found["restaurant_recent_orders__orders_10m"] == [(2, "PRESENT"), (0, "PRESENT")]
    assert found["zone_recent_orders__zone_orders_10m"] == [(2, "PRESENT"), (1, "PRESENT")]
    assert found["zone_couriers__couriers_busy"] == [(0, "PRESENT")] * 2, "a known zero"
    short = read_by(reader, service, entities)
    assert short == {name.rpartition("__")[2]: column for name, column in found.items()}


def test_an_id_may_be_a_text_as_feasts_command_line_sends_it(reader: FeatureStore) -> None:
    found = read_by(reader, [ORDERS], rows("3", 3, "-3", str(2**63)))
    assert [value for value, _ in found["restaurant_id"]] == [3, 3, -3, str(2**63)]
    assert [value for value, _ in found["orders_10m"]] == [2, 2, 0, None]


def test_versions_of_the_views_come_where_they_are_asked_for(reader: FeatureStore) -> None:
    asked: tuple[list[str], list[dict[str, Any]]] = ([CUISINE, ORDERS], rows(1, None))
    found = reader.get_online_features(*asked, include_feature_view_version_metadata=True)
    shown = [(view.name, view.version) for view in found.proto.metadata.feature_view_metadata]
    assert sorted(shown) == [("restaurant_profile", 0), ("restaurant_recent_orders", 0)]
    without = reader.get_online_features(*asked)
    assert not without.proto.metadata.feature_view_metadata
    assert found.to_dict() == without.to_dict(), "a null id fails no other row in either"


def test_feasts_client_is_told_what_every_value_is_worth(stack: Stack, client: FeatureStore) -> None:
    client.write_to_online_store("restaurant_profile", frame(stack, {"restaurant_id": 60, "cuisine": None}))
    old = frame(stack, {"restaurant_id": 61}, ago_ms=30 * DAY + 1)
    client.write_to_online_store("restaurant_profile", old)
    found = read_by(client, [CUISINE, ORDERS], rows(1, 60, 61, UNKNOWN, None, "abc"))
    statuses = ["PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND", "NOT_FOUND", "NOT_FOUND"]
    assert [status for _, status in found["cuisine"]] == statuses
    assert [value for value, _ in found["cuisine"]] == ["thai", *[None] * 5]
    empty = [(0, "PRESENT")] * 4, [(None, "NOT_FOUND")] * 2
    assert found["orders_10m"] == empty[0] + empty[1], "a quiet night is no fault, an id that is none is one"
    stack.clock.now += PAST_LAG_MS
    found = read_by(client, [CUISINE, ORDERS], rows(1, None))
    assert found["orders_10m"] == [(None, "OUTSIDE_MAX_AGE"), (None, "NOT_FOUND")], "never a 0"
    assert found["cuisine"][0] == ("thai", "PRESENT")


def test_feasts_client_is_told_what_is_wrong(shared: Stack, reader: FeatureStore) -> None:
    with pytest.raises(RuntimeError, match=r"404.*nowhere"):
        reader.get_online_features(features=["nowhere:cuisine"], entity_rows=rows(1))
    now = from_ms(shared.clock.now)
    df = pd.DataFrame({"zone_id": [1], "zone_orders_10m": [99], "event_time": [now], "append_time": [now]})
    with pytest.raises(RuntimeError, match=r"422.*zone_recent_orders"):
        reader.write_to_online_store("zone_recent_orders", df)


def test_feasts_client_writes_rows_that_are_then_read(stack: Stack, client: FeatureStore) -> None:
    df = frame(stack, {"latitude": 3.0}, {"restaurant_id": 51, "cuisine": None}, {"restaurant_id": -1, "zone_id": None})
    client.write_to_online_store("restaurant_profile", df.astype({"zone_id": "Int64"}))
    names = ["cuisine", "latitude", "zone_id"]
    found = read_by(client, [f"restaurant_profile:{name}" for name in names], rows(50, 51, -1))
    assert found["latitude"] == [(3.0, "PRESENT"), (52.0, "PRESENT"), (52.0, "PRESENT")]
    assert found["cuisine"] == [("thai", "PRESENT"), (None, "NULL_VALUE"), ("thai", "PRESENT")]
    assert found["zone_id"] == [(2, "PRESENT"), (2, "PRESENT"), (None, "NULL_VALUE")]


def test_the_newest_row_wins_whatever_the_order_of_writing(stack: Stack, client: FeatureStore) -> None:
    def cuisine(text: str, ago_ms: int) -> Any:
        client.write_to_online_store("restaurant_profile", frame(stack, {"cuisine": text}, ago_ms=ago_ms))
        return read_by(client, [CUISINE], rows(50))["cuisine"][0][0]

    assert [cuisine("thai", 5), cuisine("older", 9), cuisine("correction", 5)] == ["thai", "thai", "correction"]


def test_feasts_client_writes_and_reads_lists(stack: Stack, client: FeatureStore) -> None:
    moment = from_ms(stack.clock.now)
    vectors = {"restaurant_id": [1, 2], "restaurant_vector": [[1.0, 2.5], [0.0, -1.0]]}
    vectors["restaurant_factorization"] = ["f", "f"]
    df = pd.DataFrame(vectors | {"event_time": [moment] * 2, "created": [moment] * 2})
    client.write_to_online_store("restaurant_embedding", df)
    found = read_by(client, ["restaurant_embedding:restaurant_vector"], rows(2, 1, 3))
    assert found["restaurant_vector"] == [([0.0, -1.0], "PRESENT"), ([1.0, 2.5], "PRESENT"), (None, "NOT_FOUND")]


def test_a_view_that_is_applied_while_the_server_runs_is_served_by_it(stack: Stack, client: FeatureStore) -> None:
    apply_every_kind(stack)
    moment = from_ms(stack.clock.now)
    kinds = {name: [value] for name, (_, value) in KINDS.items() if not name.startswith("raw")}
    df = pd.DataFrame({"restaurant_id": [1], "event_time": [moment], "raw": [None], "raws": [None]} | kinds)
    client.write_to_online_store("every_kind", df)
    names = ["whole", "wholes", "short"]
    found = read_by(client, [f"every_kind:{name}" for name in names], rows(1))
    assert {name: found[name] for name in names} == {name: [(KINDS[name][1], "PRESENT")] for name in names}


def test_a_materialization_under_way_refuses_no_read(stack: Stack, client: FeatureStore) -> None:
    with quietly():
        view = stack.store.get_feature_view("restaurant_profile")
        view.state = FeatureViewState.MATERIALIZING
        stack.store.registry.apply_feature_view(view, stack.store.project)
        assert stack.store.get_feature_view("restaurant_profile").state == FeatureViewState.MATERIALIZING
    assert stack.post(WRITE, sent(stack, {}) | {"allow_registry_cache": False}).status_code == 200
    assert read_by(client, [CUISINE], rows(50))["cuisine"] == [("thai", "PRESENT")]
