"""Watching a running system: quality, drift and parity of the last hours as metrics, measured anew now and then.

It reads the archive alone, so it may run anywhere that sees it, be stopped and started at will, and disturbs nobody.
"""

from collections.abc import Callable, Iterable

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import DuckDBError
from models.hindsight.audit import AuditReport, audit
from models.hindsight.compare import Sources
from models.hindsight.verdicts import Verdict
from models.quality import Drift, Quality, drift, quality
from models.registry import Registry
from models.versions import in_use

_MINUTE_MS, _HOUR_MS = 60_000, 3_600_000
PARITY_MINUTES = 15
"""Of the predictions of the last minutes a sample is computed again in each round."""

logger = structlog.get_logger(__name__)


class Monitor(Collector):
    """What was measured last. A measurement that fails leaves what was, and is logged and counted.

    `sources` is asked in each round: definitions may have changed.
    """

    def __init__(self, settings: Settings, sources: Callable[[], Sources], sample: float) -> None:
        self._settings, self._registry = settings, Registry(settings.data / "models")
        self._sources, self._sample = sources, sample
        self._quality: list[Quality] = []
        self._drift: list[Drift] = []
        self._parity: AuditReport | None = None
        self._at_ms = self._failures = 0

    def look(self, now: int, hours: float) -> None:
        """Measure the predictions of the last hours, and replay some of those of the last minutes; `now` in ms."""
        since = now - round(hours * _HOUR_MS)
        try:
            self._quality = quality(self._settings, since, now)
            self._drift = drift(self._settings, in_use(self._registry), since, now)
            recent = now - PARITY_MINUTES * _MINUTE_MS
            self._parity = audit(self._settings, self._sources(), recent, now, self._sample)
            self._at_ms = now
        except (OSError, RuntimeError, ValueError, DuckDBError) as error:  # the next round may go well
            self._failures += 1
            logger.warning("measuring failed", error=str(error), failures=self._failures)

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
        yield _family("tiffin_measured_at_seconds", "When this was measured", [], [(self._at_ms / 1000,)])
        yield _family("tiffin_measuring_failures", "Rounds that failed", [], [(self._failures,)])
        if self._parity is not None:
            ratio, compared = self._parity.ratio, self._parity.compared
            yield _family("tiffin_parity_mismatch_ratio", "Share of bugs among the features compared", [], [(ratio,)])
            yield _family("tiffin_parity_compared_features", "Features that were compared", [], [(compared,)])
            causes = [(verdict.value, self._parity.causes[verdict]) for verdict in Verdict]
            yield _family("tiffin_parity_features", "Features by what is said of them", ["cause"], causes)


def _counts(found: Iterable[Quality]) -> list[tuple[object, ...]]:
    return [(line.zone, line.mode, line.outcomes) for line in found]


def _family(name: str, help_text: str, labels: list[str], rows: Iterable[tuple[object, ...]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for *values, figure in rows:
        family.add_metric([str(value) for value in values], float(str(figure)))
    return family
