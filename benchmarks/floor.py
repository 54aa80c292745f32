"""One row's prediction beside what onnxruntime itself takes for it: from feature values to (median, p90).

Rows are orders of the city's history, another one at each call: the processor would learn the path that one row takes
through the trees. The floor is the fastest bare call that we know of the session that is served: input and outputs are
bound beforehand, and the same row is copied in. What `session.run` takes is beside it, for the served session and for
one session of each published file.
"""

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import numpy as np

from benchmarks.city import trained_city
from benchmarks.figures import Bench, Measured, Side
from models.dataset import Dataset
from models.model import Model
from models.registry import FILES, Registry
from models.scoring import Runtime
from models.vector import Matrix

NAME = "eta_streaming"
DAYS, QUICK_DAYS = 28, 2
ROWS = 1_000
BATCHES = (16, 100)

Answers = list[tuple[float, float]]
Call = Callable[[int], object]
"""What is measured: predicts the row of this number."""


def run(bench: Bench) -> list[Measured]:
    """The figure `model_p50_vs_onnx_floor`."""
    return measure(bench, QUICK_DAYS if bench.quick else DAYS, ROWS)


def measure(bench: Bench, days: int, rows: int) -> list[Measured]:
    """The figure, of models trained on `days` of history, over `rows` of its orders."""
    city = trained_city(bench.folder / "repo", days)
    registry = Registry(city.settings.data / "models")
    model = registry.load(NAME)
    folder = registry.root / NAME / model.manifest.version
    orders = city.orders.take(np.linspace(0, len(city.orders) - 1, rows).astype(np.int64))
    values = stored_values(orders, model)
    instants = [int(orders.event_ms[-1]) + i for i in range(rows)]  # asked one after another, as requests are
    matrix = model.vector.matrix(values, instants)
    sides = {
        "ours": lambda i: model.predict_one(values[i], instants[i]),
        "bound": _bound(model, matrix),
        "run": _run(model, matrix),
        "run_of_two": _run_of_two([(folder / file).read_bytes() for file in FILES], matrix),
        "by_name": _by_name(model, values, instants),
    }
    _check(model, matrix, sides, rows)
    samples = bench.interleaved(**{name: _p50(call, rows) for name, call in sides.items()})
    micros = {name: median(found) for name, found in samples.items()}
    return [
        Measured(
            "model_p50_vs_onnx_floor",
            Side("our predictor: values to (median, p90), p50 of one row", "µs", samples["ours"]),
            Side("onnxruntime, bound input and outputs, the same session, p50 of one row", "µs", samples["bound"]),
            {
                "rows": rows,
                "days_of_history": days,
                "features": len(model.vector.names),
                "model_bytes": sum((folder / file).stat().st_size for file in FILES),
                "bare_session_run_us": micros["run"],
                "bare_session_run_of_two_files_us": micros["run_of_two"],
                "over_bare_session_run": micros["ours"] / micros["run"],
                "over_bare_session_run_of_two_files": micros["ours"] / micros["run_of_two"],
                "row_by_name_and_predict_us": micros["by_name"],
                "batches": {str(size): _batch(bench, model, values, instants, size) for size in BATCHES},
            },
        )
    ]


def stored_values(orders: Dataset, model: Model) -> list[list[float | None]]:
    """The stored features of each order as they are read, in the model's order: None for a missing one."""
    table = orders.features[list(model.vector.stored)].to_numpy(np.float64).tolist()
    return [[None if math.isnan(value) else value for value in row] for row in table]


def _bound(model: Model, matrix: Matrix) -> Call:
    session, row, scores = model.pair.session, matrix[:1].copy(), np.zeros(2, np.float32)
    bound = session.io_binding()
    bound.bind_cpu_input(session.get_inputs()[0].name, row)
    for output, place in zip(session.get_outputs(), pairwise((0, 1, 2)), strict=True):
        bound.bind_output(output.name, "cpu", 0, np.float32, (1, 1), scores[slice(*place)].ctypes.data)
    ready, into, out = [one.tobytes() for one in matrix], row.data.cast("B"), scores.data

    def call(number: int) -> object:
        into[:] = ready[number]
        session.run_with_iobinding(bound)
        return out[0], out[1]

    return call


def _run(model: Model, matrix: Matrix) -> Call:
    session = model.pair.session
    feeds = [{session.get_inputs()[0].name: matrix[i : i + 1]} for i in range(len(matrix))]
    return lambda number: session.run(None, feeds[number])


def _run_of_two(files: Sequence[bytes], matrix: Matrix) -> Call:
    first, second = (Runtime().session(file) for file in files)
    feeds = [{first.get_inputs()[0].name: matrix[i : i + 1]} for i in range(len(matrix))]
    return lambda number: (first.run(None, feeds[number])[0], second.run(None, feeds[number])[0])


def _by_name(model: Model, values: Sequence[Sequence[float | None]], instants: Sequence[int]) -> Call:
    named = [dict(zip(model.vector.stored, row, strict=True)) for row in values]
    return lambda number: model.predict(model.vector.row(named[number], instants[number]))


def _check(model: Model, matrix: Matrix, sides: dict[str, Call], rows: int) -> None:
    """Raises AssertionError unless every side answers every row alike, to the bit."""
    expected = np.stack(model.predict(matrix), axis=1)
    for name, call in sides.items():
        found = np.array([np.ravel(np.array(call(number), dtype=np.float32)) for number in range(rows)])
        found[:, 1] = found.max(axis=1)  # bare calls leave crossed quantiles as they are
        assert found.tobytes() == expected.tobytes(), f"{name} does not answer like Model.predict"


def _p50(call: Call, rows: int) -> Callable[[], float]:
    """The median time of a call, in µs, over every row five times."""

    def sample() -> float:
        times, clock = [], time.perf_counter_ns
        for _ in range(5):
            for number in range(rows):
                began = clock()
                call(number)
                times.append(clock() - began)
        return median(times) / 1000

    return sample


def _batch(
    bench: Bench, model: Model, values: Sequence[Sequence[float | None]], instants: Sequence[int], size: int
) -> dict[str, float]:
    """Of `size` rows in one call: what ours and bare `session.run` take, µs a row, and their ratio."""
    starts = range(0, len(values) - size + 1, size)
    matrices = [model.vector.matrix(values[i : i + size], instants[i : i + size]) for i in starts]
    session = model.pair.session
    feeds = [{session.get_inputs()[0].name: matrix} for matrix in matrices]
    rows = [(values[i : i + size], instants[i : i + size]) for i in starts]
    samples = bench.interleaved(
        ours=_p50(lambda i: model.predict_rows(*rows[i]), len(starts)),
        run=_p50(lambda i: session.run(None, feeds[i]), len(starts)),
    )
    ours, bare = (median(samples[name]) / size for name in ("ours", "run"))
    return {"ours_us_a_row": ours, "bare_session_run_us_a_row": bare, "ratio": ours / bare}
