"""Honest reads through Feast's SDK, sync and async: statuses, bad ids, materializations under way, newest wins."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, ValueType
from feast.feature_view import FeatureViewState
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

from feature_repo.feast_quietly import open_store
from feature_repo.stores.parquet_files import append_file
from feature_repo.stores.redis_client import Redis
from tests.repo import START, FakeClock, Repo, applied_repo, at, batch_view, project_objects, quietly, wait_for

NOON = at(START)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
PREP, CUISINE = "profile:prep", "profile:cuisine"
STATUSES = {1: "PRESENT", 2: "NULL_VALUE", 3: "NOT_FOUND", 4: "OUTSIDE_MAX_AGE"}

Read = Callable[..., Any]


def objects() -> list[Any]:
    """The tests' project, a view by two text keys, and a feature that is computed on demand."""
    couple = [Entity(name=name, join_keys=[name], value_type=ValueType.STRING) for name in ("giver", "taker")]
    gifts = batch_view("gifts")
    gifts = FeatureView(
        name="gifts",
        entities=couple,
        ttl=DAY,
        schema=[Field(name="giver", dtype=String), Field(name="taker", dtype=String), Field(name="gifts", dtype=Int64)],
        source=gifts.batch_source,
    )

    @on_demand_feature_view(  # type: ignore[untyped-decorator]
        sources=[batch_view()], schema=[Field(name="twice", dtype=Float64)], mode="pandas"
    )
    def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"twice": inputs["prep"] * 2})

    return [*project_objects(), *couple, gifts, doubled]


@pytest.fixture(scope="module")
def applied(valkey: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IS_TEST", "True")  # or Feast warns that on-demand views are experimental
        with quietly():
            defined = objects()
        with applied_repo(tmp_path_factory.mktemp("repo"), valkey, defined) as made:
            yield made


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START + 60_000)


@pytest.fixture
def repo(applied: Repo, redis_client: Redis, clock: FakeClock) -> Repo:
    """The project with an empty store and no files, read at the fake clock."""
    applied.forget_files()
    online_store(applied.feast)._clock = clock
    return applied


def asked(feast: FeatureStore, features: list[str], **ids: Sequence[Any]) -> Any:
    """``get_online_features``"""
    with quietly():
        return feast.get_online_features(features=features, entity_rows=ids)


def awaited(feast: FeatureStore, features: list[str], **ids: Sequence[Any]) -> Any:
    """``get_online_features_async``"""

    async def once() -> Any:
        try:
            return await feast.get_online_features_async(features=features, entity_rows=ids)
        finally:
            await online_store(feast).close()

    with quietly():
        return asyncio.run(once())


WAYS = (asked, awaited)


@pytest.fixture(params=WAYS)
def read(request: pytest.FixtureRequest) -> Read:
    found: Read = request.param
    return found


def online_store(feast: FeatureStore) -> Any:
    return feast._get_provider().online_store


def column(response: Any, feature: str) -> list[tuple[Any, str]]:
    """(value, status) a row."""
    vector = response.proto.results[list(response.proto.metadata.feature_names.val).index(feature)]
    return list(zip(response.to_dict()[feature], (STATUSES[s] for s in vector.statuses), strict=True))


def write(feast: FeatureStore, restaurant: int, prep: float | None, event: datetime, created: datetime = NOON) -> None:
    row = {"restaurant_id": [restaurant], "event_time": [event], "created": [created], "prep": [prep]}
    with quietly():
        frame = pd.DataFrame({**row, "orders": [None if prep is None else int(prep)], "cuisine": ["thai"]})
        feast.write_to_online_store("profile", frame)


def write_file(repo: Repo, prep: float) -> None:
    stamp = pa.array([NOON], pa.timestamp("us", "UTC"))
    columns = {"restaurant_id": [7], "event_time": stamp, "created": stamp, "prep": [prep], "orders": [1]}
    append_file(repo.settings.data / "batch" / "profile", pa.table({**columns, "cuisine": ["thai"]}))


