"""Archived predictions and deliveries, made up by tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from feature_repo.settings import Settings
from ingestion.event_files import append_history, events_table, publish_events
from ingestion.events import PREDICTIONS
from models.prediction_ids import prediction_id
from models.receipt import Prediction, Receipt, Served
from tests.repo import MINUTE, START


def prediction(order: str | None, at: int = START, eta: float = 30.0, **more: Any) -> Prediction:
    """A prediction for an order; features are given as {full name: value}."""
    features: Mapping[str, Any] = more.pop("features", {})
    served = {n: Served(v, "NULL_VALUE" if v is None else "PRESENT", at) for n, v in features.items()}
    receipt = Receipt(now=at, definition="d", stepped_down=[], features=served, reads={}, keys={"restaurant_id": 1})
    receipt = msgspec.structs.replace(receipt, **more.pop("receipt", {}))
    given: dict[str, Any] = {
        "event_id": prediction_id(at),
        "restaurant_id": 1,
        "zone_id": 1,
        "customer_id": None,
        "order_id": order,
        "at": at,
        "mode": "streaming",
        "eta_minutes": eta,
        "eta_minutes_p90": eta + 10,
        "model": "eta_streaming",
        "model_version": "v1",
    }
    return Prediction(**given | more, receipt=receipt)


def archive(settings: Settings, predictions: Sequence[Prediction], first_offset: int = 0) -> None:
    """Put predictions of one date into a file of the archive, as records of partition 0, appended at their instants."""
    rows = [msgspec.structs.asdict(p) for p in predictions]
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0] if name != "receipt"}
    columns |= {
        "partition": [0] * len(rows),
        "offset": list(range(first_offset, first_offset + len(rows))),
        "append_time": columns["at"],
        "event_time": columns["at"],
        "extra": [msgspec.json.encode({"receipt": row["receipt"]}).decode() for row in rows],
    }
    publish_events(settings, PREDICTIONS, events_table(PREDICTIONS, columns), first_offset + len(rows) - 1)


def deliver(settings: Settings, minutes: Mapping[str, float], placed_at: int = START) -> None:
    """Put deliveries of orders into history, each so many minutes after it was placed."""
    count = len(minutes)
    delivered = [placed_at + round(took * MINUTE) for took in minutes.values()]
    columns: dict[str, Sequence[Any]] = {
        "event_id": [f"d-{order}" for order in minutes],
        "order_id": list(minutes),
        "restaurant_id": [1] * count,
        "zone_id": [1] * count,
        "courier_id": [None] * count,
        "placed_at": [placed_at] * count,
        "delivered_at": delivered,
        "delivery_minutes": list(minutes.values()),
        "event_time": delivered,
    }
    append_history(settings, "order_delivered", columns)
