"""Predictions with receipts, made by the code that serves them, and what they are held against."""

import asyncio
from collections.abc import Mapping

import msgspec
import pyarrow as pa

from feature_repo.clock import from_ms
from feature_repo.stores.hindsight import definitions_of
from feature_repo.stores.parquet_files import append_file
from feature_repo.stores.redis_client import connect_async
from feature_repo.stores.redis_pipe import RedisPipe
from feature_repo.views import views_of_service
from ingestion.archive import catch_up
from ingestion.events import ARCHIVED, PREDICTIONS
from ingestion.log import Message
from models.hindsight.answers import Answers, StoredEta
from models.hindsight.compare import Covered, Sources
from models.receipt import Prediction
from models.registry import Registry, Watcher
from serving.modes import Mode
from serving.predictor import Answered, Predictor
from serving.reader import FeatureReader
from serving.receipt_batch import pack, receipts_of, unpack
from serving.receipts import batch_of
from serving.schemas import Order
from tests.repo import quietly
from tests.serving_stack import BATCH_AGE_MS, PREP_STATS, ZONE_OF, Stack

PROFILE = {"zone_id": 1, "cuisine": "thai", "latitude": 52.4, "longitude": 4.9}
STATS_ROWS, PROFILE_ROWS = "restaurant_prep_stats", "restaurant_profile"


def predict(
    stack: Stack, restaurant: int = 1, order_id: str | None = None, service: str = "eta_streaming", **now: int
) -> Prediction:
    """Ask for a prediction, as the API does; by no better a model than that of the service. Not logged yet."""
    taken: list[Answered] = []
    registry, at = Registry(stack.settings.data / "models"), now.get("now", stack.clock.now)
    modes = {"eta_streaming": Mode.STREAMING, "eta_batch": Mode.BATCH_FEATURES}
    names = [name for name in modes if service in (name, "eta_streaming")]
    with quietly():
        views = views_of_service(stack.store, stack.store.get_feature_service("eta_streaming"))

    def clock() -> int:
        return at

    def watched(shadow: bool) -> dict[Mode, Watcher]:
        return {modes[name]: Watcher(registry, name, shadow=shadow) for name in names}

    async def ask() -> None:
        pipe = RedisPipe(connect_async(stack.settings))
        reader = FeatureReader(pipe, stack.store.project, views, "restaurant_id", clock)
        predictor = Predictor(reader, watched(shadow=False), watched(shadow=True), clock)
        answers = predictor.answer([order], await reader.read([restaurant], [{"zone_id": ZONE_OF[restaurant]}]))
        taken.extend(answer for answer in answers if isinstance(answer, Answered))
        await pipe.aclose()

    order = Order(restaurant_id=restaurant, order_id=order_id)
    asyncio.run(ask())
    batch = unpack(pack(batch_of(taken, None)))
    return receipts_of(batch, lambda name, version, values, instant: None)(batch.entries[0])


def log(stack: Stack, *predictions: Prediction) -> None:
    """Publish predictions, as the API does."""
    messages = [Message(str(p.restaurant_id).encode(), msgspec.json.encode(p)) for p in predictions]
    stack.log.publish(PREDICTIONS, messages, append_ms=stack.clock.now)


def archive(stack: Stack, *topics: str) -> None:
    """Bring the archive up to the log's end."""
    catch_up(stack.log, stack.settings, stack.clock, topics or list(ARCHIVED))


def sources(stack: Stack, stored_eta: StoredEta | None = None, covered: Covered | None = None) -> Sources:
    """What predictions are held against."""
    with quietly():
        return Sources(
            definitions_of(stack.store), Answers(Registry(stack.settings.data / "models"), stored_eta), covered
        )


def write_batch_rows(stack: Stack, view: str, values: Mapping[str, object], event_ms: int, created_ms: int) -> None:
    """Archive a row of each restaurant."""
    rows = [
        {"restaurant_id": restaurant, **values, "event_time": from_ms(event_ms), "created": from_ms(created_ms)}
        | ({"zone_id": zone} if "zone_id" in values else {})
        for restaurant, zone in ZONE_OF.items()
    ]
    append_file(stack.settings.data / "batch" / view, pa.Table.from_pylist(rows))


def archive_batch(stack: Stack) -> None:
    """Archive the rows that a stack's store is made with."""
    made = stack.clock.now - BATCH_AGE_MS
    write_batch_rows(stack, PROFILE_ROWS, PROFILE, made, made)
    write_batch_rows(stack, STATS_ROWS, PREP_STATS, made, made)
