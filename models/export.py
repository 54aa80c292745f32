"""From LightGBM to ONNX, and the only module that imports onnxmltools. What does not agree is not exported.

Trained thresholds are float32 already (`models.train.float32_thresholds`), so both runtimes take the same leaf of every
tree for every float32 row, NaNs included. What is left is rounding: LightGBM adds the leaves in float64, onnxruntime in
float32. Adding T numbers there errs by at most about T * 2**-24 of the sum of their magnitudes (Higham, Accuracy and
Stability of Numerical Algorithms, 4.2): 2.4e-5 of it for 400 trees. TOLERANCE is four times that, since magnitudes may
add up to more than the answer does; it is 0.3 s on an answer of 50 minutes.
"""

from collections.abc import Mapping
from typing import cast

import numpy as np
import onnxmltools
from onnxmltools.convert.common.data_types import FloatTensorType

from models.model import Manifest
from models.scoring import Scorer
from models.train import Booster, Trained
from models.vector import REQUEST_FEATURES, Matrix

TOLERANCE = 1e-4
"""Greatest |difference| allowed, in minutes, times max(1, |answer|)."""

OPSET = 15
"""Named, so that an upgrade of onnxmltools does not change the files of an unchanged model."""

MAX_CHECKED = 20_000
_MASKED_ROWS = 50


class ExportRefused(ValueError):
    """The ONNX model does not say what the trained one says.

    `difference` in minutes is the greatest beyond the tolerance, `row` its position in the rows checked, `values` that
    row's features.
    """

    def __init__(self, model: str, difference: float, row: int, values: Matrix) -> None:
        super().__init__(
            f"{model}: ONNX differs from LightGBM by {difference:.6g} minutes at row {row} {values.tolist()}, more "
            f"than {TOLERANCE} of the answer: it would serve another model than was measured"
        )
        self.difference, self.row, self.values = difference, row, values


def export(trained: Trained, rows: Matrix) -> Mapping[str, bytes]:
    """The pair as ONNX files by name (`median.onnx`, `p90.onnx`), checked on `rows`: real ones, [n, features].

    Raises ExportRefused if a file disagrees with its booster on any row of `probes(rows)`.
    """
    checked = probes(rows)
    files = {}
    for name, booster in trained.boosters.items():
        files[f"{name}.onnx"] = convert(name, booster)
        verify(name, files[f"{name}.onnx"], booster, checked)
    return files


def manifest_of(trained: Trained, definition_hash: str, created_ms: int) -> Manifest:
    """What the registry is to keep of a pair; the model bears its feature service's name."""
    return Manifest(
        name=trained.service,
        service=trained.service,
        created_ms=created_ms,
        stored_features=trained.vector.stored,
        derived_features=trained.vector.derived,
        request_features=REQUEST_FEATURES,
        definition_hash=definition_hash,
        metrics={name: dict(figures) for name, figures in trained.metrics.items()},
        gain={name: dict(gains) for name, gains in trained.gain.items()},
        trained_ms=trained.range_ms,
        rows=dict(trained.rows),
        sample=dict(trained.bins),
    )


def convert(name: str, booster: Booster) -> bytes:
    """`booster` as an ONNX file: input `features` float32 [n, features], output float32 [n, 1]."""
    inputs = [("features", FloatTensorType([None, booster.num_feature()]))]
    model = onnxmltools.convert_lightgbm(booster, name=name, initial_types=inputs, target_opset=OPSET)
    return cast(bytes, model.SerializeToString())


def verify(name: str, onnx: bytes, booster: Booster, rows: Matrix) -> float:
    """The greatest difference in minutes on `rows`; raises ExportRefused if one is beyond the tolerance."""
    expected = np.asarray(booster.predict(rows))
    difference = np.abs(Scorer(onnx)(rows).astype(np.float64) - expected)
    excess = difference / np.maximum(1.0, np.abs(expected))
    worst = int(np.argmax(excess))  # of NaN too: numpy takes the first NaN for the greatest
    if not excess[worst] <= TOLERANCE:
        raise ExportRefused(name, float(difference[worst]), worst, rows[worst])
    return float(difference.max())


def probes(rows: Matrix) -> Matrix:
    """`rows` (an even sample of MAX_CHECKED at most), then some of them with each column missing in turn, then all.

    So a feature that was never missing in training is tried as missing too, as serving may have to.
    """
    sample = _even(rows, MAX_CHECKED)
    few = _even(rows, _MASKED_ROWS)
    masked = np.repeat(few[np.newaxis], rows.shape[1], axis=0)
    for column in range(rows.shape[1]):
        masked[column, :, column] = np.nan
    nothing = np.full((1, rows.shape[1]), np.nan, dtype=np.float32)
    return np.concatenate([sample, masked.reshape(-1, rows.shape[1]), nothing])


def _even(rows: Matrix, count: int) -> Matrix:
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
