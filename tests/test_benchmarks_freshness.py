"""The benchmark of freshness at a tiny size: that orders are seen on both sides, and the figure comes out."""

from pathlib import Path

import pytest

from benchmarks import freshness
from benchmarks.figures import Bench

pytestmark = pytest.mark.kafka


@pytest.mark.usefixtures("kafka_server")
def test_marked_orders_are_predicted_with_and_consumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness, "RATE", 100)
    (measured,) = freshness.run(Bench(tmp_path, quick=True), marks=3)
    assert measured.name == "freshness_p99_vs_bare_kafka"
    assert len(measured.over.samples) == len(measured.under.samples) == 3
    assert measured.over.median > 0 < measured.under.median
    assert measured.details["never_seen"] == 0
