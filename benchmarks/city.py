"""A repository folder with the history of the synthetic city and the models that are trained on it."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import feature_repo
from deploy.daily import Day, batch_features
from feature_repo.clock import from_ms, to_ms
from feature_repo.feast_quietly import apply_definitions, open_store
from feature_repo.settings import Settings
from ingestion.live_city import extend_history
from models.dataset import Dataset, build
from models.pipeline import Plan, train_all

CITY_SEED = 7
NOW = datetime(2026, 11, 2, tzinfo=UTC)
"""Where the histories end: every run trains on the same orders."""


class City(NamedTuple):
    """The folder's settings, and the orders that its models of a service were trained and judged on."""

    settings: Settings
    orders: Dataset


def trained_city(folder: Path, days: int, service: str = "eta_streaming") -> City:
    """Make the folder: `days` of history, batch features, and the models of both modes, in use."""
    folder.mkdir(parents=True)
    for name in ("definitions.py", "feature_store.yaml", ".feastignore"):
        shutil.copy(Path(feature_repo.__file__).parent / name, folder)
    settings = Settings(TIFFIN_REPO=folder, REDIS_URL=None, TIFFIN_DUCKDB_THREADS=2)
    apply_definitions(settings)
    store, now = open_store(settings), to_ms(NOW)
    extend_history(settings, CITY_SEED, now, timedelta(days=days), lambda done, total: None)
    batch_features(Day(store, settings, lambda: now))
    since, until = from_ms(now) - timedelta(days=days), from_ms(now)
    train_all(store, settings, Plan(since, until, test_from=None, where={}))
    return City(settings, build(store, settings, service, since, until))
