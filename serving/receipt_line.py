"""The process that makes receipts, as the server sees it: a socket that batches go down and counts come up."""

import asyncio
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

from pydantic import SecretStr

from feature_repo.settings import Settings
from feature_repo.stores.embedded import socket_path
from serving.receipt_process import LENGTH, TOLD


class ReceiptLine(asyncio.Protocol):
    """A process and the socket to it; `told` hears of each batch, in order, how many receipts were logged and dropped.

    `ended` is done when the process has closed its end. To be used as a context: behind it there is no process.
    """

    def __init__(self, told: Callable[[int, int], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._told, self._received = told, bytearray()
        self._transport: asyncio.WriteTransport | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    async def begun(cls, settings: Settings, told: Callable[[int, int], None]) -> "ReceiptLine":
        """Start a process that publishes to the log of `settings`. Raises OSError if none can be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            transport, line = await asyncio.get_running_loop().create_unix_connection(lambda: cls(told), sock=ours)
            line._transport = transport
            try:
                line._process = subprocess.Popen(  # returns at once
                    [sys.executable, "-m", "serving.receipt_process", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            except OSError:
                line.close()
                raise
        line.send(pickle.dumps(_reached(settings)))  # not by its command line: there may be secrets in it
        return line

    @property
    def pid(self) -> int | None:
        """The process."""
        return None if self._process is None else self._process.pid

    def send(self, data: bytes) -> None:
        """Hand over a batch."""
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.writelines((LENGTH.pack(len(data)), data))

    def end(self) -> None:
        """Let the process end when it has published what it was given."""
        assert self._transport is not None
        with suppress(OSError):  # it has ended by itself
            self._transport.write_eof()

    def hang_up(self) -> None:
        """Close the socket, as if the server were killed."""
        assert self._transport is not None
        self._transport.abort()

    def close(self) -> None:
        """End the process, whatever it does."""
        self.hang_up()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._received += data
        whole = len(self._received) // TOLD.size * TOLD.size
        for logged, dropped in TOLD.iter_unpack(bytes(self._received[:whole])):
            self._told(logged, dropped)
        del self._received[:whole]

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if not self.ended.done():
            self.ended.set_result(None)


def _reached(settings: Settings) -> Settings:
    """Settings that name the embedded server as one that runs: no process but the server's own may start it."""
    if settings.redis_url is not None:
        return settings
    return settings.model_copy(update={"redis_url": SecretStr(f"unix://{socket_path(settings.data)}")})
