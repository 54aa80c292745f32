"""The benchmark of memory: that what it measures is there, and the figure comes out."""

from pathlib import Path

import pytest

from benchmarks import footprint
from benchmarks.figures import Bench


def test_a_restaurant_with_full_windows_is_measured_beside_feasts_batch_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "_RESTAURANTS", 3)
    (measured,) = footprint.run(Bench(tmp_path, quick=True))
    assert measured.name == "bytes_per_entity"
    assert measured.under.median > 0
    assert measured.over.median > measured.details["our_batch_features_alone"] > 0
    assert measured.details["if_its_events_lay_in_4_partitions"] > measured.over.median
