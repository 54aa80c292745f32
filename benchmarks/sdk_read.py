"""Feast's SDK, in process: `get_online_features` through our online store, beside Feast's own Redis store."""

import gc
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from feast import FeatureService, FeatureStore

from benchmarks.events import Town
from benchmarks.feast_side import SERVICE, feast_side
from benchmarks.figures import Bench, Measured, Side
from benchmarks.world import TOWN, World, made
from feature_repo.settings import settings

_ROWS = {1: 200, 100: 30}
"""How many reads a sample is the median of, by the number of rows."""

Rows = list[dict[str, int]]
Read = Callable[[Rows], object]


def run(bench: Bench, town: Town = TOWN) -> list[Measured]:
    """Of 1 and of 100 rows, with and without `to_dict`: the lower ratio of the two counts."""
    dice = random.Random(4)
    ids = dice.sample(range(1, town.restaurants + 1), town.restaurants)
    with (
        made(bench.folder / "world", town, kafka=False) as world,
        feast_side(world, bench.folder / "feast", ids) as plain,
        _as_settings(world),
    ):
        ours = FeatureStore(repo_path=str(world.settings.repo))
        sides = {"feast": _reader(plain.store), "ours": _reader(ours)}
        found = []
        for count, times in _ROWS.items():
            drawn = [
                [{"restaurant_id": i, "zone_id": plain.zones[i]} for i in dice.sample(ids, count)]
                for _ in range(3 if bench.tiny else times)
            ]
            found.append(_measured(bench, count, drawn, sides))
    return found


def _measured(bench: Bench, count: int, drawn: Sequence[Rows], sides: dict[str, Callable[[bool], Read]]) -> Measured:
    by_form = {}
    for form, as_dict in (("response", False), ("to_dict", True)):
        reads = {name: made_reader(as_dict) for name, made_reader in sides.items()}
        for read in reads.values():
            _median_ms(read, drawn)
        samples = bench.interleaved(
            feast=lambda reads=reads: _median_ms(reads["feast"], drawn),  # type: ignore[misc]
            ours=lambda reads=reads: _median_ms(reads["ours"], drawn),  # type: ignore[misc]
        )
        by_form[form] = Measured(
            f"sdk_read_vs_feast_{count}",
            Side(f"Feast's Redis store, {count} rows, {form}", "ms", samples["feast"]),
            Side(f"our store, {count} rows, {form}", "ms", samples["ours"]),
        )
    lower = min(by_form.values(), key=lambda one: one.ratio)
    details = {form: round(one.ratio, 2) for form, one in by_form.items()}
    return Measured(lower.name, lower.over, lower.under, details)


def _reader(store: FeatureStore) -> Callable[[bool], Read]:
    service: FeatureService = store.get_feature_service(SERVICE)  # held: to look it up takes a millisecond

    def of(as_dict: bool) -> Read:
        if as_dict:
            return lambda rows: store.get_online_features(features=service, entity_rows=rows).to_dict()
        return lambda rows: store.get_online_features(features=service, entity_rows=rows)

    return of


def _median_ms(read: Read, drawn: Sequence[Rows]) -> float:
    took = []
    gc.collect()
    for rows in drawn:
        began = time.perf_counter()
        read(rows)
        took.append(time.perf_counter() - began)
    return 1000 * median(took)


@contextmanager
def _as_settings(world: World) -> Iterator[None]:
    """Give the process the settings of the world: Feast makes our online store, which reads them."""
    before = dict(os.environ)
    os.environ.update(world.environment)
    settings.cache_clear()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()
