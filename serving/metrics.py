"""What the server counts, in Prometheus' terms."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from feature_repo.stores.stream_lag import ViewLag

REGISTRY = CollectorRegistry()

REQUESTS = Counter("tiffin_requests_total", "HTTP requests answered", ["route", "status"], registry=REGISTRY)
SECONDS = Histogram(
    "tiffin_request_seconds",
    "Time to answer a request",
    ["route"],
    registry=REGISTRY,
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
PREDICTIONS = Counter("tiffin_predictions_total", "Predictions answered, by mode", ["mode"], registry=REGISTRY)
RECEIPTS = Counter(
    "tiffin_receipts_total", "Receipts of predictions, by what became of them", ["outcome"], registry=REGISTRY
)
RECOMMENDATIONS = Counter(
    "tiffin_recommendations_total", "Recommendations answered", ["mode", "fallback"], registry=REGISTRY
)
RECEIPTS_WAITING = Gauge("tiffin_receipts_waiting", "Answers whose receipt is not in the log yet", registry=REGISTRY)
BREAKER_OPEN = Gauge("tiffin_breaker_open", "1 while something is taken to be down", ["of"], registry=REGISTRY)
REFUSALS = Counter("tiffin_prediction_problems_total", "Orders answered by a problem", ["status"], registry=REGISTRY)
EVENTS = Counter("tiffin_events_total", "Events received over HTTP", ["topic", "outcome"], registry=REGISTRY)


class LagCollector(Collector):
    """The streams' lag, and the models (name, version) in use, as they were last looked at."""

    def __init__(self) -> None:
        self.lags: list[ViewLag] = []
        self.models: list[tuple[str, str]] = []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """How each stream view is folded (its lag is absent where nothing was folded yet); the models that answer."""
        family = GaugeMetricFamily("tiffin_stream_lag_seconds", "How far a stream view is behind", labels=["view"])
        covered = GaugeMetricFamily("tiffin_stream_covered", "1 if all that windows reach is folded", labels=["view"])
        epoch = GaugeMetricFamily(
            "tiffin_stream_epoch_seconds",
            "When a partition was begun to be folded anew, in Unix time",
            labels=["view", "topic", "partition"],
        )
        for lag in self.lags:
            if lag.seconds is not None:
                family.add_metric([lag.view], lag.seconds)
            covered.add_metric([lag.view], float(lag.covered))
            for (topic, partition), begun in lag.epochs.items():
                epoch.add_metric([lag.view, topic, str(partition)], begun / 1000)
        yield from (family, covered, epoch)
        family = GaugeMetricFamily("tiffin_model_in_use", "The model versions that answer", labels=["name", "version"])
        for model in self.models:
            family.add_metric(model, 1)
        yield family
