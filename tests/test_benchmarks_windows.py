"""The benchmark of windows in history: both sides give one answer, and the figure comes out."""

from pathlib import Path

import pytest

from benchmarks import windows
from benchmarks.figures import Bench
from tests.repo import quietly


def test_the_figure_comes_out_of_one_answer(tmp_path: Path) -> None:
    with quietly():
        measured = windows.measure(Bench(tmp_path, quick=True), events=20_000, rows=3_000)
    assert measured.name == "windows_vs_handwritten_sql"
    assert measured.ratio > 0
    assert measured.details["events_counted_in_30m"] > 0


def test_another_answer_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "wrong.sql"
    wrong.write_text(windows.BY_HAND.read_text().replace("1800000", "100000"))
    monkeypatch.setattr(windows, "BY_HAND", wrong)
    with quietly(), pytest.raises(ValueError, match="the answers differ"):
        windows.measure(Bench(tmp_path, quick=True), events=20_000, rows=3_000)
