"""After the drill: every entity's features at several instants, online and from history, held against the truth."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
from feast import FeatureStore

from deploy.chaos import ChaosError
from deploy.chaos.reader import FeatureReader, Served, entities_of
from deploy.chaos.truth import Ids, Truth
from feature_repo.clock import Clock, from_ms
from feature_repo.stores.redis_client import STORE_DOWN
from feature_repo.views import StreamView, WindowView
from ingestion.parity.compare import Number, close

_AHEAD_MS = 4_000
"""A reader may ask this much ahead of the clock: the stream is fresh for longer."""

_TRY_S = 60.0


class Mismatch(NamedTuple):
    """A feature that is not what the log says. `side` is ``online`` or ``history``; the instant is in ms."""

    side: str
    feature: str
    ids: Ids
    instant: int
    found: Number
    truth: Number


@dataclass
class Comparison:
    """The outcome. `nonempty` of the values compared were neither null nor 0."""

    checks: int = 0
    nonempty: int = 0
    instants: list[int] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)

    def add(self, mismatch: Mismatch) -> None:
        """Count a comparison, and keep it if the two differ."""
        self.checks += 1
        self.nonempty += bool(mismatch.truth)
        if not close(mismatch.found, mismatch.truth):
            self.mismatches.append(mismatch)


def wait_folded(reader: FeatureReader, views: Sequence[StreamView], clock: Clock, since: int, seconds: float) -> None:
    """Wait until everything appended before `since` (ms) is folded into each view. Raises ChaosError."""
    deadline = time.monotonic() + seconds
    while behind := [view.name for view in views if (_until(reader, view, clock) or 0) < since]:
        if time.monotonic() > deadline:
            raise ChaosError(f"after {seconds:.0f} s not everything is folded into {', '.join(behind)}")
        time.sleep(0.2)


def read_at_several(
    reader: FeatureReader, views: Sequence[StreamView], clock: Clock, seconds: float
) -> Iterator[Served]:
    """Every entity of each view, fresh: now, and about edges of hops in the next so many seconds.

    At each of the edges chosen (the first, the last, and those of whole minutes between) it reads a millisecond before,
    at, and a millisecond after. Raises ChaosError if the stream does not stay fresh.
    """
    now = clock()
    yield from _all_fresh(reader, views, clock, now)
    hops = sorted({view.layout.hop for view in views if isinstance(view, WindowView)})
    edges = [edge for edge in range(now - now % hops[0], now + round(seconds * 1000), hops[0]) if edge > now + 1]
    for edge in edges:
        if edge in (edges[0], edges[-1]) or edge % hops[-1] == 0:
            time.sleep(max(0, edge - _AHEAD_MS - clock()) / 1000)
            for instant in (edge - 1, edge, edge + 1):
                yield from _all_fresh(reader, views, clock, instant)


def compare_online(served: Sequence[Served], truth: Truth) -> Comparison:
    """Hold what was served against the truth."""
    result = Comparison(instants=sorted({one.instant for one in served}))
    for view, instant, entities in served:
        for ids, features in entities.items():
            for name, feature in features.items():
                true = truth.value(view, name, ids, instant)
                result.add(Mismatch("online", f"{view.name}:{name}", ids, instant, feature.value, true))
    return result


def compare_history(
    store: FeatureStore, views: Sequence[StreamView], instants: Sequence[int], truth: Truth
) -> Comparison:
    """Hold `get_historical_features` against the truth, for every entity of the views at the instants (ms)."""
    result = Comparison(instants=list(instants))
    keys = sorted({view.join_keys for view in views})
    for join_keys in keys:
        its = [view for view in views if view.join_keys == join_keys]
        entities = [(instant, ids) for instant in instants for ids in entities_of(its[0])]
        rows = pd.DataFrame([ids for _, ids in entities], columns=list(join_keys))
        rows["event_timestamp"] = pd.to_datetime([from_ms(instant) for instant, _ in entities], utc=True)
        refs = [f"{view.name}:{name}" for view in its for name in view.features]
        table = store.get_historical_features(entity_df=rows, features=refs, full_feature_names=True).to_df()
        for (instant, ids), row in zip(entities, table.to_dict("records"), strict=True):
            for view in its:
                for name in view.features:
                    true = truth.value(view, name, ids, instant)
                    found = _value(row[f"{view.name}__{name}"])
                    result.add(Mismatch("history", f"{view.name}:{name}", ids, instant, found, true))
    return result


def _value(found: Any) -> Number:
    return None if pd.isna(found) else found


def _until(reader: FeatureReader, view: StreamView, clock: Clock) -> int | None:
    try:
        return reader.complete_until(view, clock())
    except STORE_DOWN:
        return None


def _all_fresh(reader: FeatureReader, views: Sequence[StreamView], clock: Clock, at: int) -> Iterator[Served]:
    """Every entity of each view at `at` (ms); where the stream is not fresh then, at a later present of the clock."""
    for view in views:
        deadline, instant = time.monotonic() + _TRY_S, at
        while True:
            served = reader.read(view, entities_of(view), instant)
            if served.fresh:
                yield served
                break
            if time.monotonic() > deadline:
                raise ChaosError(f"{view.name}: not fresh for {_TRY_S:.0f} s, with nothing left to fold")
            time.sleep(0.1)
            instant = max(at, clock())
