"""The benchmark of materialization: what both sides store is the same, and the figures come out."""

from pathlib import Path

from benchmarks import materialize
from benchmarks.figures import Bench


def test_both_figures_come_out_of_the_same_stored_values(tmp_path: Path) -> None:
    measured = materialize.measure(Bench(tmp_path, quick=True), rows=2_000, keys=300, rounds=1)
    assert [figure.name for figure in measured] == ["materialize_keys_vs_feast", "materialize_memory_vs_feast"]
    assert all(figure.ratio > 0 for figure in measured)
    assert 250 < measured[0].details["keys"] <= 300
