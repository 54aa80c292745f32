"""What models in the shadow say: of the same features as the model that answered, for receipts alone."""

import time
from collections.abc import Callable
from typing import Any

import structlog

from models.receipt import Shadow

KEPT = 8
"""So many versions are held at once."""

RETRY_S = 10.0
"""One that could not be had is not asked for before so many seconds are over."""

Load = Callable[[str, str], Any]
"""A model by name and version, as `models.registry.Registry.load` gives it."""

logger = structlog.get_logger(__name__)


class Shadows:
    """Asks models by what `load` gives, each loaded once. One that cannot be had or asked takes no receipt with it."""

    def __init__(self, load: Load, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._load, self._monotonic = load, monotonic
        self._models: dict[tuple[str, str], Any] = {}
        self._failed: dict[tuple[str, str], float] = {}  # when one could not be had

    def __call__(self, name: str, version: str, values: dict[str, Any], instant: int) -> Shadow | None:
        """What a model says of features by name at an instant (ms), in minutes; None, and logged, if it cannot."""
        try:
            if (model := self._model((name, version))) is None:
                return None
            ((median, p90),) = model.predict_rows([[values[one] for one in model.vector.stored]], [instant])
        except Exception as error:
            logger.warning("the shadow says nothing", model=name, version=version, error=repr(error))
            return None
        return Shadow(name, version, round(median, 3), round(p90, 3))

    def _model(self, key: tuple[str, str]) -> Any:
        """A model, loaded if it is not held; None where that failed a moment ago."""
        model = self._models.get(key)
        if model is not None or self._monotonic() - self._failed.get(key, -RETRY_S) < RETRY_S:
            return model
        for held in (self._models, self._failed):
            if len(held) >= KEPT:
                held.clear()
        self._failed[key] = self._monotonic()
        model = self._models[key] = self._load(*key)
        del self._failed[key]
        return model
