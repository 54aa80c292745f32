"""The kill drill of stored predictions: its short form, and its judge, who must see what is wrong."""

import json
from collections.abc import Mapping

import pytest

from deploy.batch_kills import CHUNKS, POINTS, Judge, chosen, eta, made_up_run, restaurants, row_count, rows_of
from models.stored import ETA, KINDS, PICKS, Run, StoredPicks, StoredPredictions
from tests.test_cli import failed, tiffin

KILLS = 10


def published(kind: str, number: int) -> Run:
    return made_up_run(kind, number)._replace(published_ms=1, rows=row_count(kind))


def whole(number: int, hour: int) -> dict[int, tuple[float, float]]:
    return {restaurant: eta(number, restaurant, hour) for restaurant in restaurants(number)}


def test_whatever_dies_readers_see_one_whole_run(predictions_url: str) -> None:
    done = tiffin("batch-kills", "--kills", KILLS, "--seed", 4, "--url", predictions_url)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["violations"] == 0
    assert sum(figures["points"].values()) == figures["kills"] == KILLS
    assert set(figures["points"]) <= set(POINTS)
    assert figures["reads"] > 100
    stored = StoredPredictions(predictions_url)
    for kind in KINDS:
        run = stored.current(kind)
        assert run is not None
        assert run.rows == row_count(kind)
    stored.close()
    again = failed(tiffin("batch-kills", "--kills", KILLS, "--url", predictions_url))
    assert "the drill needs an empty one of its own" in again


def test_the_rows_of_a_run_are_those_that_are_expected() -> None:
    for kind in KINDS:
        chunks = [rows_of(kind, 7, chunk) for chunk in range(CHUNKS)]
        assert sum(len(rows) for chunk in chunks for rows in chunk.values()) == row_count(kind)
    lines = [row for chunk in range(CHUNKS) for row in rows_of(ETA, 7, chunk)["etas"] if row["hour"] == 3]
    assert {row["restaurant_id"]: (row["eta_minutes"], row["eta_minutes_p90"]) for row in lines} == whole(7, 3)


def test_the_judge_lets_whole_runs_pass() -> None:
    judge = Judge()
    judge.etas(None, 3, {})
    judge.picks(2, None)
    for number in (1, 1, 2, 5):
        judge.etas(published(ETA, number), 3, whole(number, 3))
        judge.picks(2, StoredPicks(*chosen(number, 2), published(PICKS, number)))
    assert judge.violations == []
    assert judge.reads == 10


@pytest.mark.parametrize(
    ("run", "found", "word"),
    [
        (published(ETA, 5), {}, "40 rows are wrong"),
        (published(ETA, 5), dict(list(whole(5, 3).items())[1:]), "1 rows are wrong"),
        (published(ETA, 5), whole(5, 3) | {99: (1.0, 2.0)}, "1 rows are wrong, the first of 99"),
        (published(ETA, 5), whole(4, 3), "eta-5, hour 3"),
        (published(ETA, 5), whole(5, 3) | {restaurants(5)[0]: eta(4, restaurants(5)[0], 3)}, "1 rows are wrong"),
        (published(ETA, 5), whole(5, 4), "40 rows are wrong"),
        (published(ETA, 2), whole(2, 3), "eta-2 was read after eta-3"),
        (None, {}, "eta-0 was read after eta-3"),
        (None, {1: (1.0, 2.0)}, "rows are wrong"),
        (made_up_run(ETA, 5), whole(5, 3), "published"),
        (published(ETA, 5)._replace(rows=7), whole(5, 3), "rows=7"),
        (published(ETA, 5)._replace(model_version="v4"), whole(5, 3), "v4"),
    ],
)
def test_the_judge_sees_what_is_wrong(run: Run | None, found: Mapping[int, tuple[float, float]], word: str) -> None:
    judge = Judge()
    judge.etas(published(ETA, 3), 3, whole(3, 3))
    assert judge.violations == []
    judge.etas(run, 3, found)
    assert word in " ".join(judge.violations)


def test_the_judge_sees_picks_of_another_run() -> None:
    judge = Judge()
    judge.picks(2, StoredPicks(*chosen(4, 2), published(PICKS, 5)))
    judge.picks(-1, StoredPicks(chosen(5, -1)[0][:2], chosen(5, -1)[1][:2], published(PICKS, 5)))
    assert len(judge.violations) == 2
