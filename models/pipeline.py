"""From history to models in use: both modes trained, measured on the same later orders, exported and promoted."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial

import numpy as np
from feast import FeatureStore
from rich.table import Table

from feature_repo.clock import clock_of, from_ms
from feature_repo.progress_bar import Advance
from feature_repo.settings import Settings
from feature_repo.views import features_hash, views_of_service
from models.dataset import Dataset, build, known_by, split
from models.export import export, manifest_of
from models.receipt_dataset import build_from_receipts
from models.registry import Registry
from models.train import Trained, train

SERVICES = ("eta_batch", "eta_streaming")
_TEST_SHARE = 0.2


class Source(StrEnum):
    """What features are trained on."""

    HISTORY = "history"
    """Computed from history as of each order, through Feast."""
    RECEIPTS = "receipts"
    """As they were served, from the receipts of the predictions."""


@dataclass(frozen=True)
class Plan:
    """What to train on: orders placed in [since, until), measured on those from `test_from` on (None: the last fifth).

    `where` keeps orders whose extra fields hold these texts (of history alone). Instants are aware.
    """

    since: datetime
    until: datetime
    test_from: datetime | None
    where: Mapping[str, str]
    threads: int = 1
    source: Source = Source.HISTORY


@dataclass(frozen=True)
class Result:
    """A model that was trained and taken into use.

    `rival` is the one trained on history, measured on the same orders, where this one was trained on receipts.
    """

    trained: Trained
    version: str
    left_out: int
    rival: Trained | None = None


def train_all(
    store: FeatureStore, settings: Settings, plan: Plan, progress: Advance = lambda done, total: None
) -> list[Result]:
    """Train the model of each service and put it into use; `progress` is told how many models are done.

    Raises what its parts raise: NoTrainingRows, TooFewRows, ExportRefused.
    """
    registry = Registry(settings.data / "models")
    results = []
    for number, service in enumerate(SERVICES):
        dataset = _dataset(store, settings, service, plan)
        border = plan.test_from or default_split(dataset)
        training, test = split(dataset, border)
        done = partial(_within, progress, number)
        trained = train(training, test, plan.threads, done)
        rival = None
        if plan.source is Source.RECEIPTS:
            history = build(store, settings, service, plan.since, plan.until, plan.where)
            rival = train(known_by(history, border), test, plan.threads)
        files = export(trained, dataset.matrix)
        views = views_of_service(store, store.get_feature_service(service))
        meaning = features_hash(views, only=set(trained.vector.stored))
        now = clock_of(settings)()
        version = registry.publish(manifest_of(trained, meaning, now), files)
        registry.promote(service, version, now)
        results.append(Result(trained, version, dataset.left_out, rival))
    return results


def _dataset(store: FeatureStore, settings: Settings, service: str, plan: Plan) -> Dataset:
    if plan.source is Source.RECEIPTS:
        return build_from_receipts(store, settings, service, plan.since, plan.until)
    return build(store, settings, service, plan.since, plan.until, plan.where)


def _within(progress: Advance, number: int, done: float, total: float) -> None:
    """Progress within the training of one of the models."""
    progress(number + done / total, len(SERVICES))


def report(results: list[Result]) -> Table:
    """The figures as a table: minutes, and the share of orders that came within the 90th percentile."""
    table = Table("model", "version", "train", "test", "MAE", "RMSE", "p90 coverage", title="Minutes, on later orders")
    first = results[0].trained
    _figures(table, "overall median", "", first, first.metrics["baseline"])
    for result in results:
        name = result.trained.service
        if result.rival is not None:
            _figures(table, f"{name}, of history", "not kept", result.rival, result.rival.metrics["model"])
            name += ", of receipts"
        _figures(table, name, result.version, result.trained, result.trained.metrics["model"])
    return table


def _figures(table: Table, name: str, version: str, trained: Trained, metrics: Mapping[str, float]) -> None:
    rows = trained.rows
    figures = (f"{metrics['mae']:.2f}", f"{metrics['rmse']:.2f}", f"{metrics['coverage_p90']:.3f}")
    table.add_row(name, version, str(rows["train"]), str(rows["test"]), *figures)


def default_split(dataset: Dataset) -> datetime:
    """Where the last fifth of the time begins."""
    first, last = int(np.min(dataset.event_ms)), int(np.max(dataset.event_ms))
    return from_ms(last) - timedelta(milliseconds=int((last - first) * _TEST_SHARE))
