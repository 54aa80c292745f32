"""Predictions with receipts, made of a real reading of a real store: what the API logs of its answers."""

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from feature_repo.clock import from_ms
from feature_repo.stores import layout, tile_codec
from feature_repo.stores.hindsight import definitions_of
from feature_repo.stores.parquet_files import append_file
from feature_repo.stores.progress import topic_progress
from feature_repo.stores.reading import ReadPlan, Wanted, read
from feature_repo.stores.values import timestamp_micros
from feature_repo.views import BatchView, PresenceView, View, features_hash, views_of_service
from ingestion.archive import catch_up
from ingestion.events import ARCHIVED, PREDICTIONS
from ingestion.log import Message
from models.hindsight.answers import Answers, StoredEta
from models.hindsight.compare import Covered, Sources
from models.receipt import BatchRead, Prediction, Read, Receipt, Served, StreamRead, TopicRead
from models.registry import Registry
from models.vector import FeatureVector
from serving.prediction_ids import prediction_id
from tests.repo import quietly
from tests.serving_stack import BATCH_AGE_MS, PREP_STATS, ZONE_OF, Stack

PROFILE = {"zone_id": 1, "cuisine": "thai", "latitude": 52.4, "longitude": 4.9}
STATS_ROWS, PROFILE_ROWS = "restaurant_prep_stats", "restaurant_profile"


def predict(
    stack: Stack, restaurant: int = 1, order_id: str | None = None, service: str = "eta_streaming", **now: int
) -> Prediction:
    """Ask for a prediction: what is read now, by the model in use. Not logged yet."""
    clock = now.get("now", stack.clock.now)
    ids = {"restaurant_id": restaurant, "zone_id": ZONE_OF[restaurant]}
    with quietly():
        views = views_of_service(stack.store, stack.store.get_feature_service(service))
    plan = ReadPlan(stack.store.project, [Wanted(view, features, view.join_keys) for view, features in views])
    answer = read(stack.redis, plan, {name: [value] for name, value in ids.items()}, clock)
    features = {
        f"{view.name}__{name}": Served(column[0].value, column[0].status.name, column[0].event_ms)
        for (view, names), columns in zip(views, answer.columns, strict=True)
        for name, column in zip(names, columns, strict=True)
    }
    model = Registry(stack.settings.data / "models").load(service)
    median, p90 = model.predict(vector(model.vector, features, answer.instant))
    reads = {view.name: read_of(stack, view, [ids[key] for key in view.join_keys], answer.instant) for view, _ in views}
    return Prediction(
        event_id=prediction_id(answer.instant, secrets.randbits(80)),
        restaurant_id=restaurant,
        zone_id=ids["zone_id"],
        customer_id=None,
        order_id=order_id,
        at=answer.instant,
        mode="streaming" if service == "eta_streaming" else "batch_features",
        eta_minutes=round(float(median[0]), 3),
        eta_minutes_p90=round(float(p90[0]), 3),
        model=service,
        model_version=model.manifest.version,
        receipt=Receipt(clock, model.manifest.definition_hash, [], features, reads, dict(ids)),
    )


def vector(names: FeatureVector, features: Mapping[str, Served], instant: int) -> Any:
    """The row that a model is given."""
    values = {n: f.value for n, f in features.items() if not isinstance(f.value, str)}
    return np.array(names.row(values, instant))


def read_of(stack: Stack, view: View, ids: list[int], instant: int) -> Read:
    """What a view's features are read from, as the store stands."""
    project, redis = stack.store.project, stack.redis
    meaning = features_hash([(view, tuple(view.features))])
    key: Any = layout.key_builder(project, view.join_keys, view.key_types)(ids)
    if isinstance(view, BatchView):
        stamp: Any = redis.hget(key, layout.time_field(view.name))  # type: ignore[arg-type]
        version: Any = redis.hget(key, layout.version_field(view.name))  # type: ignore[arg-type]
        if stamp is None:
            return BatchRead(meaning, None, None)
        return BatchRead(meaning, timestamp_micros(stamp), int.from_bytes(version[8:], "big") - 2**63)
    topics = {}
    for topic in view.topics:
        held: Any = redis.hgetall(layout.progress_key(project, topic))  # type: ignore[arg-type]
        known = topic_progress(held).of(view)
        applied: list[int | None] = []
        for partition in range(len(known)):
            if isinstance(view, PresenceView):
                name: Any = str(layout.log_number(view, topic, partition))
                data: Any = redis.hget(layout.presence_base(project, view) + b":a", name)  # type: ignore[arg-type]
            else:
                data = redis.hget(key, layout.tiles_field(view, partition))  # type: ignore[arg-type]
            applied.append(None if data is None else tile_codec.unpack_header(data).offset)
        topics[topic] = TopicRead(
            [p and p.epoch for p in known], [p and p.offset for p in known], applied, [p and p.log for p in known]
        )
    return StreamRead(meaning, view.tiles_hash, instant, topics, None)


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
