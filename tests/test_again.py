"""What is in files again is looked for once, and anew whenever the files are others."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.stores import again
from feature_repo.stores.again import Again
from feature_repo.stores.duckdb_client import connect as connect_duckdb
from feature_repo.stores.duckdb_client import literal
from feature_repo.stores.parquet_files import publish_file
from tests.repo import MINUTE, START, Lab, order
from tests.test_offline_repeats import asked


def hashes(*files: Path) -> str:
    return " UNION ALL ".join(f"SELECT hash(id) AS hash FROM read_parquet({literal(str(file))})" for file in files)


def written(file: Path, *ids: str) -> Path:
    publish_file(file, pa.table({"id": list(ids)}))
    return file


def found(lab: Lab, looked_for: Again, *files: Path) -> int:
    with connect_duckdb(lab.repo.settings) as connection:
        return len(looked_for.find(connection, files, hashes(*files)))


def test_files_more_or_less_or_written_anew_are_looked_through(lab: Lab, tmp_path: Path) -> None:
    looked_for = Again(tmp_path / "kept")
    one, other = written(tmp_path / "1.parquet", "a", "b", "b"), written(tmp_path / "2.parquet", "a", "c")
    assert [found(lab, looked_for, one), found(lab, looked_for, one, other), found(lab, looked_for, other)] == [1, 2, 0]
    same = one.stat()
    one.unlink()
    written(one, "a", "b", "c")
    os.utime(one, ns=(same.st_atime_ns, same.st_mtime_ns + 1))
    assert [found(lab, looked_for, one), found(lab, looked_for, one, other)] == [0, 2]


def test_the_same_files_are_not_looked_through_again(lab: Lab, tmp_path: Path) -> None:
    looked_for, file = Again(tmp_path / "kept"), written(tmp_path / "1.parquet", "a", "a")
    assert found(lab, looked_for, file) == 1
    (kept,) = (tmp_path / "kept").iterdir()
    np.save(kept, np.array([1, 2, 3], np.uint64))
    assert found(lab, looked_for, file) == 3, "what was kept is what is told"
    kept.write_bytes(kept.read_bytes()[:20])
    assert found(lab, looked_for, file) == 1, "but not if it cannot be read"


def test_so_many_answers_are_kept_those_used_last(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "KEPT", 3)
    looked_for = Again(tmp_path / "kept")
    files = [written(tmp_path / f"{i}.parquet", "a", "a", str(i)) for i in range(5)]
    for file in (*files[:3], files[0], *files[3:]):
        found(lab, looked_for, file)
    assert len(list((tmp_path / "kept").iterdir())) == 3


def test_where_nothing_can_be_kept_it_is_found_all_the_same(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert found(lab, Again(tmp_path / "file" / "kept"), written(tmp_path / "1.parquet", "a", "a")) == 1


def test_a_repeat_that_is_archived_between_two_questions_is_found(lab: Lab) -> None:
    lab.publish(order("a", START), order("b", START))
    lab.archive()
    assert asked(lab, "by_restaurant:r_orders_5m", START) == [2]
    lab.clock.now = START + MINUTE
    lab.publish(order("a", START), order("c", START))
    lab.archive()
    assert asked(lab, "by_restaurant:r_orders_5m", START) == [3]


def test_a_column_is_full_only_where_every_file_says_so(lab: Lab) -> None:
    lab.publish(order("a", START))
    lab.archive()
    assert asked(lab, "by_restaurant:r_items_known", START) == [1]
    lab.clock.now = START + MINUTE
    lab.publish(order("b", START, item_count=None))
    lab.archive()
    assert asked(lab, "by_restaurant:r_items_known", START) == [1]
