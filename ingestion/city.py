"""The city that the simulator plays: its places, kitchens and habits, and what a day asks of them.

Everything is drawn from the city's seed (and the day's number), so a city and each of its days are the same whenever
and by whomever they are drawn. The city's clock is UTC; its day begins at 05:00, when hardly anybody is awake.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MINUTE_MS = 60_000
DAY_MS = 86_400_000
DAY_BEGINS_MS = 5 * 60 * MINUTE_MS
_MINUTES = 1440
CUISINES = ("burgers", "chinese", "indian", "italian", "japanese", "mexican", "thai", "vegan")
_WEEKDAYS = (0.90, 0.88, 0.93, 1.00, 1.18, 1.28, 1.08)
_ORDERS_A_RESTAURANT = 27.0
_CENTRE = (52.37, 4.89)
_DEGREES_A_KM = (1 / 111.3, 1 / 68.0)  # of latitude, of longitude, where the city lies
_PLACES, _DAY = 0, 1  # streams of dice: a city's and its days' never overlap

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Restaurant:
    """A kitchen. `demand` is orders on an ordinary day, `minutes` an order's mean at a station, with nobody waiting."""

    restaurant_id: int
    zone_id: int
    cuisine: str
    latitude: float
    longitude: float
    demand: float
    minutes: float
    stations: int
    price: float


@dataclass(frozen=True)
class Demand:
    """What is ordered in one day, sorted by time; one array an attribute of orders. `restaurant` is an index."""

    placed: list[int]
    restaurant: list[int]
    customer: list[int]
    items: list[int]
    basket: list[float]
    cooking: list[int]
    """Milliseconds at a station, waiting for it not included."""
    ride: list[int]
    """Milliseconds from the restaurant's door to the customer's."""
    roams: list[float]
    """In [0, 1): above a bound, the customer lives in another zone."""


@dataclass(frozen=True)
class City:
    """A city; build it with `City.build`. Zones, restaurants, couriers and customers are numbered from 1."""

    seed: int
    restaurants: tuple[Restaurant, ...]
    zones: tuple[tuple[float, float], ...]
    """Centres, in km from the city's."""
    couriers: int
    customers: int

    @classmethod
    def build(
        cls, seed: int, restaurants: int = 200, zones: int = 12, couriers: int = 400, customers: int = 5000
    ) -> "City":
        """The city that `seed` makes. Raises ValueError for a size that is not positive."""
        for name, size in (("restaurants", restaurants), ("zones", zones), ("customers", customers)):
            if size <= 0:
                raise ValueError(f"{name} {size} is not positive: nobody would order")
        if couriers <= 0:
            raise ValueError(f"couriers {couriers} is not positive: nothing would be delivered")
        dice = np.random.default_rng((seed, _PLACES))
        centres = dice.uniform(-4.0, 4.0, (zones, 2))
        zone_pull = _zipf(zones, 0.5, dice)
        pull = _zipf(restaurants, 0.7, dice)
        made = []
        for i in range(restaurants):
            zone = int(dice.choice(zones, p=zone_pull))
            east, north = centres[zone] + dice.normal(0, 0.5, 2)
            demand = float(pull[i] * restaurants * _ORDERS_A_RESTAURANT)
            minutes = float(np.clip(dice.lognormal(2.5, 0.35), 4, 25))
            busiest = demand * 1.9 / 990  # orders a minute in the evening, by `_rhythm`
            made.append(
                Restaurant(
                    restaurant_id=i + 1,
                    zone_id=zone + 1,
                    cuisine=CUISINES[int(dice.integers(len(CUISINES)))],
                    latitude=round(_CENTRE[0] + north * _DEGREES_A_KM[0], 6),
                    longitude=round(_CENTRE[1] + east * _DEGREES_A_KM[1], 6),
                    demand=demand,
                    minutes=minutes,
                    stations=max(2, round(busiest * minutes * float(dice.uniform(1.3, 2.1)))),
                    price=float(dice.lognormal(2.4, 0.25)),
                )
            )
        places = tuple((float(east), float(north)) for east, north in centres)
        return cls(seed, tuple(made), places, couriers, customers)

    @cached_property
    def travel_ms(self) -> list[list[int]]:
        """Milliseconds of a courier's way between zones; within one, what it takes to reach a door."""
        centres = np.array(self.zones)
        apart = np.linalg.norm(centres[:, None] - centres[None, :], axis=2)
        table: list[list[int]] = ((2.5 + apart * 3.0) * MINUTE_MS).astype(np.int64).tolist()
        return table

    @cached_property
    def nearest(self) -> list[list[int]]:
        """For each zone (an index) all zones, nearest first, itself at the head."""
        return [
            sorted(range(len(row)), key=lambda other: (other != i, row[other])) for i, row in enumerate(self.travel_ms)
        ]

    @cached_property
    def tastes(self) -> tuple[Ints, Ints, Ints]:
        """Customers grouped by (favourite cuisine, home zone): ids, and each group's first place and size."""
        dice = np.random.default_rng((self.seed, _PLACES, 1))
        groups = len(CUISINES) * len(self.zones)
        group = dice.integers(groups, size=self.customers)
        sizes = np.bincount(group, minlength=groups).astype(np.int64)
        return np.argsort(group, kind="stable").astype(np.int64) + 1, np.cumsum(sizes) - sizes, sizes

    def dice(self, day: int, purpose: int) -> np.random.Generator:
        """The random numbers of one purpose on one of the city's days."""
        return np.random.default_rng((self.seed, _DAY, day, purpose))

    def demand(self, day: int) -> Demand:
        """The orders of city day `day` (days since the epoch, counted from 05:00 UTC)."""
        dice = self.dice(day, 0)
        rain = rain_of(self, day)
        minute, restaurant = np.nonzero(np.ones((_MINUTES, len(self.restaurants)), dtype=np.bool_))
        orders = dice.poisson(_rates(self, day, dice, rain)).ravel()
        minute, restaurant = np.repeat(minute, orders), np.repeat(restaurant, orders)
        placed = minute * MINUTE_MS + dice.integers(MINUTE_MS, size=len(minute))
        order = np.argsort(placed, kind="stable")
        placed, restaurant, minute = placed[order], restaurant[order], minute[order]
        n = len(placed)
        items = 1 + dice.poisson(1.6, n)
        price = np.array([r.price for r in self.restaurants])[restaurant]
        usual = np.array([r.minutes for r in self.restaurants])[restaurant]
        slow = _spells(dice, len(self.restaurants), 0.45, (60, 180), (1.4, 2.0))[minute, restaurant]
        cooking = usual * slow * (0.76 + 0.09 * items) * dice.lognormal(-0.02, 0.2, n)
        ride = (3.0 + dice.gamma(4.0, 1.0, n)) * (1 + 0.35 * rain[minute])
        return Demand(
            placed=(placed + day_start(day)).tolist(),
            restaurant=restaurant.tolist(),
            customer=self._customers(dice, restaurant).tolist(),
            items=items.tolist(),
            basket=np.round(price * items * dice.lognormal(0, 0.2, n) + 1.5, 2).tolist(),
            cooking=(cooking * MINUTE_MS).astype(np.int64).tolist(),
            ride=(ride * MINUTE_MS).astype(np.int64).tolist(),
            roams=dice.random(n).tolist(),
        )

    def _customers(self, dice: np.random.Generator, restaurant: Ints) -> Ints:
        """Who ordered: mostly neighbours who like the cuisine, and of those the regulars more often."""
        ids, first, size = self.tastes
        zone = np.array([r.zone_id - 1 for r in self.restaurants])[restaurant]
        cuisine = np.array([CUISINES.index(r.cuisine) for r in self.restaurants])[restaurant]
        roll = dice.random(len(restaurant))
        elsewhere = (roll > 0.6) & (roll <= 0.8)
        zone = np.where(elsewhere, dice.integers(len(self.zones), size=len(restaurant)), zone)
        group = cuisine * len(self.zones) + zone
        anybody = (roll > 0.8) | (size[group] == 0)
        luck = dice.random(len(restaurant)) ** 2
        place = np.where(anybody, luck * self.customers, first[group] + luck * size[group])
        return ids[place.astype(np.int64)]


