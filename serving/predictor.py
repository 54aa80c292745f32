"""From features to an answer: picks the best rung that the features allow, scores, and says what it used."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from feature_repo.clock import Clock, iso
from feature_repo.stores.features import NOT_FOUND, NULL_VALUE, PRESENT, Feature, Status
from feature_repo.views import features_hash
from models.prediction_ids import prediction_id
from models.receipt import StoredFrom
from models.registry import Model, ModelBroken, Watcher
from serving.modes import Mode, allowed
from serving.problems import Problem
from serving.reader import FeatureReader, Row
from serving.schemas import Eta, FeatureValue, ModelUsed, Order


@dataclass(frozen=True)
class Choice:
    """The model that is to answer an order, its mode, and why no better one is."""

    mode: Mode
    model: Model
    stepped_down: list[str]


@dataclass(frozen=True)
class Answered:
    """An answer and what it was made from; a stored one has neither row nor model of its own."""

    order: Order
    eta: Eta
    now: int
    row: Row | None = None
    definition: str = ""
    shadow: Model | None = None
    stored: StoredFrom | None = None


@dataclass(frozen=True)
class NoRung:
    """An order that no model may answer: why, a rung each."""

    order: Order
    why: list[str]


class Places(NamedTuple):
    """Where in a row a model's stored features are, and those of them that are of streams."""

    stored: list[int]
    streams: list[int]


class Predictor:
    """Answers orders from the rows that `reader` reads, by one watched model a mode.

    `shadows` are models that answer nobody: what they say of the same features is kept with the answer.
    """

    def __init__(
        self, reader: FeatureReader, watchers: Mapping[Mode, Watcher], shadows: Mapping[Mode, Watcher], clock: Clock
    ) -> None:
        self._reader, self._watchers, self._shadows, self._clock = reader, watchers, shadows, clock
        self._batch_names = reader.batch_names
        self._batch = [i for i, name in enumerate(reader.names) if name in self._batch_names]
        self._digest: bytes | None = None  # of the definitions that the doubts are of
        self._doubts: dict[str, str | None] = {}  # model version: why it may not answer, by what is served now
        self._places: dict[str, Places] = {}  # of a model version

    def answer(self, orders: Sequence[Order], rows: Sequence[Row]) -> list[Answered | NoRung | Problem]:
        """For each order its answer, why no model gives it, or a problem that no other rung would mend."""
        models = {mode: self.model(mode) for mode in self._watchers}
        shadows = {mode: self.shadow(mode) for mode in self._shadows}
        choices = [self._choose(order, row, models) for order, row in zip(orders, rows, strict=True)]
        scored = self._score(choices, rows)
        shown = {row.instant: iso(row.instant) for row in rows}  # all of them hold at one
        return [
            Answered(
                order,
                _eta(order, row, choice, scored[i], shown[row.instant]),
                row.now,
                row,
                choice.model.manifest.definition_hash,
                shadows.get(choice.mode),
            )
            if isinstance(choice, Choice)
            else choice
            for i, (order, row, choice) in enumerate(zip(orders, rows, choices, strict=True))
        ]

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that a model answers in, the best first."""
        return tuple(self._watchers)

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
        doubt = self._doubt(model)
        return model if doubt is None else f"{mode}: model {model.manifest.version} {doubt}"

    def shadow(self, mode: Mode) -> Model | None:
        """The model in the shadow of a mode, if there is one that may be asked."""
        model = self._shadows[mode].find(self._clock())
        return model if model is not None and self._doubt(model) is None else None

    def _doubt(self, model: Model) -> str | None:
        """Why a model may not answer by the features as they are served now, if it may not."""
        if (digest := self._reader.digest) != self._digest:
            self._digest, self._doubts = digest, {}
        version = model.manifest.version
        if version not in self._doubts:
            self._doubts[version] = self._compared(model)
        return self._doubts[version]

    def _compared(self, model: Model) -> str | None:
        views, wanted = self._reader.views(), set(model.vector.stored)
        unread = sorted(wanted - {f"{view.name}__{feature}" for view, features in views for feature in features})
        if unread:
            hint = "backfill its view, or restart the server if it was defined since"
            return f"uses {unread[0]}, which is not served here: {hint}"
        if features_hash(views, only=wanted) != model.manifest.definition_hash:
            return "was trained on features that are defined otherwise by now: train again"
        return None

    def _choose(self, order: Order, row: Row, models: Mapping[Mode, Model | str]) -> Choice | NoRung | Problem:
        values = row.values
        if all(values[i].status == NOT_FOUND for i in self._batch):
            return Problem(
                404,
                "Unknown restaurant",
                f"restaurant_id {order.restaurant_id}: no batch features were ever written for it, "
                "so there is nothing to predict from",
            )
        why: list[str] = []
        for mode in allowed(order.require):
            if mode not in models:  # not made by a model now
                continue
            model = models[mode]
            if isinstance(model, str):
                why.append(model)
            elif stale := [i for i in self._places_of(model).streams if values[i].status not in _FRESH]:
                # Batch features may be missing: their status says so.
                named = ", ".join(f"{row.names[i]} ({values[i].status.name})" for i in stale)
                why.append(f"{mode}: cannot be had: {named}")
            else:
                return Choice(mode, model, why)
        return NoRung(order, why)

    def _places_of(self, model: Model) -> Places:
        version = model.manifest.version
        if version not in self._places:
            stored = [self._reader.names.index(name) for name in model.vector.stored]
            streams = [i for i in stored if self._reader.names[i] not in self._batch_names]
            self._places[version] = Places(stored, streams)
        return self._places[version]

    def _score(
        self, choices: Sequence[Choice | NoRung | Problem], rows: Sequence[Row]
    ) -> dict[int, tuple[float, float]]:
        """(median, p90) minutes by place, each model asked once for all of its rows."""
        by_model: dict[str, tuple[Model, list[int]]] = {}
        for place, choice in enumerate(choices):
            if isinstance(choice, Choice):
                by_model.setdefault(choice.model.manifest.version, (choice.model, []))[1].append(place)
        scored: dict[int, tuple[float, float]] = {}
        for model, places in by_model.values():
            stored = self._places_of(model).stored
            numbers = [[rows[place].values[i].value for i in stored] for place in places]
            said = model.predict_rows(numbers, [rows[place].instant for place in places])
            scored.update(zip(places, said, strict=True))
        return scored


_FRESH = (PRESENT, NULL_VALUE)
_NAMES = {status: status.name for status in Status}  # an enum takes a while to say its name


def _eta(order: Order, row: Row, choice: Choice, said: tuple[float, float], as_of: str) -> Eta:
    median, p90 = said
    instant, manifest = row.instant, choice.model.manifest
    return Eta(
        prediction_id=prediction_id(instant),
        restaurant_id=order.restaurant_id,
        eta_minutes=round(median, 3),
        eta_minutes_p90=round(p90, 3),
        mode=choice.mode,
        stepped_down=choice.stepped_down,
        as_of=as_of,
        model=ModelUsed(manifest.name, manifest.version),
        features=dict(zip(row.names, [_shown(feature, instant) for feature in row.values], strict=True)),
    )


def _shown(feature: Feature, instant: int) -> FeatureValue:
    value, status, event_ms = feature
    if type(value) is float and not math.isfinite(value):
        value = None  # JSON has no NaN
    return FeatureValue(value, _NAMES[status], None if event_ms is None else (instant - event_ms) / 1000)
