"""Plain Feast on our stores: every kind of view, entity and value that a Feast user has, through the SDK alone."""

import asyncio
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal as Number
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    BatchFeatureView,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RequestSource,
    StreamFeatureView,
    ValueType,
)
from feast.data_format import ParquetFormat
from feast.data_source import PushMode
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import (
    Array,
    Bool,
    Bytes,
    Decimal,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    Set,
    String,
    Struct,
    UnixTimestamp,
    Uuid,
)

from feature_repo.stores.online_requests import Request, RequestPlans
from feature_repo.stores.redis_client import Redis
from tests.repo import Repo, applied_repo, offline, quietly, wait_for

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
STATUSES = {1: "PRESENT", 2: "NULL_VALUE", 3: "NOT_FOUND", 4: "OUTSIDE_MAX_AGE"}


@contextmanager
def calmly() -> Iterator[None]:
    """Warnings are errors in tests; which of its features Feast finds experimental is known."""
    with quietly():
        warnings.filterwarnings("ignore", ".* experimental feature", RuntimeWarning)
        yield


def entity(name: str, kind: ValueType = ValueType.INT64) -> Entity:
    return Entity(name=name, join_keys=[f"{name}_id"], value_type=kind)


def rows_file(name: str, **mapping: str) -> FileSource:
    """A folder of rows; `mapping` is {column in the files: column of the views}."""
    return FileSource(
        name=f"{name}_rows",
        path=f"data/batch/{name}",
        file_format=ParquetFormat(),
        timestamp_field="event_time",
        created_timestamp_column="created",
        field_mapping=mapping,
    )


def view(name: str, entities: Sequence[Entity], **dtypes: Any) -> FeatureView:
    keys = [
        Field(name=e.join_key, dtype={ValueType.BYTES: Bytes, ValueType.UNIX_TIMESTAMP: UnixTimestamp}[e.value_type])
        for e in entities
        if e.value_type in (ValueType.BYTES, ValueType.UNIX_TIMESTAMP)
    ]
    keys += [Field(name=e.join_key, dtype=Int64) for e in entities if e.value_type == ValueType.INT64]
    schema = [*keys, *(Field(name=feature, dtype=dtype) for feature, dtype in dtypes.items())]
    return FeatureView(name=name, entities=list(entities), ttl=DAY, schema=schema, source=rows_file(name))


@pytest.fixture(scope="module")
def applied(valkey: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    with applied_repo(tmp_path_factory.mktemp("repo"), valkey, [entity("driver")]) as made:
        yield made


@pytest.fixture
def repo(applied: Repo, redis_client: Redis) -> Iterator[Repo]:
    """The project with no views, an empty store and no files."""
    applied.forget_files()
    yield applied
    with calmly():
        views: list[Any] = [*applied.feast.list_all_feature_views(), *applied.feast.list_feature_services()]
        applied.feast.apply([], objects_to_delete=views, partial=False)


def apply(repo: Repo, *objects: Any) -> None:
    with calmly():
        repo.feast.apply(list(objects))


def rows(**columns: Sequence[Any]) -> dict[str, Any]:
    """Columns with an event time and a created time, of now."""
    count = len(next(iter(columns.values())))
    stamp = pa.array([NOW] * count, pa.timestamp("us", "UTC"))
    return {"event_time": stamp, "created": stamp, **columns}


def store_file(repo: Repo, name: str, columns: dict[str, Any]) -> None:
    folder = repo.settings.data / "batch" / name
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"rows-{len(list(folder.iterdir()))}.parquet")


def materialize(repo: Repo) -> None:
    with calmly():
        repo.feast.materialize(NOW - DAY, NOW + HOUR)


def write(repo: Repo, name: str, **columns: Sequence[Any]) -> None:
    """By ``write_to_online_store``."""
    count = len(next(iter(columns.values())))
    frame = pd.DataFrame({"event_time": [NOW] * count, "created": [NOW] * count, **columns})
    with calmly():
        repo.feast.write_to_online_store(name, frame)


