"""A model's input row: which features in which order, and the part of it that only the instant of the request decides.

Training and serving both assemble their rows here, so a feature cannot mean two things. Pure: no clock, no client.
"""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
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
    return dict(zip(REQUEST_FEATURES, _of_minute(instant_ms // _MINUTE_MS), strict=True))


@lru_cache(maxsize=64)  # the requests of now are of one minute or two; what follows from a minute never changes
def _of_minute(minutes: int) -> tuple[float, float, float]:
    """The request's features of a minute since the epoch."""
    day, minute = divmod(minutes, _DAY_MINUTES)
    angle = 2 * math.pi * minute / _DAY_MINUTES
    return math.sin(angle), math.cos(angle), float((day + _EPOCH_WEEKDAY) % 7)


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

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every feature in the model's order."""
        return (*self.stored, *self.derived, *REQUEST_FEATURES)

    @cached_property
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
        return np.frombuffer(bytearray(self.packed(stored, instant_ms)), dtype=np.float32).reshape(1, -1)

    def matrix(self, rows: Sequence[Sequence[float | None]], instants_ms: Sequence[int]) -> Matrix:
        """The input rows, shape [n, features]: of each its values in the order of `stored`, and its instant.

        None is a missing value; a value beyond float32 is infinite. Raises ValueError for a row of another length, or
        another number of instants than of rows.
        """
        count, width = len(rows), len(self.stored)
        if len(instants_ms) != count or not set(map(len, rows)) <= {width}:
            raise ValueError(
                f"{count} rows of {sorted({len(row) for row in rows})} values, {len(instants_ms)} instants: a row is "
                f"{width} stored features and one instant, others would be read as other features"
            )
        exact = np.array(rows, dtype=np.float64).reshape(count, width)  # None becomes NaN
        matrix = np.empty((count, len(self.names)), dtype=np.float32)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # as in the data frames of training
            matrix[:, :width] = exact
            for column, (function, inputs) in enumerate(self._derivations, width):
                matrix[:, column] = function(*(exact[:, place] for place in inputs))
        request = np.array([_of_minute(instant // _MINUTE_MS) for instant in instants_ms])
        matrix[:, -len(REQUEST_FEATURES) :] = request.reshape(count, len(REQUEST_FEATURES))
        return matrix

    def packed(self, values: Sequence[float | None], instant_ms: int) -> bytes:
        """The bytes of one row of `matrix`, made several times faster than by columns. Raises ValueError as it does."""
        filled = [math.nan if value is None else value for value in values]
        try:
            derived = [function(*[filled[place] for place in inputs]) for function, inputs in self._derivations]
            return self._packing.pack(*filled, *derived, *_of_minute(instant_ms // _MINUTE_MS))
        except (ZeroDivisionError, LookupError, struct.error):  # infinite, as columns have it; or of another length
            return self.matrix([values], [instant_ms]).tobytes()

    @cached_property
    def _derivations(self) -> tuple[tuple[Callable[..., Any], tuple[int, ...]], ...]:
        """Of each derived feature its function and the places of what it is made of."""
        return tuple(
            (DERIVED[name][1], tuple(self.stored.index(column) for column in DERIVED[name][0])) for name in self.derived
        )

    @cached_property
    def _packing(self) -> struct.Struct:
        return struct.Struct(f"{len(self.names)}f")  # the machine's own float32: what is too great becomes infinite
