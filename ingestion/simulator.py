"""A city that never sleeps: orders, kitchens that queue, couriers that run short, as events in time order.

Each city day is played on its own, from the dice of its number, so any stretch of the city's life is the same whoever
asks for it and wherever they begin: what `live` yields from an instant on is what `write_history` writes up to it,
event ids included. Only what is under way at 05:00 is carried over, as the events that finish it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from feature_repo.clock import from_ms
from feature_repo.settings import Settings
from feature_repo.stores.parquet_files import append_file
from ingestion.city import DAY_MS, MINUTE_MS, City, day_of, day_start, rain_of
from ingestion.event_files import append_history
from ingestion.events import EVENT_TYPES

Row = tuple[Any, ...]
Happening = tuple[int, str, Row]
"""When (ms), which topic, and the event's fields in the order that its schema declares them."""

_FIELDS = {topic: kind.schema.__struct_fields__ for topic, kind in EVENT_TYPES.items()}

_PLACED, _READY, _DISPATCH, _DELIVERED, _ONLINE, _OFFLINE, _RESTLESS = range(7)
_CALLED_AHEAD_MS = 6 * MINUTE_MS  # a courier is called this long before the order is ready
_REACH = 4  # zones that an order looks for a courier in, its own among them
_HANDOVER_MS = 2 * MINUTE_MS
_PATIENCE_MS = 25 * MINUTE_MS  # a courier without an order moves to where more is going on
_TURNED_AWAY_MS = 60 * MINUTE_MS  # a kitchen that is further behind than this takes no order
_NEVER = -1
_ORDERS_A_DAY = 100_000  # room for order ids

# Shifts in minutes since 05:00: (share of couriers, start, end). The first and the last touch the day's edges, so they
# are worked by couriers of even and odd ids in turn, lest one be at work twice at once.
_SHIFTS = ((0.09, 0, 420), (0.26, 240, 660), (0.36, 690, 1140), (0.13, 420, 1080), (0.16, 900, 1500))
_EARLY, _LATE = 0, len(_SHIFTS) - 1
_AT_WORK = 0.94


