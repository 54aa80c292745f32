"""Reads stored lists of restaurants: a customer's picks, and what is popular."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from models.stored import PICKS, StoredPicks, StoredPredictions
from serving.breaker import Patience
from serving.stored_reader import StoredReader

Fallback = Literal["popular_in_zone", "popular"]


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


class ListReader:
    """Reads lists through `stored`, waiting at most `seconds`."""

    def __init__(self, stored: StoredReader, seconds: float) -> None:
        self._stored, self._seconds = stored, seconds

    async def read(self, customer_id: int, zone_id: int | None, popular: bool) -> Lists:
        """The lists of a customer; what is popular only if it is wanted, or nothing was picked.

        Raises breaker.Unavailable, saying why.
        """
        return await self._stored.ask(
            lambda tables: _lists(tables, customer_id, zone_id, popular), Patience(self._seconds)
        )


def _lists(tables: StoredPredictions, customer_id: int, zone_id: int | None, popular: bool) -> Lists:
    picks = tables.picks(customer_id)
    if picks is not None and not popular:
        return Lists(picks, published=True)
    in_zone = None if zone_id is None else tables.popular(zone_id)
    everywhere = tables.popular(None)
    published = (picks or in_zone or everywhere or tables.current(PICKS)) is not None
    return Lists(picks, in_zone, everywhere, published)
