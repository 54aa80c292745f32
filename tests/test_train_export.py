"""Training learns, repeats itself and is measured; what ONNX says otherwise is not exported."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

import models.train
from feature_repo.clock import from_ms, to_ms
from models.dataset import Dataset, split
from models.export import TOLERANCE, ExportRefused, convert, export, manifest_of, probes, verify
from models.registry import Scorer
from models.train import Booster, TooFewRows, Trained, train
from models.vector import REQUEST_FEATURES, FeatureVector, request_features

START = to_ms(datetime(2026, 11, 2, tzinfo=UTC))
MINUTE = 60_000
STORED = ("profile__zone_id", "stats__mean_prep", "recent__orders_10m", "couriers__available")


def made_up_orders(count: int, seed: int = 1) -> Dataset:
    """An order every 4 minutes; busy hours, long preparation and few couriers make it late; a tenth is missing."""
    dice = np.random.default_rng(seed)
    event_ms = START + np.arange(count, dtype=np.int64) * 4 * MINUTE
    stored = np.stack(
        [dice.integers(0, 5, count), dice.normal(12, 4, count), dice.poisson(3, count), dice.poisson(6, count)], axis=1
    ).astype(np.float64)
    request = np.array([list(request_features(int(t)).values()) for t in event_ms])
    late = 15 + stored[:, 1] + 2 * stored[:, 2] - stored[:, 3] + 4 * request[:, 0]
    label = np.clip(late + dice.gamma(2.0, 3.0, count), 1, 180)
    stored[dice.random(stored.shape) < 0.1] = np.nan
    columns = [*STORED, *REQUEST_FEATURES]
    features = pd.DataFrame(np.hstack([stored, request]), columns=columns)
    ids = np.array([f"o{i}" for i in range(count)], dtype=object)
    return Dataset("eta_streaming", FeatureVector(STORED), features, label, ids, event_ms)


def neighbours(count: int) -> Dataset:
    """Orders whose only useful feature takes two values with no float32 between them."""
    orders = made_up_orders(count)
    low = np.float32(37.444)
    high = np.nextafter(low, np.float32(np.inf))
    is_high = np.arange(count) % 2 == 1
    features = orders.features.assign(stats__mean_prep=np.where(is_high, high, low).astype(np.float64))
    return Dataset(orders.service, orders.vector, features, 20.0 + 40 * is_high, orders.order_id, orders.event_ms)


def halves(orders: Dataset, share: float = 0.8) -> tuple[Dataset, Dataset]:
    return split(orders, from_ms(int(orders.event_ms[int(len(orders) * share)])))


@pytest.fixture(scope="module")
def orders() -> Dataset:
    return made_up_orders(4000)


@pytest.fixture(scope="module")
def trained(orders: Dataset) -> Trained:
    return train(*halves(orders))


def test_the_models_beat_their_baseline_and_p90_covers_nine_in_ten(trained: Trained) -> None:
    model, baseline = trained.metrics["model"], trained.metrics["baseline"]
    assert model["mae"] < 0.8 * baseline["mae"]
    assert model["rmse"] < 0.8 * baseline["rmse"]
    assert model["pinball_p90"] < 0.8 * baseline["pinball_p90"]
    assert 0.84 < model["coverage_p90"] < 0.96


def test_metrics_are_what_their_definitions_say(orders: Dataset, trained: Trained) -> None:
    training, test = halves(orders)
    median = np.median(training.label)
    assert trained.metrics["baseline"]["mae"] == pytest.approx(np.abs(test.label - median).mean())
    assert trained.metrics["baseline"]["pinball_median"] == pytest.approx(np.abs(test.label - median).mean() / 2)
    assert trained.rows == {"train": len(training), "validation": 480, "test": len(test)}
    assert trained.range_ms == (int(training.event_ms[0]), int(training.event_ms[-1]))


def test_gain_names_every_feature_and_finds_the_useful_one(trained: Trained) -> None:
    for gain in trained.gain.values():
        assert set(gain) == set(trained.vector.names)
        assert max(gain, key=lambda name: gain[name]) in {"stats__mean_prep", "recent__orders_10m"}


def test_training_again_gives_the_same_trees(orders: Dataset, trained: Trained) -> None:
    again = train(*halves(orders))
    for name, booster in trained.boosters.items():
        assert again.boosters[name].model_to_string() == booster.model_to_string()


def test_too_many_rows_are_sampled_evenly_over_time(orders: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.train, "MAX_ROWS", 500)
    training, test = halves(orders)
    sampled = train(training, test)
    assert sampled.rows["train"] == 500
    assert sampled.range_ms == (int(training.event_ms[0]), int(training.event_ms[-1]))


def test_too_few_rows_are_refused(orders: Dataset) -> None:
    few = orders.take(np.arange(99))
    with pytest.raises(TooFewRows, match="99 rows to train on"):
        train(few, orders)


def test_onnx_agrees_on_real_rows_and_on_missing_values(orders: Dataset, trained: Trained) -> None:
    files = export(trained, orders.matrix)
    assert set(files) == {"median.onnx", "p90.onnx"}
    rows = probes(orders.matrix)
    assert np.isnan(rows[-1]).all(), "a row of nothing but missing values is tried"
    assert all(np.isnan(rows[:, column]).sum() > 50 for column in range(rows.shape[1]))
    for name, booster in trained.boosters.items():
        assert verify(name, files[f"{name}.onnx"], booster, rows) < TOLERANCE * 10


def test_a_model_that_disagrees_in_one_leaf_is_refused_with_the_row(orders: Dataset, trained: Trained) -> None:
    booster = trained.boosters["median"]
    onnx = convert("median", booster)
    tampered = Booster(model_str=booster.model_to_string())
    tampered.set_leaf_output(0, 3, tampered.get_leaf_output(0, 3) + 0.5)
    with pytest.raises(ExportRefused, match="median: ONNX differs from LightGBM by") as refused:
        verify("median", onnx, tampered, orders.matrix)
    row = orders.matrix[refused.value.row : refused.value.row + 1]
    assert abs(Scorer(onnx)(row)[0] - np.asarray(tampered.predict(row))[0]) == pytest.approx(0.5, abs=1e-3)
    np.testing.assert_array_equal(refused.value.values, row[0])


def test_an_unknown_value_is_not_read_as_zero_where_training_never_missed_it() -> None:
    orders = made_up_orders(2000)
    prep = np.random.default_rng(3).uniform(10, 30, 2000)
    features = orders.features.assign(stats__mean_prep=prep)
    known = Dataset(orders.service, orders.vector, features, 2 * prep, orders.order_id, orders.event_ms)
    booster = train(*halves(known)).boosters["median"]
    rows = np.repeat(known.matrix[:1], 3, axis=0)
    rows[:, STORED.index("stats__mean_prep")] = [0.0, np.nan, 100.0]
    as_zero, unknown, as_much = np.asarray(booster.predict(rows))
    assert as_zero + 8 < unknown < as_much - 8, "neither the least nor the greatest: somewhere in the middle"


def test_values_without_a_float32_between_them_stay_apart() -> None:
    orders = neighbours(600)
    trained = train(*halves(orders))
    median = Scorer(export(trained, orders.matrix)["median.onnx"])(orders.matrix)
    low, high = median[orders.label == 20.0], median[orders.label == 60.0]
    assert high.min() - low.max() > 20


def test_without_rounding_thresholds_down_they_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.train, "float32_thresholds", lambda booster: booster)
    orders = neighbours(600)
    with pytest.raises(ExportRefused, match="differs from LightGBM by"):
        export(train(*halves(orders)), orders.matrix)


def test_a_constant_label_makes_a_constant_model() -> None:
    orders = neighbours(400)
    flat = Dataset(orders.service, orders.vector, orders.features, np.full(400, 30.0), orders.order_id, orders.event_ms)
    files = export(train(*halves(flat)), flat.matrix)
    np.testing.assert_allclose(Scorer(files["p90.onnx"])(flat.matrix), 30.0, atol=1e-4)


def test_the_manifest_holds_what_was_trained(trained: Trained) -> None:
    manifest = manifest_of(trained, "abc", START)
    assert (manifest.name, manifest.service, manifest.definition_hash) == ("eta_streaming", "eta_streaming", "abc")
    assert manifest.stored_features + manifest.request_features == trained.vector.names
    assert manifest.metrics["model"]["mae"] == trained.metrics["model"]["mae"]