def materialize(feast: FeatureStore) -> None:
    with quietly():
        feast.materialize(NOON - DAY, NOON + SECOND, feature_views=["profile"])


def test_each_status_says_what_a_value_is_worth(repo: Repo, read: Read) -> None:
    write(repo.feast, 1, 1.5, NOON)
    write(repo.feast, 2, None, NOON)
    write(repo.feast, 3, 3.5, NOON - DAY)
    found = read(repo.feast, [PREP, CUISINE], restaurant_id=[1, 2, 3, 4])
    assert column(found, "prep") == [
        (1.5, "PRESENT"),
        (None, "NULL_VALUE"),
        (None, "OUTSIDE_MAX_AGE"),
        (None, "NOT_FOUND"),
    ]
    stamps = found.proto.results[1].event_timestamps
    assert [stamp.ToMilliseconds() for stamp in stamps] == [START, START, START - 86_400_000, 0]


def test_a_value_ages_while_nothing_is_written(repo: Repo, clock: FakeClock, read: Read) -> None:
    write(repo.feast, 1, 1.5, NOON)
    clock.now = START + 86_400_000
    assert column(read(repo.feast, [PREP], restaurant_id=[1]), "prep") == [(1.5, "PRESENT")]
    clock.now += 1
    assert column(read(repo.feast, [PREP], restaurant_id=[1]), "prep") == [(None, "OUTSIDE_MAX_AGE")]


BAD_IDS = [None, "x", "", 1.0, 1.5, float("nan"), True, 2**63, b"1", [1], {"id": 1}, NOON, np.datetime64("NaT"), pd.NaT]


@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
def test_a_bad_id_fails_its_own_row_only(repo: Repo, read: Read, bad: object) -> None:
    write(repo.feast, 1, 1.5, NOON)
    found = read(repo.feast, [PREP, CUISINE], restaurant_id=[1, bad, 2, 1])
    assert column(found, "prep") == [(1.5, "PRESENT"), (None, "NOT_FOUND"), (None, "NOT_FOUND"), (1.5, "PRESENT")]
    assert column(found, "cuisine")[0] == column(found, "cuisine")[3] == ("thai", "PRESENT")


@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
def test_a_bad_id_fails_its_own_row_of_what_is_computed_on_demand_too(repo: Repo, read: Read, bad: object) -> None:
    write(repo.feast, 1, 1.5, NOON)
    found = read(repo.feast, [PREP, "doubled:twice"], restaurant_id=[1, bad, 2, 1])
    assert column(found, "restaurant_id") == [(1, "PRESENT"), (None, "NULL_VALUE"), (2, "PRESENT"), (1, "PRESENT")]
    assert column(found, "prep") == [(1.5, "PRESENT"), (None, "NOT_FOUND"), (None, "NOT_FOUND"), (1.5, "PRESENT")]
    assert column(found, "twice") == [(3.0, "PRESENT"), (None, "NULL_VALUE"), (None, "NULL_VALUE"), (3.0, "PRESENT")]


@pytest.mark.parametrize("bad", [None, 7, b"a", float("nan"), "\ud800", ["a"]], ids=repr)
def test_a_bad_id_among_several_fails_its_own_row_only(repo: Repo, read: Read, bad: object) -> None:
    row = {"giver": ["a"], "taker": ["b"], "event_time": [NOON], "created": [NOON], "gifts": [3]}
    with quietly():
        repo.feast.write_to_online_store("gifts", pd.DataFrame(row))
    found = read(repo.feast, ["gifts:gifts"], taker=["b", bad, "b", "b"], giver=["a", "a", bad, "a"])
    assert column(found, "gifts") == [(3, "PRESENT"), (None, "NOT_FOUND"), (None, "NOT_FOUND"), (3, "PRESENT")]


def test_ids_that_are_all_bad_are_all_not_found(repo: Repo, read: Read) -> None:
    found = read(repo.feast, [PREP], restaurant_id=[None, "x"])
    assert column(found, "prep") == [(None, "NOT_FOUND")] * 2


