"""The HTTP server, put together: everything is made here, from the settings, and connects when the server starts."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from fastapi import FastAPI

from feature_repo.clock import clock_of
from feature_repo.feast_quietly import open_store
from feature_repo.settings import Settings
from feature_repo.stores.online import TiffinOnlineStore
from feature_repo.stores.redis_client import STORE_DOWN, connect_async
from feature_repo.stores.redis_pipe import RedisPipe
from feature_repo.views import BatchView, StreamView, views_of_service
from ingestion.log import open_log
from models.registry import Watcher, open_registry
from models.stored import open_stored
from serving import problems
from serving.breaker import Breaker
from serving.eta_api import eta_routes
from serving.events_api import EventIntake, events_router
from serving.feast_api import feast_router, refresh_registry
from serving.front_door import FrontDoor
from serving.health import health_router
from serving.ladder import Ladder
from serving.measured import Measured
from serving.metrics import REGISTRY, LagCollector
from serving.modes import Mode
from serving.prediction_finder import PredictionFinder
from serving.predictions_api import predictions_router
from serving.predictor import Predictor
from serving.reader import FeatureReader
from serving.receipts import ReceiptLog
from serving.recommendations_api import recommendations_router
from serving.recommender import Recommender
from serving.stored_lists import ListReader
from serving.stored_reader import FAILING, StoredReader
from serving.vector_reader import VectorReader

SERVICE = "eta_streaming"
ENTITY = "restaurant_id"
MODELS = {Mode.STREAMING: "eta_streaming", Mode.BATCH_FEATURES: "eta_batch"}

logger = structlog.get_logger(__name__)


def create_app(settings: Settings) -> FrontDoor:
    """The app. Raises, at start-up, what is wrong with the registry: better no server than one that serves nonsense."""
    store = open_store(settings)
    views = views_of_service(store, store.get_feature_service(SERVICE))
    streams: list[StreamView] = [view for view, _ in views if not isinstance(view, BatchView)]
    clock = clock_of(settings)
    log = open_log(settings)
    client = connect_async(settings)
    pipe, vectors_pipe = (RedisPipe(connect_async(settings)) for _ in range(2))
    registry = open_registry(settings)
    drill = settings.clock_start is not None
    budget_s, read_s = settings.budget_ms / 1000, settings.read_timeout_ms / 1000
    reader = FeatureReader(pipe, store.project, views, ENTITY, clock)
    predictor = Predictor(
        reader,
        {mode: Watcher(registry, name) for mode, name in MODELS.items()},
        {mode: Watcher(registry, name, shadow=True) for mode, name in MODELS.items()},
        clock,
    )
    receipts = ReceiptLog(settings, clock if drill else lambda: None)
    stored = StoredReader(
        open_stored(settings, budget_s),
        Breaker("stored predictions", FAILING, time.monotonic),
        settings.stored_max_age_hours * 3_600_000,
    )
    features = Breaker("online store", STORE_DOWN, time.monotonic)
    ladder = Ladder(reader, features, predictor, stored, clock, receipts.add, budget_s, read_s)
    lists = ListReader(stored, max(budget_s - read_s, 0.0))
    vectors = Breaker("online store, vectors", STORE_DOWN, time.monotonic)  # what is slow of these says nothing of ETAs
    recommender = Recommender(VectorReader(vectors_pipe, store), vectors, lists, clock, min(read_s, budget_s))
    intake = EventIntake(log, clock, drill=drill)
    online = TiffinOnlineStore(settings, clock)
    lags = LagCollector()
    REGISTRY.register(lags)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        refreshing = asyncio.create_task(refresh_registry(store))
        receipts.start()
        yield
        refreshing.cancel()
        with suppress(asyncio.CancelledError):
            await refreshing
        await receipts.close()
        stored.close()
        log.close()
        await online.close()
        await pipe.aclose()
        await vectors_pipe.aclose()
        await client.aclose()
        REGISTRY.unregister(lags)

    app = FastAPI(title="Tiffin", version="0.1.0", lifespan=lifespan, description="Delivery predictions, with reasons")
    problems.install(app)
    app.add_middleware(Measured)
    app.router.routes.extend(eta_routes(ladder.predict))
    app.include_router(predictions_router(receipts, PredictionFinder(settings, log)))
    app.include_router(recommendations_router(recommender))
    app.include_router(events_router(intake))
    app.include_router(feast_router(store, online, intake))
    app.include_router(health_router(client, store.project, streams, predictor, stored, lags, clock))

    return FrontDoor(app)
