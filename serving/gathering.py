"""Orders that arrive together are answered together: one read of the online store, one call of each model."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from serving.problems import Problem
from serving.schemas import Eta, Order

MOST = 128
"""So many orders are answered at once; more are answered by turns."""

Answer = Eta | Problem
_Waiting = tuple[Order, "asyncio.Future[Answer]"]


class Gathering:
    """Answers orders one by one, by `predict`, which answers several. For one event loop.

    It waits for nobody: what has arrived when the event loop is done with what was ready is what is answered.
    """

    def __init__(self, predict: Callable[[Sequence[Order]], Awaitable[Sequence[Answer]]]) -> None:
        self._predict = predict
        self._waiting: list[_Waiting] = []
        self._under_way: set[asyncio.Task[None]] = set()  # the event loop holds tasks by weak references alone

    def answer(self, order: Order) -> "asyncio.Future[Answer]":
        """The answer to come; raises what `predict` raises for the order alone."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._go)
        self._waiting.append((order, future))
        return future

    def _go(self) -> None:
        waiting, self._waiting = self._waiting, []
        for at in range(0, len(waiting), MOST):
            task = asyncio.create_task(self._answer(waiting[at : at + MOST]))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _answer(self, waiting: Sequence[_Waiting]) -> None:
        try:
            answers = await self._predict([order for order, _ in waiting])
        except Exception as error:
            if len(waiting) > 1:  # a fault that one order brings out is not the others'
                for one in waiting:
                    await self._answer([one])
                return
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), answer in zip(waiting, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
