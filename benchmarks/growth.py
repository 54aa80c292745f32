"""What a request costs where there are a million restaurants, beside ten thousand."""

import json
import random
from collections.abc import Sequence
from typing import Any

from benchmarks.events import Town
from benchmarks.figures import Bench, Measured, Side
from benchmarks.load import Load, request
from benchmarks.world import TOWN, World, made
from feature_repo.stores.layout import key_builder
from feature_repo.stores.redis_client import connect
from feature_repo.views import compile_view

CONNECTIONS = 16
_REQUESTS = 50_000
_COPY = """
local all = redis.call('HGETALL', KEYS[1])
for k = 2, #KEYS do redis.call('HSET', KEYS[k], unpack(all)) end
"""


def run(bench: Bench, town: Town = TOWN) -> list[Measured]:
    """Two worlds of the same town, one of which has a hundred times the restaurants, with as much known of each."""
    many = town.restaurants * (3 if bench.tiny else 20 if bench.quick else 100)
    with (
        made(bench.folder / "few", town, kafka=False) as few,
        made(bench.folder / "many", town, kafka=False) as grown,
    ):
        memory = _grow(grown, town.restaurants, many)
        loads = {
            "few": Load(few.server(), _asked(town.restaurants), CONNECTIONS),
            "many": Load(grown.server(), _asked(many), CONNECTIONS),
        }
        for load in loads.values():
            load.closed_loop(bench.seconds)
        found = bench.interleaved(
            few=lambda: 1e6 / loads["few"].closed_loop(bench.seconds),
            many=lambda: 1e6 / loads["many"].closed_loop(bench.seconds),
        )
    return [
        Measured(
            "growth_read_1m_vs_10k",
            Side(f"a request, {many:,} restaurants", "µs", found["many"]),
            Side(f"a request, {town.restaurants:,} restaurants", "µs", found["few"]),
            {"connections": CONNECTIONS, "bytes_in_use": memory},
        )
    ]


def _asked(restaurants: int) -> Sequence[bytes]:
    dice = random.Random(6)
    drawn = (dice.randint(1, restaurants) for _ in range(_REQUESTS))
    return [request("/v1/eta", json.dumps({"restaurant_id": restaurant}).encode()) for restaurant in drawn]


def _grow(world: World, few: int, many: int) -> int:
    """Copy all that is known of each restaurant to others, until there are so `many`; the bytes that it takes."""
    view = compile_view(world.store.get_feature_view("restaurant_profile"))
    key = key_builder(world.store.project, view.join_keys, view.key_types)
    client = connect(world.settings, timeout_s=60.0)
    try:
        copy = client.register_script(_COPY)
        for restaurant in range(1, few + 1):
            copy(keys=[key([i]) for i in range(restaurant, many + 1, few)])
        memory: Any = client.info("memory")
        return int(memory["used_memory"])
    finally:
        client.close()
