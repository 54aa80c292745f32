"""The simulated city in time: history up to now, and its life as it happens."""

import time
from collections.abc import Callable
from datetime import timedelta

import msgspec

from feature_repo.clock import clock_of
from feature_repo.settings import Settings
from feature_repo.stores.durable import write_synced
from ingestion.city import DAY_MS, City
from ingestion.events import EVENT_TYPES
from ingestion.push import ask_etas, push_all
from ingestion.simulator import live, write_history

_PUSH_EVERY_S = 1.0
_MARKER = "simulated.json"
WARM_UP_MS = 4 * 3_600_000
"""How much of the recent past is pushed before life goes on: windows are full then, and couriers known."""


class _Simulated(msgspec.Struct):
    """What of a city's history has been written."""

    seed: int
    until_ms: int


def check_same_city(settings: Settings, seed: int) -> _Simulated | None:
    """What of the city was written; None if the folder is empty yet.

    Raises ValueError if it holds another city's history, or a user's own: they would be mixed.
    """
    marker = settings.data / _MARKER
    if marker.exists():
        written = msgspec.json.decode(marker.read_bytes(), type=_Simulated)
        if written.seed != seed:
            raise ValueError(
                f"{settings.data} holds the history of city {written.seed}, not {seed}: use another --repo"
            )
        return written
    if (settings.data / "log").exists():
        raise ValueError(f"{settings.data} holds events that were not simulated: use another --repo for the city")
    return None


def extend_history(
    settings: Settings, seed: int, now: int, length: timedelta, progress: Callable[[float, float], None]
) -> dict[str, int]:
    """Write what is missing of the last `length` of the city's history up to `now`; the events by topic.

    Raises ValueError if the folder holds another city's history, or a user's own: they would be mixed.
    """
    start = now - length // timedelta(milliseconds=1)
    written = check_same_city(settings, seed)
    if written is not None:
        start = max(start, written.until_ms)
        if now <= written.until_ms:  # a drill's clock, say: nothing is missing
            return dict.fromkeys(EVENT_TYPES, 0)
    done, total = 0.0, (now - start) / DAY_MS

    def advance(milliseconds: int) -> None:
        nonlocal done
        done += milliseconds / DAY_MS
        progress(done, total)

    counts = write_history(settings, City.build(seed), start, now, advance)
    write_synced(settings.data / _MARKER, msgspec.json.encode(_Simulated(seed, now)))
    return counts


def push_live(settings: Settings, seed: int, url: str | None, stop: Callable[[], bool]) -> None:
    """Push the city's events to the API, the last hours at once and then as they happen, until `stop()`.

    Who orders as it happens asks first when the order will arrive.
    """
    check_same_city(settings, seed)
    city, clock = City.build(seed), clock_of(settings)
    begun = since = clock() - WARM_UP_MS
    while not stop():
        until = clock()
        events = list(live(city, since, until))
        if since > begun:
            ask_etas(settings, [event for topic, event in events if topic == "order_placed"], url)
        push_all(settings, events, url)
        since = until
        time.sleep(_PUSH_EVERY_S)
