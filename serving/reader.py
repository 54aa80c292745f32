"""Reads the features of a service for a request that may not name every entity: missing ids are looked up.

A join key that the request does not carry is taken from the batch feature of the same name: a restaurant's `zone_id`
comes from its profile. So one id is enough to ask for a prediction.

What is looked up seldom changes, so everything is read at once, by what was found the last time. What was read says
whether that still holds; if not, all is read again by what it says now. Nothing is ever answered by a remembered id.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from feature_repo.clock import Clock
from feature_repo.stores.reading import Feature, ReadPlan, Traced, Wait, Wanted, read_async
from feature_repo.stores.redis_client import StoreGone
from feature_repo.stores.redis_pipe import RedisPipe
from feature_repo.views import BatchView, View

REMEMBERED = 200_000
"""Of so many entities it is remembered what was looked up."""

_TRIES = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One entity's features, in the order of `names` (``view__feature``), and the instant (ms) that they hold at.

    `now` is the reader's clock, `keys` the entity's ids, given or looked up. `traced` tells what was read, of rows of
    the same request by their `number`.
    """

    names: tuple[str, ...]
    values: list[Feature]
    instant: int
    now: int
    keys: dict[str, object]
    number: int
    traced: Callable[[Sequence[int]], Traced]

    @property
    def features(self) -> dict[str, Feature]:
        """The features by name."""
        return dict(zip(self.names, self.values, strict=True))


class FeatureReader:
    """Reads one feature service's views. Raises ValueError if an id can neither be given nor looked up."""

    def __init__(
        self, pipe: RedisPipe, project: str, views: Sequence[tuple[View, tuple[str, ...]]], given: str, clock: Clock
    ) -> None:
        self._pipe, self._clock, self._given = pipe, clock, given
        wanted = [Wanted(view, features, view.join_keys) for view, features in views]
        self._looked_up = {
            column: f"{w.view.name}__{column}"
            for column in sorted({c for w in wanted for c in w.columns} - {given})
            for w in wanted
            if w.columns == (given,) and isinstance(w.view, BatchView) and column in w.features
        }
        unknown = {c for w in wanted for c in w.columns} - {given} - self._looked_up.keys()
        if unknown:
            raise ValueError(
                f"{sorted(unknown)[0]} is neither {given} nor a batch feature by {given}: it cannot be looked up"
            )
        self._plan = ReadPlan(project, wanted, receipts=True)
        self.names = tuple(f"{w.view.name}__{feature}" for w in wanted for feature in w.features)
        """The features of a row, by full name, in its order."""
        self._sources = {column: self.names.index(source) for column, source in self._looked_up.items()}
        self._remembered: dict[str, dict[object, object]] = {column: {} for column in self._looked_up}

    @property
    def batch_names(self) -> frozenset[str]:
        """The batch features, by full name."""
        batch = (w for w in self._plan.wanted if isinstance(w.view, BatchView))
        return frozenset(f"{w.view.name}__{feature}" for w in batch for feature in w.features)

    @property
    def digest(self) -> bytes | None:
        """What changes with `views`; None before the first read."""
        return self._plan.shape.digest

    def views(self) -> list[tuple[View, tuple[str, ...]]]:
        """The views as they are served, with their features.

        That is how they were defined when they were folded; the registry may be ahead of it.
        """
        return self._plan.views()

    async def read(
        self, ids: Sequence[object], known: Sequence[Mapping[str, object]], wait: Wait | None = None
    ) -> list[Row]:
        """The features of `ids`; `known` gives, a row, ids that need not be looked up ({join key: id}).

        All rows hold at one instant. Raises one of `redis_client.STORE_DOWN`, and what `wait` raises, which bounds how
        long each answer of the store is waited for.
        """
        now = self._clock()
        columns: dict[str, Sequence[object]] = {self._given: ids}
        for column, found in self._remembered.items():
            columns[column] = [k[column] if column in k else found.get(i) for i, k in zip(ids, known, strict=True)]
        for _ in range(_TRIES):
            answer = await read_async(self._pipe, self._plan, columns, now, wait)
            rows = [[feature for view in answer.views for feature in view.row(i)] for i in range(len(ids))]
            if not (changed := self._changed(ids, known, columns, rows)):
                return [
                    Row(
                        self.names,
                        row,
                        answer.instant,
                        now,
                        {name: column[i] for name, column in columns.items()},
                        i,
                        answer.traced,
                    )
                    for i, row in enumerate(rows)
                ]
            columns |= changed
        raise StoreGone(f"what is looked up by {self._given} changed {_TRIES} times while it was read")

    def _changed(
        self,
        ids: Sequence[object],
        known: Sequence[Mapping[str, object]],
        columns: Mapping[str, Sequence[object]],
        rows: Sequence[Sequence[Feature]],
    ) -> dict[str, list[object]]:
        """The columns of looked up ids that were read by others than what was read says."""
        changed = {}
        for column, source in self._sources.items():
            told = [k[column] if column in k else row[source].value for k, row in zip(known, rows, strict=True)]
            if told != columns[column]:
                changed[column] = told
                remembered = self._remembered[column]
                if len(remembered) + len(ids) > REMEMBERED:
                    remembered.clear()
                remembered.update((i, row[source].value) for i, row in zip(ids, rows, strict=True))
        return changed
