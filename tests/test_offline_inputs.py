"""What may be asked of history, and how: entity rows of every kind, ranges of time, views of any number of entities."""

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureService, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.errors import EntityTimestampInferenceException, FeastEntityDFMissingColumnsError
from feast.types import Int64

from feature_repo.stores.redis_client import Redis
from tests.repo import (
    COURIERS,
    MINUTE,
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
from tests.test_offline import DAY, NOON, asked, mapped_view, no_files, write, write_profile

with quietly():
    from feature_repo import definitions

__all__ = ["no_files"]
HOUR, MICROSECOND, NANOSECOND = timedelta(hours=1), timedelta(microseconds=1), pd.Timedelta(1, "ns")
WINDOW = "by_restaurant:r_orders_5m"


def plain_view(name: str, entities: list[Any], feature: str) -> FeatureView:
    """A batch view of one whole number, without created times."""
    return FeatureView(
        name=name,
        entities=entities,
        ttl=timedelta(0),
        schema=[Field(name=feature, dtype=Int64)],
        source=FileSource(path=f"data/batch/{name}", file_format=ParquetFormat(), timestamp_field="event_time"),
    )


@pytest.fixture(scope="module")
def repo(valkey: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    with quietly():
        taste = plain_view("taste", [definitions.customer, definitions.restaurant], "visits")
        weather = plain_view("weather", [], "rain")
    renamed = taste.with_name("friends").with_join_key_map({"customer_id": "friend_id"})
    service = FeatureService(name="friends_taste", features=[renamed])
    objects = [*project_objects(), mapped_view(), taste, weather, service]
    with applied_repo(tmp_path_factory.mktemp("repo"), valkey, objects) as made:
        yield made


def in_range(
    repo: Repo, features: list[str], start: datetime | None, end: datetime | None, **more: Any
) -> pd.DataFrame:
    return offline(repo, None, features, start_date=start, end_date=end, **more)


def write_taste(repo: Repo, *rows: tuple[int, int, datetime, int]) -> None:
    customers, restaurants, times, visits = zip(*rows, strict=True)
    columns = {"customer_id": customers, "restaurant_id": restaurants, "event_time": times, "visits": visits}
    write(repo, "taste", "000", {name: list(values) for name, values in columns.items()})


# Entity rows.


def test_a_query_may_read_parquet_below_the_repository(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    write(repo, "labels", "000", {"restaurant_id": [7, 8], "event_timestamp": [NOON, NOON], "label": [0.5, 0.25]})
    for path in ("data/batch/labels/*.parquet", f"{repo.settings.data}/batch/labels/000.parquet"):
        query = f"SELECT * FROM read_parquet('{path}') WHERE label > 0.4"
        found = offline(repo, query, ["profile:prep", WINDOW])
        assert found[["restaurant_id", "label", "prep", "r_orders_5m"]].to_numpy().tolist() == [[7, 0.5, 1.0, 0]]


def test_columns_of_any_kind_and_name_come_back_as_they_were(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    given = pa.table(
        {
            "restaurant_id": pa.array([7, 8, 7], pa.int32()),
            "event_timestamp": pa.array([NOON, NOON, NOON - HOUR], pa.timestamp("us", "UTC")),
            "seen": pa.array([1, None, -1], pa.timestamp("ns", "Asia/Tokyo")),
            "Seen": pa.array([[1], [], None], pa.list_(pa.int8())),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "__row": pa.array([9, 9, 9]),
            'quote"d': pa.array([{"x": 1}] * 3),
        }
    )
    with quietly():
        found = repo.feast.get_historical_features(entity_df=given, features=["profile:prep"]).to_arrow()
    assert found.drop_columns(["prep"]).equals(given)
    assert found["prep"].to_pylist() == [1.0, None, None]


def test_rows_may_be_unsorted_repeated_and_indexed_in_any_way(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    frame = asked([NOON, NOON - HOUR, NOON, NOON + HOUR, NOON]).set_index(pd.Index(["b", "a", "b", "c", "b"]))
    found = offline(repo, frame, ["profile:prep", WINDOW])
    assert found["event_timestamp"].tolist() == frame["event_timestamp"].tolist()
    assert found["prep"].isna().tolist() == [False, True, False, False, False]
    assert found["r_orders_5m"].tolist() == [0] * 5


@pytest.mark.parametrize("archived", [True, False])
def test_a_row_without_an_id_gets_nulls_and_others_their_values(
    repo: Repo, redis_client: Redis, archived: bool
) -> None:
    """Whether there is any history or not; pandas makes floats of whole numbers beside missing ones."""
    great = 2**53 + 1
    if archived:
        lab = Lab(repo, redis_client)
        lab.publish(order("a", START, restaurant=7), order("b", START, restaurant=great))
        lab.publish(courier("c", START), topic=COURIERS)
        lab.archive()
    frame = asked([NOON, NOON]).assign(restaurant_id=[7.0, math.nan], zone_id=[math.nan, 3.0])
    features = ["profile:prep", WINDOW, "by_restaurant:r_basket_sum", "couriers:available", "by_zone:z_orders_5m"]
    found = offline(repo, frame, features)
    assert found["prep"].isna().all()
    assert found["r_orders_5m"].isna().tolist() == [False, True]
    assert found["r_basket_sum"].isna().tolist() == [False, True]
    assert found["available"].isna().tolist() == found["z_orders_5m"].isna().tolist() == [True, False]
    assert found["r_orders_5m"][0] == archived
    assert found["available"][1] == archived
    exact = asked([NOON]).assign(restaurant_id=pd.array([great], "Int64"))
    assert offline(repo, exact, [WINDOW])["r_orders_5m"].tolist() == [int(archived)]


@pytest.mark.parametrize("ids", [["7", "8"], pd.Categorical([7, 8]), pd.array([7, None], "Int32")])
def test_ids_of_other_types_mean_the_same(repo: Repo, ids: Any) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    frame = asked([NOON, NOON]).assign(restaurant_id=ids)
    assert offline(repo, frame, ["profile:prep"])["prep"].isna().tolist() == [False, True]


BERLIN = timezone(HOUR)
TEXTS = ["2026-03-01 12:00:00", "2026-03-01T13:00:00.000001+01:00", "2026-03-01T11:59:59.999999Z", "2026-03-01"]


@pytest.mark.parametrize(
    ("moments", "known"),
    [
        (TEXTS, [True, True, False, False]),
        ([date(2026, 3, 1), date(2026, 3, 2)], [False, True]),
        ([NOON.replace(tzinfo=None), NOON.replace(tzinfo=None) - MICROSECOND], [True, False]),
        ([NOON.astimezone(BERLIN), (NOON - MICROSECOND).astimezone(BERLIN)], [True, False]),
        ([pd.Timestamp(NOON) + NANOSECOND, pd.Timestamp(NOON) - NANOSECOND], [True, False]),
    ],
    ids=["texts", "dates", "naive", "another zone", "nanoseconds"],
)
def test_instants_are_read_in_whatever_form_they_come(repo: Repo, moments: list[Any], known: list[bool]) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    for given in (moments, pd.Series(moments, dtype=object)):
        found = offline(repo, pd.DataFrame({"restaurant_id": 7, "event_timestamp": given}), ["profile:prep"])
        assert found["prep"].notna().tolist() == known
        assert str(found["event_timestamp"].dtype) == "datetime64[us, UTC]"


def test_the_only_column_of_timestamps_holds_the_instants_whatever_its_name(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    frame = asked([NOON - HOUR, NOON]).rename(columns={"event_timestamp": "placed_at"}).assign(note=["a", "b"])
    found = offline(repo, frame, ["profile:prep"])
    assert found.columns.tolist() == ["restaurant_id", "placed_at", "note", "prep"]
    assert found["prep"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    "rows",
    [
        pd.DataFrame({"restaurant_id": [], "event_timestamp": []}),
        pd.DataFrame({"restaurant_id": [], "event_timestamp": []}, dtype=object),
        "SELECT 7 AS restaurant_id, now() AS event_timestamp WHERE false",
    ],
    ids=["floats", "objects", "SQL"],
)
def test_no_rows_of_whatever_type_give_no_rows(repo: Repo, rows: Any) -> None:
    found = offline(repo, rows, ["profile:prep", WINDOW])
    assert found.columns.tolist() == ["restaurant_id", "event_timestamp", "prep", "r_orders_5m"]
    assert found.empty


INSTANT = {"event_timestamp": [NOON]}


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (pd.DataFrame(INSTANT), FeastEntityDFMissingColumnsError, "'restaurant_id'} were missing"),
        (pd.DataFrame({"restaurant_id": [7]}), EntityTimestampInferenceException, "column named event_timestamp"),
        (
            pd.DataFrame({"restaurant_id": [7, 7], "event_timestamp": [NOON, None]}),
            ValueError,
            "'event_timestamp' is null in 1 of 2 rows: they have no instant",
        ),
        (
            pd.DataFrame({"restaurant_id": [7], "event_timestamp": [1_772_366_400]}),
            ValueError,
            "'event_timestamp' holds int64: timestamps, dates or texts of them are expected",
        ),
        (
            pd.DataFrame({"restaurant_id": [7], "event_timestamp": ["noon"]}),
            ValueError,
            "'event_timestamp' holds a text that is no instant: .*noon",
        ),
        (pd.DataFrame(INSTANT | {"restaurant_id": ["x"]}), ValueError, "join key 'restaurant_id' holds .*'x'"),
        (pd.DataFrame(INSTANT | {"restaurant_id": [7.5]}), ValueError, "join key 'restaurant_id' holds .*7.5"),
        (pd.DataFrame(INSTANT | {"restaurant_id": [NOON]}), ValueError, "join key 'restaurant_id' holds timestamp"),
        (pd.DataFrame({"a": [1, {2}]}), ValueError, "entity rows: .*Conversion failed for column a"),
        (
            pa.table([pa.array([7]), pa.array([8]), pa.array([NOON])], ["restaurant_id", "restaurant_id", "t"]),
            ValueError,
            "two columns 'restaurant_id'",
        ),
        ("SELECT nothing FROM nowhere", ValueError, "the SQL of the entity rows: .*nowhere"),
        ("SELECT 7 AS restaurant_id, CAST('x' AS TIMESTAMP) AS t", ValueError, "the SQL of the entity rows: .*x"),
        ([(7, NOON)], ValueError, "entity rows are a list: a pandas frame, an Arrow table or SQL is expected"),
    ],
)
def test_rows_that_cannot_be_answered_are_refused_in_a_sentence(
    repo: Repo, rows: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as told:
        offline(repo, rows, ["profile:prep"])
    assert "\n" not in str(told.value)


# Views.


def test_a_view_of_two_entities_is_joined_by_both_and_by_mapped_keys(repo: Repo) -> None:
    write_taste(repo, (1, 7, NOON, 17), (1, 8, NOON, 18), (2, 7, NOON - HOUR, 26), (2, 7, NOON, 27))
    rows = pd.DataFrame([(1, 7, 2, NOON), (2, 8, 1, NOON), (2, 7, None, NOON - MICROSECOND)])
    rows.columns = pd.Index(["customer_id", "restaurant_id", "friend_id", "event_timestamp"])
    assert offline(repo, rows, ["taste:visits"])["visits"].fillna(0).tolist() == [17, 0, 26]
    with quietly():
        service = repo.feast.get_feature_service("friends_taste")
        found = repo.feast.get_historical_features(entity_df=rows, features=service, full_feature_names=True).to_df()
    assert found["friends__visits"].fillna(0).tolist() == [27, 18, 0]


def test_a_view_without_entities_says_the_same_of_every_row(repo: Repo) -> None:
    write(repo, "weather", "000", {"event_time": [NOON, NOON + HOUR], "rain": [1, 2]})
    write_profile(repo, (NOON, NOON, 5.0))
    rows = asked([NOON - MICROSECOND, NOON, NOON + 2 * HOUR]).assign(restaurant_id=[7, math.nan, 7])
    found = offline(repo, rows, ["weather:rain", "profile:prep"])
    assert found["rain"].fillna(0).tolist() == [0, 1, 2]
    assert found["prep"].fillna(0).tolist() == [0, 0, 5]


@pytest.mark.parametrize(
    "moments",
    [
        pa.array(["2026-03-01 12:00:00"]),
        pa.array(["2026-03-01T13:00:00+01:00"]),
        pa.array([1_772_366_400_000_000_999], pa.timestamp("ns", "America/New_York")),
        pa.array([1_772_366_400], pa.timestamp("s")),
    ],
    ids=["text", "text with an offset", "nanoseconds of another zone", "seconds"],
)
def test_sources_may_hold_their_times_in_any_form(repo: Repo, moments: pa.Array) -> None:
    write(repo, "mapped", "000", {"rid": pa.array([7]), "stars": pa.array([4.5]), "ts": moments})
    found = offline(repo, asked([NOON - MICROSECOND, NOON]), ["mapped:rating"])
    assert found["rating"].isna().tolist() == [True, False]
    assert in_range(repo, ["mapped:rating"], NOON, NOON)["rating"].tolist() == [4.5]


# Ranges of time.


def test_a_range_of_time_alone_gives_every_row_of_it_ends_included(repo: Repo) -> None:
    write_profile(repo, *((NOON + h * HOUR, NOON + h * HOUR, float(h)) for h in range(4)))
    write_profile(repo, (NOON + HOUR, NOON + HOUR, 80.0), name="001", ids=8)
    write_profile(repo, (NOON + 2 * HOUR, NOON + 9 * HOUR, 20.0), name="002")
    found = in_range(repo, ["profile:prep"], NOON + HOUR, NOON + 2 * HOUR)
    assert found.columns.tolist() == ["restaurant_id", "event_timestamp", "prep"]
    times = [NOON + HOUR, NOON + HOUR, NOON + 2 * HOUR]
    assert found["event_timestamp"].tolist() == [pd.Timestamp(t) for t in times]
    assert found[["restaurant_id", "prep"]].to_numpy().tolist() == [[7, 1], [8, 80], [7, 20]], "a correction wins"
    known = in_range(repo, ["profile:prep"], NOON + HOUR, NOON + 2 * HOUR, filter_by_created_timestamp=True)
    assert known["prep"].tolist() == [1, 80, 2], "it had not been made by then"


def test_a_range_of_time_without_a_start_goes_back_by_the_longest_ttl(repo: Repo) -> None:
    write_profile(repo, *((NOON + h * HOUR, NOON, float(h)) for h in (0, 1, 25, 26)))
    assert in_range(repo, ["profile:prep"], None, NOON + 25 * HOUR)["prep"].tolist() == [1.0, 25.0]


def test_views_of_one_key_share_the_rows_of_a_range_and_narrower_views_are_joined_on(repo: Repo) -> None:
    write(repo, "mapped", "000", {"rid": [7, 7], "stars": [4.0, 5.0], "ts": [NOON, NOON + 2 * HOUR]})
    write_profile(repo, (NOON + HOUR, NOON, 1.0))
    found = in_range(repo, ["mapped:rating", "profile:prep"], NOON, NOON + DAY)
    assert found[["rating", "prep"]].fillna(0).to_numpy().tolist() == [[4, 0], [4, 1], [5, 1]]
    write_taste(repo, (1, 7, NOON + HOUR, 17))
    write(repo, "weather", "000", {"event_time": [NOON, NOON + HOUR], "rain": [1, 2]})
    found = in_range(repo, ["taste:visits", "mapped:rating", "weather:rain"], NOON, NOON + DAY)
    assert found.drop(columns="event_timestamp").to_numpy().tolist() == [[1, 7, 17, 4.0, 2]]
    assert in_range(repo, ["weather:rain"], NOON, NOON + DAY)["rain"].tolist() == [1, 2]


def test_a_range_of_time_gives_stream_features_at_each_event(repo: Repo, redis_client: Redis) -> None:
    lab = Lab(repo, redis_client)
    lab.clock.now = START + 9 * MINUTE
    lab.publish(*(order(f"o{m}", START + m * MINUTE) for m in (0, 1, 1, 8)), order("none", START, restaurant=8))
    lab.publish(courier("c", START + MINUTE), courier("d", START + 2 * MINUTE, who=2), topic=COURIERS)
    lab.archive()
    found = in_range(repo, [WINDOW], at(START + MINUTE), at(START + 8 * MINUTE))
    assert found["restaurant_id"].tolist() == [7, 7]
    assert found["r_orders_5m"].tolist() == [2, 1], "two of one instant are one row"
    assert in_range(repo, ["couriers:available"], at(START), NOON + DAY)["available"].tolist() == [1, 2]


def test_a_range_of_time_needs_a_view_with_all_keys(repo: Repo) -> None:
    with pytest.raises(
        ValueError, match=r"no view has all of the join keys restaurant_id, zone_id: .*give entity rows"
    ):
        in_range(repo, [WINDOW, "couriers:available"], NOON, NOON + DAY)


def test_a_range_of_time_in_which_nothing_lies_gives_no_rows(repo: Repo) -> None:
    for _ in range(2):
        found = in_range(repo, ["profile:prep", WINDOW], NOON, NOON + DAY)
        assert found.columns.tolist() == ["restaurant_id", "event_timestamp", "prep", "r_orders_5m"]
        assert found.empty
        write_profile(repo, (NOON - MICROSECOND, NOON, 1.0), (NOON + DAY + MICROSECOND, NOON, 2.0))


def test_a_naive_range_is_utc(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    naive = datetime(2026, 3, 1, 12)  # noqa: DTZ001  # what is tried
    assert in_range(repo, ["profile:prep"], naive, naive)["prep"].tolist() == [1.0]
    assert naive.replace(tzinfo=UTC) == NOON