class _Day:
    """One city day, played from what it asks of kitchens and couriers to a list of happenings in time order."""

    def __init__(self, city: City, day: int) -> None:
        self.city, self.day = city, day
        self.demand = city.demand(day)
        self.happened: list[Happening] = []
        self.zone_of = [r.zone_id - 1 for r in city.restaurants]
        self.free: list[dict[int, None]] = [{} for _ in city.zones]  # couriers by zone, longest waiting first
        self.pending: list[deque[int]] = [deque() for _ in city.zones]  # orders by zone without a courier
        self.waiting = 0
        self.place: dict[int, int] = {}  # zone of each courier who is online
        self.leaving: set[int] = set()  # on their last order
        self.since: dict[int, int] = {}  # when a free courier became so
        self.delivering: dict[int, Row] = {}  # what a courier will have delivered, as the event's fields
        self.statuses = 0
        self.dice = city.dice(day, 2)
        self.slow = (1 + 0.35 * rain_of(city, day)).tolist()
        self.ready = self._cook()
        self.agenda = self._agenda()

    def play(self) -> list[Happening]:
        """Everything that happens, in time order; the last of it after the day's end."""
        steps: dict[int, Callable[[int, int], None]] = {
            _PLACED: self._placed,
            _READY: self._is_ready,
            _DISPATCH: self._dispatch,
            _DELIVERED: self._freed,
            _ONLINE: self._online,
            _OFFLINE: self._offline,
            _RESTLESS: self._restless,
        }
        agenda = self.agenda
        while agenda:
            at, what, who = heappop(agenda)
            steps[what](at, who)
        return self.happened

    def _cook(self) -> list[int]:
        """When each order is ready (or `_NEVER`): a restaurant's orders take its stations first come, first served."""
        demand, idle_at = self.demand, [[0] * r.stations for r in self.city.restaurants]
        ready = []
        for placed, restaurant, cooking in zip(demand.placed, demand.restaurant, demand.cooking, strict=True):
            stations = idle_at[restaurant]
            if stations[0] - placed > _TURNED_AWAY_MS:
                ready.append(_NEVER)
                continue
            done = max(placed, stations[0]) + cooking
            heapreplace(stations, done)
            ready.append(done)
        return ready

    def _agenda(self) -> list[tuple[int, int, int]]:
        """What is known at the day's start: (when, what, order or courier)."""
        agenda = self._shifts()
        for order, (placed, ready) in enumerate(zip(self.demand.placed, self.ready, strict=True)):
            if ready != _NEVER:
                called = max(placed, ready - _CALLED_AHEAD_MS)
                agenda += ((placed, _PLACED, order), (ready, _READY, order), (called, _DISPATCH, order))
        heapify(agenda)
        return agenda

    def _shifts(self) -> list[tuple[int, int, int]]:
        dice, start, count = self.dice, day_start(self.day), self.city.couriers
        share = np.array([shift[0] for shift in _SHIFTS])
        chosen = dice.choice(len(_SHIFTS), size=count, p=share / share.sum())
        at_work = dice.random(count) < _AT_WORK * dice.uniform(0.85, 1.08)  # some days many stay at home
        late = dice.integers(0, 60 * MINUTE_MS, size=(count, 2))
        shifts = []
        for courier in np.flatnonzero(at_work).tolist():
            shift = int(chosen[courier])
            if shift in (_EARLY, _LATE) and courier % 2 != self.day % 2:
                continue
            _, begins, ends = _SHIFTS[shift]
            shifts.append((start + begins * MINUTE_MS + int(late[courier, 0]), _ONLINE, courier))
            shifts.append((start + ends * MINUTE_MS + int(late[courier, 1]), _OFFLINE, courier))
        return shifts

    def _placed(self, at: int, order: int) -> None:
        demand = self.demand
        restaurant = self.city.restaurants[demand.restaurant[order]]
        number = self._number(order)
        row = (
            f"{self.city.seed}-op-{number}",
            number,
            restaurant.restaurant_id,
            restaurant.zone_id,
            demand.customer[order],
            at,
            demand.basket[order],
            demand.items[order],
        )
        self.happened.append((at, "order_placed", row))

    def _is_ready(self, at: int, order: int) -> None:
        number, restaurant = self._number(order), self.demand.restaurant[order] + 1
        row = (f"{self.city.seed}-or-{number}", number, restaurant, self.demand.placed[order], at)
        self.happened.append((at, "order_ready", row))

    def _dispatch(self, at: int, order: int) -> None:
        """Call the courier who has waited longest in the nearest zone that has one, or leave the order waiting."""
        zone = self.zone_of[self.demand.restaurant[order]]
        for near in self.city.nearest[zone][:_REACH]:
            if self.free[near]:
                courier = next(iter(self.free[near]))
                del self.free[near][courier]
                self._assign(at, courier, order)
                return
        self.pending[zone].append(order)
        self.waiting += 1

    def _assign(self, at: int, courier: int, order: int) -> None:
        """The courier rides to the restaurant, waits there if need be, and to the customer."""
        demand, zone = self.demand, self.zone_of[self.demand.restaurant[order]]
        self._status(at, courier, zone, "busy")
        slow = self.slow[min((at - day_start(self.day)) // MINUTE_MS, len(self.slow) - 1)]
        at_restaurant = at + int(self.city.travel_ms[self.place[courier]][zone] * slow)
        delivered = max(at_restaurant, self.ready[order]) + _HANDOVER_MS + demand.ride[order]
        nearest = self.city.nearest[zone]
        roams = demand.roams[order]
        self.place[courier] = nearest[min(1 + int((roams - 0.8) * 10), len(nearest) - 1)] if roams > 0.8 else zone
        number = self._number(order)
        row = (
            f"{self.city.seed}-od-{number}",
            number,
            demand.restaurant[order] + 1,
            zone + 1,
            courier + 1,
            demand.placed[order],
            delivered,
        )
        heappush(self.agenda, (delivered, _DELIVERED, courier))
        self.delivering[courier] = row

    def _freed(self, at: int, courier: int) -> None:
        self.happened.append((at, "order_delivered", self.delivering.pop(courier)))
        if courier in self.leaving:
            self.leaving.discard(courier)
            self._status(at, courier, self.place.pop(courier), "offline")
        else:
            self._available(at, courier)

    def _available(self, at: int, courier: int) -> None:
        """Take the nearest order that waits, the oldest of its zone; else wait for one."""
        zone = self.place[courier]
        if self.waiting:
            near = next(other for other in self.city.nearest[zone] if self.pending[other])
            self.waiting -= 1
            self._assign(at, courier, self.pending[near].popleft())
            return
        self.free[zone][courier] = None
        self.since[courier] = at
        self._status(at, courier, zone, "available")
        heappush(self.agenda, (at + _PATIENCE_MS, _RESTLESS, courier))

    def _online(self, at: int, courier: int) -> None:
        self.place[courier] = int(self.zone_of[int(self.dice.integers(len(self.zone_of)))])
        self._available(at, courier)

    def _offline(self, at: int, courier: int) -> None:
        if courier in self.free[self.place[courier]]:
            zone = self.place.pop(courier)
            del self.free[zone][courier]
            self._status(at, courier, zone, "offline")
        else:
            self.leaving.add(courier)

    def _restless(self, at: int, courier: int) -> None:
        """Move to where the restaurants are, if nothing came since; the status says that the courier is still there."""
        zone = self.place.get(courier)
        if zone is None or courier not in self.free[zone] or self.since[courier] != at - _PATIENCE_MS:
            return
        del self.free[zone][courier]
        self.place[courier] = self.zone_of[int(self.dice.integers(len(self.zone_of)))]
        self._available(at, courier)

    def _status(self, at: int, courier: int, zone: int, status: str) -> None:
        self.statuses += 1
        row = (f"{self.city.seed}-cs-{self.day}-{self.statuses}", courier + 1, zone + 1, status, at)
        self.happened.append((at, "courier_status", row))

    def _number(self, order: int) -> int:
        return self.day * _ORDERS_A_DAY + order


def happenings(city: City, start_ms: int, end_ms: int) -> Iterator[Happening]:
    """What happens at `start_ms` <= t < `end_ms`, in time order."""
    carried: list[Happening] = []
    for day in range(day_of(start_ms) - 1, day_of(end_ms - 1) + 1):
        played = sorted([*carried, *_Day(city, day).play()], key=lambda happening: happening[0])
        carried = [happening for happening in played if happening[0] >= day_start(day + 1)]
        for happening in played[: len(played) - len(carried)]:
            if start_ms <= happening[0] < end_ms:
                yield happening


def live(city: City, start_ms: int, end_ms: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of `start_ms` <= t < `end_ms` as (topic, event), in time order; instants are epoch milliseconds."""
    for _, topic, row in happenings(city, start_ms, end_ms):
        yield topic, dict(zip(_FIELDS[topic], row, strict=True))


def write_history(
    settings: Settings, city: City, start_ms: int, end_ms: int, progress: Callable[[int], None]
) -> dict[str, int]:
    """Write the events of `start_ms` <= t < `end_ms` to the event log, and the restaurants' profiles as of the start.

    `progress` is told the milliseconds of history done since the last call. Gives the events written by topic. Writing
    the same time again repeats its event ids, which count once.
    """
    counts = dict.fromkeys(EVENT_TYPES, 0)
    done = start_ms
    for date, on_date in groupby(happenings(city, start_ms, end_ms), key=lambda happening: happening[0] // DAY_MS):
        rows: dict[str, list[Row]] = {topic: [] for topic in EVENT_TYPES}
        for _, topic, row in on_date:
            rows[topic].append(row)
        for topic, of_topic in rows.items():
            counts[topic] += append_history(settings, topic, _columns(topic, of_topic))
        until = min((date + 1) * DAY_MS, end_ms)
        progress(until - done)
        done = until
    append_file(settings.data / "batch" / "restaurant_profile", profiles(city, start_ms))
    return counts


def _columns(topic: str, rows: list[Row]) -> Mapping[str, Any]:
    """The event log's columns from rows of fields in the schema's order."""
    kind = EVENT_TYPES[topic]
    fields = _FIELDS[topic]
    transposed = zip(*rows, strict=True) if rows else [() for _ in fields]
    columns: dict[str, Any] = dict(zip(fields, transposed, strict=True))
    for moment in kind.moments:
        columns[moment] = np.array(columns[moment], dtype=np.int64)
    columns["order_id"] = [str(order) for order in columns.get("order_id", ())]
    return {**columns, "event_time": columns[kind.time_field]}


def profiles(city: City, as_of_ms: int) -> pa.Table:
    """The restaurants' profiles as rows of the batch view, with event and created time `as_of_ms`."""
    names = ("restaurant_id", "zone_id", "cuisine", "latitude", "longitude")
    instant = pa.array([from_ms(as_of_ms)] * len(city.restaurants), pa.timestamp("us", tz="UTC"))
    columns = {name: pa.array([getattr(r, name) for r in city.restaurants]) for name in names}
    return pa.table({**columns, "event_time": instant, "created": instant})


def burst(
    city: City,
    restaurant_id: int,
    count: int,
    at_ms: int,
    within_ms: int = MINUTE_MS,
    prep_minutes: float = 40.0,
) -> list[tuple[str, dict[str, Any]]]:
    """A made-up rush: `count` orders at a restaurant in the `within_ms` up to `at_ms`, and half as many slow kitchens.

    The orders that become ready were placed about `prep_minutes` before. In time order; ids are deterministic. Raises
    ValueError for a restaurant that the city does not have or a count that is not positive.
    """
    if not 1 <= restaurant_id <= len(city.restaurants) or count <= 0:
        raise ValueError(f"restaurant_id {restaurant_id}, count {count}: no such restaurant, or no order to place")
    restaurant = city.restaurants[restaurant_id - 1]
    dice = np.random.default_rng((city.seed, restaurant_id, at_ms))
    name = f"{city.seed}-burst-{restaurant_id}-{at_ms}"
    events: list[tuple[int, str, Row]] = []
    for i, before in enumerate(sorted(dice.integers(0, within_ms, count).tolist(), reverse=True)):
        at, customer = at_ms - before, int(dice.integers(city.customers)) + 1
        items = int(dice.integers(1, 6))
        placed = (f"{name}-op-{i}", f"{name}-{i}", restaurant_id, restaurant.zone_id, customer, at)
        events.append((at, "order_placed", (*placed, round(restaurant.price * items, 2), items)))
        if i % 2 == 0:
            ordered = at - int(prep_minutes * dice.uniform(0.8, 1.2) * MINUTE_MS)
            events.append((at, "order_ready", (f"{name}-or-{i}", f"{name}-before-{i}", restaurant_id, ordered, at)))
    return [(topic, dict(zip(_FIELDS[topic], row, strict=True))) for _, topic, row in events]