def day_of(instant: int) -> int:
    """The city day that `instant` (ms) lies in."""
    return (instant - DAY_BEGINS_MS) // DAY_MS


def day_start(day: int) -> int:
    """When a city day begins, in ms since the epoch."""
    return day * DAY_MS + DAY_BEGINS_MS


def rain_of(city: City, day: int) -> Floats:
    """1 in the minutes of the day when it rains, which moves people to order and slows riders down; else 0."""
    dice = city.dice(day, 1)
    return np.asarray(_spells(dice, 1, 0.35, (90, 300), (2.0, 2.0))[:, 0] - 1.0)


def _zipf(n: int, power: float, dice: np.random.Generator) -> Floats:
    """Shares of popularity: a few have much of it. They sum to 1, in random order."""
    weight = (np.arange(n) + 3.0) ** -power
    return np.asarray(dice.permutation(weight / weight.sum()))


def _rhythm() -> Floats:
    """Shares of a day's orders by minute since 05:00: a rush at half past twelve, a greater one at 19:15."""
    minute = np.arange(_MINUTES)

    def rush(at: float, width: float) -> Floats:
        return np.asarray(np.exp(-0.5 * ((minute + 300 - at) / width) ** 2))

    awake = np.interp(minute, (0, 120, 300, 1200, 1290), (0.2, 0.2, 1.0, 1.0, 0.2))
    weight = 0.35 * awake + 1.05 * rush(750, 55) + 1.55 * rush(1155, 85)
    return np.asarray(weight / weight.sum())


def _rates(city: City, day: int, dice: np.random.Generator, rain: Floats) -> Floats:
    """Orders expected by (minute, restaurant): rhythm, weekday, weather, the day's mood, and promotions."""
    weekday = _WEEKDAYS[(day + 3) % 7]  # day 0, 1970-01-01, was a Thursday
    demand = np.array([r.demand for r in city.restaurants]) * dice.lognormal(-0.01, 0.15, len(city.restaurants))
    calm = _rhythm()[:, None] * demand[None, :] * weekday * (1 + 0.3 * rain)[:, None]
    promotion = _spells(dice, len(city.restaurants), 0.6, (15, 40), (3.0, 6.0))
    return np.asarray(calm * promotion)


def _spells(
    dice: np.random.Generator, n: int, chance: float, minutes: tuple[int, int], factor: tuple[float, float]
) -> Floats:
    """A (minute, n) table of 1, but for one spell of some `minutes` with a `factor` that each of n has by `chance`.

    Spells begin between 10:00 and 22:00, when they matter.
    """
    table = np.ones((_MINUTES, n))
    for i in np.flatnonzero(dice.random(n) < chance):
        start = int(dice.integers(300, 1020))
        table[start : start + int(dice.integers(*minutes)), i] = dice.uniform(*factor)
    return table
