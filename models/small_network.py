"""A small network that has learnt what a pair of tree models says, as an ONNX file: distillation.

Its inputs are the trees' own. A network takes no missing values: each becomes its feature's mean, and a second input a
feature says that it was missing. The file is written node by node, so that nothing is added that scoring does not need.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.export import OPSET
from models.vector import Matrix

MAX_ROWS = 60_000
"""Of more rows an even sample is learnt from: the trees answer any number of them, time is what is short."""

_IR_VERSION = 8
_SEED = 7
_EPOCHS = 60


@dataclass(frozen=True)
class Network:
    """Layers as (weights [inputs, outputs], bias), the means and scales of the features, and those of the answers."""

    layers: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]


def distill(rows: Matrix, median: NDArray[Any], p90: NDArray[Any], hidden: tuple[int, ...]) -> Network:
    """Fit a network with `hidden` layers to what the trees say of `rows`: [n, features], minutes of shape [n] each.

    Raises ModuleNotFoundError without scikit-learn, which is of the development dependencies.
    """
    import warnings  # noqa: PLC0415 # with what only distilling needs

    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
    from sklearn.neural_network import MLPRegressor  # noqa: PLC0415

    some = np.linspace(0, len(rows) - 1, min(MAX_ROWS, len(rows))).astype(np.int64)
    exact, taught = rows[some].astype(np.float64), np.stack([median[some], p90[some]], axis=1).astype(np.float64)
    known = np.isfinite(exact)
    exact[~known] = np.nan
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.nansum(exact, axis=0) / count
    centred = np.where(known, exact - mean, 0.0)
    scale = np.sqrt((centred**2).sum(axis=0) / count)
    scale[scale == 0] = 1.0
    inputs = np.hstack([centred / scale, ~known])
    middle, spread = taught.mean(axis=0), np.maximum(taught.std(axis=0), 1e-6)
    learner = MLPRegressor(
        hidden_layer_sizes=hidden, early_stopping=True, max_iter=_EPOCHS, random_state=_SEED, batch_size=256
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many epochs are all that it is given
        learner.fit(inputs, (taught - middle) / spread)
    layers = list(zip(learner.coefs_, learner.intercepts_, strict=True))
    weights, bias = layers[-1]
    layers[-1] = (weights * spread, bias * spread + middle)  # the answer in minutes
    return Network(layers, mean, scale)


def network_file(network: Network) -> bytes:
    """The network as ONNX: input `features` float32 [n, features], outputs `median` and `p90` float32 [n, 1]."""
    width, constants, nodes = len(network.mean), {}, []
    constants["mean"], constants["per_scale"] = network.mean, 1 / network.scale
    nodes += [
        helper.make_node("IsNaN", ["features"], ["missing"]),
        helper.make_node("Where", ["missing", "mean", "features"], ["filled"]),
        helper.make_node("Sub", ["filled", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "per_scale"], ["scaled"]),
        helper.make_node("Cast", ["missing"], ["missing_as_number"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["scaled", "missing_as_number"], ["layer_0"], axis=1),
    ]
    last = len(network.layers)
    for number, (weights, bias) in enumerate(network.layers, 1):
        constants[f"weights_{number}"], constants[f"bias_{number}"] = weights, bias
        out = "minutes" if number == last else f"sum_{number}"
        nodes.append(helper.make_node("MatMul", [f"layer_{number - 1}", f"weights_{number}"], [f"product_{number}"]))
        nodes.append(helper.make_node("Add", [f"product_{number}", f"bias_{number}"], [out]))
        if number != last:
            nodes.append(helper.make_node("Relu", [out], [f"layer_{number}"]))
    nodes.append(helper.make_node("Split", ["minutes"], ["median", "p90"], axis=1))
    floats = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, width])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in ("median", "p90")]
    graph = helper.make_graph(nodes, "distilled", inputs, outputs, initializer=floats)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())
