"""Stored predictions, on SQLite and on PostgreSQL: readers see one whole run, whoever writes, dies or comes late."""

import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from feature_repo.settings import Settings
from models.stored import (
    ETA,
    KEPT_RUNS,
    MAX_RESTAURANTS,
    PICKS,
    Run,
    RunRefused,
    StoredPicks,
    StoredPredictions,
    StoredUnreachable,
    default_url,
    open_stored,
)

HOUR = 3_600_000
NOW = 500_000 * HOUR


@pytest.fixture
def stored(predictions_url: str) -> Iterator[StoredPredictions]:
    opened = StoredPredictions(predictions_url)
    yield opened
    opened.close()


def run_of(number: int, kind: str = ETA, **other: Any) -> Run:
    """A run as of so many hours after NOW."""
    return Run(f"{kind}-{number}", kind, NOW + number * HOUR, "eta_batch", "v1", 1, 2, number)._replace(**other)


def etas(*restaurants: int, minutes: float = 20.0) -> dict[str, list[dict[str, Any]]]:
    """A chunk: each restaurant's 24 hours, an hour later taking a minute longer."""
    names = ("restaurant_id", "hour", "eta_minutes", "eta_minutes_p90")
    lines = [(r, hour, minutes + hour, minutes + hour + 5) for r in restaurants for hour in range(24)]
    return {"etas": [dict(zip(names, line, strict=True)) for line in lines]}


def publish(stored: StoredPredictions, run: Run, *restaurants: int, minutes: float = 20.0) -> int:
    """A run of one chunk."""
    stored.begin(run)
    stored.write(run, 0, etas(*restaurants, minutes=minutes))
    return stored.publish(run, run.as_of_ms + 1, 1)


def ranked(*restaurants: int, **whose: int | None) -> list[dict[str, Any]]:
    return [{"rank": rank, "restaurant_id": r, "score": 1 / (rank + 1), **whose} for rank, r in enumerate(restaurants)]


