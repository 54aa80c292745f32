"""Training sets: which orders are rows, at which instant, with which features, and how time divides them."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import ParquetFormat
from feast.types import Array, Float32, Float64, Int64, String

from feature_repo.clock import to_ms
from feature_repo.settings import Settings
from ingestion.events import arrow_schema
from models.dataset import MAX_DELIVERY_MINUTES, Dataset, NoTrainingRows, build, entity_rows, split, write
from models.vector import REQUEST_FEATURES, request_features
from tests.test_train_export import made_up_orders

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SINCE, UNTIL = NOON - timedelta(days=1), NOON + timedelta(days=1)
MINUTE = timedelta(minutes=1)
RESTAURANT = Entity(name="restaurant", join_keys=["restaurant_id"], value_type=ValueType.INT64)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(TIFFIN_REPO=tmp_path)


def write_log(settings: Settings, topic: str, rows: list[dict[str, Any]]) -> None:
    """One file of the event log; columns that a row does not name are null."""
    schema = arrow_schema(topic)
    columns = {field.name: [row.get(field.name) for row in rows] for field in schema}
    folder = settings.data / "log" / topic / "date=2026-11-02"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), folder / f"0-{rows[0]['offset']}.parquet")


def order(number: int, placed: datetime, minutes: float, extra: dict[str, Any] | None = None, **other: Any) -> Any:
    """(order_placed, order_delivered) of one order, as rows of the log."""
    delivered = placed + minutes * MINUTE
    both = {
        "order_id": f"o{number}",
        "restaurant_id": 30 + number % 2,
        "zone_id": 7,
        "placed_at": placed,
        "partition": 0,
        "offset": number,
        "extra": json.dumps(extra) if extra else None,
        **other,
    }
    return (
        {"event_id": f"p{number}", "append_time": placed, "event_time": placed, **both},
        {
            "event_id": f"d{number}",
            "append_time": delivered,
            "event_time": delivered,
            "delivered_at": delivered,
            "delivery_minutes": minutes,
            **both,
        },
    )


def write_orders(settings: Settings, *orders: Any) -> None:
    write_log(settings, "order_placed", [placed for placed, _ in orders])
    write_log(settings, "order_delivered", [delivered for _, delivered in orders])


def ids(settings: Settings, **where: str) -> list[str]:
    return entity_rows(settings, SINCE, UNTIL, where).frame["order_id"].tolist()


def test_a_row_is_asked_one_millisecond_before_its_order(settings: Settings) -> None:
    write_orders(settings, order(1, NOON, 25.5))
    frame, left_out = entity_rows(settings, SINCE, UNTIL)
    assert left_out == 0
    assert frame.to_dict("records") == [
        {
            "order_id": "o1",
            "restaurant_id": 31,
            "zone_id": 7,
            "event_timestamp": pd.Timestamp(NOON) - pd.Timedelta(milliseconds=1),
            "delivery_minutes": 25.5,
        }
    ]


def test_the_range_is_of_placing_and_open_at_its_end(settings: Settings) -> None:
    ends = [SINCE - MINUTE / 60, SINCE, UNTIL - MINUTE / 60, UNTIL]
    write_orders(settings, *(order(number, placed, 5) for number, placed in enumerate(ends)))
    assert ids(settings) == ["o1", "o2"]


def test_impossible_labels_are_left_out_and_counted(settings: Settings) -> None:
    minutes = [-0.1, 0.0, MAX_DELIVERY_MINUTES, MAX_DELIVERY_MINUTES + 0.1]
    write_orders(settings, *(order(number, NOON + number * MINUTE, m) for number, m in enumerate(minutes)))
    frame, left_out = entity_rows(settings, SINCE, UNTIL)
    assert frame["order_id"].tolist() == ["o1", "o2"]
    assert left_out == 2


def test_a_repeat_counts_once_as_it_came_first(settings: Settings) -> None:
    first, second = order(1, NOON, 20), order(2, NOON + MINUTE, 30)
    later = {**first[1], "delivery_minutes": 99.0, "append_time": first[1]["append_time"] + MINUTE, "offset": 0}
    same_time = {**second[1], "delivery_minutes": 98.0, "offset": 9}
    other_event = {**second[1], "event_id": "again", "delivery_minutes": 97.0, "offset": 10}
    write_log(settings, "order_delivered", [other_event, same_time, later, second[1], first[1]])
    frame, _ = entity_rows(settings, SINCE, UNTIL)
    assert frame[["order_id", "delivery_minutes"]].to_numpy().tolist() == [["o1", 20.0], ["o2", 30.0]]


def test_where_keeps_orders_by_their_unknown_fields(settings: Settings) -> None:
    write_orders(
        settings,
        order(1, NOON, 5, {"is_asap": True, "kind": "a/b~'"}),
        order(2, NOON + MINUTE, 5, {"is_asap": False}),
        order(3, NOON + 2 * MINUTE, 5),
    )
    assert ids(settings) == ["o1", "o2", "o3"]
    assert ids(settings, is_asap="true") == ["o1"]
    assert ids(settings, is_asap="true", kind="a/b~'") == ["o1"]
    with pytest.raises(NoTrainingRows, match="is_asap"):
        ids(settings, is_asap="maybe")


def test_where_asks_the_order_first_and_its_delivery_if_that_is_silent(settings: Settings) -> None:
    (placed_1, delivered_1), (placed_2, delivered_2) = order(1, NOON, 5), order(2, NOON, 5)
    write_log(settings, "order_placed", [{**placed_1, "extra": '{"is_asap": true}'}, placed_2])
    write_log(
        settings,
        "order_delivered",
        [{**delivered_1, "extra": '{"is_asap": false}'}, {**delivered_2, "extra": '{"is_asap": true}'}],
    )
    assert ids(settings, is_asap="true") == ["o1", "o2"]


def test_nothing_to_train_on_is_said(settings: Settings) -> None:
    with pytest.raises(NoTrainingRows, match=r"order_delivered holds no Parquet file"):
        entity_rows(settings, SINCE, UNTIL)
    write_orders(settings, order(1, NOON, 5))
    with pytest.raises(NoTrainingRows, match="no delivered order placed from"):
        entity_rows(settings, UNTIL, UNTIL + MINUTE)
    with pytest.raises(TypeError):
        entity_rows(settings, datetime(2026, 11, 2), UNTIL)  # noqa: DTZ001 (a naive instant is what is tried)


def feast_view(settings: Settings, name: str, schema: list[Field], rows: dict[str, list[Any]]) -> FeatureView:
    """A batch view over restaurants 30 and 31 whose rows lie in one Parquet file."""
    folder = settings.data / "batch" / name
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(rows)
    instant = pa.timestamp("us", tz="UTC")
    for column in ("event_time", "created"):
        table = table.set_column(table.column_names.index(column), column, table[column].cast(instant))
    pq.write_table(table, folder / "rows.parquet")
    source = FileSource(
        name=f"{name}_rows",
        path=str(folder / "rows.parquet"),
        file_format=ParquetFormat(),
        timestamp_field="event_time",
        created_timestamp_column="created",
    )

    return FeatureView(name=name, entities=[RESTAURANT], ttl=timedelta(days=7), schema=schema, source=source)


@pytest.fixture(params=["file", "feature_repo.stores.offline.TiffinOfflineStore"])
def store(settings: Settings, request: pytest.FixtureRequest) -> Iterator[FeatureStore]:
    """Feast with an offline store of its own, then with ours: both are to say the same."""
    morning = NOON - timedelta(hours=6)
    profile = feast_view(
        settings,
        "profile",
        [
            Field(name="zone_id", dtype=Int64),
            Field(name="cuisine", dtype=String),
            Field(name="vector", dtype=Array(Float32)),
        ],
        {
            "restaurant_id": [30, 31],
            "event_time": [morning] * 2,
            "created": [morning] * 2,
            "zone_id": [5, 6],
            "cuisine": ["thai", "pizza"],
            "vector": [[1.0], [2.0]],
        },
    )
    stats = feast_view(
        settings,
        "stats",
        [Field(name="prep", dtype=Float64)],
        {
            "restaurant_id": [30, 30],
            "event_time": [morning, NOON],  # the second at the very instant at which the noon order is placed
            "created": [morning, NOON],
            "prep": [11.0, 12.0],
        },
    )
    config = RepoConfig(
        project="tiny",
        provider="local",
        registry=str(settings.data / "registry.db"),
        entity_key_serialization_version=3,
        offline_store={"type": request.param},
        online_store={"type": "sqlite", "path": str(settings.data / "online.db")},
    )
    feast = FeatureStore(config=config)
    feast.apply([RESTAURANT, profile, stats, FeatureService(name="eta_tiny", features=[stats, profile])])
    yield feast
    feast.teardown()  # type: ignore[no-untyped-call] # Feast left it untyped


def test_features_are_those_known_before_the_order_in_the_services_order(
    store: FeatureStore, settings: Settings
) -> None:
    write_orders(settings, order(2, NOON + MINUTE, 30), order(4, NOON, 20), order(5, NOON, 25))
    dataset = build(store, settings, "eta_tiny", SINCE, UNTIL)
    assert dataset.vector.stored == ("stats__prep", "profile__zone_id"), "texts and arrays are left out"
    assert dataset.features.columns.tolist() == list(dataset.vector.names)
    assert dataset.order_id.tolist() == ["o4", "o5", "o2"]
    assert dataset.label.tolist() == [20.0, 25.0, 30.0]
    np.testing.assert_array_equal(
        dataset.features[list(dataset.vector.stored)].to_numpy(), [[11.0, 5.0], [np.nan, 6.0], [12.0, 5.0]]
    )
    asked = to_ms(NOON) - 1
    assert dataset.event_ms.tolist() == [asked, asked, asked + 60_000]
    assert dataset.features[list(REQUEST_FEATURES)].iloc[0].to_dict() == request_features(asked)
    assert dataset.matrix.dtype == np.float32
    assert dataset.matrix.shape == (3, 5)


def test_a_row_has_what_is_known_now_or_what_was_known_then(store: FeatureStore, settings: Settings) -> None:
    write_orders(settings, order(2, NOON + MINUTE, 30))
    path = settings.data / "batch" / "stats" / "rows.parquet"
    rows = pq.read_table(path)
    created = pa.array([NOON - timedelta(hours=6), NOON + 2 * MINUTE], rows.schema.field("created").type)
    pq.write_table(rows.set_column(rows.column_names.index("created"), "created", created), path)
    for arrival, prep in ((False, 12.0), (True, 11.0)):
        dataset = build(store, settings, "eta_tiny", SINCE, UNTIL, arrival=arrival)
        assert dataset.features["stats__prep"].tolist() == [prep]


def test_a_written_training_set_has_its_instants_features_and_labels(settings: Settings) -> None:
    dataset = made_up_orders(50)
    for rows in (dataset, dataset.take(np.arange(20))):
        columns = write(rows, settings.data / "sets" / "one.parquet")
    assert columns == ["order_id", "event_timestamp", *dataset.vector.names, "delivery_minutes"]
    table = pq.read_table(settings.data / "sets" / "one.parquet")
    assert table.column_names == columns
    assert table["event_timestamp"].type == pa.timestamp("us", tz="UTC")
    assert [to_ms(moment) for moment in table["event_timestamp"].to_pylist()] == dataset.event_ms[:20].tolist()
    assert table["delivery_minutes"].to_pylist() == dataset.label[:20].tolist()
    pd.testing.assert_frame_equal(table.select(dataset.vector.names).to_pandas(), dataset.features[:20])
    assert table[dataset.vector.stored[0]].null_count > 0, "what is missing is null"


def test_the_split_is_by_time_and_no_row_is_on_both_sides() -> None:
    dataset = made_up_orders(500)
    at = NOON
    train, test = split(dataset, at)
    assert not set(train.order_id) & set(test.order_id)
    assert train.event_ms.max() < to_ms(at) <= test.event_ms.min()


def test_no_label_unknown_at_the_split_is_trained_on() -> None:
    dataset = made_up_orders(500)
    train, test = split(dataset, NOON)
    under_way = set(dataset.order_id) - set(train.order_id) - set(test.order_id)
    assert 3 < len(under_way) < 30, "orders placed before the split, delivered after it"
    delivered = train.event_ms + train.label * 60_000
    assert delivered.max() < to_ms(NOON)
    asked = dict(zip(dataset.order_id, dataset.event_ms, strict=True))
    assert all(asked[number] < to_ms(NOON) for number in under_way)


@pytest.mark.parametrize("at", [SINCE, UNTIL])
def test_a_split_with_an_empty_side_is_refused(at: datetime) -> None:
    dataset = made_up_orders(300)
    with pytest.raises(NoTrainingRows, match="both sides need some"):
        split(dataset, at)


def test_rows_are_taken_by_mask_and_by_position() -> None:
    dataset = made_up_orders(50)
    mask = np.arange(50) % 2 == 0
    by_mask, by_position = dataset.take(mask), dataset.take(np.flatnonzero(mask))
    assert isinstance(by_mask, Dataset)
    assert by_mask.order_id.tolist() == by_position.order_id.tolist()
    np.testing.assert_array_equal(by_mask.matrix, by_position.matrix)
    np.testing.assert_array_equal(by_mask.matrix, dataset.matrix[mask])
