"""What models in the shadow say: of the same features as the model that answered, for receipts alone."""

from collections.abc import Callable
from typing import Any

import structlog

from models.receipt import Shadow

KEPT = 8
"""So many versions are held at once."""

Load = Callable[[str, str], Any]
"""A model by name and version, as `models.registry.Registry.load` gives it."""

logger = structlog.get_logger(__name__)


class Shadows:
    """Asks models by what `load` gives, each loaded once. One that cannot be had or asked takes no receipt with it."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._models: dict[tuple[str, str], Any] = {}

    def __call__(self, name: str, version: str, values: dict[str, Any], instant: int) -> Shadow | None:
        """What a model says of features by name at an instant (ms), in minutes; None, and logged, if it cannot."""
        key = name, version
        try:
            if key not in self._models:
                if len(self._models) >= KEPT:
                    self._models.clear()
                self._models[key] = None
                self._models[key] = self._load(name, version)
            if (model := self._models[key]) is None:
                return None
            ((median, p90),) = model.predict_rows([[values[one] for one in model.vector.stored]], [instant])
        except Exception as error:
            logger.warning("the shadow says nothing", model=name, version=version, error=repr(error))
            return None
        return Shadow(name, version, round(median, 3), round(p90, 3))
