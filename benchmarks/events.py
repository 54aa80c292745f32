"""Made-up events of every topic that features are made from, ready to be published: the same for the same numbers.

Orders come to restaurants by Zipf's law, so that a few have most of them. Each topic has its own even stream over the
time asked for: the orders that become ready or are delivered in it were placed before those that are placed in it.
Times are epoch milliseconds; ids of events are 32 hexadecimal digits, as long as the UUIDs that producers send.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingestion.log import Message

PLACED, READY, DELIVERED, COURIER = TOPICS = ("order_placed", "order_ready", "order_delivered", "courier_status")
RECENT_MS = 300_000
"""Where every restaurant is to have an order, it is at most so old at the end: within the shortest window."""

_OF_AN_ORDER = 5  # events: placed, ready, delivered, and a courier who takes it and is free again
_AHEAD = {PLACED: 4_000, READY: 2_000, DELIVERED: 0}  # how many orders were placed since the one that is delivered
_PART = 10**9  # orders of different parts have different numbers
_STATUSES, _CHANCES = ("available", "busy", "offline"), (0.48, 0.48, 0.04)
_BLOCK = 50_000
_MINUTE_MS = 60_000

Ints = NDArray[np.int64]


class Made(NamedTuple):
    """An event: when it happened (ms since the epoch), its topic, and what is published of it."""

    time: int
    topic: str
    message: Message


@dataclass(frozen=True)
class Town:
    """Who there is. Ids begin at 1; which restaurants are popular is by `seed`."""

    restaurants: int = 10_000
    zones: int = 100
    couriers: int = 3_000
    customers: int = 200_000
    exponent: float = 1.0
    seed: int = 7

    def zone_of(self, restaurants: Ints) -> Ints:
        """The zone of each restaurant."""
        return restaurants % self.zones + 1

    def draw(self, dice: np.random.Generator, count: int) -> Ints:
        """So many restaurants by Zipf's law: the k-th most popular is drawn in proportion to 1 / k^exponent."""
        return self.by_popularity[np.searchsorted(self._chances, dice.random(count), side="right")]

    @cached_property
    def by_popularity(self) -> Ints:
        """The restaurants, the most popular first."""
        return np.random.default_rng(self.seed).permutation(self.restaurants).astype(np.int64) + 1

    @cached_property
    def _chances(self) -> NDArray[np.float64]:
        weights = np.arange(1, self.restaurants + 1) ** -self.exponent
        return np.asarray(np.cumsum(weights / weights.sum())[:-1])


class _Rows(NamedTuple):
    """Events of one topic by column. `who` is the restaurant or courier, `what` its order's or status's number."""

    topic: int
    time: Ints
    who: Ints
    zone: Ints
    what: Ints


def made_up(
    town: Town, count: int, start_ms: int, end_ms: int, part: int = 0, everywhere: bool = False
) -> Iterator[Made]:
    """`count` events with times in [`start_ms`, `end_ms`], in the order of their times.

    `part` makes other events of the same town. With `everywhere` there are more than `count`: an order that is placed
    and one that is ready at each restaurant, and in each zone with restaurants an order delivered and a courier who is
    free, in the last five minutes at most. After them no stream feature of any of these is empty.
    """
    dice = np.random.default_rng((town.seed, part))
    rows = _drawn(town, dice, count, start_ms, end_ms, part)
    if everywhere:
        rows += _one_each(town, dice, max(start_ms, end_ms - RECENT_MS), end_ms, part)
    topic = np.concatenate([np.full(len(each.time), each.topic) for each in rows])
    time, who, zone, what = (np.concatenate([each[i] for each in rows]) for i in range(1, 5))
    by_time = np.argsort(time, kind="stable")
    for at in range(0, len(by_time), _BLOCK):
        block = by_time[at : at + _BLOCK]
        yield from _messages(town, dice, topic[block], _Rows(0, time[block], who[block], zone[block], what[block]))


def by_topic(events: Iterable[Made]) -> dict[str, list[Message]]:
    """What is published of each topic, in order."""
    found: dict[str, list[Message]] = {topic: [] for topic in TOPICS}
    for made in events:
        found[made.topic].append(made.message)
    return found


