"""Reading features during and after the drill, as a caller would: one view at a time, at an instant that is given."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from deploy.chaos.events import RESTAURANTS, SILENT, ZONES
from deploy.chaos.truth import Ids
from feature_repo.stores.reading import Feature, ReadPlan, Status, Wanted, read
from feature_repo.stores.redis_client import Redis
from feature_repo.views import StreamView
from ingestion.parity.compare import Number

FRESH = (Status.PRESENT, Status.NULL_VALUE)


class Served(NamedTuple):
    """What was served of a view at an instant (ms): the features of each entity."""

    view: StreamView
    instant: int
    entities: Mapping[Ids, Mapping[str, Feature]]

    @property
    def fresh(self) -> bool:
        """Whether every feature was served as computed."""
        return all(f.status in FRESH for features in self.entities.values() for f in features.values())

    def values(self, ids: Ids) -> dict[str, Number]:
        """The features of an entity that were served as computed."""
        return {name: f.value for name, f in self.entities[ids].items() if f.status in FRESH}


def entities_of(view: StreamView) -> list[Ids]:
    """Every entity of the view that the load speaks of, and one that it never does."""
    (key,) = view.join_keys
    return [(number,) for number in (*range(1, {"restaurant_id": RESTAURANTS, "zone_id": ZONES}[key] + 1), SILENT)]


class FeatureReader:
    """Reads the features of a project's views."""

    def __init__(self, client: Redis, project: str) -> None:
        self._client, self._project = client, project

    def read(self, view: StreamView, entities: Sequence[Ids], now: int) -> Served:
        """The features of `view` at the reader's instant `now` (ms). Raises one of `redis_client.STORE_DOWN`."""
        wanted = Wanted(view, tuple(view.features), view.join_keys)
        rows = {key: [ids[i] for ids in entities] for i, key in enumerate(view.join_keys)}
        answer = read(self._client, ReadPlan(self._project, [wanted]), rows, now)
        (columns,) = answer.columns
        found = (dict(zip(wanted.features, row, strict=True)) for row in zip(*columns, strict=True))
        return Served(view, answer.instant, dict(zip(entities, found, strict=True)))

    def complete_until(self, view: StreamView, now: int) -> int | None:
        """The instant up to which all is folded into the view, as the reader says it; None while it is not fresh."""
        served = self.read(view, [(SILENT,)], now)
        instants = [feature.event_ms for feature in served.entities[SILENT,].values()]
        return min((i for i in instants if i is not None), default=None) if served.fresh else None