def read(repo: Repo, features: Any, **ids: Sequence[Any]) -> dict[str, list[tuple[Any, str]]]:
    """{feature: (value, status) a row}"""
    with calmly():
        found = repo.feast.get_online_features(features=features, entity_rows=ids)
    names = found.proto.metadata.feature_names.val
    statuses = {n: [STATUSES[s] for s in v.statuses] for n, v in zip(names, found.proto.results, strict=True)}
    return {n: list(zip(column, statuses[n], strict=True)) for n, column in found.to_dict().items()}


def values(repo: Repo, features: Any, **ids: Sequence[Any]) -> dict[str, list[Any]]:
    """{feature: a value a row}"""
    return {name: [value for value, _ in column] for name, column in read(repo, features, **ids).items()}


EVERY_TYPE: dict[str, tuple[Any, pa.DataType, Any]] = {
    "small": (Int32, pa.int32(), -7),
    "great": (Int64, pa.int64(), 2**53 + 1),
    "half": (Float32, pa.float32(), 0.5),
    "tenth": (Float64, pa.float64(), 0.1),
    "text": (String, pa.string(), "crème"),
    "raw": (Bytes, pa.binary(), b"\x00\xff"),
    "flag": (Bool, pa.bool_(), False),
    "moment": (UnixTimestamp, pa.timestamp("us", "UTC"), NOW),
    "smalls": (Array(Int32), pa.list_(pa.int32()), [1, 2]),
    "greats": (Array(Int64), pa.list_(pa.int64()), [2**53 + 1]),
    "halves": (Array(Float32), pa.list_(pa.float32()), [0.5, 0.25]),
    "tenths": (Array(Float64), pa.list_(pa.float64()), [0.1]),
    "texts": (Array(String), pa.list_(pa.string()), ["a", "é"]),
    "raws": (Array(Bytes), pa.list_(pa.binary()), [b"\x00", b""]),
    "flags": (Array(Bool), pa.list_(pa.bool_()), [True, False]),
    "moments": (Array(UnixTimestamp), pa.list_(pa.timestamp("us", "UTC")), [NOW]),
    "distinct": (Set(Int64), pa.list_(pa.int64()), {1, 2}),
    "map": (Map, pa.map_(pa.string(), pa.string()), {"a": "b"}),
    "fields": (Struct({"x": Int64}), pa.struct([("x", pa.int64())]), {"x": 1}),
    "document": (Json, pa.string(), {"a": [1]}),
    "uuid": (Uuid, pa.string(), UUID(int=7)),
    "price": (Decimal, pa.string(), Number("1.10")),
}
"""{feature: (Feast's type, Arrow's type, a value as the SDK gives it)}"""


def as_stored(name: str) -> Any:
    value = EVERY_TYPE[name][2]
    if isinstance(value, UUID | Number):
        return str(value)
    if name == "document":
        return '{"a": [1]}'
    return sorted(value) if isinstance(value, set) else value


def test_values_of_every_type_are_materialized_and_read(repo: Repo) -> None:
    apply(repo, entity("driver"), view("typed", [entity("driver")], **{n: t[0] for n, t in EVERY_TYPE.items()}))
    columns = {name: pa.array([as_stored(name), None], kind) for name, (_, kind, _) in EVERY_TYPE.items()}
    store_file(repo, "typed", rows(driver_id=[1, 2], **columns))
    materialize(repo)
    found = read(repo, [f"typed:{name}" for name in EVERY_TYPE], driver_id=[1, 2])
    for name, (_, _, value) in EVERY_TYPE.items():
        assert found[name] == [(value, "PRESENT"), (None, "NULL_VALUE")], name


