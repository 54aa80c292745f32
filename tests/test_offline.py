"""History: batch rows as of each instant, windows and presence from the event log, entity rows of every kind."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.types import Float64

from feature_repo.stores.redis_client import Redis
from ingestion.parity import oracle
from ingestion.parity.compare import close
from tests.repo import (
    COURIERS,
    HOP,
    MINUTE,
    ORDERS,
    START,
    Lab,
    Repo,
    applied_repo,
    at,
    courier,
    offline,
    order,
    project_objects,
    quietly,
)

with quietly():
    from feature_repo import definitions

NOON = at(START)
DAY, MICROSECOND = timedelta(days=1), timedelta(microseconds=1)
PREP = ["profile:prep", "profile:orders", "profile:cuisine"]


def mapped_view() -> FeatureView:
    """Its files have other names than its features and keys."""
    return FeatureView(
        name="mapped",
        entities=[definitions.restaurant],
        ttl=timedelta(0),
        schema=[Field(name="rating", dtype=Float64)],
        source=FileSource(
            path="data/batch/mapped",
            file_format=ParquetFormat(),
            timestamp_field="moment",
            field_mapping={"stars": "rating", "rid": "restaurant_id", "ts": "moment"},
        ),
    )


@pytest.fixture(scope="module")
def repo(valkey: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    objects = project_objects()
    (profile,) = (o for o in objects if getattr(o, "name", "") == "profile")
    renamed = profile.with_name("origin").with_join_key_map({"restaurant_id": "origin_id"})
    # Feast cannot compare services in which one of two views of a name has an alias and the other none.
    service = FeatureService(name="two_roles", features=[profile.with_name("target"), renamed])
    with applied_repo(tmp_path_factory.mktemp("repo"), valkey, [*objects, mapped_view(), service]) as made:
        yield made


@pytest.fixture(autouse=True)
def no_files(repo: Repo) -> None:
    repo.forget_files()


def write(repo: Repo, view: str, name: str, columns: Mapping[str, Any]) -> None:
    """A file of batch rows."""
    folder = repo.settings.data / "batch" / view
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")


def write_profile(repo: Repo, *rows: tuple[datetime, datetime, float | None], name: str = "000", ids: int = 7) -> None:
    """Rows (event time, created, prep) of restaurant 7."""
    write(
        repo,
        "profile",
        name,
        {
            "restaurant_id": pa.array([ids] * len(rows), pa.int64()),
            "event_time": pa.array([row[0] for row in rows], pa.timestamp("us", "UTC")),
            "created": pa.array([row[1] for row in rows], pa.timestamp("us", "UTC")),
            "prep": pa.array([row[2] for row in rows], pa.float64()),
            "orders": pa.array([None if row[2] is None else int(row[2]) for row in rows], pa.int64()),
            "cuisine": pa.array(["thai"] * len(rows)),
        },
    )


def asked(instants: Sequence[datetime], restaurant: int = 7) -> pd.DataFrame:
    frame = pd.DataFrame({"restaurant_id": [restaurant] * len(instants)})
    frame["event_timestamp"] = pd.to_datetime(list(instants), utc=True)
    return frame


def preps(repo: Repo, *instants: datetime) -> list[float | None]:
    column = offline(repo, asked(instants), ["profile:prep"])["prep"]
    return [None if pd.isna(value) else float(value) for value in column]


def test_a_batch_row_holds_from_its_instant_to_the_next_and_no_longer_than_its_ttl(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0), (NOON + timedelta(hours=1), NOON, 2.0))
    hour = timedelta(hours=1)
    instants = [NOON - MICROSECOND, NOON, NOON + hour - MICROSECOND, NOON + hour]
    assert preps(repo, *instants) == [None, 1.0, 1.0, 2.0]
    assert preps(repo, NOON + hour + DAY, NOON + hour + DAY + MICROSECOND) == [2.0, None], "the TTL's end counts"


def test_an_expired_row_does_not_let_an_older_one_shine_through(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, None), (NOON - timedelta(hours=1), NOON, 1.0))
    assert preps(repo, NOON) == [None], "the newest row's null is the answer"


def test_of_rows_of_one_instant_the_one_created_last_wins_wherever_it_lies(repo: Repo) -> None:
    late = NOON + timedelta(hours=5)
    write_profile(repo, (NOON, late, 2.0), (NOON, NOON, 1.0), name="000")
    write_profile(repo, (NOON, NOON + timedelta(hours=1), 3.0), name="001")
    assert preps(repo, NOON) == [2.0]


def test_a_full_tie_goes_to_the_later_row_and_then_the_later_file(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0), (NOON, NOON, 2.0), name="000")
    assert preps(repo, NOON) == [2.0]
    write_profile(repo, (NOON, NOON, 4.0), (NOON, NOON, 3.0), name="001")
    assert preps(repo, NOON) == [3.0]


def test_a_join_key_map_asks_for_the_same_view_in_two_roles(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 7.0), name="000", ids=7)
    write_profile(repo, (NOON, NOON, 8.0), name="001", ids=8)
    frame = asked([NOON, NOON]).assign(origin_id=[8, 9])
    with quietly():
        service = repo.feast.get_feature_service("two_roles")
        job = repo.feast.get_historical_features(entity_df=frame, features=service, full_feature_names=True)
        table = job.to_df()
    assert table["target__prep"].tolist() == [7.0, 7.0]
    assert table["origin__prep"].tolist()[0] == 8.0
    assert pd.isna(table["origin__prep"].tolist()[1])


@pytest.mark.parametrize(
    "moments",
    [
        pa.array([datetime(2026, 3, 1, 12)], pa.timestamp("us")),  # noqa: DTZ001  # naive times are UTC
        pa.array([1_772_366_400_000_000_000], pa.timestamp("ns")),
        pa.array([1_772_366_400_000_000_000], pa.timestamp("ns", "UTC")),
        pa.array([1_772_366_400_000], pa.timestamp("ms", "Europe/Berlin")),
    ],
    ids=["naive", "naive nanoseconds", "nanoseconds", "milliseconds of another zone"],
)
def test_mapped_columns_and_times_of_every_kind_are_read(repo: Repo, moments: pa.Array) -> None:
    write(repo, "mapped", "000", {"rid": pa.array([7]), "stars": pa.array([4.5]), "ts": moments})
    frame = offline(repo, asked([NOON - MICROSECOND, NOON, NOON + 999 * DAY]), ["mapped:rating"])
    assert frame["rating"].isna().tolist() == [True, False, False]
    assert frame["rating"].tolist()[1:] == [4.5, 4.5], "a TTL of nothing never ends"


@pytest.mark.parametrize("kind", ["naive", "ns", "s", "another zone"])
def test_entity_instants_of_every_kind_mean_the_same(repo: Repo, kind: str) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    instants = pd.Series(pd.to_datetime([NOON - timedelta(seconds=1), NOON], utc=True))
    made = {
        "naive": instants.dt.tz_localize(None),
        "ns": instants.dt.as_unit("ns"),
        "s": instants.dt.as_unit("s"),
        "another zone": instants.dt.tz_convert("America/New_York"),
    }[kind]
    frame = offline(repo, pd.DataFrame({"restaurant_id": [7, 7], "event_timestamp": made}), ["profile:prep"])
    assert frame["prep"].isna().tolist() == [True, False]


def test_entity_rows_come_as_pandas_arrow_and_sql(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    frame = asked([NOON, NOON - DAY])
    moments = "unnest([TIMESTAMP '2026-03-01 12:00', TIMESTAMP '2026-02-28 12:00'])"
    sql = f"SELECT 7 AS restaurant_id, {moments} AS event_timestamp"
    for rows in (frame, pa.Table.from_pandas(frame, preserve_index=False), sql):
        found = offline(repo, rows, ["profile:prep"])
        assert found["prep"].isna().tolist() == [False, True]
        assert found["event_timestamp"].tolist() == frame["event_timestamp"].tolist()


def test_rows_keep_their_order_their_columns_and_their_doubles(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    instants = [NOON + timedelta(minutes=m) for m in (5, -5, 5, 5, 3)]
    frame = asked(instants).assign(label=[5.0, 4.0, 3.0, 2.0, 1.0])
    found = offline(repo, frame, [*PREP, "by_restaurant:r_orders_5m"])
    assert found.columns.tolist() == [*frame.columns, "prep", "orders", "cuisine", "r_orders_5m"]
    assert found["label"].tolist() == frame["label"].tolist()
    assert found["event_timestamp"].tolist() == frame["event_timestamp"].tolist()
    assert found["prep"].isna().tolist() == [False, True, False, False, False]


def test_full_feature_names_are_by_view(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    found = offline(repo, asked([NOON]), ["profile:prep", "by_restaurant:r_orders_5m"], full=True)
    assert found.columns.tolist()[2:] == ["profile__prep", "by_restaurant__r_orders_5m"]


def test_an_entity_column_with_a_features_name_is_refused_and_full_names_help(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    frame = asked([NOON]).assign(prep=[9.0])
    with pytest.raises(ValueError, match="'prep' is both an entity column and a feature"):
        offline(repo, frame, ["profile:prep"])
    found = offline(repo, frame, ["profile:prep"], full=True)
    assert found[["prep", "profile__prep"]].to_numpy().tolist() == [[9.0, 1.0]]


def test_without_any_files_batch_features_are_null_and_windows_empty(repo: Repo) -> None:
    features = [
        "profile:prep",
        "by_restaurant:r_orders_5m",
        "by_restaurant:r_basket_sum",
        "by_restaurant:r_basket_mean",
    ]
    frame = asked([NOON, NOON]).assign(zone_id=3)
    found = offline(repo, frame, [*features, "couriers:busy", "by_restaurant:r_customers"])
    assert found["prep"].isna().all()
    assert found["r_basket_mean"].isna().all()
    assert found[["r_orders_5m", "r_basket_sum", "busy", "r_customers"]].to_numpy().tolist() == [[0, 0, 0, 0]] * 2
    assert {str(found[name].dtype) for name in ("r_orders_5m", "busy", "r_customers")} == {"int64"}


def test_no_entity_rows_give_no_rows(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    found = offline(repo, asked([]).astype({"restaurant_id": "int64"}), ["profile:prep", "by_restaurant:r_orders_5m"])
    assert found.columns.tolist() == ["restaurant_id", "event_timestamp", "prep", "r_orders_5m"]
    assert len(found) == 0


def test_windows_and_presence_are_the_oracles_before_within_and_after_the_history(
    repo: Repo, redis_client: Redis
) -> None:
    """At any instant: also at those that lie before events of the log, where only history can answer."""
    lab = Lab(repo, redis_client)
    for i in range(60):
        lab.clock.now += 17_000
        lab.publish(order(f"o{i}", lab.clock.now - (i % 7) * 40_000, 7 + i % 2, 3 + i % 3, basket_total=i * 1.1))
        moved = courier(
            f"c{i}", lab.clock.now - (i % 5) * 50_000, i % 4, 3 + i % 2, ("available", "busy", "offline")[i % 3]
        )
        lab.publish(moved, topic=COURIERS)
    lab.publish(order("o3", START), order("o59", START))
    lab.archive()
    told = {topic: oracle.once(lab.records(topic)) for topic in (ORDERS, COURIERS)}
    last = lab.clock.now
    edges = [START + k * HOP + d for k in (0, 3, 9, 17, 25) for d in (-1, 0, 1)]
    instants = [START - 60 * MINUTE, *edges, last - 1, last, last + 4 * MINUTE, last + 60 * MINUTE]
    frame = pd.DataFrame({"restaurant_id": [7, 8] * len(instants), "zone_id": [3, 4] * len(instants)})
    frame["event_timestamp"] = [at(instant) for instant in instants for _ in range(2)]
    names = ["r_orders_5m", "r_basket_mean", "r_basket_std", "r_basket_last", "r_baskets_distinct", "r_items_max"]
    features = [*(f"by_restaurant:{n}" for n in names), "by_zone:z_orders_7m", "couriers:available", "couriers:busy"]
    found = offline(repo, frame, features)
    for feature in features:
        view, _, name = feature.partition(":")
        compiled = lab.view(view)
        rows = [row for topic in compiled.topics for row in told[topic]]
        ids = found[compiled.join_keys[0]].tolist()
        pasts = [None if pd.isna(past) else past for past in found[name].tolist()]
        for entity, instant, past in zip(ids, [i for i in instants for _ in range(2)], pasts, strict=True):
            true = oracle.value(compiled, name, rows, [entity], instant)
            assert close(past, true), (name, instant - START, true, past)
    assert found["r_orders_5m"].max() > 5


@pytest.mark.parametrize("time", [START, -7 * HOP])
def test_an_event_at_the_very_edge_counts_until_the_hop_ends(repo: Repo, redis_client: Redis, time: int) -> None:
    lab = Lab(repo, redis_client)
    lab.publish(order("a", time))
    lab.archive()
    instants = [time - 1, time, time + 6 * HOP - 1, time + 6 * HOP]
    found = offline(repo, asked([at(instant) for instant in instants]), ["by_restaurant:r_orders_5m"])
    assert found["r_orders_5m"].tolist() == [0, 1, 1, 0]


def test_a_repeat_of_an_event_stamped_ahead_counts_at_its_first_arrival(repo: Repo, redis_client: Redis) -> None:
    """Its time is its append time while that is the earlier: the repeat seems to happen later, up to 60 s."""
    lab = Lab(repo, redis_client)
    stamped = order("a", START + 50_000)
    lab.publish(stamped, at=START - 1)
    lab.publish(stamped, at=START + 55_000)
    lab.archive()
    reached = START - HOP + 5 * HOP + HOP  # the last instant of the last hop whose window holds START - 1
    instants = [START - 2, START - 1, START + 55_000, reached - 1, reached]
    true = [0, 1, 1, 1, 0]
    for rows in ([0, 1, 2, 3, 4], [4], [3], [2, 4]):
        found = offline(repo, asked([at(instants[i]) for i in rows]), ["by_restaurant:r_orders_5m"])
        assert found["r_orders_5m"].tolist() == [true[i] for i in rows]


def test_an_instant_is_asked_to_the_microsecond_of_batch_rows(repo: Repo) -> None:
    precise = datetime(2026, 3, 1, 12, 0, 0, 123_457, tzinfo=UTC)
    write_profile(repo, (precise, NOON, 1.0))
    assert preps(repo, precise - MICROSECOND, precise) == [None, 1.0]
