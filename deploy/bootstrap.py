"""From nothing to something that can be asked: definitions, history, the models, and what is done daily.

Steps done are skipped.
"""

from collections.abc import Callable
from datetime import timedelta

from feast import FeatureStore

from deploy.daily import BEFORE_MODELS, BY_MODELS, Day, daily
from feature_repo.clock import clock_of, from_ms
from feature_repo.feast_quietly import apply_definitions, open_store
from feature_repo.progress_bar import bar
from feature_repo.settings import Settings
from feature_repo.views import features_hash, views_of_service
from ingestion import live_city
from models.pipeline import SERVICES, Plan, train_all
from models.registry import ModelBroken, Registry

HISTORY = timedelta(days=28)
CITY_SEED = 7
Say = Callable[[str], None]


def bootstrap(settings: Settings, say: Say) -> FeatureStore:
    """Everything up to models in use and predictions made ahead, quick where it was done before; the feature store."""
    say("registering the definitions with Feast")
    apply_definitions(settings)
    store = open_store(settings)
    now = clock_of(settings)()
    own = (settings.data / "log").exists() and not (settings.data / "simulated.json").exists()
    if own:
        say(f"history: your own, in {settings.data / 'log'}")
    else:
        with bar("making the city's history") as advance:
            counts = live_city.extend_history(settings, CITY_SEED, now, HISTORY, advance)
        say(f"history: {sum(counts.values())} new events of a synthetic city")
    day = Day(store, settings, clock_of(settings))
    daily(day, say, BEFORE_MODELS)
    if needs_training(store, settings):
        until = from_ms(now)
        plan = Plan(since=until - timedelta(days=3650), until=until, test_from=None, where={})
        with bar("training the models") as advance:
            results = train_all(store, settings, plan, advance)
        for result in results:
            metrics = result.trained.metrics
            error, floor = metrics["model"]["mae"], metrics["baseline"]["mae"]
            say(f"{result.trained.service} {result.version}: MAE {error:.2f} min (overall median: {floor:.2f})")
    daily(day, say, BY_MODELS)
    return store


def needs_training(store: FeatureStore, settings: Settings) -> bool:
    """Whether a mode has no sound model for the features as they are defined now."""
    registry = Registry(settings.data / "models")
    for service in SERVICES:
        views = views_of_service(store, store.get_feature_service(service))
        try:
            model = registry.load(service)
        except ModelBroken:
            return True
        if features_hash(views, only=set(model.vector.stored)) != model.manifest.definition_hash:
            return True
    return False
