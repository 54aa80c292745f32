"""Predictions made ahead: the model's own numbers, in runs that repeat, resume and tell what they are made of."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feast import FeatureStore

import models.batch_predict
from feature_repo.clock import from_ms
from feature_repo.settings import Settings, settings
from feature_repo.stores.parquet_files import append_file
from models.batch_predict import (
    HOURS,
    NothingToPredict,
    Report,
    Rows,
    instants,
    predict_etas,
    run_chunks,
    run_id,
)
from models.registry import Model, Registry
from models.stored import ETA, Run, RunRefused, StoredPredictions, default_url
from tests.repo import START, FakeClock, quietly
from tests.serving_stack import PREP_STATS, applied_folder, publish_model
from tests.test_cli import failed, tiffin

HOUR, DAY = 3_600_000, 86_400_000
MIDNIGHT = START // DAY * DAY
NOW = START + 25 * 60_000
RESTAURANTS = (3, 7, 11, 12, 40)
_INSTANT = pa.timestamp("us", tz="UTC")


def append(repo: Path, view: str, rows: list[Mapping[str, Any]], created: int = MIDNIGHT) -> None:
    """Batch rows, each with its event_time in ms."""
    table = pa.Table.from_pylist([{**row, "event_time": from_ms(row["event_time"])} for row in rows])
    table = table.set_column(table.column_names.index("event_time"), "event_time", table["event_time"].cast(_INSTANT))
    table = table.append_column("created", pa.array([from_ms(created)] * len(rows), _INSTANT))
    append_file(repo / "data" / "batch" / view, table)


def profile(restaurant: int, at: int) -> dict[str, Any]:
    place = {"cuisine": "thai", "latitude": 52.0 + restaurant / 100, "longitude": 13.0}
    return {"restaurant_id": restaurant, "event_time": at, "zone_id": restaurant % 3} | place


def prep(restaurant: int, at: int, **other: float) -> dict[str, Any]:
    stats = PREP_STATS | {"mean_prep_minutes_28d": 5.0 + restaurant, "orders_28d": restaurant}
    return {"restaurant_id": restaurant, "event_time": at} | stats | other


def write_history(repo: Path) -> None:
    """Profiles of all, the first a day older; figures of all but the last restaurant, at midnight."""
    first, *others = RESTAURANTS
    append(repo, "restaurant_profile", [profile(first, MIDNIGHT - DAY), *(profile(r, MIDNIGHT) for r in others)])
    append(repo, "restaurant_prep_stats", [prep(r, MIDNIGHT) for r in RESTAURANTS[:-1]])


class Job:
    """A repository of its own with batch history and a model, and a database."""

    def __init__(self, repo: Path) -> None:
        self.settings = Settings(TIFFIN_REPO=repo)
        self.store = FeatureStore(repo_path=str(repo))
        self.clock = FakeClock(NOW)
        self.stored = StoredPredictions(default_url(self.settings.data))

    def run(self, stored: StoredPredictions | None = None, as_of_ms: int | None = None) -> Report:
        """Predict everything, by chunks of two restaurants."""
        with quietly():
            return predict_etas(self.store, self.settings, stored or self.stored, self.clock, as_of_ms=as_of_ms)

    def by_hand(self, restaurant: int, hour: int) -> tuple[float, float]:
        """What the model in use says, a row at a time, of features read for that restaurant alone."""
        model = Registry(self.settings.data / "models").load("eta_batch")
        features = {f"restaurant_prep_stats__{k}": v for k, v in prep(restaurant, 0).items() if restaurant != 40}
        features |= {f"restaurant_profile__{k}": v for k, v in profile(restaurant, 0).items()}
        known = {name: features.get(name) for name in model.vector.stored}
        start = (NOW // DAY * DAY) + hour * HOUR
        median, p90 = model.predict(model.vector.row(known, (start if hour >= 12 else start + DAY) + HOUR // 2))
        return float(median[0]), float(p90[0])


@pytest.fixture
def job(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    repo = shutil.copytree(applied_folder(tmp_path_factory.getbasetemp()), tmp_path / "repo")
    write_history(repo)
    monkeypatch.setenv("TIFFIN_REPO", str(repo))
    monkeypatch.setattr(models.batch_predict, "CHUNK_RESTAURANTS", 2)
    settings.cache_clear()
    with quietly():
        made = Job(repo)
    yield made
    made.stored.close()
    settings.cache_clear()


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows the models were asked for, call by call, from now on."""
    calls: list[int] = []
    predict = Model.predict

    def counted(self: Model, matrix: Any) -> Any:
        calls.append(len(matrix))
        return predict(self, matrix)

    monkeypatch.setattr(Model, "predict", counted)
    return calls


