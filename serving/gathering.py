"""Orders that arrive together are answered together: one read of the online store, one call of each model."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from serving.problems import Problem
from serving.schemas import Eta, Order

MOST = 128
"""So many orders are answered at once; more are answered by turns."""

Answer = Eta | Problem
_Waiting = tuple[Order, "asyncio.Future[Answer]"]


Predict = Callable[[Sequence[Order]], Awaitable[Sequence[Answer]]]


async def each_by_itself(predict: Predict, orders: Sequence[Order]) -> list[Answer | Exception]:
    """An answer for each of some orders that are asked for at once, or the fault that it alone brings out."""
    try:
        return list(await predict(orders))
    except Exception as error:
        if len(orders) == 1:
            return [error]
    found = await asyncio.gather(*(each_by_itself(predict, [order]) for order in orders))
    return [answer for (answer,) in found]


class Gathering:
    """Answers orders one by one, by `predict`, which answers several. For one event loop.

    It waits for nobody: what has arrived when the event loop is done with what was ready is what is answered.
    """

    def __init__(self, predict: Predict) -> None:
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
        answers = await each_by_itself(self._predict, [order for order, _ in waiting])
        for (_, future), answer in zip(waiting, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception) and not isinstance(answer, Problem):
                future.set_exception(answer)
            else:
                future.set_result(answer)
