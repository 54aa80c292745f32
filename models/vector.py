"""A model's input row: which features in which order, and the part of it that only the instant of the request decides.

Training and serving both assemble their rows here, so a feature cannot mean two things. Pure: no clock, no client.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

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


_OPEN = "zone_open_orders__zone_open_orders"
_FREE, _BUSY = "zone_couriers__couriers_available", "zone_couriers__couriers_busy"


class Columns(Protocol):
    """What has numbers or columns by name: a mapping, a data frame."""

    def __getitem__(self, name: str, /) -> Any:
        """The number or column."""
        ...


DERIVED: Mapping[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    # How many orders wait for one courier: a tree would need many splits to divide.
    "derived__open_orders_per_courier": (
        (_OPEN, _FREE, _BUSY),
        lambda waiting, free, busy: waiting / (free + busy + 1),
    ),
}
"""{name: (the stored features it is made of, the function of them, for numbers and for columns)}."""


@dataclass(frozen=True)
class FeatureVector:
    """The ordered features of a model: `stored` are read from the feature store, derived ones and the request's follow.

    A feature of DERIVED belongs to the vector if everything that it is made of is in `stored`.

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
        return (*self.stored, *self.derived, *REQUEST_FEATURES)

    @property
    def derived(self) -> tuple[str, ...]:
        """The features of DERIVED that can be made of `stored`."""
        return tuple(name for name, (inputs, _) in DERIVED.items() if set(inputs) <= set(self.stored))

    def derive(self, known: Columns) -> dict[str, Any]:
        """The derived features, from the stored ones by name: numbers or whole columns, NaN where they are missing."""
        return {name: DERIVED[name][1](*(known[column] for column in DERIVED[name][0])) for name in self.derived}

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
        derived = self.derive(dict(zip(self.stored, filled, strict=True))).values()
        return np.array([[*filled, *derived, *request_features(instant_ms).values()]], dtype=np.float32)
