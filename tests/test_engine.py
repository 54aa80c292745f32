"""Plain Feast: `materialize` in every form, the SDK's reads and writes, and Feast's own Redis reader on our rows."""

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore, RepoConfig

from feature_repo.stores import engine
from feature_repo.stores.embedded import socket_path
from feature_repo.stores.parquet_files import append_file
from feature_repo.stores.redis_client import Redis
from feature_repo.views import BadDefinition
from tests.repo import (
    PROJECT,
    START,
    FakeClock,
    Lab,
    Repo,
    applied_repo,
    at,
    drain,
    order,
    project_objects,
    quietly,
    window_view,
)

with quietly():
    from feature_repo import definitions

NOON = at(START)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
PREP = ["profile:prep", "profile:orders", "profile:cuisine"]


@pytest.fixture(scope="module")
def applied(valkey: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    with applied_repo(tmp_path_factory.mktemp("repo"), valkey, project_objects()) as made:
        yield made


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START + 3_600_000)


@pytest.fixture
def repo(applied: Repo, redis_client: Redis, clock: FakeClock) -> Repo:
    """The project with an empty store and no files, whose online store reads at the fake clock."""
    applied.forget_files()
    online_store(applied.feast)._clock = clock
    return applied


def online_store(feast: FeatureStore) -> Any:
    return feast._get_provider().online_store


Stored = tuple[int, datetime, datetime, float | None]
"""(restaurant, event time, created, prep)"""


def write(repo: Repo, *rows: Stored) -> None:
    table = {
        "restaurant_id": pa.array([row[0] for row in rows], pa.int64()),
        "event_time": pa.array([row[1] for row in rows], pa.timestamp("us", "UTC")),
        "created": pa.array([row[2] for row in rows], pa.timestamp("us", "UTC")),
        "prep": pa.array([row[3] for row in rows], pa.float64()),
        "orders": pa.array([None if row[3] is None else int(row[3]) for row in rows], pa.int64()),
        "cuisine": pa.array([None if row[3] is None else "thaï" for row in rows], pa.string()),
    }
    append_file(repo.settings.data / "batch" / "profile", pa.table(table))


def materialize(repo: Repo, start: datetime = NOON - DAY, end: datetime = NOON + HOUR) -> None:
    with quietly():
        repo.feast.materialize(start, end)


def read(feast: FeatureStore, *restaurants: object) -> list[tuple[object, str]]:
    """(prep, status) of each restaurant, by the SDK."""
    with quietly():
        rows = [{"restaurant_id": restaurant} for restaurant in restaurants]
        response = feast.get_online_features(features=PREP, entity_rows=rows)
    at_ = list(response.proto.metadata.feature_names.val).index("prep")
    names = {1: "PRESENT", 2: "NULL_VALUE", 3: "NOT_FOUND", 4: "OUTSIDE_MAX_AGE"}
    statuses = [names[status] for status in response.proto.results[at_].statuses]
    return list(zip(response.to_dict()["prep"], statuses, strict=True))


def test_the_newest_row_of_each_restaurant_wins(repo: Repo) -> None:
    write(repo, (7, NOON, NOON, 2.0), (7, NOON - HOUR, NOON, 1.0), (8, NOON, NOON, 3.0), (8, NOON, NOON + HOUR, 4.0))
    materialize(repo)
    assert read(repo.feast, 7, 8) == [(2.0, "PRESENT"), (4.0, "PRESENT")]


def test_a_row_after_the_ranges_end_is_not_taken(repo: Repo) -> None:
    write(repo, (7, NOON, NOON, 1.0), (7, NOON + 2 * HOUR, NOON, 2.0))
    materialize(repo)
    assert read(repo.feast, 7) == [(1.0, "PRESENT")]


def test_a_row_written_late_is_found_though_the_range_begins_after_it(repo: Repo) -> None:
    write(repo, (7, NOON - 10 * HOUR, NOON, 1.0))
    materialize(repo)
    write(repo, (7, NOON - 5 * HOUR, NOON, 2.0))
    materialize(repo, start=NOON, end=NOON + HOUR)
    assert read(repo.feast, 7) == [(2.0, "PRESENT")]


def test_running_again_changes_nothing(repo: Repo, redis_client: Any) -> None:
    write(repo, *((i, NOON, NOON, float(i)) for i in range(50)))
    materialize(repo)
    before = {key: redis_client.hgetall(key) for key in redis_client.scan_iter()}
    materialize(repo)
    materialize(repo, start=NOON - 9 * DAY)
    assert {key: redis_client.hgetall(key) for key in redis_client.scan_iter()} == before
    assert len(before) == 50


