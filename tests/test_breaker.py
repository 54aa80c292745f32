"""Breakers: what is down is left alone, and tried by one call at a time."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from serving.breaker import FAILURES, OPEN_S, Breaker, Patience, Unavailable


class Down(Exception):
    """What the thing behind the breaker raises."""


class Thing:
    """Something that may be down, slow or well; on a clock that the test moves."""

    def __init__(self) -> None:
        self.now, self.calls, self.down, self.slow = 0.0, 0, False, False
        self.breaker = Breaker("thing", (Down,), lambda: self.now)

    async def call(self) -> str:
        self.calls += 1
        if self.slow:
            await Patience(0.01)(asyncio.sleep(60))
        if self.down:
            raise Down("it is down")
        return "well"

    async def ask(self) -> str:
        return await self.breaker.run(self.call)

    async def refuse(self) -> str:
        with pytest.raises(Unavailable) as caught:
            await self.ask()
        return str(caught.value)


def run(story: Callable[[Thing], Awaitable[None]]) -> None:
    asyncio.run(story(Thing()))  # type: ignore[arg-type]  # it is a coroutine


def test_it_lets_calls_through_and_forgets_failures_that_do_not_follow_each_other() -> None:
    async def story(thing: Thing) -> None:
        for _ in range(3 * FAILURES):
            thing.down = True
            assert "thing: it cannot be reached" in await thing.refuse()
            thing.down = False
            assert await thing.ask() == "well"

    run(story)


def test_after_so_many_failures_nothing_is_asked_until_one_call_may_try() -> None:
    async def story(thing: Thing) -> None:
        thing.down = True
        for _ in range(FAILURES):
            await thing.refuse()
        assert "asked again" in await thing.refuse()
        assert thing.calls == FAILURES
        thing.now += OPEN_S
        await thing.refuse()
        assert thing.calls == FAILURES + 1, "one tried"
        await thing.refuse()
        assert thing.calls == FAILURES + 1, "and failed, so the next ones wait again"
        thing.now += OPEN_S
        thing.down = False
        assert [await thing.ask(), await thing.ask()] == ["well", "well"]

    run(story)


def test_while_one_tries_the_others_are_refused() -> None:
    async def story(thing: Thing) -> None:
        thing.slow = True
        for _ in range(FAILURES):
            assert "in time" in await thing.refuse()
        thing.now += OPEN_S
        trying = asyncio.create_task(thing.refuse())
        await asyncio.sleep(0)
        assert "asked again" in await thing.refuse()
        await trying
        assert thing.calls == FAILURES + 1

    run(story)


def test_a_try_that_was_given_up_leaves_the_next_one_free() -> None:
    async def story(thing: Thing) -> None:
        thing.down = True
        for _ in range(FAILURES):
            await thing.refuse()
        thing.now += OPEN_S
        thing.down, thing.slow = False, True
        trying = asyncio.create_task(thing.ask())
        await asyncio.sleep(0)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        thing.slow = False
        assert await thing.ask() == "well"

    run(story)


def test_what_is_no_sign_of_being_down_passes_and_opens_nothing() -> None:
    async def story(thing: Thing) -> None:
        async def wrong() -> None:
            raise ZeroDivisionError

        for _ in range(2 * FAILURES):
            with pytest.raises(ZeroDivisionError):
                await thing.breaker.run(wrong)
        assert await thing.ask() == "well"

    run(story)


def test_patience_is_for_all_waits_together() -> None:
    async def story() -> None:
        wait, waits = Patience(0.05), 0
        with suppress(TimeoutError):
            while waits < 50:
                await wait(asyncio.sleep(0.01))
                waits += 1
        assert waits < 50
        with pytest.raises(TimeoutError):
            await wait(asyncio.sleep(1))

    asyncio.run(story())


def test_what_has_come_while_the_loop_was_busy_is_no_failure() -> None:
    async def story() -> str:
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair()
        here.setblocking(False)
        there.send(b"reply")
        loop.call_soon(time.sleep, 0.1)
        answer = await Patience(0.02)(loop.sock_recv(here, 5))
        here.close()
        there.close()
        return answer.decode()

    assert asyncio.run(story()) == "reply"


def test_a_call_that_was_under_way_when_it_opened_decides_nothing() -> None:
    async def story(thing: Thing) -> None:
        ends = asyncio.Event()

        async def late() -> str:
            await ends.wait()
            raise Down("late")

        straggler = asyncio.create_task(thing.breaker.run(late))
        await asyncio.sleep(0)
        thing.down = True
        for _ in range(FAILURES):
            await thing.refuse()
        thing.now += OPEN_S
        began = asyncio.Event()

        async def trial() -> str:
            began.set()
            await asyncio.sleep(0.05)
            return "well"

        trying = asyncio.create_task(thing.breaker.run(trial))
        await began.wait()
        ends.set()
        with pytest.raises(Unavailable):
            await straggler
        thing.now += OPEN_S
        calls = thing.calls
        assert "not asked again" in await thing.refuse()
        assert thing.calls == calls, "one call tries at a time"
        assert await trying == "well"

    run(story)
