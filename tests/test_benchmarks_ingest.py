"""The benchmark of ingestion at a tiny size: that it runs to its end, both sides agree, and the figures come out."""

from pathlib import Path

import pytest

from benchmarks import ingest
from benchmarks.figures import FIGURES, Bench

pytestmark = pytest.mark.kafka


@pytest.mark.usefixtures("kafka_server")
def test_a_tiny_run_gives_every_figure_of_ingestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "PUSH_ROWS", 20)
    measured = ingest.run(Bench(tmp_path, quick=True), history=2_000, events=1_000, pushes=3)
    assert {each.name for each in measured} == {f.name for f in FIGURES if f.name.startswith(("ingest", "scaleout"))}
    assert all(each.ratio > 0 and len(each.over.samples) == 3 for each in measured)
    assert measured[0].details["tallies_compared_with_the_events_published"] > 10_000
