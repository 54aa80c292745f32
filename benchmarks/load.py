"""A load generator of one process: requests that were made beforehand, over connections that stay open.

It shares the two cores with what it measures, so it does as little as it can: it sends bytes, and looks at a reply's
status and length.
"""

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

_CHUNK = 1 << 18
_END = b"\r\n\r\n"
_OK = b"HTTP/1.1 200 "
_LENGTH = b"content-length: "
_GIVE_UP_S = 30.0

Check = Callable[[bytes], None]


class BadReply(RuntimeError):
    """A reply that is not what was asked for: the figure would be of something else."""


def request(path: str, body: bytes, host: str = "127.0.0.1") -> bytes:
    """The bytes of a POST of JSON."""
    return (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


@dataclass
class _Caller:
    """A connection, with at most one request under way."""

    socket: socket.socket
    since: float = 0.0
    received: bytearray = field(default_factory=bytearray)
    needed: int = 0

    def take(self) -> bytes | None:
        """The body of the reply if it is whole."""
        data = self.socket.recv(_CHUNK)
        if not data:
            raise BadReply("the server closed a connection")
        self.received += data
        if not self.needed:
            end = self.received.find(_END)
            if end < 0:
                return None
            head = bytes(self.received[:end]).lower()
            if not self.received.startswith(_OK):
                raise BadReply(bytes(self.received[:2000]).decode(errors="replace"))
            at = head.index(_LENGTH) + len(_LENGTH)
            self.needed = end + len(_END) + int(head[at:].split(b"\r\n", 1)[0])
        if len(self.received) < self.needed:
            return None
        body = bytes(self.received[self.received.index(_END) + len(_END) : self.needed])
        self.received.clear()
        self.needed = 0
        return body


class Load:
    """Asks a server on 127.0.0.1; `requests` are sent one after the other, again and again.

    Each run makes its connections before its time begins: servers close those that were idle for a while.
    """

    def __init__(self, port: int, requests: Sequence[bytes], connections: int) -> None:
        self._port, self._connections = port, connections
        self._requests, self._next = requests, 0
        self._selector = selectors.DefaultSelector()

    def closed_loop(self, seconds: float, check: Check | None = None) -> float:
        """Requests answered a second, each connection asking again as soon as it is answered."""
        answered = 0
        with self._connected() as callers:
            began = ended = time.perf_counter()
            deadline = began + seconds
            for caller in callers:
                self._send(caller)
            under_way = len(callers)
            while under_way:
                for caller in self._ready():
                    if (body := caller.take()) is None:
                        continue
                    if check is not None:
                        check(body)
                    ended = time.perf_counter()
                    answered += 1
                    if ended < deadline:
                        self._send(caller)
                    else:
                        under_way -= 1
        return answered / (ended - began)

    def open_loop(self, a_second: float, seconds: float) -> list[float]:
        """Seconds that each request took from when it was due, sent at an even rate whatever the answers do.

        One that finds every connection busy waits for the first that is not, and its wait counts.
        """
        took: list[float] = []
        total, sent = int(a_second * seconds), 0
        with self._connected() as callers:
            free = deque(callers)
            began = time.perf_counter()
            while len(took) < total:
                now = time.perf_counter()
                while free and sent < total and began + sent / a_second <= now:
                    self._send(free.popleft(), began + sent / a_second)
                    sent += 1
                due = began + sent / a_second if sent < total else now + _GIVE_UP_S
                for caller in self._ready(max(0.0, due - now) if free else _GIVE_UP_S):
                    if caller.take() is not None:
                        took.append(time.perf_counter() - caller.since)
                        free.append(caller)
        return took

    @contextmanager
    def _connected(self) -> Iterator[list[_Caller]]:
        callers = []
        try:
            for _ in range(self._connections):
                connection = socket.create_connection(("127.0.0.1", self._port), timeout=_GIVE_UP_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                callers.append(_Caller(connection))
                self._selector.register(connection, selectors.EVENT_READ, callers[-1])
            yield callers
        finally:
            for caller in callers:
                self._selector.unregister(caller.socket)
                caller.socket.close()

    def _send(self, caller: _Caller, since: float = 0.0) -> None:
        caller.since = since
        caller.socket.sendall(self._requests[self._next])
        self._next = (self._next + 1) % len(self._requests)

    def _ready(self, timeout: float = _GIVE_UP_S) -> list[_Caller]:
        ready = [key.data for key, _ in self._selector.select(timeout)]
        if not ready and timeout >= _GIVE_UP_S:
            raise BadReply(f"no reply within {_GIVE_UP_S:.0f} s")
        return ready
