"""The benchmark of one row's prediction: both sides answer alike, and the figure comes out."""

from pathlib import Path

import pytest

from benchmarks.figures import Bench
from benchmarks.floor import measure
from tests.repo import quietly


def test_the_figure_comes_out_over_sides_that_answer_alike(tmp_path: Path) -> None:
    with quietly():
        (found,) = measure(Bench(tmp_path, quick=True), days=1, rows=120)
    assert found.name == "model_p50_vs_onnx_floor"
    assert len(found.over.samples) == len(found.under.samples) == 3
    assert found.ratio == pytest.approx(found.over.median / found.under.median)
    assert found.details["rows"] == 120
    assert set(found.details["batches"]) == {"16", "100"}
