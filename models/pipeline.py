"""From history to models in use: both modes trained, measured on the same later orders, exported and promoted."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import numpy as np
from feast import FeatureStore
from rich.table import Table

from feature_repo.clock import clock_of, from_ms
from feature_repo.progress_bar import Advance
from feature_repo.settings import Settings
from feature_repo.views import features_hash, views_of_service
from models.dataset import Dataset, build, split
from models.export import export, manifest_of
from models.registry import Registry
from models.train import Trained, train

SERVICES = ("eta_batch", "eta_streaming")
_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Plan:
    """What to train on: orders placed in [since, until), measured on those from `test_from` on (None: the last fifth).

    `where` keeps orders whose extra fields hold these texts. Instants are aware.
    """

    since: datetime
    until: datetime
    test_from: datetime | None
    where: Mapping[str, str]
    threads: int = 1


@dataclass(frozen=True)
class Result:
    """A model that was trained and taken into use."""

    trained: Trained
    version: str
    left_out: int


def train_all(
    store: FeatureStore, settings: Settings, plan: Plan, progress: Advance = lambda done, total: None
) -> list[Result]:
    """Train the model of each service and put it into use; `progress` is told how many models are done.

    Raises what its parts raise: NoTrainingRows, TooFewRows, ExportRefused.
    """
    registry = Registry(settings.data / "models")
    results = []
    for number, service in enumerate(SERVICES):
        dataset = build(store, settings, service, plan.since, plan.until, plan.where)
        training, test = split(dataset, plan.test_from or _default_split(dataset))
        done = partial(_within, progress, number)
        trained = train(training, test, plan.threads, done)
        files = export(trained, dataset.matrix)
        views = views_of_service(store, store.get_feature_service(service))
        meaning = features_hash(views, only=set(trained.vector.stored))
        version = registry.publish(manifest_of(trained, meaning, clock_of(settings)()), files)
        registry.promote(service, version)
        results.append(Result(trained, version, dataset.left_out))
    return results


def _within(progress: Advance, number: int, done: float, total: float) -> None:
    """Progress within the training of one of the models."""
    progress(number + done / total, len(SERVICES))


def report(results: list[Result]) -> Table:
    """The figures as a table: minutes, and the share of orders that came within the 90th percentile."""
    table = Table("model", "version", "train", "test", "MAE", "RMSE", "p90 coverage", title="Minutes, on later orders")
    first = results[0].trained
    _figures(table, "overall median", "", first, first.metrics["baseline"])
    for result in results:
        _figures(table, result.trained.service, result.version, result.trained, result.trained.metrics["model"])
    return table


def _figures(table: Table, name: str, version: str, trained: Trained, metrics: Mapping[str, float]) -> None:
    rows = trained.rows
    figures = (f"{metrics['mae']:.2f}", f"{metrics['rmse']:.2f}", f"{metrics['coverage_p90']:.3f}")
    table.add_row(name, version, str(rows["train"]), str(rows["test"]), *figures)


def _default_split(dataset: Dataset) -> datetime:
    first, last = int(np.min(dataset.event_ms)), int(np.max(dataset.event_ms))
    return from_ms(last) - timedelta(milliseconds=int((last - first) * _TEST_SHARE))