def _drawn(town: Town, dice: np.random.Generator, count: int, start_ms: int, end_ms: int, part: int) -> list[_Rows]:
    of_orders = count // _OF_AN_ORDER
    restaurants = town.draw(dice, of_orders + _AHEAD[PLACED])
    rows = []
    for topic, ahead in _AHEAD.items():
        who = restaurants[ahead : ahead + of_orders]
        order = np.arange(ahead, ahead + of_orders) + part * _PART
        rows.append(
            _Rows(TOPICS.index(topic), _times(dice, of_orders, start_ms, end_ms), who, town.zone_of(who), order)
        )
    moves = count - 3 * of_orders
    couriers, zones = dice.integers(1, town.couriers + 1, moves), dice.integers(1, town.zones + 1, moves)
    status = dice.choice(len(_STATUSES), moves, p=_CHANCES)
    rows.append(_Rows(TOPICS.index(COURIER), _times(dice, moves, start_ms, end_ms), couriers, zones, status))
    return rows


def _one_each(town: Town, dice: np.random.Generator, start_ms: int, end_ms: int, part: int) -> list[_Rows]:
    everyone = np.arange(1, town.restaurants + 1)
    zones, first = np.unique(town.zone_of(everyone), return_index=True)
    rows = []
    for topic, who in ((PLACED, everyone), (READY, everyone), (DELIVERED, everyone[first])):
        order = who + part * _PART + _PART // 2
        rows.append(_Rows(TOPICS.index(topic), _times(dice, len(who), start_ms, end_ms), who, town.zone_of(who), order))
    free = np.zeros(len(zones), dtype=np.int64)
    couriers = town.couriers + zones  # of their own, so that no other event moves them
    rows.append(_Rows(TOPICS.index(COURIER), _times(dice, len(zones), start_ms, end_ms), couriers, zones, free))
    return rows


def _times(dice: np.random.Generator, count: int, start_ms: int, end_ms: int) -> Ints:
    return np.sort(dice.integers(start_ms, end_ms, count, endpoint=True))


def _messages(town: Town, dice: np.random.Generator, topics: Ints, rows: _Rows) -> Iterator[Made]:
    count = len(topics)
    minutes = dice.gamma(6.0, 2.5, count)  # the kitchen's: 15 on average
    earlier = np.where(topics == TOPICS.index(DELIVERED), minutes + dice.gamma(9.0, 2.0, count), minutes) * _MINUTE_MS
    columns = zip(
        (TOPICS[topic] for topic in topics.tolist()),
        dice.integers(0, 2**64, count, dtype=np.uint64).tolist(),
        dice.integers(0, 2**64, count, dtype=np.uint64).tolist(),
        rows.time.tolist(),
        rows.who.tolist(),
        rows.zone.tolist(),
        rows.what.tolist(),
        earlier.astype(np.int64).tolist(),
        dice.integers(1, town.couriers + 1, count).tolist(),
        dice.integers(1, town.customers + 1, count).tolist(),
        dice.integers(800, 9_000, count).tolist(),
        dice.integers(1, 7, count).tolist(),
        strict=True,
    )
    for topic, high, low, time, who, zone, what, before, courier, customer, cents, items in columns:
        if topic == PLACED:
            said = (
                f'"order_id":"o-{what}","restaurant_id":{who},"zone_id":{zone},"customer_id":{customer},'
                f'"placed_at":{time},"basket_total":{cents / 100:.2f},"item_count":{items}'
            )
        elif topic == READY:
            said = f'"order_id":"o-{what}","restaurant_id":{who},"placed_at":{time - before},"ready_at":{time}'
        elif topic == DELIVERED:
            said = (
                f'"order_id":"o-{what}","restaurant_id":{who},"zone_id":{zone},"courier_id":{courier},'
                f'"placed_at":{time - before},"delivered_at":{time}'
            )
        else:
            said = f'"courier_id":{who},"zone_id":{zone},"status":"{_STATUSES[what]}","at":{time}'
        value = f'{{"event_id":"{high:016x}{low:016x}",{said}}}'
        yield Made(time, topic, Message(b"%d" % who, value.encode()))