def test_rows_of_a_join_key_that_none_has_are_refused_in_words(repo: Repo, read: Read) -> None:
    with pytest.raises(ValueError, match="entity rows have no 'restaurant_id': features by restaurant_id cannot be"):
        read(repo.feast, [PREP], zone_id=[1])
    with pytest.raises(ValueError, match="differ in length: rows cannot be told apart"):
        read(repo.feast, ["gifts:gifts"], giver=["a"], taker=["b", "c"])


# A materialization under way refuses nothing.


def state(repo: Repo) -> FeatureViewState:
    """The view's state in the registry, as another process sees it."""
    found: FeatureViewState = fresh(repo).get_feature_view("profile").state
    return found


def fresh(repo: Repo) -> FeatureStore:
    with quietly():
        return FeatureStore(repo_path=str(repo.path))


def refresh(feast: FeatureStore) -> None:
    feast.refresh_registry()  # type: ignore[no-untyped-call]


@contextmanager
def started(repo: Repo) -> Iterator[subprocess.Popen[bytes]]:
    """``feast materialize`` in a process of its own."""
    words = ["-c", str(repo.path), "materialize", *((NOON + d).isoformat() for d in (-DAY, SECOND)), "-v", "profile"]
    command = [sys.executable, "-W", "ignore", "-c", "from feast.cli.cli import cli; cli()", *words]
    child = subprocess.Popen(command, env=os.environ.copy(), stdout=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def by_thread(repo: Repo, stack: ExitStack) -> Callable[[], None]:
    """Start a materialization; the function waits for its end."""
    thread = Thread(target=materialize, args=(fresh(repo),))
    thread.start()
    stack.callback(thread.join)
    return thread.join


def by_command(repo: Repo, stack: ExitStack) -> Callable[[], None]:
    """The same in a process of its own."""
    child = stack.enter_context(started(repo))

    def end() -> None:
        assert child.wait(60) == 0

    return end


@contextmanager
def writes_held(client: Redis) -> Iterator[None]:
    """No write to the store comes to an end; reads do."""
    client.client_pause(60_000, all=False)
    try:
        yield
    finally:
        client.client_unpause()


@pytest.mark.parametrize("way", [by_thread, by_command])
def test_a_materialization_under_way_refuses_no_read(
    repo: Repo, redis_client: Redis, clock: FakeClock, way: Callable[[Repo, ExitStack], Callable[[], None]]
) -> None:
    write_file(repo, 1.5)
    materialize(repo.feast)
    write_file(repo, 2.5)
    readers = [repo.feast, fresh(repo)]
    online_store(readers[1])._clock = clock
    with ExitStack() as stack:
        with writes_held(redis_client):
            end = way(repo, stack)
            wait_for(lambda: state(repo) == FeatureViewState.MATERIALIZING, "the materialization to begin", 60)
            for feast, read in product(readers, WAYS):
                refresh(feast)
                found = column(read(feast, [PREP, "doubled:twice"], restaurant_id=[7]), "twice")
                assert found == [(3.0, "PRESENT")]
            with quietly():
                rows = pd.DataFrame({"restaurant_id": [7], "event_timestamp": [NOON]})
                history = open_store(repo.settings).get_historical_features(entity_df=rows, features=[PREP]).to_df()
            assert history["prep"].tolist() == [2.5]
            assert state(repo) == FeatureViewState.MATERIALIZING
        end()
    assert state(repo) == FeatureViewState.AVAILABLE_ONLINE
    assert column(asked(repo.feast, [PREP], restaurant_id=[7]), "prep") == [(2.5, "PRESENT")]


def test_a_materialization_that_was_killed_and_one_that_failed_refuse_no_read(repo: Repo, redis_client: Redis) -> None:
    write_file(repo, 1.5)
    materialize(repo.feast)
    write_file(repo, 2.5)
    with started(repo) as child, writes_held(redis_client):
        wait_for(lambda: state(repo) == FeatureViewState.MATERIALIZING, "the materialization to begin", 60)
        child.kill()
    assert state(repo) == FeatureViewState.MATERIALIZING
    refresh(repo.feast)
    for read in WAYS:
        assert column(read(repo.feast, [PREP], restaurant_id=[7]), "prep")[0][1] == "PRESENT"
    broken = repo.settings.data / "batch" / "profile" / "rows-000000009.parquet"
    broken.write_bytes(b"not Parquet")
    with pytest.raises(Exception, match="rows-000000009"):
        materialize(repo.feast)
    assert state(repo) == FeatureViewState.GENERATED
    for read in WAYS:
        assert column(read(repo.feast, [PREP], restaurant_id=[7]), "prep")[0][1] == "PRESENT"
    broken.unlink()
    materialize(repo.feast)
    assert column(asked(repo.feast, [PREP], restaurant_id=[7]), "prep") == [(2.5, "PRESENT")]


def test_a_registry_that_is_written_is_never_found_empty(repo: Repo) -> None:
    """Feast writes it at the beginning and the end of each view's materialization; readers look all the time."""
    found: set[int] = set()
    feasts = [fresh(repo) for _ in range(3)]

    def look(feast: FeatureStore) -> None:
        for _ in range(300):
            refresh(feast)
            found.add(len(feast.list_entities()))

    def write_on() -> None:
        for _ in range(100):
            fresh(repo).registry.commit()  # type: ignore[no-untyped-call]

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write_on), *(pool.submit(look, feast) for feast in feasts)]:
            done.result()
    assert len(found) == 1


