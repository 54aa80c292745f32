"""Reads the features of a service for a request that may not name every entity: missing ids are looked up.

A join key that the request does not carry is taken from the batch feature of the same name: a restaurant's `zone_id`
comes from its profile. So one id is enough to ask for a prediction.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from feature_repo.clock import Clock
from feature_repo.stores.origins import Origin
from feature_repo.stores.reading import Answer, Feature, ReadPlan, Wanted, read_async
from feature_repo.stores.redis_client import AsyncRedis
from feature_repo.views import BatchView, View

_INSTANT_TRIES = 3
Wait = Callable[[Awaitable[list[Any]]], Awaitable[list[Any]]]


@dataclass(frozen=True)
class Row:
    """One entity's features by full name (``view__feature``), and the instant (ms) that all of them hold at.

    `now` is the reader's clock, `keys` the entity's ids, given or looked up. `origins` tells what was read; it takes
    longer than reading does, so it is asked where nobody waits.
    """

    features: dict[str, Feature]
    instant: int
    now: int
    keys: dict[str, object]
    origins: Callable[[], list[Origin]]


class FeatureReader:
    """Reads one feature service's views. Raises ValueError if an id can neither be given nor looked up."""

    def __init__(
        self, client: AsyncRedis, project: str, views: Sequence[tuple[View, tuple[str, ...]]], given: str, clock: Clock
    ) -> None:
        self._client, self._clock, self._given = client, clock, given
        wanted = [Wanted(view, features, view.join_keys) for view, features in views]
        first = [w for w in wanted if w.columns == (given,)]
        second = [w for w in wanted if w.columns != (given,)]
        self._looked_up = {
            column: f"{w.view.name}__{column}"
            for column in sorted({c for w in second for c in w.columns} - {given})
            for w in first
            if isinstance(w.view, BatchView) and column in w.features
        }
        unknown = {c for w in second for c in w.columns} - {given} - self._looked_up.keys()
        if unknown:
            raise ValueError(
                f"{sorted(unknown)[0]} is neither {given} nor a batch feature by {given}: it cannot be looked up"
            )
        self._first, self._second = ReadPlan(project, first, receipts=True), ReadPlan(project, second, receipts=True)

    @property
    def batch_names(self) -> frozenset[str]:
        """The batch features, by full name."""
        wanted = (w for plan in (self._first, self._second) for w in plan.wanted if isinstance(w.view, BatchView))
        return frozenset(f"{w.view.name}__{feature}" for w in wanted for feature in w.features)

    @property
    def digests(self) -> tuple[bytes | None, bytes | None]:
        """What changes with `views`, of each half of a read; None before its first."""
        return self._first.shape.digest, self._second.shape.digest

    def views(self) -> list[tuple[View, tuple[str, ...]]]:
        """The views as they are served, with their features.

        That is how they were defined when they were folded; the registry may be ahead of it.
        """
        return [*self._first.views(), *self._second.views()]

    async def read(
        self, ids: Sequence[object], known: Sequence[Mapping[str, object]], wait: Wait | None = None
    ) -> list[Row]:
        """The features of `ids`; `known` gives, a row, ids that need not be looked up ({join key: id}).

        All rows hold at one instant: where events newer than this reader's clock keep coming between the two halves of
        a read, the first half may lie behind it by as much as they do. Raises one of `redis_client.STORE_DOWN`, and
        what `wait` raises, which bounds how long each answer of the store is waited for.
        """
        now = began = self._clock()
        for _ in range(_INSTANT_TRIES):
            first = await read_async(self._client, self._first, {self._given: ids}, now, wait=wait)
            rows = _rows(self._first, first, len(ids))
            columns: dict[str, Sequence[object]] = {self._given: ids}
            for column, source in self._looked_up.items():
                columns[column] = [k.get(column, row[source].value) for k, row in zip(known, rows, strict=True)]
            second = await read_async(self._client, self._second, columns, first.instant, wait=wait)
            if second.instant == first.instant:
                break
            now = second.instant  # an event newer than this reader's clock came between: everything is read at its time
        for row, more in zip(rows, _rows(self._second, second, len(ids)), strict=True):
            row.update(more)
        return [
            Row(
                row,
                second.instant,
                began,
                {name: column[i] for name, column in columns.items()},
                partial(_origins, first, second, i),
            )
            for i, row in enumerate(rows)
        ]


def _origins(first: Answer, second: Answer, row: int) -> list[Origin]:
    return [*first.origins(row), *second.origins(row)]


def _rows(plan: ReadPlan, answer: Answer, count: int) -> list[dict[str, Feature]]:
    rows: list[dict[str, Feature]] = [{} for _ in range(count)]
    for wanted, columns in zip(plan.wanted, answer.columns, strict=True):
        for feature, column in zip(wanted.features, columns, strict=True):
            name = f"{wanted.view.name}__{feature}"
            for row, value in zip(rows, column, strict=True):
                row[name] = value
    return rows