class Dies(StoredPredictions):
    """A writer that is cut off before its second chunk."""

    def write(self, run: Run, chunk: int, rows: Rows) -> None:
        if chunk == 1:
            raise KeyboardInterrupt
        super().write(run, chunk, rows)


def test_every_hour_is_predicted_for_its_middle_where_it_comes_next() -> None:
    as_of = MIDNIGHT + 22 * HOUR
    found = instants(as_of)
    assert found[22] == as_of + HOUR // 2
    assert found[23] == as_of + HOUR + HOUR // 2
    assert found[0] == as_of + 2 * HOUR + HOUR // 2
    assert found[21] == as_of + 23 * HOUR + HOUR // 2
    assert [from_ms(instant).hour for instant in found] == list(range(HOURS))


def test_what_is_stored_is_what_the_model_says_row_by_row(job: Job) -> None:
    done = job.run()
    assert done.rows == done.written == len(RESTAURANTS) * HOURS
    values = set()
    for hour in range(HOURS):
        run, found = job.stored.etas([*RESTAURANTS, 99], hour)
        assert run is not None
        assert run.run_id == done.run.run_id
        assert found == {restaurant: job.by_hand(restaurant, hour) for restaurant in RESTAURANTS}
        values |= set(found.values())
    assert len(values) > len(RESTAURANTS), "restaurants and hours differ"


def test_a_run_keeps_what_it_was_made_by(job: Job) -> None:
    append(job.settings.repo, "restaurant_prep_stats", [prep(3, MIDNIGHT - 6 * DAY)])  # a later row is in force
    job.run()
    run = job.stored.current(ETA)
    assert run is not None
    assert run.as_of_ms == NOW // HOUR * HOUR
    assert (run.started_ms, run.published_ms, run.rows) == (NOW, NOW, len(RESTAURANTS) * HOURS)
    assert (run.model, run.model_version) == ("eta_batch", Registry(job.settings.data / "models").current("eta_batch"))
    assert (run.input_from_ms, run.input_until_ms) == (MIDNIGHT - DAY, MIDNIGHT)


def test_a_run_that_was_cut_off_goes_on_where_it_was(job: Job, scored: list[int]) -> None:
    dying = Dies(default_url(job.settings.data))
    with pytest.raises(KeyboardInterrupt):
        job.run(dying)
    dying.close()
    assert job.stored.current(ETA) is None
    scored.clear()
    job.clock.now += 20 * 60_000  # within the hour: the same instant
    done = job.run()
    assert [rows for rows in scored if rows > 2] == [48, 24], "the first two restaurants are not scored again"
    assert (done.rows, done.written) == (120, 72)
    assert [run.run_id for run in job.stored.history(ETA)] == [done.run.run_id]
    assert job.stored.etas(RESTAURANTS, 5)[1] == {r: job.by_hand(r, 5) for r in RESTAURANTS}


def test_the_same_run_again_is_the_same_run(job: Job) -> None:
    first = job.run()
    before = job.stored.current(ETA)
    job.clock.now += 60_000
    again = job.run()
    assert again.run.run_id == first.run.run_id
    assert (again.rows, again.written) == (first.rows, 0)
    assert job.stored.current(ETA) == before
    job.clock.now += HOUR
    assert job.run().run.run_id != first.run.run_id


def test_another_model_or_another_input_makes_another_run(job: Job) -> None:
    first = job.run()
    append(job.settings.repo, "restaurant_prep_stats", [prep(7, MIDNIGHT, orders_28d=999)], created=MIDNIGHT + 1)
    corrected = job.run()
    version = publish_model(job.settings, job.store, "eta_batch", seed=2)
    promoted = job.run()
    assert len({report.run.run_id for report in (first, corrected, promoted)}) == 3
    assert promoted.run.model_version == version != first.run.model_version
    assert promoted.written == 120
    current = job.stored.current(ETA)
    assert current is not None
    assert current.run_id == promoted.run.run_id
    assert job.stored.etas([12], 13)[1] == {12: job.by_hand(12, 13)}