def test_values_of_every_type_are_written_and_read(repo: Repo) -> None:
    apply(repo, entity("driver"), view("typed", [entity("driver")], **{n: t[0] for n, t in EVERY_TYPE.items()}))
    write(repo, "typed", driver_id=[1], **{name: [as_stored(name)] for name in EVERY_TYPE})
    found = read(repo, [f"typed:{name}" for name in EVERY_TYPE], driver_id=[1])
    for name, (_, _, value) in EVERY_TYPE.items():
        assert found[name] == [(value, "PRESENT")], name


def test_an_instant_that_pandas_calls_missing_is_null(repo: Repo) -> None:
    apply(repo, entity("driver"), view("seen", [entity("driver")], last=UnixTimestamp, trips=Int64))
    write(repo, "seen", driver_id=[1, 2], last=[pd.NaT, pd.Timestamp(NOW)], trips=[1, 2])
    assert read(repo, ["seen:last"], driver_id=[1, 2])["last"] == [(None, "NULL_VALUE"), (NOW, "PRESENT")]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", ["UTC", None, "Asia/Kathmandu"])
def test_times_of_every_unit_and_zone_are_materialized(repo: Repo, unit: str, zone: str | None) -> None:
    apply(repo, entity("driver"), view("stats", [entity("driver")], last=UnixTimestamp))
    instants = pa.array([NOW, NOW], pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, "UTC"))
    stamps = instants.cast(pa.timestamp(unit) if zone is None else pa.timestamp(unit, zone))
    columns = {"driver_id": [1, 2], "event_time": stamps, "created": stamps, "last": stamps}
    store_file(repo, "stats", columns)
    materialize(repo)
    with calmly():
        found = repo.feast.get_online_features(features=["stats:last"], entity_rows=[{"driver_id": 1}])
    assert found.to_dict()["last"] == [NOW]
    assert found.proto.results[1].event_timestamps[0].ToSeconds() == int(NOW.timestamp())


@pytest.mark.parametrize(
    ("kind", "arrow", "ids", "asked"),
    [
        (ValueType.BYTES, pa.binary(), [b"\x00\xff", b""], [b"\x00\xff", b""]),
        (
            ValueType.UNIX_TIMESTAMP,
            pa.timestamp("us", "UTC"),
            [NOW, NOW - DAY],
            [NOW, int((NOW - DAY).timestamp())],
        ),
    ],
    ids=["bytes", "instants"],
)
def test_entities_may_be_of_every_type_that_feast_can_make_a_key_of(
    repo: Repo, kind: ValueType, arrow: pa.DataType, ids: list[Any], asked: list[Any]
) -> None:
    apply(repo, entity("thing", kind), view("things", [entity("thing", kind)], size=Int64))
    store_file(repo, "things", rows(thing_id=pa.array(ids, arrow), size=[1, 2]))
    materialize(repo)
    found = values(repo, ["things:size"], thing_id=asked)
    assert (found["size"], found["thing_id"]) == ([1, 2], ids), "ids are shown as what they are"
    write(repo, "things", thing_id=ids[:1], size=[3])
    assert values(repo, ["things:size"], thing_id=asked)["size"] == [3, 2]


def test_a_view_may_have_several_entities_named_in_any_order(repo: Repo) -> None:
    zone, driver = entity("zone"), entity("driver")
    apply(repo, zone, driver, view("visits", [zone, driver], visits=Int64))
    store_file(repo, "visits", rows(zone_id=[1, 2], driver_id=[2, 1], visits=[12, 21]))
    materialize(repo)
    assert values(repo, ["visits:visits"], driver_id=[1, 2, 1], zone_id=[2, 1, 1])["visits"] == [21, 12, None]


