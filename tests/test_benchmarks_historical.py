"""The benchmark of training sets: all sides give one answer, and the figures come out."""

from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks import historical
from benchmarks.figures import Bench
from benchmarks.offline_projects import OURS, answer_hash, batch_view, feature_store, restaurant, write_rows
from tests.repo import quietly


def test_our_training_set_is_that_of_the_query_by_hand(tmp_path: Path) -> None:
    asked = historical.entity_rows(500)
    with quietly():
        entity = restaurant()
        for number, view in enumerate(historical.VIEWS):
            write_rows(tmp_path, view, 10_000, seed=number)
        views = [batch_view(tmp_path, view, entity, ttl=timedelta(0)) for view in historical.VIEWS]
        store = feature_store(tmp_path, "ours", [entity, *views], OURS)
        ours = historical.retrieved(store, asked)
        hand = historical.by_hand(store, tmp_path, asked)
    assert answer_hash(ours, historical.NAMES) == answer_hash(hand, historical.NAMES)
    assert ours.num_rows == 500
    assert 0 < ours["a_f0"].null_count < 500, "some restaurants had no row yet"


def test_both_figures_come_out_and_feast_gives_the_same_answer(tmp_path: Path) -> None:
    pytest.importorskip("ibis", reason="Feast's DuckDB offline store is made of ibis")
    with quietly(), pytest.warns(DeprecationWarning, match="fetch_arrow_table"):
        measured = historical.measure(Bench(tmp_path, quick=True), rows=200, feature_rows=5_000, feast_rounds=1)
    assert [figure.name for figure in measured] == ["historical_vs_feast_duckdb", "historical_vs_handwritten_asof"]
    assert all(figure.ratio > 0 for figure in measured)
    assert measured[0].details["answer"] == measured[1].details["answer"]
