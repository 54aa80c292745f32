"""When online, the oracle and history agree.

Counts must be equal. The other numbers are made of the same whole millionths everywhere, so each is one exact fraction
(or, of a std, one exact root) and differs only by how often a float was rounded on the way to it; with u = 2**-53, the
most that one rounding adds:

* online, all but std: the exact fraction, rounded once, as the oracle does it. They must be equal.
* online, std: the variance is rounded (half an u remains after the root), then the root, then the quotient: 2.5 u; the
  oracle rounds a fraction and its root: 1.5 u.
* offline: DuckDB makes a float of a 128-bit number in two halves (2 u), then divides (u); in a std the root comes
  between (2 u of which u remain, u for the root, u for the quotient): 3 u in both cases.

So no two differ by more than 5.5 u of the value, however large the numbers or near to each other: `TOLERANCE` is 8 u.
"""

import math
from typing import Any, NamedTuple

from feature_repo.clock import iso
from feature_repo.stores.reading import Feature, Status
from feature_repo.views import StreamView, WindowView

TOLERANCE = 8 * 2.0**-53

Number = int | float | None


class Mismatch(NamedTuple):
    """A feature of an entity at an instant (ms) that is not the same online, by the oracle and in history."""

    view: str
    feature: str
    entity: dict[str, Any]
    instant: int
    online: Feature
    oracle: Number
    offline: Number

    def __str__(self) -> str:
        return (
            f"{self.view}__{self.feature} of {self.entity} at {iso(self.instant)} ({self.instant} ms): "
            f"online {self.online.value!r} ({self.online.status.name}), oracle {self.oracle!r}, "
            f"offline {self.offline!r}"
        )


def agree(view: StreamView, feature: str, online: Feature, oracle: Number, offline: Number) -> bool:
    """Whether the three are one value, and the online status says what it is."""
    status = Status.NULL_VALUE if oracle is None else Status.PRESENT
    root = isinstance(view, WindowView) and any(a.name == feature and a.function == "std" for a in view.aggregates)
    same_online = close(online.value, oracle) if root else _equal(online.value, oracle)
    return online.status == status and same_online and close(offline, oracle)


def close(a: Any, b: Number) -> bool:
    """Whether two are of one type and equal, numbers with a fraction but for `TOLERANCE`."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=0.0)
    return _equal(a, b)


def _equal(a: Any, b: Number) -> bool:
    return type(a) is type(b) and bool(a == b)