def count(url: str, table: str) -> int:
    """How many rows a table has."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = int(connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one())
    engine.dispose()
    return found


def test_before_the_first_write_there_is_no_run(stored: StoredPredictions, tmp_path: Path) -> None:
    assert stored.current(ETA) is None
    assert stored.history(PICKS) == []
    assert stored.etas([1], 0) == (None, {})
    assert stored.picks(1) is None
    assert stored.popular(None) is None
    assert list(tmp_path.iterdir()) == [], "reading makes no file"


def test_a_run_is_seen_whole_once_it_is_published(stored: StoredPredictions) -> None:
    run = run_of(1)
    assert stored.begin(run) == frozenset()
    stored.write(run, 0, etas(1, 2))
    stored.write(run, 1, etas(3, minutes=40))
    assert stored.etas([1, 2, 3], 7) == (None, {})
    assert stored.history(ETA) == [run]
    assert stored.publish(run, NOW + 9, 2) == 72
    done = run._replace(published_ms=NOW + 9, rows=72)
    assert stored.etas([3, 1, 99], 7) == (done, {1: (27.0, 32.0), 3: (47.0, 52.0)})
    assert stored.etas([], 7) == (done, {})
    assert stored.current(ETA) == done
    assert stored.history(ETA) == [done]
    assert stored.current(PICKS) is None


def test_until_the_next_run_is_published_readers_see_the_old_one(stored: StoredPredictions) -> None:
    publish(stored, run_of(1), 1, 2, minutes=10)
    later = run_of(2)
    stored.begin(later)
    stored.write(later, 0, etas(2, 3, minutes=50))
    run, found = stored.etas([1, 2, 3], 0)
    assert run is not None
    assert (run.run_id, found) == ("eta-1", {1: (10.0, 15.0), 2: (10.0, 15.0)})
    stored.publish(later, NOW, 1)
    run, found = stored.etas([1, 2, 3], 0)
    assert run is not None
    assert (run.run_id, found) == ("eta-2", {2: (50.0, 55.0), 3: (50.0, 55.0)})


def test_a_run_that_was_cut_off_says_what_is_there_and_a_chunk_replaces_itself(stored: StoredPredictions) -> None:
    run = run_of(1)
    stored.begin(run)
    stored.write(run, 0, etas(1, 2))
    stored.write(run, 2, etas(5))
    assert stored.begin(run_of(1, started_ms=77)) == {0, 2}
    stored.write(run, 0, etas(1, minutes=30))
    stored.write(run, 1, etas(3))
    assert stored.publish(run, NOW, 3) == 72
    assert stored.etas([1, 2, 3, 5], 0)[1] == {1: (30.0, 35.0), 3: (20.0, 25.0), 5: (20.0, 25.0)}
    assert [known.started_ms for known in stored.history(ETA)] == [1], "a run begins once"


def test_a_run_that_lacks_something_is_not_published(stored: StoredPredictions) -> None:
    publish(stored, run_of(1), 1)
    later = run_of(2)
    stored.begin(later)
    with pytest.raises(RunRefused, match="eta-2 of eta has 0 chunks, not at least one"):
        stored.publish(later, NOW)
    stored.write(later, 0, etas(1))
    with pytest.raises(RunRefused, match="has 1 chunks, not 2"):
        stored.publish(later, NOW, 2)
    current = stored.current(ETA)
    assert current is not None
    assert current.run_id == "eta-1"
    with pytest.raises(RunRefused, match="was not begun"):
        stored.write(run_of(3), 0, etas(1))


def test_an_older_run_neither_begins_nor_replaces_a_newer_one(stored: StoredPredictions) -> None:
    slow = run_of(1)
    stored.begin(slow)
    stored.write(slow, 0, etas(1))
    publish(stored, run_of(2), 1)
    with pytest.raises(RunRefused, match=r"eta-1 of eta is as of .* readers would go back in time"):
        stored.publish(slow, NOW, 1)
    with pytest.raises(RunRefused, match="would go back in time"):
        stored.begin(slow)
    current = stored.current(ETA)
    assert current is not None
    assert current.run_id == "eta-2"
    assert stored.begin(run_of(1, PICKS)) == frozenset(), "each kind has its own run"


def test_of_equal_instants_the_last_published_counts_and_publishing_again_changes_nothing(
    stored: StoredPredictions,
) -> None:
    publish(stored, run_of(1), 1, minutes=10)
    publish(stored, run_of(1, run_id="other", model_version="v2"), 1, minutes=30)
    assert stored.etas([1], 0)[1] == {1: (30.0, 35.0)}
    before = stored.current(ETA)
    assert before is not None
    assert stored.publish(before, NOW + 99 * HOUR, 1) == 24
    assert stored.current(ETA) == before


def test_rows_of_old_and_abandoned_runs_go_and_their_history_stays(
    stored: StoredPredictions, predictions_url: str
) -> None:
    abandoned = run_of(0)
    stored.begin(abandoned)
    stored.write(abandoned, 0, etas(*range(50)))
    runs = KEPT_RUNS + 3
    for number in range(1, runs + 1):
        publish(stored, run_of(number), number)
    assert count(predictions_url, "tiffin_etas") == KEPT_RUNS * 24
    assert count(predictions_url, "tiffin_run_chunks") == KEPT_RUNS
    assert [run.run_id for run in stored.history(ETA)] == [f"eta-{number}" for number in range(runs, -1, -1)]
    assert stored.history(ETA)[-2].rows == 24
    assert stored.etas([runs], 0)[1] == {runs: (20.0, 25.0)}


def test_picks_come_best_first_and_popular_restaurants_by_zone_or_overall(stored: StoredPredictions) -> None:
    run = run_of(1, PICKS)
    stored.begin(run)
    popular = ranked(7, zone_id=None) + ranked(8, 9, zone_id=0) + ranked(6, zone_id=-3)
    stored.write(run, 0, {"picks": ranked(5, 3, 4, customer_id=1)[::-1] + ranked(9, customer_id=2), "popular": popular})
    stored.write(run, 1, {"picks": ranked(2, customer_id=2**62)})
    assert stored.picks(1) is None
    assert stored.publish(run, NOW, 2) == 9
    done = run._replace(published_ms=NOW, rows=9)
    assert stored.picks(1) == StoredPicks([5, 3, 4], [1.0, 1 / 2, 1 / 3], done)
    assert stored.picks(2**62) == StoredPicks([2], [1.0], done)
    assert stored.picks(3) is None
    assert stored.picks(2**80) is None
    assert stored.popular(None) == StoredPicks([7], [1.0], done)
    assert stored.popular(0) == StoredPicks([8, 9], [1.0, 1 / 2], done)
    assert stored.popular(-3) == StoredPicks([6], [1.0], done)
    assert stored.popular(7) is None


def test_what_cannot_be_asked_or_written_is_refused_by_name(stored: StoredPredictions) -> None:
    publish(stored, run_of(1), 1)
    with pytest.raises(ValueError, match="hour 24"):
        stored.etas([1], 24)
    with pytest.raises(ValueError, match="5001 restaurants"):
        stored.etas(range(MAX_RESTAURANTS + 1), 0)
    assert stored.etas(range(1, MAX_RESTAURANTS + 1), 0)[1] == {1: (20.0, 25.0)}
    assert stored.etas([2**63, -(2**63) - 1, 1], 0)[1] == {1: (20.0, 25.0)}, "no column holds such an id"
    with pytest.raises(ValueError, match="table 'picks': a run of eta has etas"):
        stored.write(run_of(1), 0, {"picks": []})


def test_jobs_of_one_run_at_the_same_time_write_it_once(stored: StoredPredictions, predictions_url: str) -> None:
    run, failures = run_of(1), []

    def job() -> None:
        own = StoredPredictions(predictions_url)  # as another process would
        try:
            own.begin(run)
            for chunk in range(5):
                own.write(run, chunk, etas(chunk, chunk + 10))
            own.publish(run, NOW, 5)
        except Exception as error:
            failures.append(error)
        finally:
            own.close()

    threads = [threading.Thread(target=job) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert count(predictions_url, "tiffin_etas") == 240
    assert len(stored.etas(range(20), 0)[1]) == 10
    assert len(stored.history(ETA)) == 1


@contextmanager
def held(url: str, run: Run) -> Iterator[None]:
    """Another program's transaction, that holds what a writer of the run needs."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.execute(sa.text("UPDATE tiffin_runs SET model = 'x' WHERE run_id = :run"), {"run": run.run_id})
        yield
        connection.rollback()
    engine.dispose()


