"""The process that makes receipts and publishes them: `python -m serving.receipt_process FD`, by `receipts.ReceiptLog`.

Down the socket FD come frames (length, bytes): the settings first, then a `receipt_batch.Batch` each. Up go, a batch in
its order, how many of its receipts are in the log and how many could not be made. Whoever does not hear that sends the
batch again, to another process: a receipt may lie in the log twice, and counts once by its id.
"""

import gc
import os
import pickle
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog

from ingestion.events import PREDICTIONS
from ingestion.log import EventLog, LogUnavailable, Message, open_log
from serving.receipt_batch import Batch, Said, receipts_of, unpack
from serving.shadows import Shadows

if TYPE_CHECKING:
    from feature_repo.settings import Settings

LENGTH, TOLD = struct.Struct(">I"), struct.Struct(">II")
"""Before a frame its length; of a batch how many receipts were logged, and how many dropped."""

TOGETHER = 1_000
_GATHER_S = 0.02  # answers that come together are published together
_CHUNK = 1 << 18
_BACKOFF_S = (0.1, 0.3, 1.0, 2.0, 5.0)
_ORPHANS_TRIES = 3

logger = structlog.get_logger(__name__)


class Frames:
    """The frames that come down a socket."""

    def __init__(self, line: socket.socket) -> None:
        self._line, self._data, self._ended = line, bytearray(), False

    def first(self) -> bytes:
        """The first of them, waited for. Raises EOFError if none comes any more."""
        while (frame := self._next()) is None:
            if self._ended:
                raise EOFError
            self._receive(0)
        return frame

    def more(self, enough: Callable[[bytes], bool]) -> None:
        """Those that have come, until `enough` of them."""
        while True:
            while (frame := self._next()) is not None:
                if enough(frame):
                    return
            try:
                self._receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if self._ended:
                return

    def _receive(self, flags: int) -> None:
        try:
            data = self._line.recv(_CHUNK, flags)
        except ConnectionError:  # the server was killed
            data = b""
        self._data += data
        self._ended = not data

    def _next(self) -> bytes | None:
        if len(self._data) < LENGTH.size:
            return None
        end = LENGTH.size + LENGTH.unpack_from(self._data)[0]
        if len(self._data) < end:
            return None
        frame = bytes(self._data[LENGTH.size : end])
        del self._data[:end]
        return frame


class Made(NamedTuple):
    """The receipts of a batch, and how many could not be made."""

    append_ms: int | None
    messages: list[Message]
    failed: int


class Publisher:
    """Makes receipts of batches and publishes them to `log`, trying again until `given_up` says that nobody waits."""

    def __init__(self, log: EventLog, said: Said, given_up: Callable[[int], bool]) -> None:
        self._log, self._said, self._given_up = log, said, given_up

    def publish(self, batches: Sequence[Batch]) -> list[tuple[int, int]]:
        """Of each batch how many receipts are in the log, and how many were dropped."""
        made = [self._made(batch) for batch in batches]
        told = []
        for append_ms, some in groupby(made, key=lambda one: one.append_ms):
            together = list(some)
            logged = self._send([message for one in together for message in one.messages], append_ms)
            told += [
                (len(one.messages), one.failed) if logged else (0, len(one.messages) + one.failed) for one in together
            ]
        return told

    def _made(self, batch: Batch) -> Made:
        messages, failed, receipt_of = [], 0, receipts_of(batch, self._said)
        for entry in batch.entries:
            try:
                event = msgspec.json.encode(receipt_of(entry))
            except Exception as error:  # a fault of ours: one answer's is not the others'
                logger.error("no receipt can be made", prediction_id=entry.prediction_id, error=repr(error))
                failed += 1
            else:
                messages.append(Message(str(entry.restaurant_id).encode(), event))
        return Made(batch.append_ms, messages, failed)

    def _send(self, messages: Sequence[Message], append_ms: int | None) -> bool:
        failures = 0
        while messages:
            try:
                self._log.publish(PREDICTIONS, messages, append_ms)
            except LogUnavailable as error:
                if failures == 0:
                    logger.warning("receipts wait for the log", error=str(error), count=len(messages))
                if self._given_up(failures):
                    return False
                time.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
            else:
                return True
        return True


def serve(line: socket.socket) -> None:
    """Make and publish the receipts that are sent down `line` until its other end is closed."""
    frames, server = Frames(line), os.getppid()
    settings: Settings = pickle.loads(frames.first())  # noqa: S301  # our own server's
    log = open_log(settings)

    def load(name: str, version: str) -> Any:
        from models.registry import open_registry  # noqa: PLC0415  # the runtime of models is loaded only for a shadow

        return open_registry(settings).load(name, version)

    def orphaned(failures: int) -> bool:
        return failures >= _ORPHANS_TRIES and os.getppid() != server

    publisher = Publisher(log, Shadows(load), orphaned)
    with closing(log), suppress(EOFError):
        while True:
            told = publisher.publish(gathered(frames))
            with suppress(OSError):  # the server is gone: nobody counts
                line.sendall(b"".join(TOLD.pack(*one) for one in told))


def gathered(frames: Frames) -> list[Batch]:
    """The next batches, once one has come: those that come shortly after it, up to a thousand answers."""
    batches: list[Batch] = []

    def enough(frame: bytes) -> bool:
        batches.append(unpack(frame))
        return sum(len(batch.entries) for batch in batches) >= TOGETHER

    if not enough(frames.first()):
        time.sleep(_GATHER_S)
        frames.more(enough)
    return batches


if __name__ == "__main__":
    # A thousand answers live on for a moment, and then all go: Python need not look for garbage among them.
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    # Who is to end tells the server, which tells us by closing the socket when its last answer is given.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as only:
        serve(only)
