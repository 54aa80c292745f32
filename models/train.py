"""LightGBM, and the only module that imports it: quantile regression of delivery minutes, median and 90th percentile.

Inputs are float32, here as in serving, and every threshold of the trained trees is rounded down to float32. LightGBM
puts a threshold t between two values a <= t < b of its training data; since a and b are float32, the greatest float32
below or at t still separates them, and `x <= t` decides the same for *every* float32 x. ONNX keeps thresholds in
float32, rounded to nearest: without the rounding down, neighbouring values could fall on the other side there.

LightGBM reads a missing value as 0 where training never saw one missing: no couriers known would be no couriers there.
So each stored feature is hidden in one row of a hundred, which teaches every split where an unknown value belongs.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import lightgbm
import numpy as np
from numpy.typing import NDArray

from feature_repo.progress_bar import Advance
from models.dataset import Dataset
from models.drift import Bins, bins_of
from models.vector import DERIVED, FeatureVector, Matrix

Booster = lightgbm.Booster

QUANTILES: Mapping[str, float] = {"median": 0.5, "p90": 0.9}
MAX_ROWS = 200_000
"""Of more rows training takes an even sample over time, so that its own time is bounded."""

MIN_ROWS = 100
VALIDATION_SHARE = 0.15
HIDDEN_SHARE = 0.01
MAX_ROUNDS = 400
PATIENCE = 30
_SEED = 7
_PARAMETERS = {
    "objective": "quantile",
    "metric": "quantile",  # pinball loss
    "min_data_in_leaf": 50,  # a 90th percentile of fewer rows is a few orders' bad luck
    "feature_fraction": 0.8,
    "seed": _SEED,
    "deterministic": True,
    "force_row_wise": True,  # otherwise LightGBM times both layouts, and picks by the machine's mood
    "verbosity": -1,
}


@dataclass(frozen=True)
class Size:
    """How large a model may be: trees at most, leaves of each, and how far each tree corrects those before it."""

    trees: int = MAX_ROUNDS
    leaves: int = 15
    rate: float = 0.08


class TooFewRows(ValueError):
    """Too few rows to learn a percentile from."""


@dataclass(frozen=True)
class Trained:
    """A pair of quantile models and what is known of them.

    `metrics` has `model` and `baseline` (the training labels' own quantiles, the same for every order), each with mae,
    rmse (minutes, of the median), pinball_median, pinball_p90 and coverage_p90 (share of test labels at or below it).
    `gain` is the total gain of each feature's splits, by quantile. `range_ms` is the first and the last instant trained
    on. `rows` counts train, validation (the latest of train) and test. `bins` has the stored features' values in train.
    """

    service: str
    vector: FeatureVector
    boosters: Mapping[str, Booster]
    metrics: Mapping[str, Mapping[str, float]]
    gain: Mapping[str, Mapping[str, float]]
    rows: Mapping[str, int]
    range_ms: tuple[int, int]
    bins: Mapping[str, Bins]


def train(
    training: Dataset,
    test: Dataset,
    threads: int = 1,
    progress: Advance = lambda done, total: None,
    size: Size | None = None,
) -> Trained:
    """Fit both quantiles on `training` and measure them on `test`; `threads` 0 means one a core.

    `progress` is told how much of the work is done.

    One thread by default: LightGBM's threads wait for each other by spinning, so on a machine that has other work to do
    (this training beside worker and API) a second one makes training several times slower, not faster.

    The number of trees is found on the latest part of `training`; then the models are fitted on the whole of it.
    Raises TooFewRows for less than MIN_ROWS to train on or none to test on.
    """
    if len(training) < MIN_ROWS or not len(test):
        raise TooFewRows(
            f"{training.service}: {len(training)} rows to train on and {len(test)} to test on, {MIN_ROWS} and 1 are "
            "needed: a percentile of so few would be noise"
        )
    if len(training) > MAX_ROWS:
        training = training.take(np.linspace(0, len(training) - 1, MAX_ROWS).astype(np.int64))
    boosters = {
        name: _fit(training, alpha, threads, partial(_within, progress, number), size or Size())
        for number, (name, alpha) in enumerate(QUANTILES.items())
    }
    median, p90 = (np.asarray(booster.predict(test.matrix), dtype=np.float64) for booster in boosters.values())
    constant = {name: np.full(len(test), np.quantile(training.label, alpha)) for name, alpha in QUANTILES.items()}
    return Trained(
        service=training.service,
        vector=training.vector,
        boosters=boosters,
        metrics={
            "model": metrics_of(test.label, median, np.maximum(median, p90)),
            "baseline": metrics_of(test.label, constant["median"], constant["p90"]),
        },
        gain={name: _gain(booster, training.vector) for name, booster in boosters.items()},
        rows={"train": len(training), "validation": len(training) - _border(training), "test": len(test)},
        range_ms=(int(training.event_ms[0]), int(training.event_ms[-1])),
        bins={name: bins_of(training.features[name].to_numpy(np.float64)) for name in training.vector.stored},
    )


def float32_thresholds(booster: Booster) -> Booster:
    """The same trees with every threshold rounded down to float32: equal on every float32 input."""
    text = booster.model_to_string(num_iteration=booster.best_iteration)
    text = re.sub(r"^threshold=(.*)$", lambda found: f"threshold={_rounded_down(found[1])}", text, flags=re.MULTILINE)
    # Sizes in bytes of the trees' texts, which have just changed; without the line LightGBM parses one after another.
    text = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)
    return Booster(model_str=text)


def _within(progress: Advance, number: int, share: float) -> None:
    """Progress within the fitting of one of the quantiles."""
    progress(number + share, len(QUANTILES))


def _fit(training: Dataset, alpha: float, threads: int, tell: Callable[[float], None], size: Size) -> Booster:
    shape = {"num_leaves": size.leaves, "learning_rate": size.rate}
    parameters = {**_PARAMETERS, **shape, "alpha": alpha, "num_threads": threads}
    matrix, border = _with_gaps(training), _border(training)
    early, late = (
        _lightgbm_set(training, matrix, slice(0, border)),
        _lightgbm_set(training, matrix, slice(border, None)),
    )
    stopping = lightgbm.early_stopping(PATIENCE, verbose=False)
    searching: list[Callable[..., object]] = [stopping, lambda now: tell(0.5 * now.iteration / size.trees)]
    rounds = lightgbm.train(parameters, early, size.trees, valid_sets=[late], callbacks=searching).best_iteration
    fitting = [lambda now: tell(0.5 + 0.5 * now.iteration / rounds)]
    whole = _lightgbm_set(training, matrix, slice(None))
    return float32_thresholds(lightgbm.train(parameters, whole, rounds, callbacks=fitting))


def _lightgbm_set(training: Dataset, matrix: Matrix, rows: slice) -> lightgbm.Dataset:
    return lightgbm.Dataset(matrix[rows], training.label[rows], feature_name=list(training.vector.names))


def _with_gaps(training: Dataset) -> Matrix:
    """The training matrix with HIDDEN_SHARE of each stored feature (one value at least) made missing.

    What is derived of a hidden value is missing with it.
    """
    vector, matrix, dice = training.vector, training.matrix, np.random.default_rng(_SEED)
    for column, name in enumerate(vector.stored):
        hidden = dice.choice(len(matrix), max(1, int(len(matrix) * HIDDEN_SHARE)), replace=False)
        matrix[hidden, column] = np.nan
        for derived in vector.derived:
            if name in DERIVED[derived][0]:
                matrix[hidden, vector.names.index(derived)] = np.nan
    return matrix


def _border(training: Dataset) -> int:
    """The first row of the validation part: rows are in the order of time, so it is the latest."""
    return int(len(training) * (1 - VALIDATION_SHARE))


def _rounded_down(thresholds: str) -> str:
    exact = np.array(thresholds.split(), dtype=np.float64)
    near = exact.astype(np.float32)
    lower = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)
    return " ".join(repr(float(value)) for value in lower)


def metrics_of(
    label: NDArray[np.float64], median: NDArray[np.float64], p90: NDArray[np.float64]
) -> Mapping[str, float]:
    """The figures of `Trained.metrics`, of predictions in minutes against what came true."""
    error = label - median
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "pinball_median": _pinball(error, QUANTILES["median"]),
        "pinball_p90": _pinball(label - p90, QUANTILES["p90"]),
        "coverage_p90": float((label <= p90).mean()),
    }


def _pinball(error: NDArray[np.float64], alpha: float) -> float:
    """Koenker and Bassett's loss of a quantile: under-estimates weigh alpha, over-estimates 1 - alpha."""
    return float(np.maximum(alpha * error, (alpha - 1) * error).mean())


def _gain(booster: Booster, vector: FeatureVector) -> Mapping[str, float]:
    gains = booster.feature_importance("gain").tolist()
    return dict(sorted(zip(vector.names, gains, strict=True), key=lambda item: -item[1]))