def test_readers_do_not_wait_for_a_writer_and_another_writer_not_for_ever(
    stored: StoredPredictions, predictions_url: str
) -> None:
    publish(stored, run_of(1), 1)
    hasty = StoredPredictions(predictions_url, timeout_s=0.2)
    with held(predictions_url, run_of(1)):
        run, found = hasty.etas([1], 0)
        assert run is not None
        assert (run.model, found) == ("eta_batch", {1: (20.0, 25.0)})
        with pytest.raises(StoredUnreachable, match="lock"):
            hasty.write(run_of(1), 0, etas(1))
    hasty.write(run_of(1), 0, etas(1))
    hasty.close()


def test_a_server_that_is_not_there_is_told_of_without_the_password() -> None:
    stored = StoredPredictions("postgresql://tiffin:hunter2@127.0.0.1:1/shop?password=hunter2", timeout_s=1.0)
    for ask in (lambda: stored.current(ETA), lambda: stored.begin(run_of(1)), lambda: stored.etas([1], 0)):
        with pytest.raises(StoredUnreachable) as raised:
            ask()
        text = str(raised.value)
        assert text.startswith("stored predictions in postgresql+psycopg://tiffin:***@127.0.0.1:1/shop: ")
        assert "hunter2" not in text
        assert "\n" not in text
    stored.close()


@pytest.mark.parametrize(
    "url", ["mysql://tiffin:hunter2@there/shop", "tiffin:hunter2@there", "postgresql+psycopg2://tiffin:hunter2@there/x"]
)
def test_a_url_of_something_else_is_refused_without_the_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TIFFIN_PREDICTIONS_URL: expected postgresql") as raised:
        open_stored(Settings(TIFFIN_REPO=tmp_path, TIFFIN_PREDICTIONS_URL=SecretStr(url)))
    assert "hunter2" not in str(raised.value)


def test_without_a_url_a_file_in_the_data_folder_is_made_by_the_first_write(tmp_path: Path) -> None:
    stored = open_stored(Settings(TIFFIN_REPO=tmp_path / "a repo"))
    assert stored.current(ETA) is None
    publish(stored, run_of(1), 1)
    stored.close()
    assert stat.S_ISREG((tmp_path / "a repo" / "data" / "predictions.db").stat().st_mode)
    again = open_stored(Settings(TIFFIN_REPO=tmp_path / "a repo"))
    assert again.etas([1], 0)[1] == {1: (20.0, 25.0)}
    again.close()


def test_a_path_that_cannot_be_read_or_written_is_told_of_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "predictions.db").write_bytes(b"something else altogether, of more than a header's length" * 20)
    (tmp_path / "folder" / "predictions.db").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for data in (tmp_path, tmp_path / "folder", tmp_path / "file"):
        stored = StoredPredictions(default_url(data), timeout_s=0.2)
        with pytest.raises(StoredUnreachable, match=r"^stored predictions in sqlite:///.*predictions\.db: .+$"):
            stored.current(ETA)
        with pytest.raises(StoredUnreachable, match=r"^stored predictions in sqlite:///.*predictions\.db: .+$"):
            stored.begin(run_of(1))
        stored.close()
