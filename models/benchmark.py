"""The three levers of inference side by side: the same model run faster, a smaller model, and other hardware.

Every variant is judged on the same orders, those that the models were not trained on, and timed in turn with the
others. Times are of scoring alone, from a float32 matrix to both quantiles.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.progress_bar import Advance
from models.dataset import Dataset
from models.export import convert
from models.model import Model
from models.registry import FILES, Registry
from models.scoring import Pair, Runtime, Scorer, available, merged, quantized
from models.small_network import distill, network_file
from models.train import Size, Trained, metrics_of, train
from models.vector import Matrix

BATCHES = (1, 16, 100)
SIZES = (Size(100, 15, 0.2), Size(50, 15, 0.3), Size(50, 7, 0.3), Size(20, 7, 0.5))
HIDDEN = ((64, 32), (16,))
FASTER, SMALLER, HARDWARE = "faster inference", "smaller model", "hardware"

CALLS = 400
"""Of one row, a round; of batches as many as score the same number of rows, 20 at least."""
_ROUNDS = 5

Scores = tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]
Predict = Callable[[Matrix], Scores]


@dataclass(frozen=True)
class Variant:
    """A way to score: which lever it pulls, what it is, and the bytes of its files."""

    lever: str
    name: str
    predict: Predict
    size: int


@dataclass(frozen=True)
class Line:
    """What came out: µs a row in calls of 1, 16 and 100 rows (medians), bytes, and the errors on the held-out orders.

    `mae` is in minutes, of the median; `within_p90` the share of orders that came within the 90th percentile.
    """

    lever: str
    name: str
    micros: tuple[float, ...]
    size: int
    mae: float
    within_p90: float


class SeenBefore(ValueError):
    """The model in use was trained on orders that it would be judged on."""


def benchmark(
    registry: Registry,
    training: Dataset,
    test: Dataset,
    progress: Advance = lambda done, total: None,
    calls: int = CALLS,
) -> list[Line]:
    """The table of the model in use of `training.service`, judged on `test`; `progress` counts the smaller models.

    Smaller models are trained on `training`. Raises ModelBroken, and SeenBefore if the model was trained on orders of
    the time of `test`.
    """
    model = registry.load(training.service)
    if model.manifest.trained_ms[1] >= int(test.event_ms.min()):
        raise SeenBefore(
            f"{model.manifest.name} {model.manifest.version} was trained on orders of the time that it would be judged "
            "on, and would know the answers: choose a later --test-from, or train"
        )
    folder = registry.root / model.manifest.name / model.manifest.version
    files = [(folder / file).read_bytes() for file in FILES]
    reference = train(training, test)
    variants = [
        *_faster(files, reference, model),
        *_smaller(training, test, reference, progress),
        *_hardware(files, model),
    ]
    matrix = test.matrix
    times = _timed([variant.predict for variant in variants], matrix, calls)
    return [_line(variant, micros, test, matrix) for variant, micros in zip(variants, times, strict=True)]


def _faster(files: Sequence[bytes], reference: Trained, model: Model) -> Iterator[Variant]:
    """The model in use, as LightGBM scores it and as onnxruntime does by its options."""
    same = [convert(name, booster) for name, booster in reference.boosters.items()] == list(files)
    boosters, size, graph = list(reference.boosters.values()), sum(map(len, files)), merged(*files)
    scorers, width = [Scorer(content) for content in files], len(model.vector.names)

    def lightgbm(matrix: Matrix) -> Scores:
        first, second = (np.asarray(booster.predict(matrix, num_threads=1)) for booster in boosters)
        return first, second

    text = sum(len(booster.model_to_string().encode()) for booster in boosters)
    yield Variant(FASTER, "LightGBM's predict" + ("" if same else ", trained again"), lightgbm, text)
    yield Variant(FASTER, "a session a file", lambda matrix: (scorers[0](matrix), scorers[1](matrix)), size)
    yield Variant(FASTER, "one graph (served: batches)", Pair(graph, width), size)
    yield Variant(FASTER, "one graph, bound (served: one row)", _bound(Pair(graph, width)), size)
    yield Variant(FASTER, "... graph not simplified", Pair(graph, width, Runtime(optimized=False)), size)
    yield Variant(FASTER, "... memory not kept", Pair(graph, width, Runtime(arena=False)), size)
    yield Variant(
        FASTER, "... nodes side by side, two threads", Pair(graph, width, Runtime(threads=2, parallel=True)), size
    )


def _smaller(training: Dataset, test: Dataset, reference: Trained, progress: Advance) -> Iterator[Variant]:
    """Fewer and shallower trees, trained on the same orders, and networks that learnt from the trees."""
    width, total = len(training.vector.names), len(SIZES) + len(HIDDEN)
    for number, size in enumerate(SIZES):
        progress(number, total)
        boosters = train(training, test, size=size).boosters
        files = [convert(name, booster) for name, booster in boosters.items()]
        trees = "+".join(str(booster.num_trees()) for booster in boosters.values())
        name = f"{trees} trees of {size.leaves} leaves"
        yield Variant(SMALLER, name, Pair(merged(*files), width), sum(map(len, files)))
    rows = training.matrix
    answers = [np.asarray(booster.predict(rows, num_threads=1)) for booster in reference.boosters.values()]
    for number, hidden in enumerate(HIDDEN, len(SIZES)):
        progress(number, total)
        full = network_file(distill(rows, answers[0], answers[1], hidden))
        shape = "×".join(map(str, hidden))
        for kind, content in (("float32", full), ("int8", quantized(full))):
            yield Variant(SMALLER, f"distilled network {shape}, {kind}", Pair(content, width), len(content))
    progress(total, total)


def _hardware(files: Sequence[bytes], model: Model) -> Iterator[Variant]:
    """The model in use on each execution provider there is, and on two threads."""
    graph, width, size = merged(*files), len(model.vector.names), sum(map(len, files))
    yield Variant(HARDWARE, "two threads", Pair(graph, width, Runtime(threads=2)), size)
    for provider in available():
        yield Variant(HARDWARE, provider, Pair(graph, width, Runtime((provider,))), size)


def _bound(pair: Pair) -> Predict:
    """One row after another, each by `Pair.one`."""

    def predict(matrix: Matrix) -> Scores:
        scores = [pair.one(row.tobytes()) for row in matrix]
        return np.array([score[0] for score in scores]), np.array([score[1] for score in scores])

    return predict


def _timed(variants: Sequence[Predict], matrix: Matrix, calls: int) -> list[tuple[float, ...]]:
    """Of each variant the median µs a row in calls of each size of batch; every call has other rows."""
    times: list[list[list[float]]] = [[[] for _ in BATCHES] for _ in variants]
    for turn in range(_ROUNDS):
        for place, size in enumerate(BATCHES):
            parts = _parts(matrix, size, max(20, calls // size))
            order = range(len(variants)) if turn % 2 else reversed(range(len(variants)))
            for number in order:
                times[number][place] += _call(variants[number], parts)
    return [tuple(median(found) / size / 1000 for found, size in zip(of_one, BATCHES, strict=True)) for of_one in times]


def _parts(matrix: Matrix, size: int, count: int) -> list[Matrix]:
    """So many matrices of `size` rows, taken evenly; of a shorter matrix rows occur again."""
    places = np.linspace(0, len(matrix) - 1, size * count).astype(np.int64)
    return [np.ascontiguousarray(matrix[places[i::count]]) for i in range(count)]


def _call(predict: Predict, parts: Sequence[Matrix]) -> list[float]:
    predict(parts[0])  # what the call before left in the caches is not its own
    times = []
    for part in parts:
        began = time.perf_counter_ns()
        predict(part)
        times.append(float(time.perf_counter_ns() - began))
    return times


def _line(variant: Variant, micros: tuple[float, ...], test: Dataset, matrix: Matrix) -> Line:
    minutes, p90 = (np.asarray(scores, dtype=np.float64) for scores in variant.predict(matrix))
    found = metrics_of(test.label, minutes, np.maximum(minutes, p90))
    return Line(variant.lever, variant.name, micros, variant.size, found["mae"], found["coverage_p90"])
