"""A connection of an event loop that packed commands go down, and replies come up, in order.

Who reads features sends one blob of commands that was mostly packed beforehand, and waits for one list of replies. The
client's own pipeline packs each word, and waits for each reply, by itself: several times what the server takes.

Who gives up waiting takes nothing from the others: the replies are read all the same, and thrown away. A server that
is silent for as long as the client's settings allow has lost the connection.
"""

import asyncio
from collections import deque
from typing import Any, NamedTuple

from feature_repo.stores.redis_client import AsyncRedis, StoreGone, open_stream
from feature_repo.stores.resp import reply_reader

MAX_WAITING = 256
"""So many blobs may wait for their replies at once."""


class _Awaited(NamedTuple):
    replies: list[Any]
    expected: int
    future: "asyncio.Future[list[Any]]"
    since: float


class RedisPipe:
    """One connection, made at the first exchange and again after it was lost. For one event loop."""

    def __init__(self, client: AsyncRedis) -> None:
        self._client = client
        self._opening = asyncio.Lock()
        self._line: _Line | None = None

    async def exchange(self, packed: bytes, count: int) -> list[Any]:
        """The replies to `count` commands; of one that was refused an `ErrorReply`.

        Raises one of `redis_client.STORE_DOWN`.
        """
        if not count:
            return []
        line = self._line
        if line is None or line.lost:
            line = await self._opened()
        return await line.send(packed, count)

    async def aclose(self) -> None:
        """End the connection."""
        if self._line is not None:
            self._line.end("the server stops")
        await self._client.aclose()

    async def _opened(self) -> "_Line":
        async with self._opening:
            if self._line is None or self._line.lost:
                self._line = _Line(*await open_stream(self._client))
            return self._line


class _Line(asyncio.Protocol):
    """A connection, from when it is made until it is lost."""

    def __init__(self, stream: asyncio.StreamWriter, patience_s: float) -> None:
        self._stream = stream  # it closes its transport when it is forgotten
        self._loop, self._patience_s = asyncio.get_running_loop(), patience_s
        self._watch: asyncio.TimerHandle | None = None
        self._transport = stream.transport
        self._reader = reply_reader()
        self._awaited: deque[_Awaited] = deque()
        self.lost = False
        self._transport.set_protocol(self)

    def send(self, packed: bytes, count: int) -> "asyncio.Future[list[Any]]":
        if len(self._awaited) >= MAX_WAITING:
            raise StoreGone(f"{MAX_WAITING} reads wait for the online store already")
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self._awaited.append(_Awaited([], count, future, self._loop.time()))
        self._transport.write(packed)
        if self._watch is None:
            self._watch = self._loop.call_later(self._patience_s, self._look)
        return future

    def _look(self) -> None:
        """End the connection if the first who waits has waited too long; look again when it will have."""
        self._watch = None
        if self._awaited and not self.lost:
            left = self._awaited[0].since + self._patience_s - self._loop.time()
            if left <= 0:
                self.end(f"it did not answer within {self._patience_s:g} s")
            else:
                self._watch = self._loop.call_later(left, self._look)

    def data_received(self, data: bytes) -> None:
        if not self._awaited:
            self.end("it said what nobody had asked")
            return
        self._reader.feed(data)
        while self._awaited:
            replies, expected, future, _ = self._awaited[0]
            while len(replies) < expected:
                reply = self._reader.gets()
                if reply is ...:
                    return
                replies.append(reply)
            self._awaited.popleft()
            if not future.done():
                future.set_result(replies)

    def connection_lost(self, error: Exception | None) -> None:
        self.end(repr(error) if error else "the server closed it")

    def end(self, why: str) -> None:
        self.lost = True
        self._transport.abort()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._awaited:
            future = self._awaited.popleft().future
            if not future.done():
                future.set_exception(StoreGone(f"the connection to the online store was lost: {why}"))
                future.exception()  # nobody may be waiting any more
