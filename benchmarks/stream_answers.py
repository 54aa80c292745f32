"""What the online store must say after events were folded, counted from the events alone."""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from benchmarks.events import PLACED, Made
from benchmarks.stream_system import StreamSystem
from feature_repo.stores import layout, tile_codec
from feature_repo.views import WindowView
from feature_repo.windows import Tiles, read_window

_MINUTE_MS = 60_000
_COUNTED = {"restaurant_recent_orders": "restaurant_id", "zone_recent_orders": "zone_id"}


class WrongAnswer(RuntimeError):
    """Two sides of a benchmark do not say the same: what they say of what."""


class _Order(msgspec.Struct):
    restaurant_id: int
    zone_id: int
    placed_at: int


class Expected:
    """The orders placed, by minute, of each restaurant and zone."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_Order).decode
        self._placed: dict[str, Counter[tuple[int, int]]] = {name: Counter() for name in _COUNTED}
        self._newest = 0

    def add(self, events: Iterable[Made]) -> None:
        """Count events."""
        for made in events:
            self._newest = max(self._newest, made.time)
            if made.topic == PLACED:
                order, minute = self._decode(made.message.value), made.time // _MINUTE_MS
                self._placed["restaurant_recent_orders"][order.restaurant_id, minute] += 1
                self._placed["zone_recent_orders"][order.zone_id, minute] += 1

    def compare(self, system: StreamSystem) -> int:
        """Hold every window that counts orders against this, all entities, as of the newest event: how many.

        Raises WrongAnswer.
        """
        compared = 0
        for view in system.views:
            if view.name in _COUNTED and isinstance(view, WindowView):
                placed = self._placed[view.name]
                ids = sorted({one for one, _ in placed})
                for one, tiles in zip(ids, _tiles(system, view, ids), strict=True):
                    compared += self._compare(view, placed, one, tiles)
        return compared

    def _compare(self, view: WindowView, placed: Counter[tuple[int, int]], one: int, tiles: Sequence[Tiles]) -> int:
        counts = [aggregate for aggregate in view.aggregates if aggregate.function == "count"]
        now = self._newest // _MINUTE_MS
        for aggregate in counts:
            minutes = range(now - aggregate.window // _MINUTE_MS, now + 1)
            expected = sum(placed[one, minute] for minute in minutes)
            found = read_window(view.layout, aggregate, tiles, self._newest)
            if found != expected:
                raise WrongAnswer(
                    f"{view.name}.{aggregate.name} of {one}: {found} is folded, {expected} were published"
                )
        return len(counts)


def _tiles(system: StreamSystem, view: WindowView, ids: Sequence[int]) -> list[list[Tiles]]:
    """Of each entity the tiles of all partitions, as they are stored."""
    partitions = range(system.log.partitions(view.topic))
    fields = [layout.tiles_field(view, partition) for partition in partitions]
    key = layout.key_builder(system.store.project, view.join_keys, view.key_types)
    pipe = system.redis.pipeline(transaction=False)
    for one in ids:
        pipe.hmget(key([one]), fields)  # type: ignore[arg-type]  # redis-py types names as text
    return [
        [tile_codec.unpack(view.layout, n, data) for n, data in zip(partitions, found, strict=True) if data]
        for found in pipe.execute()
    ]