def test_a_view_without_entities_is_materialized_and_read_beside_others(repo: Repo) -> None:
    apply(repo, entity("driver"), view("city", [], rain=Float64), view("stats", [entity("driver")], trips=Int64))
    store_file(repo, "city", rows(rain=[1.5]))
    store_file(repo, "stats", rows(driver_id=[1], trips=[3]))
    materialize(repo)
    found = read(repo, ["city:rain", "stats:trips"], driver_id=[1, 2])
    assert found == {
        "driver_id": [(1, "PRESENT"), (2, "PRESENT")],
        "rain": [(1.5, "PRESENT"), (1.5, "PRESENT")],
        "trips": [(3, "PRESENT"), (None, "NOT_FOUND")],
    }
    with calmly():
        alone = repo.feast.get_online_features(features=["city:rain"], entity_rows=[{}, {}]).to_dict()
    assert alone == {"rain": [1.5, 1.5]}


def test_a_pushed_stream_view_is_a_batch_view_that_is_pushed_to(repo: Repo) -> None:
    pushed = StreamFeatureView(
        name="places",
        entities=[entity("driver")],
        ttl=DAY,
        schema=[Field(name="latitude", dtype=Float64)],
        source=PushSource(name="places_push", batch_source=rows_file("places")),
    )
    apply(repo, entity("driver"), pushed)
    store_file(repo, "places", rows(driver_id=[1, 2], latitude=[1.0, 2.0]))
    materialize(repo)
    later = pd.DataFrame({"driver_id": [2, 3], "latitude": [2.5, 3.5], "event_time": NOW + HOUR, "created": NOW})
    with calmly():
        repo.feast.push("places_push", later, to=PushMode.ONLINE_AND_OFFLINE)
    assert values(repo, ["places:latitude"], driver_id=[1, 2, 3, 4])["latitude"] == [1.0, 2.5, 3.5, None]
    asked = pd.DataFrame({"driver_id": [1, 2, 3], "event_timestamp": [NOW + 2 * HOUR] * 3})
    with calmly():
        history = repo.feast.get_historical_features(entity_df=asked, features=["places:latitude"]).to_df()
    assert list(history["latitude"]) == [1.0, 2.5, 3.5]


def test_rows_are_written_asynchronously_too(repo: Repo) -> None:
    apply(repo, entity("driver"), view("stats", [entity("driver")], trips=Int64))
    frame = pd.DataFrame({"driver_id": [1], "trips": [3], "event_time": [NOW], "created": [NOW]})
    with calmly():
        asyncio.run(repo.feast.write_to_online_store_async("stats", frame))
    assert values(repo, ["stats:trips"], driver_id=[1])["trips"] == [3]


def test_on_demand_views_are_computed_from_what_is_read_and_from_the_request(repo: Repo) -> None:
    stats = view("stats", [entity("driver")], trips=Int64)
    asked = RequestSource(name="asked", schema=[Field(name="hours", dtype=Int64)])

    @on_demand_feature_view(  # type: ignore[untyped-decorator]
        sources=[stats, asked], schema=[Field(name="per_hour", dtype=Float64)], mode="pandas"
    )
    def pace(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"per_hour": inputs["trips"] / inputs["hours"]})

    apply(repo, entity("driver"), stats, pace)
    write(repo, "stats", driver_id=[1], trips=[6])
    found = read(repo, ["pace:per_hour", "stats:trips"], driver_id=[1, 2, None], hours=[2, 2, 2])
    assert found == {
        "driver_id": [(1, "PRESENT"), (2, "PRESENT"), (None, "NULL_VALUE")],
        "trips": [(6, "PRESENT"), (None, "NOT_FOUND"), (None, "NOT_FOUND")],
        "per_hour": [(3.0, "PRESENT"), (None, "NULL_VALUE"), (None, "NULL_VALUE")],
    }
    assert list(read(repo, ["pace:per_hour"], driver_id=[1], hours=[3])) == ["driver_id", "per_hour"]


