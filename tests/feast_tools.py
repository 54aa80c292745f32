"""What the tests of Feast's routes share: its remote client, questions and rows to write."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from feast import FeatureStore, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, Json, String, UnixTimestamp

from feature_repo.clock import from_ms, iso
from tests.repo import quietly
from tests.serving_stack import Stack

DAY = 86_400_000
CUISINE, ZONE = "restaurant_profile:cuisine", "restaurant_profile:zone_id"
ORDERS, BASKET = "restaurant_recent_orders:orders_10m", "restaurant_recent_orders:basket_mean_30m"
READ, WRITE, PUSH = "/get-online-features", "/write-to-online-store", "/push"
PAST_LAG_MS = 10_001
REMOTE_YAML = """
project: {project}
provider: local
registry: {registry}
entity_key_serialization_version: 3
online_store:
  type: remote
  path: {url}
  connection_retries: 0
"""
PROFILE = {"restaurant_id": 50, "zone_id": 2, "cuisine": "thai", "latitude": 52.0, "longitude": 4.9}


def remote(stack: Stack, folder: Path) -> FeatureStore:
    """Feast's client: another repository folder, whose online store is our server."""
    folder.mkdir()
    registry = stack.settings.data / "registry.db"
    text = REMOTE_YAML.format(project=stack.store.project, registry=registry, url=stack.url)
    (folder / "feature_store.yaml").write_text(text)
    return FeatureStore(repo_path=str(folder))


def rows(*ids: object) -> list[dict[str, Any]]:
    return [{"restaurant_id": i} for i in ids]


def read_by(store: FeatureStore, features: Any, entity_rows: Any, **options: bool) -> dict[str, list[tuple[Any, str]]]:
    """What a client reads: {name: [(value, status)]}."""
    found = store.get_online_features(features=features, entity_rows=entity_rows, **options)
    values = found.to_dict()
    return {
        name: list(zip(values[name], map(FieldStatus.Name, vector.statuses), strict=True))
        for name, vector in zip(found.proto.metadata.feature_names.val, found.proto.results, strict=True)
    }


def ask(stack: Stack, document: Mapping[str, object]) -> dict[str, dict[str, list[Any]]]:
    """The columns of an answer, by name."""
    answer = stack.post(READ, document)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return dict(zip(found["metadata"]["feature_names"], found["results"], strict=True))


def sent(stack: Stack, *profiles: dict[str, object]) -> dict[str, Any]:
    """A write of restaurant profiles, as of now."""
    written = [{**PROFILE, "event_timestamp": iso(stack.clock.now)} | profile for profile in profiles]
    df = {name: [row[name] for row in written] for name in written[0]}
    return {"feature_view_name": "restaurant_profile", "df": df}


def frame(stack: Stack, *profiles: dict[str, object], ago_ms: int = 0) -> pd.DataFrame:
    moment = from_ms(stack.clock.now - ago_ms)
    return pd.DataFrame([{**PROFILE, "event_time": moment, "created": moment} | profile for profile in profiles])


KINDS: dict[str, tuple[Any, object]] = {
    "truth": (Bool, True),
    "whole": (Int32, -7),
    "short": (Float32, 1.5),
    "moment": (UnixTimestamp, 1_772_366_400),
    "document": (Json, '{"a": [1, null]}'),
    "wholes": (Array(Int64), [1, -(2**60)]),
    "reals": (Array(Float64), [3.0, 0.25]),
    "vector": (Array(Float32), [1.0, -2.5]),
    "texts": (Array(String), ["a", "ü"]),
    "truths": (Array(Bool), [True, False]),
    "moments": (Array(UnixTimestamp), [0, 1_772_366_400]),
    "raw": (Bytes, "AP8="),
    "raws": (Array(Bytes), ["AP8=", ""]),
}
"""Features by type, and a value of each as JSON has it."""


def apply_every_kind(stack: Stack) -> None:
    """Apply the view ``every_kind``, of restaurants, with the features `KINDS`."""
    source = FileSource(
        name="kinds", path="data/batch/kinds", file_format=ParquetFormat(), timestamp_field="event_time"
    )
    schema = [Field(name=name, dtype=kind) for name, (kind, _) in KINDS.items()]
    with quietly():
        entities = [stack.store.get_entity("restaurant")]
        view = FeatureView(name="every_kind", entities=entities, ttl=timedelta(days=1), schema=schema, source=source)
        stack.store.apply([view])
