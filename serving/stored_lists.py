"""Reads stored lists of restaurants, a customer's picks and what is popular, off the event loop and within bounds."""

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Literal, NamedTuple, Protocol

from models.stored import PICKS, Run, StoredPicks, StoredUnreachable

_THREADS = 4
_WAITING = 64  # reads under way or waiting; the next one is refused, not queued

Fallback = Literal["popular_in_zone", "popular"]


class StoredTables(Protocol):
    """What is read of the stored predictions; each may raise StoredUnreachable."""

    def picks(self, customer_id: int) -> StoredPicks | None:
        """Those of a customer."""

    def popular(self, zone_id: int | None) -> StoredPicks | None:
        """Those of a zone, or of all."""

    def current(self, kind: str) -> Run | None:
        """The run that is published."""


class Lists(NamedTuple):
    """The lists that were read; `published` says whether there is a run at all."""

    picks: StoredPicks | None = None
    in_zone: StoredPicks | None = None
    everywhere: StoredPicks | None = None
    published: bool = False

    def candidates(self) -> list[int]:
        """What is ordered from in the zone; without one, the picks, then what is popular everywhere.

        The picks are the best of all, so that among them and others none but them would be answered, whatever the zone.
        """
        lists = (self.in_zone,) if self.in_zone else (self.picks, self.everywhere)
        return list(dict.fromkeys(i for found in lists if found for i in found.restaurants))

    def by_popularity(self, restaurant_ids: Iterable[int]) -> list[int]:
        """The most popular in the zone first, then everywhere, then by id."""
        places: dict[int, int] = {}
        for found in (self.in_zone, self.everywhere):
            for restaurant in found.restaurants if found else ():
                places.setdefault(restaurant, len(places))
        return sorted(restaurant_ids, key=lambda restaurant: (places.get(restaurant, len(places)), restaurant))

    def best(self) -> tuple[StoredPicks | None, Fallback | None]:
        """The list to answer from, and what it falls back to."""
        if self.picks is not None:
            return self.picks, None
        if self.in_zone is not None:
            return self.in_zone, "popular_in_zone"
        return self.everywhere, "popular"


class StoredReader:
    """Reads `tables` in a few threads of its own; SQL does not wait for an event loop."""

    def __init__(self, tables: StoredTables, timeout_s: float) -> None:
        self._tables, self._timeout_s = tables, timeout_s
        self._pool = ThreadPoolExecutor(_THREADS, "stored-lists")
        self._room = BoundedSemaphore(_WAITING)

    def close(self) -> None:
        """Let go of the threads; reads that have not begun are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def read(self, customer_id: int, zone_id: int | None, popular: bool) -> Lists:
        """The lists of a customer; what is popular only if it is wanted, or nothing was picked.

        Raises StoredUnreachable, also where it takes too long or too many are waiting.
        """
        if not self._room.acquire(blocking=False):
            raise StoredUnreachable(f"{_WAITING} reads are under way or waiting already")
        future = self._pool.submit(self._read, customer_id, zone_id, popular)
        future.add_done_callback(lambda _: self._room.release())  # when the thread has done, whoever still waits
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise StoredUnreachable(f"no answer within {self._timeout_s:g} s") from None

    def _read(self, customer_id: int, zone_id: int | None, popular: bool) -> Lists:
        picks = self._tables.picks(customer_id)
        if picks is not None and not popular:
            return Lists(picks, published=True)
        in_zone = None if zone_id is None else self._tables.popular(zone_id)
        everywhere = self._tables.popular(None)
        published = (picks or in_zone or everywhere or self._tables.current(PICKS)) is not None
        return Lists(picks, in_zone, everywhere, published)
