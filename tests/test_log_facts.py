"""What is found once of a set of the log's files: it is used again, and never where it could be wrong."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo.stores import log_facts, retrieval
from feature_repo.stores.duckdb_client import connect
from feature_repo.stores.log_facts import RECORDS, TICK_NS, Facts, Place, full_columns, record, recorded
from feature_repo.stores.redis_client import Redis
from tests.repo import ORDERS, START, Lab, Repo, applied_repo, at, offline, order, project_objects

ORDERS_5M, ITEMS_KNOWN, BASKET_MEAN = (
    f"by_restaurant:r_{name}" for name in ("orders_5m", "items_known", "basket_mean")
)


@pytest.fixture(scope="module")
def repo(valkey: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    with applied_repo(tmp_path_factory.mktemp("repo"), valkey, project_objects()) as made:
        yield made


@pytest.fixture
def lab(repo: Repo, redis_client: Redis, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Records are believed however shortly before them the files were written."""
    repo.forget_files()
    monkeypatch.setattr(log_facts, "TICK_NS", -(10**18))
    return Lab(repo, redis_client)


def answer(lab: Lab, ref: str = ORDERS_5M, instant: int = START + 1000) -> object:
    """A feature of restaurant 7."""
    rows = {"restaurant_id": [7], "zone_id": [3], "event_timestamp": [at(instant)]}
    return offline(lab.repo, pa.table(rows), [ref])[ref.partition(":")[2]].tolist()[0]


def log_of(lab: Lab) -> Path:
    return lab.repo.settings.data / "log" / ORDERS


def files(lab: Lab) -> list[Path]:
    return sorted(log_of(lab).glob("date=*/*.parquet"))


def records(lab: Lab) -> list[Path]:
    return sorted(log_of(lab).glob(".facts-*"))


def copied(file: Path, name: str) -> Path:
    """A file with the same events at the offsets behind them."""
    table = pq.read_table(file)
    offsets = pc.add(table["offset"], len(table))
    copy = file.with_name(name)
    pq.write_table(table.set_column(table.schema.get_field_index("offset"), "offset", offsets), copy)
    return copy


def test_ids_of_the_same_files_are_looked_through_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.publish(order("a", START), order("b", START), order("a", START))
    lab.archive()
    assert answer(lab) == 2
    assert len(records(lab)) == 1
    monkeypatch.setattr(retrieval, "_find", None)  # who looks again, fails
    assert answer(lab) == 2
    assert answer(lab, BASKET_MEAN) is not None


def test_a_file_more_is_looked_through_and_one_less_is_forgotten(lab: Lab) -> None:
    lab.publish(order("a", START), order("b", START))
    lab.archive()
    assert answer(lab) == 2
    copy = copied(files(lab)[0], "0-2.parquet")
    assert answer(lab) == 2, "they are repeats"
    assert len(records(lab)) == 2
    copy.unlink()
    assert answer(lab) == 2
    assert len(records(lab)) == 2, "the first one holds again"


def test_a_file_in_the_place_of_one_of_its_size_and_time_is_another(lab: Lab) -> None:
    lab.publish(order("a", START), order("b", START))
    lab.archive()
    (file,) = files(lab)
    table = pq.read_table(file)
    found, states = [], []
    for names in (["a", "b"], ["a", "a"]):
        ids = pa.array(names, table.schema.field("event_id").type)
        changed = table.set_column(table.schema.get_field_index("event_id"), "event_id", ids)
        pq.write_table(changed, file, compression="none", use_dictionary=False)
        os.utime(file, ns=(START, START))
        states.append((file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_ino))
        found.append(answer(lab))
    assert states[0] == states[1]
    assert found == [2, 1]


def test_a_column_with_a_null_is_not_full_and_nulls_are_not_counted(lab: Lab) -> None:
    lab.publish(order("a", START, item_count=1), order("b", START, item_count=None))
    lab.archive()
    for _ in range(2):
        assert [answer(lab, ref) for ref in (ITEMS_KNOWN, ORDERS_5M)] == [1, 2]
    with connect(lab.repo.settings) as connection:
        full = full_columns(connection, files(lab))
    assert "item_count" not in full
    assert {"order_id", "event_id", "offset"} <= full


def test_a_column_that_one_of_the_files_lacks_is_not_full(lab: Lab) -> None:
    lab.publish(order("a", START))
    lab.archive()
    (file,) = files(lab)
    lacking = file.with_name("0-9.parquet")
    pq.write_table(pq.read_table(file).drop_columns("order_id"), lacking)
    with connect(lab.repo.settings) as connection:
        assert "order_id" in full_columns(connection, [file])
        assert "order_id" not in full_columns(connection, [file, lacking])


def test_where_little_of_the_files_can_matter_little_is_looked_through_and_nothing_kept(lab: Lab) -> None:
    lab.publish(*(order(name, START) for name in "abc"))
    lab.archive()
    assert answer(lab, instant=START + 3_600_000) == 0
    assert records(lab) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"event_id": ["a"]}), tmp_path / "0-0.parquet")
    return tmp_path


def here(folder: Path) -> Place:
    return Place(folder, "0", (folder / "0-0.parquet").stat().st_ctime_ns)


def test_facts_are_read_as_they_were_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_facts, "TICK_NS", 0)
    for facts in (Facts(np.array([1, 2**64 - 1], np.uint64), frozenset({"a", "b"})), Facts(np.array([], np.uint64))):
        record(here(folder), facts)
        found = recorded(here(folder))
        assert found is not None
        assert (found.repeated.tolist(), found.full) == (facts.repeated.tolist(), facts.full)


def test_facts_of_a_file_that_changed_just_before_are_not_believed(folder: Path) -> None:
    record(here(folder), Facts(np.array([], np.uint64)))
    changed = here(folder).path.stat().st_mtime_ns
    assert recorded(here(folder)._replace(changed=changed - TICK_NS + 1)) is None
    assert recorded(here(folder)._replace(changed=changed - TICK_NS)) is not None


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing more", b"PAR1" * 9])
def test_what_cannot_be_read_is_as_if_it_was_not_there(folder: Path, content: bytes) -> None:
    here(folder).path.write_bytes(content)
    assert recorded(here(folder)._replace(changed=0)) is None


def test_a_table_without_the_facts_is_none(folder: Path) -> None:
    pq.write_table(pa.table({"hash": pa.array([], pa.uint64())}), here(folder).path)
    assert recorded(here(folder)._replace(changed=0)) is None


def test_where_nothing_can_be_written_nothing_is_kept(folder: Path) -> None:
    here(folder).path.mkdir()
    record(here(folder), Facts(np.array([], np.uint64)))
    assert recorded(here(folder)._replace(changed=0)) is None
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["0-0.parquet"]


def test_a_folder_keeps_the_facts_of_so_many_sets_of_files(folder: Path) -> None:
    for number in range(RECORDS + 3):
        record(here(folder)._replace(digest=str(number)), Facts(np.array([], np.uint64)))
        os.utime(folder / f".facts-{number}", ns=(number, number))
    assert len(list(folder.glob(".facts-*"))) == RECORDS
    assert (folder / f".facts-{RECORDS + 2}").exists()
