"""The ladder of modes: each order is answered by the best rung that can be had within the request's budget.

Features come from the online store, behind a breaker; what no model may answer comes from the stored predictions,
behind another; what neither gives is a problem that says what was missing. Nothing is remembered between requests but
the breakers' state, so the ladder climbs back as soon as what failed answers again.
"""

from collections.abc import Callable, Sequence

from feature_repo.clock import Clock, iso
from models.prediction_ids import prediction_id
from models.receipt import StoredFrom
from serving.breaker import Breaker, Patience, Unavailable
from serving.modes import Mode, allowed
from serving.predictor import Answered, NoRung, Predictor
from serving.problems import Problem
from serving.reader import FeatureReader, Row
from serving.schemas import Eta, ModelUsed, Order, StoredRun
from serving.stored_reader import StoredEtas, StoredReader


class Ladder:
    """Answers orders. `record` is given the answers that are given together; it must not wait.

    A request waits at most `budget_s` for stores, at most `read_s` of it for the online store.
    """

    def __init__(
        self,
        reader: FeatureReader,
        breaker: Breaker,
        predictor: Predictor,
        stored: StoredReader,
        clock: Clock,
        record: Callable[[Sequence[Answered]], None],
        budget_s: float,
        read_s: float,
    ) -> None:
        self._reader, self._breaker, self._predictor, self._stored = reader, breaker, predictor, stored
        self._clock, self._record = clock, record
        self._read_s, self._stored_s = min(read_s, budget_s), max(budget_s - read_s, 0.0)

    async def predict(self, orders: Sequence[Order]) -> list[Eta | Problem]:
        """An answer or a problem for each order."""
        rows = await self._rows(orders)
        if isinstance(rows, str):
            found: Sequence[Answered | NoRung | Problem] = [NoRung(order, _down(order, rows)) for order in orders]
        else:
            found = self._predictor.answer(orders, rows)
        left = [one.order for one in found if isinstance(one, NoRung) and Mode.STORED in allowed(one.order.require)]
        stored = await self._read_stored(left) if left else ""
        answers = [self._fallen(one, stored) if isinstance(one, NoRung) else one for one in found]
        if answered := [one for one in answers if isinstance(one, Answered)]:
            self._record(answered)
        return [one.eta if isinstance(one, Answered) else one for one in answers]

    async def _rows(self, orders: Sequence[Order]) -> list[Row] | str:
        """The features, or why they cannot be had."""
        known = [{} if order.zone_id is None else {"zone_id": order.zone_id} for order in orders]
        ids, wait = [order.restaurant_id for order in orders], Patience(self._read_s)
        try:
            return await self._breaker.run(lambda: self._reader.read(ids, known, wait))
        except Unavailable as error:
            return str(error)

    async def _read_stored(self, orders: Sequence[Order]) -> StoredEtas | str:
        ids = sorted({order.restaurant_id for order in orders})
        try:
            return await self._stored.etas(ids, self._clock(), Patience(self._stored_s))
        except Unavailable as error:
            return str(error)

    def _fallen(self, missed: NoRung, stored: StoredEtas | str) -> Answered | Problem:
        """The stored answer for an order that no model answers, or the problem that there is none."""
        order, why = missed.order, list(missed.why)
        if Mode.STORED in allowed(order.require):
            if not isinstance(stored, str) and order.restaurant_id in stored.minutes:
                return self._answered(missed, stored)
            lacking = stored if isinstance(stored, str) else f"run {stored.run.run_id} has nothing for it"
            why.append(f"{Mode.STORED}: {lacking}")
        return Problem(
            503,
            "No prediction in an accepted mode",
            f"restaurant_id {order.restaurant_id}: {'; '.join(why)}",
            accepted_modes=[str(mode) for mode in allowed(order.require)],
            missing=why,
        )

    def _answered(self, missed: NoRung, stored: StoredEtas) -> Answered:
        order, run, now = missed.order, stored.run, stored.at
        median, p90 = stored.minutes[order.restaurant_id]
        eta = Eta(
            prediction_id=prediction_id(now),
            restaurant_id=order.restaurant_id,
            eta_minutes=round(median, 3),
            eta_minutes_p90=round(p90, 3),
            mode=Mode.STORED,
            stepped_down=missed.why,
            as_of=iso(now),
            model=ModelUsed(name=run.model, version=run.model_version),
            features={},
            stored=StoredRun(
                run_id=run.run_id,
                hour=stored.hour,
                computed_as_of=iso(run.as_of_ms),
                age_seconds=(now - run.as_of_ms) / 1000,
            ),
        )
        return Answered(order, eta, now, stored=StoredFrom(run.run_id, stored.hour, run.as_of_ms))


def _down(order: Order, reason: str) -> list[str]:
    """Why none of the rungs that need the online store can answer."""
    return [f"{mode}: {reason}" for mode in allowed(order.require) if mode is not Mode.STORED]
