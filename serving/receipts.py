"""Receipts: every answer is logged with what it was made from, off the request's path.

Answers are handed over to a process of their own (`receipt_process`), which makes receipts of them and publishes these
to the event log, from where they are archived like any event. Until it says that they are there the answers are kept
here; what finds too many of them is dropped and counted. A process that dies is replaced by another, which gets all
that was not heard of: a receipt may then lie in the log twice, and counts once by its id.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import structlog

from feature_repo.settings import Settings
from feature_repo.stores.features import Status
from feature_repo.stores.reading import Traced
from feature_repo.stores.reads import Trace
from models.receipt import Prediction
from models.registry import open_registry
from serving.metrics import RECEIPTS, RECEIPTS_WAITING
from serving.predictor import Answered
from serving.receipt_batch import Batch, Entry, pack, receipts_of, unpack
from serving.receipt_line import ReceiptLine
from serving.shadows import Shadows

QUEUED = 20_000
"""So many answers may wait, about 3 kB each; some seconds of a busy server's."""

RECENT = 5_000
"""So many of the last answers are held, to be shown at once."""

DEATHS = 3
"""After so many processes that died over it without a word a batch is given up."""

_BACKOFF_S = (0.0, 0.1, 0.3, 1.0, 2.0, 5.0)
_CLOSE_S = 5.0
_STATUSES = {int(status): status.name for status in Status}

logger = structlog.get_logger(__name__)


class _Sent(NamedTuple):
    """A batch whose receipts are not in the log as far as is known."""

    size: int
    data: bytes


class ReceiptLog:
    """Takes answers; their receipts go to the log of `settings`. `stamp` gives a drill's append time, or None.

    For one event loop, between `start` and `close`.
    """

    def __init__(
        self, settings: Settings, stamp: Callable[[], int | None], queued: int = QUEUED, recent: int = RECENT
    ) -> None:
        self._settings, self._stamp, self._queued, self._kept = settings, stamp, queued, recent
        self._sent: deque[_Sent] = deque()
        self._waiting = 0
        # As bytes: many objects that live for a while are what makes Python's garbage collector slow.
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._shadows = Shadows(open_registry(settings).load)
        self._line: ReceiptLine | None = None
        self._open = False  # whether what comes is handed over at once
        self._running: asyncio.Task[None] | None = None
        self._closing = False
        self._heard = asyncio.Event()
        RECEIPTS_WAITING.set_function(lambda: self._waiting)

    def start(self) -> None:
        """Begin to publish."""
        self._running = asyncio.create_task(self._run())

    def add(self, answers: Sequence[Answered]) -> None:
        """Take the answers to one read of the online store; never waits."""
        if self._closing or self._waiting + len(answers) > self._queued:
            self._dropped(len(answers))
            return
        for data, ids in _packed(answers, self._stamp()):
            self._recent.update(dict.fromkeys(ids, data))
            while len(self._recent) > self._kept:
                self._recent.popitem(last=False)
            sent = _Sent(len(ids), data)
            self._sent.append(sent)
            self._waiting += sent.size
            if self._open and self._line is not None:
                self._line.send(sent.data)

    def recent(self, prediction_id: str) -> Prediction | None:
        """One of the last answers with its receipt; None for any other, or one whose receipt was dropped.

        From any thread: a model in the shadow that is asked for the first time is loaded.
        """
        if (data := self._recent.get(prediction_id)) is None:
            return None
        batch = unpack(data)
        (entry,) = [one for one in batch.entries if one.prediction_id == prediction_id]
        return receipts_of(batch, self._shadows)(entry)

    @property
    def pid(self) -> int | None:
        """The process that publishes, if there is one at this moment."""
        return None if self._line is None else self._line.pid

    async def close(self, seconds: float = _CLOSE_S) -> None:
        """Publish what waits, as far as that is done in so many seconds; count the rest as dropped."""
        self._closing = True
        if self._running is not None:
            if self._open and self._line is not None:
                self._line.end()
            await asyncio.wait([self._running], timeout=seconds)
            self._running.cancel()
            await asyncio.wait([self._running])
        if self._waiting:
            logger.warning("receipts dropped at the end", count=self._waiting)
            self._dropped(self._waiting)
            self._waiting = 0

    async def _run(self) -> None:
        """Keep a process that publishes, until all is done."""
        silent = 0  # processes that ended, one after the other, without a word of the batch that they had first
        failed = 0  # attempts, one after the other, to begin one
        while not (self._closing and not self._sent):
            await asyncio.sleep(_BACKOFF_S[min(silent + failed, len(_BACKOFF_S) - 1)])
            first = self._sent[0] if self._sent else None
            try:
                line = await ReceiptLine.begun(self._settings, self._told)
            except OSError as error:
                logger.warning("no process that makes receipts can be begun", error=str(error))
                failed += 1
                continue
            failed = 0
            with closing(line):
                self._line = line
                try:
                    await self._live(line, by_itself=silent > 0)
                finally:
                    self._line, self._open = None, False
            if self._closing and not self._sent:
                return
            logger.warning("the process that makes receipts has ended; another is begun", waiting=self._waiting)
            silent = silent + 1 if first is not None and self._sent and self._sent[0] is first else 0
            if silent >= DEATHS and first is not None:
                logger.error("receipts that no process survives are given up", count=first.size)
                self._told(0, first.size)
                silent = 0

    async def _live(self, line: ReceiptLine, by_itself: bool) -> None:
        """Hand over to a process what waits and what comes, until it ends; the first of it `by_itself`.

        What ended the one before may be the first batch, or another that it had at the same time.
        """
        waiting = list(self._sent)
        if by_itself and waiting:
            self._heard.clear()
            line.send(waiting.pop(0).data)
            heard: asyncio.Future[Any] = asyncio.ensure_future(self._heard.wait())
            await asyncio.wait({heard, line.ended}, return_when=asyncio.FIRST_COMPLETED)
            heard.cancel()
            waiting = list(self._sent)
        for sent in waiting:
            line.send(sent.data)
        if self._closing:
            line.end()
        self._open = True
        await line.ended

    def _told(self, logged: int, dropped: int) -> None:
        """The first of the batches that wait is done with."""
        self._waiting -= self._sent.popleft().size
        self._heard.set()
        RECEIPTS.labels(outcome="logged").inc(logged)
        self._dropped(dropped)

    def _dropped(self, count: int) -> None:
        RECEIPTS.labels(outcome="dropped").inc(count)


