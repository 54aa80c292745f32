"""Drift: how far the values that are served lie from those that a model was trained on.

The measure is the population stability index over bins of the training sample's deciles and one for missing values:
``sum((q - p) * ln(q / p))``, p and q being the shares of training and of use. By the usual reading (Siddiqi, Credit
Risk Scorecards, 2006) less than 0.1 is no change and more than 0.25 a great one. Two samples of the same distribution
differ, too: by about (bins - 1) * (1/n + 1/m), so a few hundred values are needed before 0.1 means anything.
"""

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

_DECILES = np.arange(0.1, 1.0, 0.1)
_FLOOR = 1e-4
"""An empty bin's share: the logarithm needs one."""

Values = NDArray[np.float64]
"""Of one feature; NaN where it is missing."""


class Bins(Struct, frozen=True):
    """A training sample of one feature: the bins' inner edges, the share of each bin, and that of missing values."""

    edges: list[float]
    shares: list[float]
    missing: float


def bins_of(values: Values) -> Bins:
    """The bins of a sample; values that occur often make fewer of them."""
    known = values[~np.isnan(values)]
    edges = np.unique(np.quantile(known, _DECILES)) if len(known) else np.empty(0)
    shares, missing = _shares(edges, values)
    return Bins(edges.tolist(), shares.tolist(), missing)


def psi(bins: Bins, values: Values) -> float:
    """The population stability index of `values` against the sample of the bins; NaN without values."""
    if not len(values):
        return float("nan")
    shares, missing = _shares(np.array(bins.edges), values)
    was = np.maximum([*bins.shares, bins.missing], _FLOOR)
    now = np.maximum([*shares, missing], _FLOOR)
    return float(((now - was) * np.log(now / was)).sum())


def _shares(edges: Values, values: Values) -> tuple[Values, float]:
    """The share of each bin among all values, and that of missing ones."""
    if not len(values):
        return np.zeros(len(edges) + 1), 0.0
    known = values[~np.isnan(values)]
    counts = np.bincount(np.searchsorted(edges, known, side="left"), minlength=len(edges) + 1)
    return counts / len(values), 1 - len(known) / len(values)
