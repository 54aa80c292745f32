"""The rungs of the ladder: in which mode a prediction is made."""

from enum import StrEnum


class Mode(StrEnum):
    """How a prediction came about, the best first."""

    STREAMING = "streaming"
    """From batch and streaming features, read at request time."""
    BATCH_FEATURES = "batch_features"
    """From batch features alone, by the model that was trained without the others."""
    STORED = "stored"
    """Made ahead by the daily batch, kept in SQL tables."""


LADDER = tuple(Mode)


def allowed(require: Mode | None) -> tuple[Mode, ...]:
    """The rungs that a caller accepts: those at least as good as `require`; all of them without it."""
    return LADDER if require is None else LADDER[: LADDER.index(require) + 1]
