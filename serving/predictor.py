"""From features to an answer: picks the best rung that the features allow, scores, and says what it used."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_repo.clock import Clock, iso
from feature_repo.stores.reading import Feature, Status
from feature_repo.views import features_hash
from models.registry import Model, ModelBroken, Watcher
from serving.modes import Mode, allowed
from serving.prediction_ids import prediction_id
from serving.problems import Problem
from serving.reader import FeatureReader, Row
from serving.schemas import Eta, FeatureValue, ModelUsed, Order


@dataclass(frozen=True)
class Choice:
    """The model that is to answer an order, its mode, and why no better one is."""

    mode: Mode
    model: Model
    stepped_down: list[str]


class Predictor:
    """Answers orders from what `reader` reads, by one watched model a mode."""

    def __init__(self, reader: FeatureReader, watchers: Mapping[Mode, Watcher], clock: Clock) -> None:
        self._reader, self._watchers, self._clock = reader, watchers, clock
        self._batch_names = reader.batch_names
        self._digests: tuple[bytes | None, bytes | None] = (None, None)  # of the definitions that the doubts are of
        self._doubts: dict[str, str | None] = {}  # model version: why it may not answer, by what is served now

    async def predict(self, orders: Sequence[Order]) -> list[Eta | Problem]:
        """An answer or a problem for each order. Raises one of `redis_client.STORE_DOWN`."""
        known = [{} if order.zone_id is None else {"zone_id": order.zone_id} for order in orders]
        rows = await self._reader.read([order.restaurant_id for order in orders], known)
        models = {mode: self.model(mode) for mode in self._watchers}
        choices = [self._choose(order, row, models) for order, row in zip(orders, rows, strict=True)]
        answers: list[Eta | Problem] = [choice for choice in choices if isinstance(choice, Problem)]
        if len(answers) == len(orders):
            return answers
        scored = _score(choices, rows)
        return [
            choice if isinstance(choice, Problem) else _eta(order, row, choice, *scored[i])
            for i, (order, row, choice) in enumerate(zip(orders, rows, choices, strict=True))
        ]

    def refused(self, mode: Mode) -> str | None:
        """Why a newer model is not in use, if one was promoted and refused."""
        error = self._watchers[mode].last_error
        return None if error is None else str(error)

    def model(self, mode: Mode) -> Model | str:
        """The model of a mode, or why there is none that may answer."""
        try:
            model = self._watchers[mode].current(self._clock())
        except ModelBroken as error:
            return f"{mode}: no sound model is in use ({error})"
        if (digests := self._reader.digests) != self._digests:
            self._digests, self._doubts = digests, {}
        version = model.manifest.version
        if version not in self._doubts:
            self._doubts[version] = self._doubt(model)
        doubt = self._doubts[version]
        return model if doubt is None else f"{mode}: model {version} {doubt}"

    def _doubt(self, model: Model) -> str | None:
        """Why a model may not answer by the features as they are served now, if it may not."""
        views, wanted = self._reader.views(), set(model.vector.stored)
        unread = sorted(wanted - {f"{view.name}__{feature}" for view, features in views for feature in features})
        if unread:
            hint = "backfill its view, or restart the server if it was defined since"
            return f"uses {unread[0]}, which is not served here: {hint}"
        if features_hash(views, only=wanted) != model.manifest.definition_hash:
            return "was trained on features that are defined otherwise by now: train again"
        return None

    def _choose(self, order: Order, row: Row, models: Mapping[Mode, Model | str]) -> Choice | Problem:
        batch = [feature for name, feature in row.features.items() if name in self._batch_names]
        if all(feature.status == Status.NOT_FOUND for feature in batch):
            return Problem(
                404,
                "Unknown restaurant",
                f"restaurant_id {order.restaurant_id}: no batch features were ever written for it, "
                "so there is nothing to predict from",
            )
        why: list[str] = []
        for mode in allowed(order.require):
            model = models.get(mode, f"{mode}: not served here")
            if isinstance(model, str):
                why.append(model)
            elif stale := self._stale(model, row):
                why.append(f"{mode}: cannot be had: {', '.join(stale)}")
            else:
                return Choice(mode, model, why)
        return Problem(
            503,
            "No prediction in an accepted mode",
            f"restaurant_id {order.restaurant_id}: {'; '.join(why)}",
            accepted_modes=[str(mode) for mode in allowed(order.require)],
        )

    def _stale(self, model: Model, row: Row) -> list[str]:
        """The stream features of the model that are not fresh, or of no known entity.

        Batch features may be missing: their status says so.
        """
        return [
            f"{name} ({row.features[name].status.name})"
            for name in model.vector.stored
            if name not in self._batch_names and row.features[name].status not in (Status.PRESENT, Status.NULL_VALUE)
        ]


def _score(choices: Sequence[Choice | Problem], rows: Sequence[Row]) -> dict[int, tuple[float, float]]:
    """(median, p90) minutes by place, each model asked once for all of its rows."""
    by_model: dict[int, tuple[Model, list[int]]] = {}
    for place, choice in enumerate(choices):
        if isinstance(choice, Choice):
            by_model.setdefault(id(choice.model), (choice.model, []))[1].append(place)
    scored: dict[int, tuple[float, float]] = {}
    for model, places in by_model.values():
        matrix = [model.vector.row(_numbers(rows[place].features), rows[place].instant) for place in places]
        median, p90 = model.predict(np.concatenate(matrix))
        scored |= {place: (float(median[i]), float(p90[i])) for i, place in enumerate(places)}
    return scored


def _numbers(features: Mapping[str, Feature]) -> dict[str, float | None]:
    """The numeric features, as models take them; nulls of every status alike are missing values."""
    return {
        name: None if feature.value is None else float(feature.value)
        for name, feature in features.items()
        if feature.value is None or isinstance(feature.value, int | float)
    }


def _eta(order: Order, row: Row, choice: Choice, median: float, p90: float) -> Eta:
    return Eta(
        prediction_id=prediction_id(row.instant),
        restaurant_id=order.restaurant_id,
        eta_minutes=round(median, 3),
        eta_minutes_p90=round(p90, 3),
        mode=choice.mode,
        stepped_down=choice.stepped_down,
        as_of=iso(row.instant),
        model=ModelUsed(name=choice.model.manifest.name, version=choice.model.manifest.version),
        features={name: _shown(feature, row.instant) for name, feature in row.features.items()},
    )


def _shown(feature: Feature, instant: int) -> FeatureValue:
    value = feature.value
    if isinstance(value, float) and not math.isfinite(value):
        value = None  # JSON has no NaN
    age = None if feature.event_ms is None else (instant - feature.event_ms) / 1000
    return FeatureValue(value=value, status=feature.status.name, age_seconds=age)