def test_rows_of_nobody_are_written_nowhere(repo: Repo, redis_client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "restaurant_id": pa.array([None, None], pa.int64()),
        "event_time": pa.array([NOON, NOON], pa.timestamp("us", "UTC")),
        "created": pa.array([NOON, NOON], pa.timestamp("us", "UTC")),
        "prep": [1.0, 2.0],
        "orders": pa.array([1, 1], pa.int64()),
        "cuisine": ["thai", "thai"],
    }
    append_file(repo.settings.data / "batch" / "profile", pa.table(table))
    materialize(repo)
    monkeypatch.setattr(repo.feast.config.online_store, "key_ttl_seconds", 1000)
    materialize(repo)
    assert redis_client.dbsize() == 0


def test_more_rows_than_a_batch_holds_are_all_written(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHUNK_ROWS", 120)
    write(repo, *((i, NOON, NOON, float(i)) for i in range(1000)))
    materialize(repo)
    assert read(repo.feast, *range(1000)) == [(float(i), "PRESENT") for i in range(1000)]


def test_an_older_range_does_not_bring_older_rows_back(repo: Repo) -> None:
    write(repo, (7, NOON - 3 * HOUR, NOON, 1.0), (7, NOON, NOON, 2.0))
    materialize(repo)
    materialize(repo, end=NOON - HOUR)
    assert read(repo.feast, 7) == [(2.0, "PRESENT")]


def test_incremental_runs_find_new_and_late_rows(repo: Repo) -> None:
    write(repo, (7, NOON, NOON, 1.0))
    with quietly():
        repo.feast.materialize_incremental(NOON + HOUR)
        write(repo, (8, NOON - HOUR, NOON, 2.0), (7, NOON + 30 * timedelta(minutes=1), NOON, 3.0))
        repo.feast.materialize_incremental(NOON + HOUR)
    assert read(repo.feast, 7, 8) == [(3.0, "PRESENT"), (2.0, "PRESENT")]


def test_stream_views_are_materialized_with_nothing_written(repo: Repo, redis_client: Redis) -> None:
    materialize(repo)
    with quietly():
        repo.feast.materialize(NOON - DAY, NOON, feature_views=["by_restaurant", "couriers"])
    assert redis_client.dbsize() == 0


def test_nulls_unwritten_restaurants_and_impossible_ids_are_told_apart(repo: Repo) -> None:
    write(repo, (7, NOON, NOON, None), (8, NOON, NOON, 1.0))
    materialize(repo)
    assert read(repo.feast, 7, 8, 9) == [(None, "NULL_VALUE"), (1.0, "PRESENT"), (None, "NOT_FOUND")]
    assert read(repo.feast, 8, None) == [(1.0, "PRESENT"), (None, "NOT_FOUND")]


def test_a_row_beyond_its_ttl_is_outside_with_its_age(repo: Repo, clock: FakeClock) -> None:
    write(repo, (7, NOON, NOON, 1.0))
    materialize(repo)
    clock.now = START + 86_400_000
    assert read(repo.feast, 7) == [(1.0, "PRESENT")]
    clock.now += 1
    assert read(repo.feast, 7) == [(None, "OUTSIDE_MAX_AGE")]


def test_asynchronous_reads_say_the_same(repo: Repo) -> None:
    write(repo, (7, NOON, NOON, 1.0))
    materialize(repo)

    async def both() -> list[Any]:
        rows = [{"restaurant_id": 7}, {"restaurant_id": 8}]
        response = await repo.feast.get_online_features_async(features=PREP, entity_rows=rows)
        await online_store(repo.feast).close()
        return [response.to_dict()["prep"], response.to_dict()["cuisine"]]

    with quietly():
        assert asyncio.run(both()) == [[1.0, None], ["thaï", None]]


def test_windows_come_through_the_sdk_beside_batch_features(repo: Repo, redis_client: Redis, clock: FakeClock) -> None:
    write(repo, (7, NOON, NOON, 1.0))
    materialize(repo)
    lab = Lab(repo, redis_client, clock)
    worker = lab.worker()
    lab.publish(order("a", clock.now), order("b", clock.now))
    drain(worker)
    with quietly():
        found = repo.feast.get_online_features(
            features=["profile:prep", "by_restaurant:r_orders_5m", "by_restaurant:r_items_max", "by_zone:z_orders_5m"],
            entity_rows=[{"restaurant_id": 7, "zone_id": 3}, {"restaurant_id": 9, "zone_id": 4}],
            full_feature_names=True,
        ).to_dict()
    assert found == {
        "restaurant_id": [7, 9],
        "zone_id": [3, 4],
        "profile__prep": [1.0, None],
        "by_restaurant__r_orders_5m": [2, 0],
        "by_restaurant__r_items_max": [2.0, None],
        "by_zone__z_orders_5m": [2, 0],
    }


def test_rows_can_be_written_through_the_sdk_and_the_newest_wins(repo: Repo) -> None:
    def write_online(event: datetime, prep: float) -> None:
        row = {"restaurant_id": [7], "event_time": [event], "created": [event], "prep": [prep], "orders": [1]}
        with quietly():
            repo.feast.write_to_online_store("profile", pd.DataFrame({**row, "cuisine": ["thai"]}))

    write_online(NOON, 2.0)
    write_online(NOON - HOUR, 1.0)
    assert read(repo.feast, 7) == [(2.0, "PRESENT")]


def test_writing_rows_of_a_stream_view_is_refused_in_words(repo: Repo, redis_client: Redis) -> None:
    row = pd.DataFrame({"restaurant_id": [7], "event_time": [NOON], "append_time": [NOON]})
    view = repo.views()[0]
    with quietly(), pytest.raises(TypeError, match=r"by_restaurant is a stream view: .* Push events to its topic"):
        repo.feast.write_to_online_store("by_restaurant", row.assign(**{name: [1] for name in view.features}))
    assert redis_client.dbsize() == 0


def test_feasts_own_redis_reader_finds_our_batch_features(repo: Repo, valkey: Path) -> None:
    write(repo, (7, NOON, NOON, 1.5), (8, NOON, NOON, None))
    materialize(repo)
    config = RepoConfig(
        project=PROJECT,
        provider="local",
        registry=str(repo.settings.data / "registry.db"),
        entity_key_serialization_version=3,
        online_store={"type": "redis", "connection_string": f"localhost:0,unix_socket_path={socket_path(valkey)}"},
        repo_path=repo.path,
    )
    with quietly():
        found = FeatureStore(config=config).get_online_features(
            features=PREP, entity_rows=[{"restaurant_id": 7}, {"restaurant_id": 8}]
        )
    assert found.to_dict() == {
        "restaurant_id": [7, 8],
        "prep": [1.5, None],
        "orders": [1, None],
        "cuisine": ["thaï", None],
    }
    assert found.proto.results[1].event_timestamps[0].ToMilliseconds() == START


def test_a_bad_definition_is_refused_by_apply(repo: Repo) -> None:
    with quietly():
        bad = window_view("bad", definitions.restaurant, {"p90": ("basket_total", "p90", 120_000)})
        feast = FeatureStore(repo_path=str(repo.path))
        with pytest.raises(BadDefinition, match=r"bad\.p90"):
            feast.apply([definitions.restaurant, bad])
        registered = FeatureStore(repo_path=str(repo.path)).list_stream_feature_views()
    assert "bad" not in {view.name for view in registered}


def test_a_stream_view_of_one_more_window_is_applied_and_read_at_once(
    repo: Repo, redis_client: Redis, clock: FakeClock
) -> None:
    with quietly():
        view = window_view("extra", definitions.restaurant, {"extra_2m": ("order_id", "count", 120_000)})
        repo.feast.apply([definitions.restaurant, view])
    try:
        lab = Lab(repo, redis_client, clock)
        worker = lab.worker()
        lab.publish(order("a", clock.now))
        drain(worker)
        with quietly():
            found = repo.feast.get_online_features(features=["extra:extra_2m"], entity_rows=[{"restaurant_id": 7}])
        assert found.to_dict()["extra_2m"] == [1]
    finally:
        with quietly():
            repo.feast.apply([], objects_to_delete=[view], partial=False)


def test_batch_views_of_other_projects_lie_apart(repo: Repo, redis_client: Redis) -> None:
    write(repo, (7, NOON, NOON, 1.0))
    materialize(repo)
    with quietly():
        online_store(repo.feast).teardown(
            repo.feast.config.model_copy(update={"project": "another"}), [repo.feast.get_feature_view("profile")], []
        )
        assert read(repo.feast, 7) == [(1.0, "PRESENT")]
        online_store(repo.feast).teardown(repo.feast.config, [repo.feast.get_feature_view("profile")], [])
    assert redis_client.dbsize() == 0
