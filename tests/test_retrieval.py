"""What was written again is settled apart from all that was not: the answer is the same as if everything was sorted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from feature_repo.stores import retrieval
from feature_repo.stores.parquet_files import append_file
from feature_repo.stores.redis_client import Redis
from tests.repo import MINUTE, START, Lab, Repo, applied_repo, at, offline, order, project_objects

HOUR_US = 3_600_000_000
IDS = (7, 8, 2**31, -(2**40))
"""Some fit 32 bits, some do not."""


@pytest.fixture(scope="module")
def repo(valkey: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    with applied_repo(tmp_path_factory.mktemp("repo"), valkey, project_objects()) as made:
        yield made


@pytest.fixture(autouse=True)
def no_files(repo: Repo) -> None:
    repo.forget_files()


def history(dice: np.random.Generator, rows: int) -> list[tuple[int, int, int, float]]:
    """Rows (id, hour, hour of creation, prep): many of one id and hour, some created at one time."""
    return [
        (IDS[dice.integers(len(IDS))], int(dice.integers(12)), int(dice.integers(3)), float(i)) for i in range(rows)
    ]


def write(repo: Repo, rows: list[tuple[int, int, int, float]]) -> None:
    start = START * 1000
    table = {
        "restaurant_id": pa.array([row[0] for row in rows], pa.int64()),
        "event_time": pa.array([start + row[1] * HOUR_US for row in rows], pa.timestamp("us", "UTC")),
        "created": pa.array([start + row[2] * HOUR_US for row in rows], pa.timestamp("us", "UTC")),
        "prep": [row[3] for row in rows],
        "orders": pa.array([1] * len(rows), pa.int64()),
        "cuisine": ["thai"] * len(rows),
    }
    append_file(repo.settings.data / "batch" / "profile", pa.table(table))


@pytest.mark.parametrize("ids", [IDS, IDS[:2]])
@pytest.mark.parametrize("hashes_at_once", [1, 1000])
def test_of_rows_of_one_moment_the_last_created_and_then_the_last_written_answers(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, ids: tuple[int, ...], hashes_at_once: int
) -> None:
    monkeypatch.setattr(retrieval, "HASHES_AT_ONCE", hashes_at_once)
    dice = np.random.default_rng(4)
    rows = history(dice, 60)
    write(repo, rows[:30])
    write(repo, rows[30:])
    asked = [(i, hour) for i in ids for hour in range(-1, 13)]
    dice.shuffle(asked)
    frame = pd.DataFrame({"restaurant_id": [i for i, _ in asked]})
    frame["event_timestamp"] = [at(START + hour * 60 * MINUTE) for _, hour in asked]
    expected = []
    for i, hour in asked:
        known = [(row[1], row[2], place) for place, row in enumerate(rows) if row[0] == i and row[1] <= hour]
        expected.append(rows[max(known)[2]][3] if known else None)
    found = offline(repo, frame, ["profile:prep"])["prep"]
    assert [None if pd.isna(value) else value for value in found] == expected
    assert len({row[:2] for row in rows}) < len(rows), "some moments were written again"


def test_a_row_that_lacks_an_id_is_null_and_the_others_are_in_order(repo: Repo) -> None:
    write(repo, [(7, 0, 0, 1.0), (8, 0, 0, 2.0)])
    frame = pd.DataFrame({"restaurant_id": pd.array([8, None, 7], "Int64"), "zone_id": [3, 3, 3]})
    frame["event_timestamp"] = [at(START)] * 3
    found = offline(repo, frame, ["profile:prep", "by_restaurant:r_orders_5m", "by_zone:z_orders_5m"])
    assert found["prep"].astype(object).where(found["prep"].notna(), None).tolist() == [2.0, None, 1.0]
    assert found["z_orders_5m"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("arrival", [False, True])
def test_events_that_come_again_among_many_that_do_not_count_once(
    repo: Repo, redis_client: Redis, arrival: bool
) -> None:
    lab = Lab(repo, redis_client)
    names: list[Any] = [f"e{i}" for i in range(40)] + ["e3", "e5", "e3", "e39"]
    for number, name in enumerate(names):
        lab.publish(order(name, START + number), at=START + 50)
    lab.archive()
    frame = pd.DataFrame({"restaurant_id": [7, 7], "event_timestamp": [at(START + 39), at(START + MINUTE)]})
    found = offline(repo, frame, ["by_restaurant:r_orders_5m"], filter_by_created_timestamp=arrival)
    assert found["r_orders_5m"].tolist() == ([0, 40] if arrival else [40, 40])
