"""What Feast writes to history: rows appended by any number of writers, results kept as saved datasets."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.errors import SavedDatasetLocationAlreadyExists, SavedDatasetNotFound
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.saved_dataset import SavedDataset

from tests.repo import Repo, applied_repo, offline, project_objects, quietly
from tests.test_import_rules import ROOT
from tests.test_offline import NOON, asked, mapped_view, no_files, write, write_profile

__all__ = ["no_files"]
pytestmark = pytest.mark.filterwarnings("ignore:(Saving dataset|Retrieving datasets) is an experimental feature")
HOUR = timedelta(hours=1)
PROFILE = ["profile:prep", "profile:cuisine"]


@pytest.fixture(scope="module")
def repo(valkey: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    with applied_repo(tmp_path_factory.mktemp("repo"), valkey, [*project_objects(), mapped_view()]) as made:
        yield made


def profile_rows(*preps: float | None, restaurant: int = 7) -> pd.DataFrame:
    """Rows an hour apart, from noon on."""
    times = pd.to_datetime([NOON + h * HOUR for h in range(len(preps))], utc=True)
    return pd.DataFrame(
        {
            "restaurant_id": restaurant,
            "event_time": times,
            "created": times,
            "prep": preps,
            "orders": 1,
            "cuisine": None if None in preps else "thai",
        }
    )


def append(repo: Repo, view: str, rows: pd.DataFrame) -> None:
    with quietly():
        repo.feast.write_to_offline_store(view, rows)


def files(repo: Repo, view: str) -> list[Path]:
    return sorted((repo.settings.data / "batch" / view).iterdir())


# Rows appended.


def test_rows_are_appended_as_files_of_their_own_and_read_with_the_others(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    before = files(repo, "profile")[0].read_bytes()
    append(repo, "profile", profile_rows(2.0, 3.0).astype({"event_time": "datetime64[ns, UTC]", "orders": "int32"}))
    append(repo, "profile", profile_rows(None, restaurant=8)[::-1][["cuisine", *profile_rows(0).columns[:-1]]])
    append(repo, "profile", profile_rows(5.0, 6.0).query("prep > 5.0"))
    assert [path.name for path in files(repo, "profile")][1:] == [f"rows-00000000{i}.parquet" for i in range(3)]
    assert files(repo, "profile")[0].read_bytes() == before
    found = offline(repo, asked([NOON, NOON + HOUR]), PROFILE)
    assert found[["prep", "cuisine"]].to_numpy().tolist() == [[2.0, "thai"], [6.0, "thai"]]
    assert offline(repo, asked([NOON], 8), PROFILE)[["prep", "cuisine"]].isna().to_numpy().all()


def test_rows_of_a_view_with_mapped_names_are_stored_under_the_sources(repo: Repo) -> None:
    stored = {"rid": [7], "stars": [1.0], "ts": [NOON]}
    write(repo, "mapped", "000", stored)
    append(repo, "mapped", pd.DataFrame(stored | {"stars": [2.0], "ts": [NOON + HOUR]}))
    assert pq.read_schema(files(repo, "mapped")[1]).names == ["rid", "stars", "ts"]
    assert offline(repo, asked([NOON, NOON + HOUR]), ["mapped:rating"])["rating"].tolist() == [1.0, 2.0]


def test_the_first_rows_make_the_folder(repo: Repo) -> None:
    with quietly():
        view, provider = repo.feast.get_feature_view("profile"), repo.feast._get_provider()
        provider.ingest_df_to_offline_store(view, pa.Table.from_pandas(profile_rows(1.0)))
    assert offline(repo, asked([NOON]), PROFILE)["prep"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (profile_rows(1.0).drop(columns="prep"), "lack the column 'prep', unlike those in 000.parquet"),
        (profile_rows(1.0).assign(more=1), "have the column 'more', unlike those in 000.parquet"),
    ],
)
def test_rows_with_other_columns_are_refused(repo: Repo, rows: pd.DataFrame, message: str) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    with quietly():
        view, provider = repo.feast.get_feature_view("profile"), repo.feast._get_provider()
        with pytest.raises(ValueError, match=message):
            provider.ingest_df_to_offline_store(view, pa.Table.from_pandas(rows))
    with pytest.raises(ValueError, match="columns do not match"):
        append(repo, "profile", rows)
    assert len(files(repo, "profile")) == 1


def test_a_stream_view_takes_no_rows(repo: Repo) -> None:
    with quietly():
        view, provider = repo.feast.get_stream_feature_view("by_restaurant"), repo.feast._get_provider()
        with pytest.raises(TypeError, match="by_restaurant is computed from its events"):
            provider.ingest_df_to_offline_store(view, pa.Table.from_pandas(profile_rows(1.0)))


WRITER = """
import sys, pyarrow as pa
from pathlib import Path
from feature_repo.stores.parquet_files import append_file
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    append_file(Path(sys.argv[1]), pa.table({"writer": [int(sys.argv[2])] * 3, "number": [number] * 3}))
"""


def test_writers_in_several_processes_lose_nothing_and_readers_see_whole_files(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(number)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):
        assert all(pq.read_metadata(path).num_rows == 3 for path in folder.glob("*.parquet"))
    for writer in writers:
        assert writer.communicate()[0] == ""
        assert writer.returncode == 0
    found = pd.concat(pd.read_parquet(path) for path in sorted(folder.glob("*.parquet")))
    assert sorted(path.name for path in folder.iterdir()) == [f"rows-{number:09d}.parquet" for number in range(80)]
    assert found.groupby(["writer", "number"]).size().to_dict() == {(w, n): 3 for w in range(2) for n in range(40)}
    for number in range(2):
        assert found[found["writer"] == number]["number"].is_monotonic_increasing, "a writer's later rows lie later"


def test_threads_that_write_through_feast_lose_nothing(repo: Repo) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: append(repo, "profile", profile_rows(float(n), restaurant=100 + n)), range(24)))
    rows = pd.DataFrame({"restaurant_id": range(100, 124), "event_timestamp": NOON})
    assert offline(repo, rows, PROFILE)["prep"].tolist() == [float(n) for n in range(24)]


# Saved datasets.


def save(repo: Repo, name: str, rows: Any, path: str = "data/sets/one.parquet", **more: Any) -> SavedDataset:
    """Of `profile:prep`; `more` goes to the saving or, where it says a range of time, to the retrieval."""
    bounds = {key: more.pop(key) for key in ("start_date", "end_date") if key in more}
    with quietly():
        job = repo.feast.get_historical_features(entity_df=rows, features=PROFILE, **bounds)
        storage = SavedDatasetFileStorage(path)
        saved: SavedDataset = repo.feast.create_saved_dataset(from_=job, name=name, storage=storage, **more)
    return saved


def saved_frame(repo: Repo, name: str) -> pd.DataFrame:
    with quietly():
        frame: pd.DataFrame = repo.feast.get_saved_dataset(name).to_df()
    return frame


@pytest.fixture
def sets(repo: Repo) -> Path:
    """The folder of saved datasets, empty."""
    folder = repo.settings.data / "sets"
    for path in folder.glob("*"):
        path.unlink()
    return folder


@pytest.mark.parametrize("kind", ["pandas", "SQL", "range"])
def test_a_saved_dataset_is_what_was_asked_for_when_it_was_saved(repo: Repo, sets: Path, kind: str) -> None:
    write_profile(repo, (NOON, NOON, 1.0), (NOON + HOUR, NOON, 2.0))
    frame = asked([NOON + HOUR, NOON])
    query = f"SELECT 7 AS restaurant_id, unnest([TIMESTAMPTZ '{NOON + HOUR}', TIMESTAMPTZ '{NOON}']) AS event_timestamp"
    rows = {"pandas": frame, "SQL": query, "range": None}[kind]
    saved = save(repo, kind, rows, start_date=NOON, end_date=NOON + HOUR) if rows is None else save(repo, kind, rows)
    write_profile(repo, (NOON, NOON + HOUR, 9.0), name="001")
    assert saved.min_event_timestamp == NOON
    assert saved.max_event_timestamp == NOON + HOUR
    for found in (saved.to_df(), saved_frame(repo, kind)):
        told = found.sort_values("event_timestamp")[["restaurant_id", "event_timestamp", "prep", "cuisine"]]
        assert told.to_numpy().tolist() == [[7, NOON, 1.0, "thai"], [7, NOON + HOUR, 2.0, "thai"]]
    assert [path.name for path in sets.iterdir()] == ["one.parquet"]


def test_full_names_and_no_rows_at_all_can_be_saved(repo: Repo, sets: Path) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    for instants in ([], [NOON]):
        with quietly():
            job = repo.feast.get_historical_features(
                entity_df=asked(instants).astype({"restaurant_id": "int64"}), features=PROFILE, full_feature_names=True
            )
            storage = SavedDatasetFileStorage("data/sets/one.parquet")
            repo.feast.create_saved_dataset(from_=job, name="full", storage=storage, allow_overwrite=True)
        assert saved_frame(repo, "full")["profile__prep"].tolist() == [1.0] * len(instants)


def test_a_saved_dataset_is_overwritten_only_if_that_is_allowed(repo: Repo, sets: Path) -> None:
    write_profile(repo, (NOON, NOON, 1.0), (NOON + HOUR, NOON, 2.0))
    save(repo, "twice", asked([NOON]))
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        save(repo, "twice", asked([NOON + HOUR]))
    assert saved_frame(repo, "twice")["prep"].tolist() == [1.0]
    save(repo, "twice", asked([NOON + HOUR]), allow_overwrite=True)
    assert saved_frame(repo, "twice")["prep"].tolist() == [2.0]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        save(repo, "folder", asked([NOON]), path="data/sets", allow_overwrite=True)
    with pytest.raises(SavedDatasetNotFound), quietly():
        repo.feast.get_saved_dataset("folder")


def test_of_two_that_save_at_the_same_place_at_once_one_is_told_that_it_is_taken(repo: Repo, sets: Path) -> None:
    write_profile(repo, (NOON, NOON, 1.0))
    with quietly():
        job: RetrievalJob = repo.feast.get_historical_features(entity_df=asked([NOON]), features=PROFILE)
    storage = SavedDatasetFileStorage("data/sets/one.parquet")

    def saves(_: int) -> bool:
        try:
            job.persist(storage)
        except SavedDatasetLocationAlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(saves, range(8))) == 1
    assert pq.read_table(sets / "one.parquet").num_rows == 1


def test_a_dataset_that_could_not_be_read_again_is_not_saved(repo: Repo, sets: Path) -> None:
    with pytest.raises(ValueError, match="no column 'event_timestamp'"):
        save(repo, "renamed", asked([NOON]).rename(columns={"event_timestamp": "placed_at"}))
    assert not list(sets.glob("*"))