# The newest row wins.


@pytest.mark.parametrize("order", ["older first", "newer first"])
@pytest.mark.parametrize(
    ("newer", "older"),
    [((NOON, NOON - HOUR), (NOON - SECOND, NOON)), ((NOON, NOON), (NOON, NOON - SECOND))],
    ids=["by event time", "by created time"],
)
def test_the_newer_row_wins_whatever_the_order_of_writing(
    repo: Repo, read: Read, newer: tuple[datetime, datetime], older: tuple[datetime, datetime], order: str
) -> None:
    written = [(1.0, older), (2.0, newer)]
    for prep, times in written if order == "older first" else reversed(written):
        write(repo.feast, 7, prep, *times)
    assert column(read(repo.feast, [PREP], restaurant_id=[7]), "prep") == [(2.0, "PRESENT")]


def test_a_full_tie_goes_to_the_later_write_however_it_is_written(repo: Repo, read: Read) -> None:
    def served() -> float:
        return float(column(read(repo.feast, [PREP], restaurant_id=[7]), "prep")[0][0])

    write(repo.feast, 7, 1.0, NOON)
    write(repo.feast, 7, 2.0, NOON)
    assert served() == 2.0
    write_file(repo, 3.0)
    materialize(repo.feast)
    assert served() == 3.0
    write(repo.feast, 7, 4.0, NOON)
    assert served() == 4.0


def test_writers_at_once_leave_the_newest_row_whole_and_readers_see_none_but_whole_ones(repo: Repo) -> None:
    """Each row's features say the same number; rows of one key are written by eight threads in no order."""
    numbers = np.random.default_rng(5).permutation(240).tolist()
    torn: list[Any] = []

    def look() -> None:
        with quietly():
            row = repo.feast.get_online_features(
                features=[PREP, "profile:orders"], entity_rows=[{"restaurant_id": 7}]
            ).to_dict()
        if row["prep"] != row["orders"]:
            torn.append(row)

    def put(number: int) -> None:
        write(repo.feast, 7, float(number), NOON + SECOND * (number // 10), NOON + SECOND * (number % 10))
        look()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, numbers))
    assert torn == []
    with quietly():
        left = repo.feast.get_online_features(features=[PREP], entity_rows=[{"restaurant_id": 7}]).to_dict()
    assert left["prep"] == [239.0]