def test_only_what_was_known_by_the_instant_counts(job: Job) -> None:
    append(job.settings.repo, "restaurant_profile", [profile(50, MIDNIGHT + DAY)])
    before = job.run(as_of_ms=NOW - HOUR)
    assert before.rows == 120
    with pytest.raises(ValueError, match="what comes is not known yet"):
        job.run(as_of_ms=NOW + 1)
    job.clock.now += DAY
    assert job.run().rows == 144
    with pytest.raises(RunRefused, match="readers would go back in time"):
        job.run(as_of_ms=NOW)


def test_without_restaurants_rows_in_force_or_a_model_that_fits_nothing_is_published(job: Job) -> None:
    job.clock.now += 40 * DAY
    with pytest.raises(NothingToPredict, match="no batch row of eta_batch is in force at"):
        job.run()
    job.clock.now = NOW
    publish_model(job.settings, job.store, "eta_batch", definition_hash="another", seed=3)
    with pytest.raises(NothingToPredict, match="they are defined otherwise by now; train again"):
        job.run()
    publish_model(job.settings, job.store, "eta_batch", seed=4)
    shutil.rmtree(job.settings.data / "batch" / "restaurant_profile")
    with pytest.raises(NothingToPredict, match="restaurant_profile holds no Parquet file"):
        job.run()
    assert job.stored.history(ETA) == []


def test_chunks_that_are_there_are_not_computed_and_progress_counts_them(tmp_path: Path) -> None:
    stored = StoredPredictions(default_url(tmp_path))
    run = Run(run_id("x", 1), ETA, 0, "m", "v", 0, 0, 0)
    row = {"restaurant_id": 1, "eta_minutes": 1.0, "eta_minutes_p90": 2.0}
    stored.begin(run)
    stored.write(run, 0, {"etas": [{**row, "hour": 0}]})

    def never() -> Rows:
        raise AssertionError("a chunk that is there was computed")

    told: list[tuple[float, float]] = []
    chunks = [never, lambda: {"etas": [{**row, "hour": 1}, {**row, "hour": 2}]}]
    assert run_chunks(stored, run, chunks, lambda: 5, lambda done, total: told.append((done, total))) == (3, 2)
    assert told == [(1, 2), (2, 2)]
    stored.close()


def test_names_of_runs_differ_with_whatever_they_follow_from() -> None:
    assert run_id("eta", 12, "3") == run_id("eta", 12, "3")
    assert len({run_id("eta", 12, "3"), run_id("eta", 1, "23"), run_id("eta", 12, "4"), run_id("picks", 12, "3")}) == 4


def test_the_commands_predict_ahead_and_show_the_runs(job: Job) -> None:
    start, origin = from_ms(NOW).isoformat(), str(time.time())

    def run(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        clock = {"TIFFIN_CLOCK_START": start, "TIFFIN_CLOCK_ORIGIN": origin}
        return tiffin("--repo", job.settings.repo, *arguments, cwd=None, **clock, **more)

    def command(*arguments: str) -> str:
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert command("runs") == "eta: no run yet\npicks: no run yet\n"
    earlier = f"{from_ms(NOW - 2 * HOUR):%Y-%m-%dT%H:%M:%S}"
    assert "120 rows, 120 of them written now" in command("batch-predict", "--as-of", earlier)
    assert "120 rows, 120 of them written now" in command("batch-predict")
    assert "120 rows, 0 of them written now" in command("batch-predict")
    _, newest, oldest, _ = command("runs").splitlines()
    current = job.stored.current(ETA)
    assert current is not None
    assert newest.split()[:3] == ["*", current.run_id, f"{from_ms(NOW):%Y-%m-%dT%H:00}"]
    assert not oldest.startswith("*")
    assert f"eta_batch {current.model_version}" in oldest

    assert "readers would go back in time" in failed(run("batch-predict", "--as-of", earlier))
    lost = "postgresql+psycopg://tiffin:hunter2@127.0.0.1:1/x"
    for name in ("batch-predict", "runs"):
        line = failed(run(name, TIFFIN_PREDICTIONS_URL=lost))
        assert line.startswith("tiffin: stored predictions in postgresql+psycopg://tiffin:***@127.0.0.1:1/x: ")
