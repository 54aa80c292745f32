"""ONNX files made ready to score, and the only module that imports onnxruntime.

Both quantiles of a version are scored as one graph, made when it is loaded: a call of onnxruntime costs as much as the
trees of one row do. The published files stay two, each with its checksum, and each node of the graph is one of theirs.
"""

import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import structlog
from numpy.typing import NDArray

from models.vector import Matrix

CPU = "CPUExecutionProvider"
_QUANTILES = ("median", "p90")
_log = structlog.get_logger(__name__)


class NotAvailable(ValueError):
    """An execution provider that this onnxruntime does not have."""


@dataclass(frozen=True)
class Runtime:
    """Where models are scored: execution providers, the preferred one first, and threads for the trees of one call.

    Raises NotAvailable for a provider that onnxruntime was not built with. One that was built in but does not start (no
    such device) is left out by onnxruntime, and that is logged. One thread, the caller's own, unless more are asked
    for: a row takes less time than waking another one. Several threads, and other providers, add the trees up in
    another order: their scores differ in the last bits, within `models.export.TOLERANCE`.
    """

    providers: tuple[str, ...] = (CPU,)
    threads: int = 1
    parallel: bool = False
    """Nodes of a graph side by side, by `threads` of them."""
    optimized: bool = True
    """Graphs are simplified when they are loaded."""
    arena: bool = True
    """Memory of a call is kept for the next one."""

    def __post_init__(self) -> None:
        if not self.providers:
            raise NotAvailable("TIFFIN_EXECUTION_PROVIDERS names none: there is nothing to score models by")
        for provider in self.providers:
            if provider not in available():
                raise NotAvailable(
                    f"TIFFIN_EXECUTION_PROVIDERS: {provider!r} is not in this onnxruntime, which has "
                    f"{', '.join(available())}: models would be scored elsewhere than was asked for"
                )

    def session(self, onnx_file: bytes) -> onnxruntime.InferenceSession:
        """A session of a file. Raises what onnxruntime does for one that is no model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = self.threads if self.parallel else 1
        modes, levels = onnxruntime.ExecutionMode, onnxruntime.GraphOptimizationLevel
        options.execution_mode = modes.ORT_PARALLEL if self.parallel else modes.ORT_SEQUENTIAL
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if self.optimized else levels.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = options.enable_mem_pattern = self.arena
        session = onnxruntime.InferenceSession(onnx_file, options, providers=list(self.providers))
        if missing := [provider for provider in self.providers if provider not in session.get_providers()]:
            _log.warning("execution_provider_did_not_start", missing=missing, used=session.get_providers())
        return session


def available() -> tuple[str, ...]:
    """The execution providers that this onnxruntime was built with."""
    return tuple(onnxruntime.get_available_providers())


class Scorer:
    """One ONNX file, ready to score."""

    def __init__(self, onnx_file: bytes, runtime: Runtime | None = None) -> None:
        self._session = (runtime or Runtime()).session(onnx_file)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, matrix: Matrix) -> NDArray[np.float32]:
        """Scores of [n, features] rows, shape [n]. onnxruntime raises for another width than the file declares."""
        scores: NDArray[np.float32] = self._session.run(None, {self._input: matrix})[0]
        return scores[:, 0]


class Pair:
    """A graph of two outputs, median and p90: float32 rows of `width` features. Safe to share by threads."""

    def __init__(self, graph: bytes, width: int, runtime: Runtime | None = None) -> None:
        self.session = (runtime or Runtime()).session(graph)
        self._input = self.session.get_inputs()[0].name
        self._row, self._scores = np.zeros((1, width), np.float32), np.zeros(2, np.float32)
        self._row_bytes, self._score = self._row.data.cast("B"), self._scores.data
        self._bound, self._one_at_a_time = self._bind(), threading.Lock()

    def __call__(self, matrix: Matrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(median, p90) of [n, width] rows, each of shape [n], as the files score them."""
        median, p90 = self.session.run(None, {self._input: matrix})
        return median[:, 0], p90[:, 0]

    def one(self, row: bytes) -> tuple[float, float]:
        """(median, p90) of one row, its float32 values in the machine's byte order.

        The row is copied to where onnxruntime reads it: making a tensor of an array, and arrays of the scores, takes a
        quarter of a call's time. Raises ValueError for another width.
        """
        with self._one_at_a_time:
            self._row_bytes[:] = row
            self.session.run_with_iobinding(self._bound)
            return self._score[0], self._score[1]

    def _bind(self) -> onnxruntime.IOBinding:
        bound = self.session.io_binding()
        bound.bind_cpu_input(self._input, self._row)
        for place, output in enumerate(self.session.get_outputs()):
            score = self._scores[place : place + 1]
            bound.bind_output(output.name, "cpu", 0, np.float32, (1, 1), score.ctypes.data)
        return bound


def merged(median: bytes, p90: bytes) -> bytes:
    """Both files as one graph: the input of both, and the output of each, median first.

    Raises ValueError if they are not of the same input and the same version of ONNX.
    """
    models = [onnx.load_from_string(content) for content in (median, p90)]
    first = models[0]
    for model in models[1:]:
        if [i.SerializeToString() for i in model.graph.input] != [i.SerializeToString() for i in first.graph.input]:
            raise ValueError("the inputs of median and p90 are not the same: they would read other features")
        if _operators(model) != _operators(first):
            raise ValueError("median and p90 are of different versions of ONNX: their nodes could mean other things")
    graph = onnx.GraphProto(name="+".join(_QUANTILES), input=first.graph.input)
    for name, model in zip(_QUANTILES, models, strict=True):
        own = onnx.compose.add_prefix_graph(model.graph, f"{name}/", rename_inputs=False)
        graph.node.extend(own.node)
        graph.initializer.extend(own.initializer)
        graph.output.append(own.output[0])
    pair = onnx.ModelProto(ir_version=first.ir_version, opset_import=first.opset_import, graph=graph)
    return pair.SerializeToString()


def quantized(onnx_file: bytes) -> bytes:
    """The same network with weights of 8 bits; what flows between its layers is rounded to 8 bits at each call."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 # slow, and not for serving
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        full, ready, small = (Path(folder) / f"{name}.onnx" for name in ("full", "ready", "small"))
        full.write_bytes(onnx_file)
        quant_pre_process(full, ready, skip_optimization=True, skip_symbolic_shape=True)
        quantize_dynamic(ready, small, per_channel=True, weight_type=QuantType.QInt8)
        return small.read_bytes()


def _operators(model: onnx.ModelProto) -> dict[str, int]:
    return {used.domain: used.version for used in model.opset_import}
