"""Where the time comes from. Everything else takes an instant, or a `Clock`, as an argument."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from feature_repo.settings import Settings

Clock = Callable[[], int]
"""Gives the present instant in milliseconds since the Unix epoch, UTC."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def wall_clock() -> int:
    """The machine's own clock."""
    return time.time_ns() // 1_000_000


def to_ms(moment: datetime) -> int:
    """Milliseconds since the epoch of an aware datetime, rounded down. Raises TypeError for a naive one."""
    return (moment - _EPOCH) // _MILLISECOND


def from_ms(milliseconds: int) -> datetime:
    """The aware UTC datetime of `milliseconds`, exact, before 1970 too."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def iso(milliseconds: int) -> str:
    """RFC 3339 with milliseconds and a Z.

    >>> iso(0)
    '1970-01-01T00:00:00.000Z'
    """
    return from_ms(milliseconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def drill_clock(start: int, origin: float, rate: float, real: Callable[[], float] = time.time) -> Clock:
    """A clock that shows `start` (ms) when `real` shows `origin` (Unix seconds) and runs `rate` times as fast.

    Processes that are given the same three numbers agree on the time.
    """

    def now() -> int:
        return start + int((real() - origin) * 1000 * rate)

    return now


def clock_of(settings: Settings) -> Clock:
    """The clock that the settings ask for: a drill's if ``TIFFIN_CLOCK_START`` is set, else the machine's.

    Raises ValueError if a drill's start is set without its origin, or is not an RFC 3339 instant with an offset.
    """
    if settings.clock_start is None:
        return wall_clock
    if settings.clock_origin is None:
        raise ValueError("TIFFIN_CLOCK_START without TIFFIN_CLOCK_ORIGIN: processes would not agree on the time")
    start = datetime.fromisoformat(settings.clock_start)
    if start.tzinfo is None:
        raise ValueError(f"TIFFIN_CLOCK_START {settings.clock_start!r} has no offset: the instant would be a guess")
    return drill_clock(to_ms(start), settings.clock_origin, settings.clock_rate)
