"""A published version as it answers: what is known of it, and its minutes for rows of features.

Instants are ms since the epoch, UTC.
"""

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.clock import from_ms
from models.drift import Bins
from models.scoring import Pair
from models.vector import FeatureVector, Matrix


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a version.

    `stored_features` are read from the feature store, in this order; derived ones and the request's own follow.
    `trained_ms` is the first and the last instant trained on; `sha256` is of each file, in hexadecimal.
    """

    name: str
    service: str
    created_ms: int
    stored_features: tuple[str, ...]
    derived_features: tuple[str, ...]
    request_features: tuple[str, ...]
    definition_hash: str
    metrics: dict[str, dict[str, float]]
    gain: dict[str, dict[str, float]]
    trained_ms: tuple[int, int]
    rows: dict[str, int]
    sha256: dict[str, str] = {}
    version: str = ""
    sample: dict[str, Bins] | msgspec.UnsetType = msgspec.UNSET
    """Of the stored features the values trained on; unset in versions that were made before it was kept."""

    @property
    def bins(self) -> dict[str, Bins]:
        """The sample; empty if none was kept."""
        return {} if self.sample is msgspec.UNSET else self.sample

    def content_version(self) -> str:
        """The version that this content has: its second of creation, to sort by, and the start of its hash."""
        content = msgspec.json.encode(msgspec.structs.replace(self, version=""), order="deterministic")
        return f"{from_ms(self.created_ms):%Y%m%dT%H%M%SZ}-{hashlib.sha256(content).hexdigest()[:8]}"


class Model:
    """A loaded version: predicts minutes from placed to delivered."""

    def __init__(self, manifest: Manifest, pair: Pair) -> None:
        self.manifest, self.pair = manifest, pair
        self.vector = FeatureVector(manifest.stored_features)

    def predict(self, matrix: Matrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(median, p90) in minutes, each of shape [n], for float32 rows [n, features] in the order of `vector.names`.

        Two models may cross; p90 is never below the median. Raises ValueError for another shape or type.
        """
        width = len(self.vector.names)
        if matrix.dtype != np.float32 or matrix.ndim != 2 or matrix.shape[1] != width:
            raise ValueError(
                f"matrix {matrix.dtype} {matrix.shape}: {self.manifest.name} takes float32 [n, {width}], other columns "
                "would be read as its features"
            )
        median, p90 = self.pair(matrix)
        return median, np.maximum(p90, median)

    def predict_one(self, values: Sequence[float | None], instant_ms: int) -> tuple[float, float]:
        """(median, p90) in minutes of one row: its values in the order of `vector.stored`, None for a missing one.

        Answers as `predict` does of the row alone, faster. Raises ValueError for another number of values.
        """
        median, p90 = self.pair.one(self.vector.packed(values, instant_ms))
        return median, p90 if p90 > median else median

    def predict_rows(
        self, rows: Sequence[Sequence[float | None]], instants_ms: Sequence[int]
    ) -> list[tuple[float, float]]:
        """The same of several rows, scored by one call. Raises ValueError as `FeatureVector.matrix` does."""
        if len(rows) == len(instants_ms) == 1:
            return [self.predict_one(rows[0], instants_ms[0])]
        medians, p90s = self.predict(self.vector.matrix(rows, instants_ms))
        return list(zip(medians.tolist(), p90s.tolist(), strict=True))
