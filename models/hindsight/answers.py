"""The answers of predictions: what their models, or the batch run, say of the features that were served."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from models.hindsight.verdicts import ANSWER, Finding, Verdict
from models.receipt import Prediction
from models.registry import Model, ModelBroken, Registry

StoredEta = Callable[[str, int, int], tuple[float, float] | None]
"""(run_id, restaurant_id, hour of the day) -> (median, p90) minutes, or None if the run is no longer kept."""

Pair = tuple[float, float]
_HOUR_MS = 3_600_000
_KEPT = 16  # models that are held ready


class Answers:
    """Answers again, by the models of a registry and by `stored_eta`."""

    def __init__(self, registry: Registry, stored_eta: StoredEta | None = None) -> None:
        self._registry, self._stored_eta = registry, stored_eta
        self._models: dict[tuple[str, str], Model] = {}

    def judge(self, predictions: Sequence[Prediction]) -> list[Finding]:
        """What is said of each answer."""
        findings: dict[int, Finding] = {}
        by_model: dict[tuple[str, str], list[int]] = {}
        for i, prediction in enumerate(predictions):
            if prediction.mode == "stored":
                findings[i] = self._stored(prediction)
            else:
                by_model.setdefault((prediction.model, prediction.model_version), []).append(i)
        for (name, version), places in by_model.items():
            model = self._model(name, version)
            if model is None:
                reason = f"{name} {version} cannot be loaded any more"
                findings |= {i: _said(predictions[i], None, Verdict.MODEL_CHANGED, reason) for i in places}
            else:
                findings |= dict(zip(places, _by_model(model, [predictions[i] for i in places]), strict=True))
        return [findings[i] for i in range(len(predictions))]

    def would_be(self, prediction: Prediction, features: Mapping[str, Any]) -> Pair | None:
        """(median, p90) minutes of other features; None without the model, or one of its features."""
        model = None if prediction.mode == "stored" else self._model(prediction.model, prediction.model_version)
        if model is None or not set(model.vector.stored) <= set(features):
            return None
        return _scored(model, [(features, prediction.at)])[0]

    def _stored(self, prediction: Prediction) -> Finding:
        source = prediction.receipt.stored
        if source is None:
            return _said(prediction, None, Verdict.BUG, "the receipt does not name the run that it is of")
        if source.hour != prediction.at // _HOUR_MS % 24:
            return _said(prediction, None, Verdict.BUG, f"it is the answer of hour {source.hour} (UTC)")
        kept = self._stored_eta and self._stored_eta(source.run_id, prediction.restaurant_id, source.hour)
        if kept is None:
            return _said(prediction, None, Verdict.NOT_KEPT, f"run {source.run_id} is not kept")
        return _compared(prediction, (round(kept[0], 3), round(kept[1], 3)), "the run says otherwise")

    def _model(self, name: str, version: str) -> Model | None:
        model = self._models.get((name, version))
        if model is None:
            try:
                model = self._registry.load(name, version)
            except (ModelBroken, ValueError):
                return None
            if len(self._models) >= _KEPT:
                del self._models[next(iter(self._models))]
            self._models[name, version] = model
        return model


def _by_model(model: Model, predictions: Sequence[Prediction]) -> list[Finding]:
    findings: dict[int, Finding] = {}
    served: list[tuple[dict[str, Any], int]] = []
    places = []
    for i, prediction in enumerate(predictions):
        values = {name: feature.value for name, feature in prediction.receipt.features.items()}
        if missing := [name for name in model.vector.stored if name not in values]:
            findings[i] = _said(prediction, None, Verdict.BUG, f"{missing[0]} is not in the receipt")
        else:
            places.append(i)
            served.append((values, prediction.at))
    for i, features, pair in zip(places, served, _scored(model, served) if served else [], strict=True):
        reason = "the model says otherwise of the features that were served"
        found = _compared(predictions[i], pair, reason)
        if found.verdict is Verdict.BUG:  # sums of many rows at a time may differ in the last place
            found = _compared(predictions[i], _scored(model, [features])[0], reason)
        findings[i] = found
    return [findings[i] for i in range(len(predictions))]


def _scored(model: Model, rows: Sequence[tuple[Mapping[str, Any], int]]) -> list[Pair]:
    vectors = [model.vector.row({n: _number(f[n]) for n in model.vector.stored}, at) for f, at in rows]
    median, p90 = model.predict(np.concatenate(vectors))
    return [(round(float(m), 3), round(float(p), 3)) for m, p in zip(median, p90, strict=True)]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _compared(prediction: Prediction, pair: Pair, otherwise: str) -> Finding:
    fine = pair == (prediction.eta_minutes, prediction.eta_minutes_p90)
    return _said(prediction, pair, Verdict.EQUAL if fine else Verdict.BUG, "" if fine else otherwise)


def _said(prediction: Prediction, then: Pair | None, verdict: Verdict, reason: str) -> Finding:
    served = (prediction.eta_minutes, prediction.eta_minutes_p90)
    return Finding(ANSWER, served, prediction.mode, then, None, verdict, reason)
