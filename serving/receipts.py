"""Receipts: every answer is logged with what it was made from, off the request's path.

Answers wait in a bounded queue; a thread makes receipts of them and publishes them to the event log, from where they
are archived like any event. What finds the queue full is dropped and counted. While the log is down the thread tries
again; what it had published before the log failed may lie there twice, and counts once by its id.
"""

import math
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from feature_repo.stores.features import Status
from feature_repo.stores.origins import Origin
from ingestion.events import PREDICTIONS
from ingestion.log import EventLog, LogUnavailable, Message
from models.receipt import Prediction, Receipt, Served, Shadow, prediction_from
from serving.metrics import RECEIPTS, RECEIPTS_WAITING
from serving.predictor import Answered, minutes
from serving.reader import Row

QUEUED = 20_000
"""So many answers may wait; about a minute of a busy server's."""

RECENT = 5_000
"""So many of the last receipts are held, about 3 kB each, to be shown at once."""

BATCH = 1_000
_GATHER_S = 0.02  # answers that come together are published together
_IDLE_S = 0.2
_BACKOFF_S = (0.1, 0.3, 1.0, 2.0, 5.0)
_CLOSE_S = 5.0

_NAMES = {status: status.name for status in Status}

logger = structlog.get_logger(__name__)


class ReceiptLog:
    """Takes answers and publishes their receipts to `log`; `stamp` gives a drill's append time, or None."""

    def __init__(
        self, log: EventLog, stamp: Callable[[], int | None], queued: int = QUEUED, recent: int = RECENT
    ) -> None:
        self._log, self._stamp, self._queued, self._kept = log, stamp, queued, recent
        self._waiting: queue.SimpleQueue[Answered] = queue.SimpleQueue()
        self._pending: dict[str, Answered] = {}
        # As bytes: many objects that live for a while are what makes Python's garbage collector slow.
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="receipts", daemon=True)
        RECEIPTS_WAITING.set_function(self._waiting.qsize)

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def add(self, answered: Answered) -> None:
        """Take an answer; never waits."""
        if self._closing.is_set() or self._waiting.qsize() >= self._queued:
            RECEIPTS.labels(outcome="dropped").inc()
        else:
            self._pending[answered.eta.prediction_id] = answered
            self._waiting.put(answered)

    def recent(self, prediction_id: str) -> Prediction | None:
        """One of the last answers with its receipt; None for any other, or one whose receipt was dropped."""
        if (answered := self._pending.get(prediction_id)) is not None:
            return prediction_of(answered)
        event = self._recent.get(prediction_id)
        return None if event is None else prediction_from(event)

    def close(self, seconds: float = _CLOSE_S) -> None:
        """Publish what waits, as far as that is done in so many seconds; count the rest as dropped."""
        deadline = time.monotonic() + seconds
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))
        left = self._waiting.qsize()
        if left:
            RECEIPTS.labels(outcome="dropped").inc(left)
            logger.warning("receipts dropped at the end", count=left)

    def _run(self) -> None:
        while True:
            batch = self._gather()
            if batch:
                self._publish(batch)
            elif self._closing.is_set():
                return

    def _gather(self) -> list[Answered]:
        try:
            batch = [self._waiting.get(timeout=_IDLE_S)]
        except queue.Empty:
            return []
        if not self._closing.is_set():
            time.sleep(_GATHER_S)
        while len(batch) < BATCH and not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
        return batch

    def _publish(self, batch: Sequence[Answered]) -> None:
        messages = [message for answered in batch if (message := self._message(answered)) is not None]
        RECEIPTS.labels(outcome="dropped").inc(len(batch) - len(messages))
        failures = 0
        while messages:
            try:
                self._log.publish(PREDICTIONS, messages, self._stamp())
            except LogUnavailable as error:
                if failures == 0:
                    logger.warning("receipts wait for the log", error=str(error), count=len(messages))
                if self._closing.wait(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]) and failures:
                    RECEIPTS.labels(outcome="dropped").inc(len(messages))
                    return
                failures += 1
            else:
                RECEIPTS.labels(outcome="logged").inc(len(messages))
                return

    def _message(self, answered: Answered) -> Message | None:
        """The record of an answer; None, and logged, if none can be made: one answer's fault is not the others'."""
        prediction_id = answered.eta.prediction_id
        try:
            event = msgspec.json.encode(prediction_of(answered))
        except Exception as error:  # a fault of ours
            logger.error("no receipt can be made", prediction_id=prediction_id, error=repr(error))
            return None
        else:
            self._recent[prediction_id] = event
            if len(self._recent) > self._kept:
                self._recent.popitem(last=False)
            return Message(str(answered.order.restaurant_id).encode(), event)
        finally:
            self._pending.pop(prediction_id, None)


def prediction_of(answered: Answered) -> Prediction:
    """The answer with its receipt."""
    eta, order, row = answered.eta, answered.order, answered.row
    keys = {} if row is None else {name: key for name, key in row.keys.items() if isinstance(key, int | str)}
    zone = keys.get("zone_id", order.zone_id)
    origins = [] if row is None else row.origins()
    receipt = Receipt(
        now=answered.now,
        definition=answered.definition,
        stepped_down=eta.stepped_down,
        features={} if row is None else _served(row, origins),
        reads={origin.view.name: origin.read for origin in origins},
        keys=keys,
        stored=answered.stored,
        shadow=_shadow(answered),
    )
    return Prediction(
        event_id=eta.prediction_id,
        restaurant_id=order.restaurant_id,
        zone_id=zone if isinstance(zone, int) else None,
        customer_id=order.customer_id,
        order_id=None if order.order_id is None else str(order.order_id),
        at=answered.now if row is None else row.instant,
        mode=eta.mode,
        eta_minutes=eta.eta_minutes,
        eta_minutes_p90=eta.eta_minutes_p90,
        model=eta.model.name,
        model_version=eta.model.version,
        receipt=receipt,
    )


def _served(row: Row, origins: Sequence[Origin]) -> dict[str, Served]:
    since: dict[str, int] = {}
    for origin in origins:
        since.update(origin.since)
    return {
        name: Served(_plain(value), _NAMES[status], event_ms, since.get(name))
        for name, (value, status, event_ms) in zip(row.names, row.values, strict=True)
    }


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; numbers that it has not are their names."""
    return str(value) if type(value) is float and not math.isfinite(value) else value


def _shadow(answered: Answered) -> Shadow | None:
    model, row = answered.shadow, answered.row
    if model is None or row is None:
        return None
    median, p90 = minutes(model, row.features, row.instant)
    return Shadow(model.manifest.name, model.manifest.version, round(median, 3), round(p90, 3))
