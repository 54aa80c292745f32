"""What each rung of the ladder would have promised for orders of the past, and how far that was from the truth.

The models in use predict the same orders: with all features, with batch features alone, and as the daily run would have
stored it: by the batch features of the midnight before, for the middle of the hour.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

import numpy as np
from feast import FeatureStore
from numpy.typing import NDArray
from rich.table import Table

from feature_repo.clock import from_ms, to_ms
from feature_repo.settings import Settings
from models.batch_predict import HOURS, instants
from models.dataset import Dataset, build, dataset_of, entity_rows, vector_of
from models.registry import Model, open_registry
from models.train import metrics_of

_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
BATCH, STREAMING = "eta_batch", "eta_streaming"


class TrainedSince(ValueError):
    """The model in use has seen the orders that it would be measured on."""


class Rung(NamedTuple):
    """A rung's figures on the orders, in minutes: those of `models.train.metrics_of`, and `bias` (predicted - true)."""

    name: str
    model: str
    orders: int
    figures: Mapping[str, float]


def backtest(
    store: FeatureStore, settings: Settings, since: datetime, until: datetime, where: Mapping[str, str]
) -> list[Rung]:
    """The rungs on the delivered orders placed in [since, until), the best first; `where` as in `entity_rows`.

    Raises NoTrainingRows, ModelBroken, and TrainedSince for a model that was trained on orders of that time.
    """
    registry = open_registry(settings)
    models = {name: registry.load(name) for name in (STREAMING, BATCH)}
    for model in models.values():
        if model.manifest.trained_ms[1] >= to_ms(since):
            seen = from_ms(model.manifest.trained_ms[1])
            raise TrainedSince(
                f"{model.manifest.name} {model.manifest.version} was trained on orders until {seen.isoformat()}: "
                f"measured from {since.isoformat()} on, it would know the answers; train with --test-from"
            )
    live = {name: build(store, settings, name, since, until, where) for name in models}
    rungs = [
        _rung("streaming", models[STREAMING], live[STREAMING]),
        _rung("batch_features", models[BATCH], live[BATCH]),
        _rung("stored", models[BATCH], _as_stored(store, settings, since, until, where)),
    ]
    assert len({rung.orders for rung in rungs}) == 1, "every rung is measured on the same orders"
    return rungs


def backtest_table(rungs: list[Rung]) -> Table:
    """The figures as a table."""
    table = Table("rung", "model", "orders", "MAE", "bias", "RMSE", "within p90", title="Minutes, by rung")
    for rung in rungs:
        figures = rung.figures
        errors = (f"{figures['mae']:.2f}", f"{figures['bias']:+.2f}", f"{figures['rmse']:.2f}")
        table.add_row(rung.name, rung.model, str(rung.orders), *errors, f"{figures['coverage_p90']:.3f}")
    return table


def _as_stored(
    store: FeatureStore, settings: Settings, since: datetime, until: datetime, where: Mapping[str, str]
) -> Dataset:
    """The orders with the batch features of the midnight before them, at the middle of their hour."""
    rows, left_out = entity_rows(settings, since, until, where)
    asked = np.array([to_ms(t) for t in rows["event_timestamp"]], dtype=np.int64)
    midnights = asked // _DAY_MS * _DAY_MS
    rows = rows.assign(row=np.arange(len(rows)), event_timestamp=[from_ms(ms) for ms in midnights.tolist()])
    service = store.get_feature_service(BATCH)
    found = store.get_historical_features(entity_df=rows, features=service, full_feature_names=True).to_df()
    found = found.sort_values("row", ignore_index=True)
    vector = vector_of(service)
    hours = asked // _HOUR_MS % HOURS
    at: NDArray[np.int64] = np.array([instants(m)[h] for m, h in zip(midnights.tolist(), hours.tolist(), strict=True)])
    stored = found[list(vector.stored)].astype("float64")
    return dataset_of(BATCH, vector, stored, found["delivery_minutes"], found["order_id"], at, left_out)


def _rung(name: str, model: Model, orders: Dataset) -> Rung:
    median, p90 = (np.asarray(scores, dtype=np.float64) for scores in model.predict(orders.matrix))
    figures = dict(metrics_of(orders.label, median, p90)) | {"bias": float((median - orders.label).mean())}
    return Rung(name, f"{model.manifest.name} {model.manifest.version}", len(orders), figures)