def test_on_demand_views_that_are_stored_are_materialized_with_their_source(repo: Repo) -> None:
    stats = view("stats", [entity("driver")], trips=Int64)

    @on_demand_feature_view(  # type: ignore[untyped-decorator]
        entities=[entity("driver")],
        sources=[stats],
        schema=[Field(name="doubled", dtype=Int64)],
        mode="pandas",
        write_to_online_store=True,
    )
    def double(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"doubled": inputs["trips"] * 2})

    apply(repo, entity("driver"), stats, double)
    store_file(repo, "stats", rows(driver_id=[1], trips=[6]))
    materialize(repo)
    assert read(repo, ["double:doubled"], driver_id=[1, 2])["doubled"] == [(12, "PRESENT"), (None, "NOT_FOUND")]


def test_a_transformed_batch_view_is_materialized_transformed(repo: Repo) -> None:
    with calmly():
        transformed = BatchFeatureView(
            name="tripled",
            entities=[entity("driver")],
            ttl=DAY,
            schema=[Field(name="trips", dtype=Int64)],
            source=rows_file("tripled"),
            mode="pandas",
            online=True,
            udf=lambda frame: frame.assign(trips=frame["trips"] * 3),
            udf_string="frame.assign(trips=frame['trips'] * 3)",
        )
    apply(repo, entity("driver"), transformed)
    store_file(repo, "tripled", rows(driver_id=[1, 2], trips=[7, 8]))
    materialize(repo)
    assert values(repo, ["tripled:trips"], driver_id=[1, 2])["trips"] == [21, 24]


def test_one_view_is_read_in_two_roles_and_a_service_of_several_views_at_once(repo: Repo) -> None:
    zone, driver = entity("zone"), entity("driver")
    weather, stats = view("weather", [zone], rain=Float64), view("stats", [driver], trips=Int64)
    service = FeatureService(
        name="trip",
        features=[
            weather.with_name("origin").with_join_key_map({"zone_id": "origin_id"}),
            weather.with_name("destination").with_join_key_map({"zone_id": "destination_id"}),
            stats,
        ],
    )
    apply(repo, zone, driver, weather, stats, service)
    write(repo, "weather", zone_id=[1, 2], rain=[0.1, 0.2])
    write(repo, "stats", driver_id=[7], trips=[70])
    with calmly():
        found = repo.feast.get_online_features(
            features=service,
            entity_rows=[{"origin_id": 1, "destination_id": 2, "driver_id": 7}],
            full_feature_names=True,
        ).to_dict()
    assert found == {
        "destination_id": [2],
        "driver_id": [7],
        "origin_id": [1],
        "origin__rain": [0.1],
        "destination__rain": [0.2],
        "stats__trips": [70],
    }


def test_the_rows_of_a_removed_view_are_deleted_and_those_of_others_stay(repo: Repo, redis_client: Redis) -> None:
    removed, kept = view("removed", [entity("driver")], trips=Int64), view("kept", [entity("driver")], trips=Int64)
    apply(repo, entity("driver"), removed, kept)
    write(repo, "removed", driver_id=[1, 2], trips=[1, 2])
    write(repo, "kept", driver_id=[1], trips=[3])
    with calmly():
        repo.feast.apply([], objects_to_delete=[removed], partial=False)
    assert redis_client.dbsize() == 1
    apply(repo, view("removed", [entity("driver")], trips=Int64))
    assert read(repo, ["removed:trips"], driver_id=[1, 2])["trips"] == [(None, "NOT_FOUND")] * 2
    assert values(repo, ["kept:trips"], driver_id=[1])["trips"] == [3]


