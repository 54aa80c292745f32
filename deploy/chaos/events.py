"""Random events of all topics, as a city's producers would send them: most in order, some late, early or broken."""

import random
from typing import Any

import msgspec

from feature_repo.clock import iso
from ingestion.events import EVENT_TYPES, event_key
from ingestion.log import Message

RESTAURANTS, ZONES, COURIERS, CUSTOMERS = 160, 12, 60, 200
SILENT = 999
"""A restaurant and a zone of which nothing is ever heard."""

_S, _MINUTE, _HOUR = 1000, 60_000, 3_600_000
_TOPICS = {"order_placed": 8, "order_ready": 6, "order_delivered": 6, "courier_status": 5}
_SKEW = 4.0  # more than a quarter of all orders at one restaurant, one of some six hundred at another
_OPEN = 2000  # orders that are remembered, to be made ready and delivered


class EventMaker:
    """Makes batches of events. Each has an `event_id` that no other has, in its bytes even if it is broken."""

    def __init__(self, dice: random.Random) -> None:
        self._dice, self._made = dice, 0
        self._open: list[dict[str, Any]] = []

    def batch(self, now: int) -> tuple[str, list[Message]]:
        """A few dozen events of one topic, made at `now` (ms)."""
        (topic,) = self._dice.choices(list(_TOPICS), list(_TOPICS.values()))
        return topic, [self._message(topic, now) for _ in range(self._dice.randint(5, 60))]

    def rush(self, now: int, count: int) -> tuple[str, list[Message]]:
        """Many orders at once."""
        return "order_placed", [self._message("order_placed", now) for _ in range(count)]

    def _message(self, topic: str, now: int) -> Message:
        make = {
            "order_placed": self._placed,
            "order_ready": self._ready,
            "order_delivered": self._delivered,
            "courier_status": self._courier,
        }[topic]
        event = {"event_id": f"{topic}-{self._made}", **make(self._stamp(now), now)}
        self._made += 1
        key = event_key(topic, event)
        if self._dice.random() < 0.02:
            return Message(key, self._broken(topic, event, now))
        return Message(key, msgspec.json.encode(event))

    def _stamp(self, now: int) -> int:
        """An event's own time: mostly the present; late, within the longest window and beyond; on edges; ahead."""
        dice = self._dice
        kind = dice.random()
        if kind < 0.55:
            return now - round(dice.expovariate(1 / _S))
        if kind < 0.88:
            return now - dice.randrange(35 * _MINUTE)
        if kind < 0.92:
            return now - dice.randrange(35 * _MINUTE, 60 * _MINUTE)
        if kind < 0.96:
            hop = dice.choice((5 * _S, _MINUTE))
            return now - now % hop - hop * dice.randrange(32) + dice.choice((-1, 0, 1))
        return now + dice.randrange(50 * _S)

    def _placed(self, own: int, now: int) -> dict[str, Any]:
        dice = self._dice
        # Most orders at a few restaurants of a few zones: windows of many events, and of hardly any.
        restaurant = 1 + int(RESTAURANTS * dice.random() ** _SKEW)
        if dice.random() < 0.05:  # about to have been open for as long as an open order counts
            own = now - 3 * _HOUR + dice.randrange(-_MINUTE, 4 * _MINUTE)
        order = {
            "order_id": f"order-{self._made}",
            "restaurant_id": restaurant,
            "zone_id": 1 + restaurant * ZONES // (RESTAURANTS + 1),
            "customer_id": dice.randint(1, CUSTOMERS) if dice.random() < 0.95 else None,
            "placed_at": own,
            "basket_total": round(dice.uniform(5, 80), 2) if dice.random() < 0.95 else None,
            "item_count": dice.randint(0, 9) if dice.random() < 0.95 else None,
        }
        if len(self._open) < _OPEN:
            self._open.append(order)
        else:
            self._open[dice.randrange(_OPEN)] = order
        return order

    def _ready(self, own: int, now: int) -> dict[str, Any]:
        order = self._dice.choice(self._open) if self._open else self._placed(own, now)
        placed = own - self._dice.randrange(3 * _MINUTE, 45 * _MINUTE)
        return {
            "order_id": order["order_id"],
            "restaurant_id": order["restaurant_id"],
            "placed_at": iso(placed),  # as text here, as numbers elsewhere
            "ready_at": iso(own),
        }

    def _delivered(self, own: int, now: int) -> dict[str, Any]:
        if not self._open:
            self._placed(own, now)
        order = self._open.pop(self._dice.randrange(len(self._open)))
        return {
            "order_id": order["order_id"],
            "restaurant_id": order["restaurant_id"],
            "zone_id": order["zone_id"],
            "courier_id": self._dice.randint(1, COURIERS),
            "placed_at": min(order["placed_at"], own),
            "delivered_at": own,
        }

    def _courier(self, own: int, now: int) -> dict[str, Any]:
        dice = self._dice
        courier = dice.randint(1, COURIERS)
        if dice.random() < 0.1:  # one that is about to be unheard of for as long as a courier counts
            courier += 1000 * dice.randint(1, 9)
            own = now - 4 * _HOUR + dice.randrange(-_MINUTE, 4 * _MINUTE)
        return {
            "courier_id": courier,
            "zone_id": 1 + (courier + dice.randrange(2)) % ZONES,
            "status": dice.choice(("available", "available", "busy", "busy", "offline")),
            "at": own,
        }

    def _broken(self, topic: str, event: dict[str, Any], now: int) -> bytes:
        moment = EVENT_TYPES[topic].time_field
        broken = self._dice.randrange(6)
        if broken == 0:
            return msgspec.json.encode(event)[:-1]
        if broken == 1:
            return msgspec.json.encode({name: value for name, value in event.items() if name != moment})
        if broken == 2:
            return msgspec.json.encode(event | {moment: now + 10 * _MINUTE})
        if broken == 3:
            return msgspec.json.encode(event | {moment: "yesterday"})
        if broken == 4:
            return b"\xff\xfe" + msgspec.json.encode(event)
        return msgspec.json.encode([event])
