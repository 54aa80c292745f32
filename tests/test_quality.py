"""Live quality: receipts held against what came true."""

from pathlib import Path

import numpy as np
import pytest

from feature_repo.settings import Settings
from models.drift import Bins, bins_of, psi
from models.quality import ALL, Quality, drift, quality
from models.registry import Manifest
from tests.receipt_tools import archive, deliver, prediction
from tests.repo import MINUTE, START

DAY = 24 * 60 * MINUTE


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(TIFFIN_REPO=tmp_path)


def measured(settings: Settings) -> dict[tuple[str, str], Quality]:
    return {(line.zone, line.mode): line for line in quality(settings, START - DAY, START + DAY)}


def test_errors_by_zone_and_mode_are_those_worked_out_by_hand(settings: Settings) -> None:
    archive(
        settings,
        [
            prediction("a", eta=30.0),
            prediction("b", eta=30.0, zone_id=2),
            prediction("c", eta=30.0, zone_id=2, mode="stored"),
            prediction("d", eta=30.0, zone_id=2),
            prediction(None, eta=30.0),
        ],
    )
    deliver(settings, {"a": 36.0, "b": 20.0, "c": 41.0})
    found = measured(settings)
    everything = found[ALL, ALL]
    assert (everything.outcomes, everything.waiting) == (3, 1)
    assert everything.mae == pytest.approx((6 + 10 + 11) / 3)
    assert everything.bias == pytest.approx((-6 + 10 - 11) / 3)
    assert everything.coverage_p90 == pytest.approx(2 / 3)
    assert found["2", "streaming"] == Quality("2", "streaming", 1, 1, 10.0, 10.0, 1.0)
    assert found["2", "stored"].coverage_p90 == 0.0
    assert found["1", ALL].outcomes == found["1", "streaming"].outcomes == 1
    assert found[ALL, "streaming"].outcomes == 2
    assert next(iter(found)) == (ALL, ALL)


def test_an_order_counts_once_by_its_first_prediction_and_from_that_instant_on(settings: Settings) -> None:
    first, second = prediction("a", at=START - 2 * MINUTE, eta=30.0), prediction("a", at=START + MINUTE, eta=5.0)
    archive(settings, [first, second, first])
    deliver(settings, {"a": 30.0})
    assert measured(settings)[ALL, ALL] == Quality(ALL, ALL, 1, 0, 2.0, -2.0, 1.0)


def test_what_no_delivery_can_take_is_no_outcome(settings: Settings) -> None:
    archive(settings, [prediction("a", at=START + 31 * MINUTE), prediction("b"), prediction("c")])
    deliver(settings, {"a": 30.0, "b": 25.0 * 60})
    assert measured(settings)[ALL, ALL][2:5] == (0, 3, None)


def test_without_predictions_or_deliveries_there_is_nothing_to_say(settings: Settings) -> None:
    assert quality(settings, START - DAY, START + DAY) == []
    archive(settings, [prediction("a")])
    assert measured(settings)[ALL, ALL][2:4] == (0, 1)
    assert quality(settings, START + 1, START + DAY) == []


def test_the_index_is_the_sum_worked_out_by_hand() -> None:
    bins = Bins([1.0], [0.5, 0.25], 0.25)
    values = np.array([0.0, 2.0, 2.0, np.nan])
    moved = (0.25 - 0.5) * np.log(0.25 / 0.5) + (0.5 - 0.25) * np.log(0.5 / 0.25)
    assert psi(bins, values) == pytest.approx(moved)


def test_a_sample_has_not_drifted_from_itself_and_a_shifted_one_has() -> None:
    sample = np.random.default_rng(3).normal(size=5000)
    bins = bins_of(sample)
    assert psi(bins, sample) == pytest.approx(0.0, abs=1e-12)
    assert psi(bins, np.random.default_rng(4).normal(size=5000)) < 0.02
    assert psi(bins, sample + 1.0) > 0.5
    assert psi(bins, np.full(100, np.nan)) > 0.5
    assert np.isnan(psi(bins, np.empty(0)))


def test_counts_that_are_mostly_zero_and_constants_have_bins_too() -> None:
    zeros = np.array([0.0] * 95 + [3.0] * 5)
    assert sum(bins_of(zeros).shares) == pytest.approx(1.0)
    assert psi(bins_of(zeros), zeros) == pytest.approx(0.0)
    assert psi(bins_of(np.zeros(10)), np.full(10, 4.0)) > 1.0
    assert bins_of(np.full(4, np.nan)) == Bins([], [0.0], 1.0)
    assert bins_of(np.empty(0)) == Bins([], [0.0], 0.0)


def manifest(version: str, bins: dict[str, Bins]) -> Manifest:
    return Manifest(
        name="eta_streaming",
        service="eta_streaming",
        created_ms=0,
        stored_features=tuple(bins),
        derived_features=(),
        request_features=(),
        definition_hash="",
        metrics={},
        gain={},
        trained_ms=(0, 0),
        rows={},
        version=version,
        sample=bins,
    )


def test_drift_is_measured_on_what_was_served_to_the_model(settings: Settings) -> None:
    known = manifest("v1", {"a__x": Bins([1.0], [0.5, 0.5], 0.0), "a__y": Bins([1.0], [0.5, 0.5], 0.0)})
    archive(
        settings,
        [
            *(prediction(None, features={"a__x": x, "a__y": 5.0}) for x in (0.0, 2.0)),
            *(prediction(None, features={"a__x": 2.0}, model_version="v0") for _ in range(5)),
            prediction(None, mode="stored"),
        ],
    )
    found = {d.feature: d for d in drift(settings, [known, manifest("v9", {})], START - DAY, START + DAY)}
    assert {name: (d.version, d.values) for name, d in found.items()} == {"a__x": ("v1", 2), "a__y": ("v1", 2)}
    assert found["a__x"].psi == pytest.approx(0.0)
    assert found["a__y"].psi > 1.0
    assert drift(settings, [], START - DAY, START + DAY) == []
