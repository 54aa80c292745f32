"""Watching a running system: quality, drift and parity of the last hours as metrics, measured anew now and then.

It reads the archive alone, so it may run anywhere that sees it, be stopped and started at will, and disturbs nobody.
"""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from feature_repo.settings import Settings
from models.quality import Drift, Quality, drift, quality
from models.registry import Registry
from models.versions import in_use

Parity = Callable[[int, int], Mapping[str, float]]
"""Replays a sample of the predictions of since <= instant < until: see `models.hindsight`."""


class Monitor(Collector):
    """What was measured last. `look` measures anew; a failure of it leaves what was, and is counted."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._registry = settings, Registry(settings.data / "models")
        self._quality: list[Quality] = []
        self._drift: list[Drift] = []
        self._at_ms = 0

    def look(self, since_ms: int, until_ms: int) -> None:
        """Measure the predictions of since <= instant < until."""
        self._quality = quality(self._settings, since_ms, until_ms)
        self._drift = drift(self._settings, in_use(self._registry), since_ms, until_ms)
        self._at_ms = until_ms

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The figures by zone and mode, and by feature; `all` stands for every zone or mode."""
        by = ["zone", "mode"]
        known = [line for line in self._quality if line.mae is not None]
        yield _family("tiffin_eta_outcomes", "Predictions whose outcome is known", by, _counts(self._quality))
        yield _family("tiffin_eta_mae_minutes", "Mean absolute error", by, [(*q[:2], q.mae) for q in known])
        yield _family("tiffin_eta_bias_minutes", "Mean of predicted minus true", by, [(*q[:2], q.bias) for q in known])
        covered = [(*q[:2], q.coverage_p90) for q in known]
        yield _family("tiffin_eta_p90_coverage", "Share that came within the 90th percentile", by, covered)
        moved = [(d.model, d.version, d.feature, d.psi) for d in self._drift]
        yield _family("tiffin_feature_psi", "Drift from the training sample", ["model", "version", "feature"], moved)
        yield _family("tiffin_quality_at_seconds", "When this was measured", [], [(self._at_ms / 1000,)])


def _counts(found: Iterable[Quality]) -> list[tuple[object, ...]]:
    return [(line.zone, line.mode, line.outcomes) for line in found]


def _family(name: str, help_text: str, labels: list[str], rows: Iterable[tuple[object, ...]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for *values, figure in rows:
        family.add_metric([str(value) for value in values], float(str(figure)))
    return family