def test_rows_that_expire_in_the_store_are_not_found_and_take_nothing_along(
    repo: Repo, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(repo, entity("driver"), view("brief", [entity("driver")], trips=Int64))
    apply(repo, view("lasting", [entity("driver")], trips=Int64))
    write(repo, "lasting", driver_id=[1], trips=[1])
    monkeypatch.setattr(repo.feast.config.online_store, "key_ttl_seconds", 1)
    store_file(repo, "brief", rows(driver_id=[1], trips=[2]))
    with calmly():
        repo.feast.materialize(NOW - DAY, NOW + HOUR, feature_views=["brief"])
    write(repo, "brief", driver_id=[2], trips=[3])
    assert values(repo, ["brief:trips"], driver_id=[1, 2])["trips"] == [2, 3]
    gone = [(None, "NOT_FOUND")] * 2
    wait_for(lambda: read(repo, ["brief:trips"], driver_id=[1, 2])["trips"] == gone, "the rows to go")
    assert values(repo, ["lasting:trips"], driver_id=[1])["trips"] == [1]


def test_a_saved_dataset_is_what_the_job_gave(repo: Repo, tmp_path: Path) -> None:
    apply(repo, entity("driver"), view("stats", [entity("driver")], trips=Int64))
    store_file(repo, "stats", rows(driver_id=[1, 2], trips=[6, 7]))
    asked = pd.DataFrame({"driver_id": [2, 1], "event_timestamp": [NOW, NOW + HOUR]})
    file = tmp_path / "there already.parquet"
    file.write_bytes(b"not Parquet")
    with calmly():
        job = repo.feast.get_historical_features(entity_df=asked, features=["stats:trips"])
        assert job.metadata is not None
        assert (job.metadata.min_event_timestamp, job.metadata.max_event_timestamp) == (NOW, NOW + HOUR)
        assert job.metadata.keys == ["driver_id"]
        storage = SavedDatasetFileStorage(path=str(file), file_format=ParquetFormat())
        repo.feast.create_saved_dataset(from_=job, name="saved", storage=storage, allow_overwrite=True)
        saved = repo.feast.get_saved_dataset("saved").to_df()
    assert saved.sort_values("driver_id")["trips"].tolist() == [6, 7]


def test_rows_of_two_versions_of_a_view_lie_apart(valkey: Path, redis_client: Redis, tmp_path: Path) -> None:
    def stats(**dtypes: Any) -> FeatureView:
        return view("stats", [entity("driver")], **dtypes)

    with applied_repo(tmp_path, valkey, [entity("driver")]) as made, calmly():
        settings = made.path / "feature_store.yaml"
        versioned = "registry:\n  enable_online_feature_view_versioning: true"
        settings.write_text(settings.read_text().replace("registry:", versioned))
        feast = FeatureStore(repo_path=str(made.path))
        repo = Repo(made.path, feast, made.settings)
        feast.apply([stats(trips=Int64)])
        write(repo, "stats", driver_id=[1], trips=[10])
        feast.apply([stats(trips=Int64, rating=Float64)])
        assert read(repo, ["stats:trips"], driver_id=[1])["trips"] == [(None, "NOT_FOUND")]
        store_file(repo, "stats", rows(driver_id=[1], trips=[20], rating=[4.5]))
        materialize(repo)
        asked = ["stats@v0:trips", "stats@v1:trips"]
        found = feast.get_online_features(
            features=asked,
            entity_rows=[{"driver_id": 1}],
            full_feature_names=True,
            include_feature_view_version_metadata=True,
        )
        assert values(repo, ["stats:rating"], driver_id=[1])["rating"] == [4.5]
        trained = offline(repo, pd.DataFrame({"driver_id": [1], "event_timestamp": [NOW]}), asked, full=True)
    assert trained["stats@v1__trips"].tolist() == [20]
    assert {n: v for n, v in found.to_dict().items() if n != "driver_id"} == {
        "stats@v0__trips": [10],
        "stats@v1__trips": [20],
    }
    assert [m.name for m in found.proto.metadata.feature_view_metadata] == ["stats"]


def test_a_request_is_compiled_once_and_again_when_the_registry_is_another(repo: Repo) -> None:
    apply(repo, view("stats", [entity("driver")], trips=Int64))
    plans, store = RequestPlans(), repo.feast

    def found() -> Request:
        return plans.find(store.registry, store.project, ["stats:trips"], False, False)

    with calmly():
        first = found()
        assert found() is first
        apply(repo, view("stats", [entity("driver")], trips=Int64, rating=Float64))
        assert found() is not first
