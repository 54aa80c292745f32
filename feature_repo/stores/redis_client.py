"""The only module that imports the Redis client: connections to the online store, and what they raise."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript, Script
from redis.exceptions import BusyLoadingError, ConnectionError, NoScriptError, RedisError, ResponseError, TimeoutError
from redis.retry import Retry

from feature_repo.settings import Settings
from feature_repo.stores import embedded
from feature_repo.stores.resp import NO_SCRIPT, ErrorReply

if TYPE_CHECKING:
    Redis = redis.Redis
    AsyncRedis = redis.asyncio.Redis
else:
    Redis, AsyncRedis = redis.Redis, redis.asyncio.Redis

STORE_DOWN = (ConnectionError, TimeoutError, BusyLoadingError)
"""What a call raises when the store cannot be reached, is too slow, or has not loaded its data yet."""

StoreGone = ConnectionError

_NOT_NOW = frozenset({"LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "MISCONF", "NOAUTH"})
"""How the error of a server begins that answers nobody at this moment, whatever it is asked."""

__all__ = [
    "STORE_DOWN",
    "AsyncRedis",
    "AsyncScript",
    "RawConnection",
    "Redis",
    "RedisError",
    "Script",
    "ServerRun",
    "StoreGone",
    "connect",
    "connect_async",
    "exchange",
    "open_stream",
    "raw_connection",
    "refused",
]


def refused(reply: ErrorReply) -> RedisError:
    """What to raise for a command that was refused: one of `STORE_DOWN` if the store refuses all of them by now."""
    text = str(reply)
    if text.partition(" ")[0] in _NOT_NOW:
        return BusyLoadingError(f"the online store answers nobody: {text}")
    return RedisError(f"the online store refuses to be read: {text}")


class ServerRun:
    """A stretch of calls that must not cross a restart of the server.

    The client connects anew, in silence, where it finds its connection closed between two calls. A server that came
    back may have lost its last second; what is written across that would rest on what is no longer there.
    """

    def __init__(self) -> None:
        self._unbroken = False

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """Within it a new connection raises ConnectionError. There must have been a call before."""
        self._unbroken = True
        try:
            yield
        finally:
            self._unbroken = False

    def connected(self, connection: Any) -> None:
        """Called by the client whenever it connects."""
        if self._unbroken:
            raise ConnectionError("the online store was restarted, or the connection to it lost, between two writes")
        connection.on_connect()


def connect(settings: Settings, timeout_s: float = 5.0, run: ServerRun | None = None) -> Redis:
    """A client of the online store (bytes in, bytes out), connecting at its first call.

    Without a ``REDIS_URL`` the embedded server is started if it does not run. Calls raise one of `STORE_DOWN` within
    `timeout_s`; nothing is retried behind the caller's back. With a `run` the client serves one thread alone.
    """
    options = _options(timeout_s) | ({"redis_connect_func": run.connected} if run else {})
    with _readable_url():
        return Redis.from_url(_url(settings), **options)


def connect_async(settings: Settings, timeout_s: float = 1.0) -> AsyncRedis:
    """The same for asyncio. Make it in the loop that uses it."""
    options = _options(timeout_s)
    options["retry"] = redis.asyncio.retry.Retry(NoBackoff(), 0)
    with _readable_url():
        return AsyncRedis.from_url(_url(settings), **options)


def exchange(client: Redis, packed: bytes, count: int) -> list[Any]:
    """The replies to `count` packed commands; of one that was refused an `ErrorReply`. Raises one of `STORE_DOWN`."""
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    try:
        connection.send_packed_command([packed])
        return [_reply(connection) for _ in range(count)]
    except BaseException:
        connection.disconnect()  # what it still answers would be taken for the next one's
        raise
    finally:
        pool.release(connection)


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except NoScriptError as error:
        return ErrorReply(f"{NO_SCRIPT} {error}")
    except ResponseError as error:
        return ErrorReply(str(error))


async def open_stream(client: AsyncRedis) -> tuple[asyncio.StreamWriter, float]:
    """A new connection as the client makes them, greeted as its settings say; it is the caller's alone, to be closed.

    Also the seconds within which the client would have an answer. Raises one of `STORE_DOWN`.
    """
    pool: Any = client.connection_pool
    connection = pool.make_connection()
    await connection.connect()
    writer, connection._reader, connection._writer = connection._writer, None, None
    return cast(asyncio.StreamWriter, writer), float(connection.socket_timeout)


class RawConnection:
    """A connection that is sent whole commands in Redis's protocol, many at once."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def run(self, commands: bytes, count: int) -> None:
        """Send so many commands and read their answers. Raises one of `STORE_DOWN`, RedisError if one was refused."""
        self._connection.send_packed_command([commands])
        for _ in range(count):
            self._connection.read_response()


@contextmanager
def raw_connection(client: Redis) -> Iterator[RawConnection]:
    """A connection of the client's; it is closed if something is raised, since answers may still come."""
    connection = client.connection_pool.get_connection()
    try:
        yield RawConnection(connection)
    except BaseException:
        connection.disconnect()  # type: ignore[no-untyped-call]
        raise
    finally:
        client.connection_pool.release(connection)


@contextmanager
def _readable_url() -> Iterator[None]:
    """Say that the URL cannot be read, and nothing of what is in it: it may hold a password."""
    try:
        yield
    except ValueError:
        raise ValueError(
            "REDIS_URL cannot be read: it must be redis://, rediss:// or unix://, with special characters of its "
            "password percent-encoded; no online store was connected"
        ) from None


def _url(settings: Settings) -> str:
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value()
    return f"unix://{embedded.ensure(settings.data)}"


def _options(timeout_s: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "protocol": 2,  # what we read ourselves is read so
        "retry": Retry(NoBackoff(), 0),  # redis-py would retry a dead server for 5.7 s
        "health_check_interval": 0,
    }