def batch_of(answers: Sequence[Answered], append_ms: int | None) -> Batch:
    """What receipts of the answers to one read of the online store are made of."""
    rows = [answered.row for answered in answers if answered.row is not None]
    names, traced = (rows[0].names, rows[0].traced([row.number for row in rows])) if rows else ((), Traced([], []))
    traces = iter(traced.rows)
    entries = [_entry(answered, [] if answered.row is None else next(traces)) for answered in answers]
    return Batch(append_ms, names, _STATUSES, traced.views, entries)


def _entry(answered: Answered, traces: list[Trace]) -> Entry:
    eta, order, row, shadow = answered.eta, answered.order, answered.row, answered.shadow
    keys = {} if row is None else {name: key for name, key in row.keys.items() if isinstance(key, int | str)}
    zone = keys.get("zone_id", order.zone_id)
    return Entry(
        eta.prediction_id,
        order.restaurant_id,
        zone if isinstance(zone, int) else None,
        order.customer_id,
        None if order.order_id is None else str(order.order_id),
        answered.now,
        answered.now if row is None else row.instant,
        eta.mode,
        eta.eta_minutes,
        eta.eta_minutes_p90,
        eta.model.name,
        eta.model.version,
        eta.stepped_down,
        answered.definition,
        keys,
        [] if row is None else row.values,
        traces,
        answered.stored,
        None if shadow is None else (shadow.manifest.name, shadow.manifest.version),
    )


def _packed(answers: Sequence[Answered], append_ms: int | None) -> list[tuple[bytes, list[str]]]:
    """The batch as bytes, with its predictions' ids; where it cannot be packed, each answer that can by itself."""
    try:
        return [(pack(batch_of(answers, append_ms)), [answered.eta.prediction_id for answered in answers])]
    except Exception as error:  # a fault of ours: one answer's is not the others'
        if len(answers) > 1:
            return [packed for answered in answers for packed in _packed([answered], append_ms)]
        logger.error("no receipt can be made", prediction_id=answers[0].eta.prediction_id, error=repr(error))
        RECEIPTS.labels(outcome="dropped").inc()
        return []
