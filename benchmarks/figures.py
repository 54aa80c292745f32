"""The figures: what each is a ratio of, and what it must reach. Ratios are within one run, on one machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One row of the table. With `lower` the figure must stay below its bar instead of above it; None: reported."""

    name: str
    what: str
    bar: float | None = None
    aim: float | None = None
    lower: bool = False

    def reaches(self, ratio: float, goal: float | None) -> bool | None:
        """Whether a ratio is at least as good as `goal`; None if there is none."""
        if goal is None:
            return None
        return ratio <= goal if self.lower else ratio >= goal


FIGURES = (
    Figure("predict_rps_vs_feast_serve", "POST /v1/eta, requests/s, over `feast serve` reading the features", 15, 25),
    Figure("predict_rps_vs_bare_fastapi", "the same over a FastAPI route that echoes a pydantic model", 0.8, 1.2),
    Figure("predict_p99_vs_bare_fastapi", "p99 at half of the echo's capacity, over the echo's", 3, 1.5, lower=True),
    Figure("batch100_latency_vs_feast_sdk", "Feast's SDK reading 100 rows, over our answer for 100 orders", 10, 20),
    Figure("sdk_read_vs_feast_1", "`get_online_features` of 1 row: Feast's Redis store over ours", 1.5, 3),
    Figure("sdk_read_vs_feast_100", "the same of 100 rows", 6, 10),
    Figure("materialize_keys_vs_feast", "materialization, keys/s, over Feast's", 9, 12),
    Figure("materialize_memory_vs_feast", "its peak memory over Feast's", 0.35, 0.28, lower=True),
    Figure("historical_vs_feast_duckdb", "training set: time of Feast's DuckDB store over ours", 24, 33),
    Figure("historical_vs_handwritten_asof", "time of a hand-written ASOF JOIN over ours", 0.7, 0.95),
    Figure("windows_vs_handwritten_sql", "windows in history: time of hand-written SQL over ours", 1.0, 3),
    Figure("ingest_events_vs_bare_consumer", "one worker, events/s, over a bare consumer that decodes", 0.5, 0.8),
    Figure("ingest_vs_feast_push", "the same over Feast's `push`, one event at a time", 300, 800),
    Figure("ingest_vs_feast_push_batched", "the same over Feast's `push` of 1,000 rows", 3, 6),
    Figure("freshness_p99_vs_bare_kafka", "event to prediction, p99, over event to bare consumer", 5, 2, lower=True),
    Figure("scaleout_2_workers", "events/s of two workers over one"),
    Figure("growth_read_1m_vs_10k", "a request's cost with 1,000,000 entities over 10,000", 1.2, 1.05, lower=True),
    Figure("bytes_per_entity", "memory of a restaurant over Feast's for its batch features alone", None, 4, lower=True),
    Figure("model_p50_vs_onnx_floor", "our predictor of one row over bare onnxruntime", 1.5, 1.1, lower=True),
)


@dataclass(frozen=True)
class Side:
    """One side of a ratio: what was measured, in which unit, a sample a round."""

    what: str
    unit: str
    samples: Sequence[float]

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return median(self.samples)


@dataclass(frozen=True)
class Measured:
    """What a figure came to: ``median(over) / median(under)``. `details` say what else was seen, as plain JSON."""

    name: str
    over: Side
    under: Side
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The figure."""
        return self.over.median / self.under.median


@dataclass(frozen=True)
class Bench:
    """What a benchmark is run with: a folder of its own that goes again, and how long it may take.

    A `quick` run takes fewer rounds and less data; its figures are rougher and say so.
    """

    folder: Path
    quick: bool = False
    tiny: bool = False
    """For tests: once, for a moment. Nothing can be read off its figures."""

    @property
    def rounds(self) -> int:
        """How often each side is measured."""
        return 1 if self.tiny else 3 if self.quick else 7

    @property
    def seconds(self) -> float:
        """For how long a rate is measured each time."""
        return 0.3 if self.tiny else 2.0 if self.quick else 5.0

    def interleaved(self, **sides: Callable[[], float]) -> dict[str, list[float]]:
        """A sample a round of each side, one after the other, in turn from the first and from the last."""
        samples: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(self.rounds):
            for name in sorted(sides, reverse=bool(number % 2)):
                samples[name].append(sides[name]())
        return samples
