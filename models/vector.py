"""A model's input row: which features in which order, and the part of it that only the instant of the request decides.

Training and serving both assemble their rows here, so a feature cannot mean two things. Pure: no clock, no client.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
"""Shape [rows, features], NaN where a value is missing. Models are trained and scored in float32 alike."""

_MINUTE_MS = 60_000
_DAY_MINUTES = 1440
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0

REQUEST_FEATURES = ("request__minute_of_day_sin", "request__minute_of_day_cos", "request__day_of_week")
"""The features that `request_features` derives; named like a view's, though no view holds them."""


def request_features(instant_ms: int) -> dict[str, float]:
    """The features that follow from the instant of the request (ms since the epoch), by UTC, in the order above.

    The minute of the day lies on a circle, so that 23:59 is next to 00:00; the day of the week is 0 for Monday.

    >>> [round(value, 9) for value in request_features(6 * 60 * 60_000).values()]  # a quarter of a Thursday
    [1.0, 0.0, 3.0]
    """
    day, minute = divmod(instant_ms // _MINUTE_MS, _DAY_MINUTES)
    angle = 2 * math.pi * minute / _DAY_MINUTES
    values = (math.sin(angle), math.cos(angle), float((day + _EPOCH_WEEKDAY) % 7))
    return dict(zip(REQUEST_FEATURES, values, strict=True))


@dataclass(frozen=True)
class FeatureVector:
    """The ordered features of a model: `stored` are read from the feature store, the request's follow them.

    Names are full (`view__feature`). Raises ValueError if a name occurs twice or one of `stored` is the request's own.
    """

    stored: tuple[str, ...]

    def __post_init__(self) -> None:
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ValueError(f"stored {repeated}: named twice, one column of the model would be fed with the other's")

    @property
    def names(self) -> tuple[str, ...]:
        """Every feature in the model's order."""
        return (*self.stored, *REQUEST_FEATURES)

    def row(self, values: Mapping[str, float | None], instant_ms: int) -> Matrix:
        """One input row, shape [1, features]: `values` by full name, None for a missing one, at `instant_ms`.

        Names beyond `stored` are ignored. Raises ValueError for a feature that `values` does not name at all: a
        feature that was never asked for must not pass as one that is missing.
        """
        try:
            stored = [values[name] for name in self.stored]
        except KeyError as error:
            raise ValueError(f"feature {error.args[0]!r} was not read: its column would be empty unseen") from None
        filled = [math.nan if value is None else value for value in stored]
        return np.array([[*filled, *request_features(instant_ms).values()]], dtype=np.float32)
