"""The connection that features are read by: replies in order, and what comes of a server or a caller that is gone."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from feature_repo.settings import Settings
from feature_repo.stores.embedded import socket_path, start, stop
from feature_repo.stores.redis_client import STORE_DOWN, Redis, connect_async, exchange, refused
from feature_repo.stores.redis_pipe import MAX_WAITING, RedisPipe
from feature_repo.stores.resp import ErrorReply, around_key, command
from tests.repo import DEADLINE_S

Story = Callable[[RedisPipe], Awaitable[None]]


def told(valkey: Path, story: Story) -> None:
    """Play a story on a pipe to the server of a data folder."""

    async def play() -> None:
        pipe = RedisPipe(connect_async(Settings(REDIS_URL=SecretStr(f"unix://{socket_path(valkey)}"))))
        try:
            await story(pipe)
        finally:
            await pipe.aclose()

    asyncio.run(play())


def test_replies_come_in_order_to_whom_they_belong(valkey: Path) -> None:
    async def story(pipe: RedisPipe) -> None:
        asked = [pipe.exchange(command("ECHO", n) * 3, 3) for n in range(50)]
        assert await asyncio.gather(*asked) == [[b"%d" % n] * 3 for n in range(50)]
        assert await pipe.exchange(b"", 0) == []
        large = b"x" * 3_000_000
        assert await pipe.exchange(command("ECHO", large) + command("PING"), 2) == [large, b"PONG"]

    told(valkey, story)


def test_a_refusal_is_a_reply_like_others(valkey: Path, redis_client: Redis) -> None:
    words = command("EVALSHA", "0" * 40, 0) + command("NOSUCH") + command("PING")

    async def story(pipe: RedisPipe) -> None:
        unknown, wrong, pong = await pipe.exchange(words, 3)
        assert (str(unknown)[:8], str(wrong)[:3], pong) == ("NOSCRIPT", "ERR", b"PONG")
        assert isinstance(unknown, ErrorReply)

    told(valkey, story)
    unknown, wrong, pong = exchange(redis_client, words, 3)
    assert isinstance(unknown, ErrorReply)
    assert isinstance(wrong, ErrorReply)
    assert (str(unknown)[:8], pong) == ("NOSCRIPT", b"PONG")


def test_a_command_around_its_key_is_the_command(redis_client: Redis) -> None:
    key = "ключ".encode()
    head, tail = around_key(["HMGET"], [b"a", "b", 3])
    assert b"%b%d\r\n%b%b" % (head, len(key), key, tail) == command("HMGET", key, b"a", "b", 3)
    redis_client.hset("ключ", mapping={"a": 1, "3": 2})
    assert exchange(redis_client, command("HMGET", key, b"a", "b", 3), 1) == [[b"1", None, b"2"]]


def test_who_gives_up_takes_nothing_from_the_others_and_the_late_reply_is_nobodys(valkey: Path) -> None:
    async def story(pipe: RedisPipe) -> None:
        assert await pipe.exchange(command("PING"), 1) == [b"PONG"]
        given_up = asyncio.create_task(pipe.exchange(command("BLPOP", "nothing", "0.3"), 1))
        await asyncio.sleep(0.05)
        beside = asyncio.create_task(pipe.exchange(command("ECHO", "late"), 1))
        await asyncio.sleep(0.05)
        given_up.cancel()
        with suppress(asyncio.CancelledError):
            await given_up
        assert await beside == [b"late"]
        assert await pipe.exchange(command("ECHO", "mine"), 1) == [b"mine"]

    told(valkey, story)


def test_a_server_that_is_silent_has_lost_the_connection_and_the_next_one_is_made(valkey: Path) -> None:
    async def story(pipe: RedisPipe) -> None:
        silent = pipe.exchange(command("BLPOP", "nothing", 0), 1)  # as long as the client's settings allow: a second
        with pytest.raises(STORE_DOWN, match="did not answer within 1 s"):
            await asyncio.wait_for(silent, DEADLINE_S)
        assert await pipe.exchange(command("ECHO", "mine"), 1) == [b"mine"]

    told(valkey, story)


@pytest.mark.parametrize(("says", "down"), [("LOADING wait", True), ("MASTERDOWN x", True), ("WRONGTYPE x", False)])
def test_a_server_that_answers_nobody_is_down_and_one_that_minds_the_question_is_not(says: str, down: bool) -> None:
    assert isinstance(refused(ErrorReply(says)), STORE_DOWN) == down


def test_no_more_wait_than_are_allowed(valkey: Path) -> None:
    async def story(pipe: RedisPipe) -> None:
        await pipe.exchange(command("PING"), 1)
        waiting = [asyncio.create_task(pipe.exchange(command("BLPOP", "nothing", 0), 1)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0.05)
        with pytest.raises(STORE_DOWN, match="wait for the online store already"):
            await pipe.exchange(command("PING"), 1)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    told(valkey, story)


def test_a_server_that_was_killed_is_down_and_one_that_came_back_is_not(tmp_path: Path) -> None:
    server = start(tmp_path)

    async def story(pipe: RedisPipe) -> None:
        nonlocal server
        assert await pipe.exchange(command("PING"), 1) == [b"PONG"]
        waiting = asyncio.create_task(pipe.exchange(command("BLPOP", "nothing", 0), 1))
        await asyncio.sleep(0.05)
        server.kill()
        server.wait()
        with pytest.raises(STORE_DOWN):
            await waiting
        with pytest.raises(STORE_DOWN):
            await pipe.exchange(command("PING"), 1)
        server = start(tmp_path)
        assert await pipe.exchange(command("PING"), 1) == [b"PONG"]

    try:
        told(tmp_path, story)
    finally:
        stop(server)
