"""Orders that arrive together are answered together, and each gets its own answer."""

import asyncio
from collections.abc import Sequence

from serving.gathering import MOST, Answer, Gathering
from serving.problems import Problem
from serving.schemas import Order


def answered(restaurants: Sequence[int], bad: int | None = None) -> tuple[list[object], list[int]]:
    """What came of orders that arrive together, and how many were answered at once each time."""
    sizes: list[int] = []

    async def predict(orders: Sequence[Order]) -> list[Answer]:
        sizes.append(len(orders))
        await asyncio.sleep(0)
        if any(order.restaurant_id == bad for order in orders):
            raise RuntimeError("a fault")
        return [Problem(404, "t", str(order.restaurant_id)) for order in orders]

    async def ask() -> list[object]:
        gathering = Gathering(predict)
        return list(await asyncio.gather(*(gathering.answer(Order(i)) for i in restaurants), return_exceptions=True))

    return asyncio.run(ask()), sizes


def test_those_that_arrive_together_are_answered_at_once_and_each_by_its_own() -> None:
    answers, sizes = answered(range(20))
    assert [str(answer) for answer in answers] == [str(i) for i in range(20)]
    assert sizes == [20]


def test_more_than_are_answered_at_once_are_answered_by_turns() -> None:
    answers, sizes = answered(range(2 * MOST + 1))
    assert [str(answer) for answer in answers] == [str(i) for i in range(2 * MOST + 1)]
    assert sorted(sizes) == [1, MOST, MOST]


def test_a_fault_that_one_order_brings_out_is_its_own() -> None:
    answers, sizes = answered(range(5), bad=3)
    assert sizes == [5, 1, 1, 1, 1, 1]
    assert isinstance(answers[3], RuntimeError)
    assert [str(answer) for i, answer in enumerate(answers) if i != 3] == ["0", "1", "2", "4"]


def test_who_does_not_wait_any_more_keeps_nobody_from_an_answer() -> None:
    async def predict(orders: Sequence[Order]) -> list[Answer]:
        await asyncio.sleep(0.01)
        return [Problem(404, "t", str(order.restaurant_id)) for order in orders]

    async def ask() -> Answer:
        gathering = Gathering(predict)
        gone, stays = gathering.answer(Order(1)), gathering.answer(Order(2))
        gone.cancel()
        return await stays

    assert str(asyncio.run(ask())) == "2"
