"""One row made without columns, and both quantiles scored by one call: the same numbers, to the bit."""

import math
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.export import TOLERANCE, export, manifest_of
from models.model import Model
from models.registry import FILES, ModelBroken, Registry
from models.scoring import CPU, NotAvailable, Pair, Runtime, Scorer, available, merged
from models.train import Trained, train
from models.vector import DERIVED, REQUEST_FEATURES, FeatureVector, Matrix, request_features
from tests.test_train_export import START, halves, made_up_orders

ORDERS = made_up_orders(600)
DERIVING = FeatureVector(next(iter(DERIVED.values()))[0])
"""A vector with a derived feature."""
AWKWARD = [0.0, -0.0, 1e-46, 0.1, 16777217.0, 2.0**53 + 2, 3.5e38, -1e300, math.inf, -math.inf, math.nan, None, -1.0]


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(*halves(ORDERS))


@pytest.fixture(scope="module")
def files(trained: Trained) -> dict[str, bytes]:
    return dict(export(trained, ORDERS.matrix))


@pytest.fixture
def model(trained: Trained, files: dict[str, bytes], tmp_path: Path) -> Model:
    registry = Registry(tmp_path / "models")
    return registry.load("eta_streaming", registry.publish(manifest_of(trained, "abc", START), files))


def pair_of(files: dict[str, bytes], threads: int = 1) -> Pair:
    return Pair(merged(files["median.onnx"], files["p90.onnx"]), 7, Runtime(threads=threads))


def stored_rows() -> list[list[float | None]]:
    table = ORDERS.features.iloc[:, :4].to_numpy().tolist()
    return [[None if math.isnan(value) else value for value in row] for row in table]


def by_definition(values: list[float | None], instant: int) -> Matrix:
    """The row of DERIVING as the docstrings of its features say."""
    with np.errstate(all="ignore"):
        waiting, free, busy = (np.float64(math.nan if value is None else value) for value in values)
        exact = [waiting, free, busy, waiting / (free + busy + 1), *request_features(instant).values()]
        return np.array(exact, dtype=np.float64).astype(np.float32)


def test_a_row_packed_and_a_row_by_columns_are_the_same_to_the_bit_and_what_the_definition_says() -> None:
    rows = [[a, b, c] for a in AWKWARD for b in AWKWARD for c in (0.0, None, 2.5)]
    instants = [START + 61_007 * number for number in range(len(rows))]
    matrix = DERIVING.matrix(rows, instants)
    assert np.isinf(matrix[:, 3]).any(), "no courier, and one less than none"
    for number, (row, instant) in enumerate(zip(rows, instants, strict=True)):
        assert DERIVING.packed(row, instant) == matrix[number].tobytes(), row
        one = DERIVING.row(dict(zip(DERIVING.stored, row, strict=True)), instant)
        assert one.tobytes() == matrix[number].tobytes()
        np.testing.assert_array_equal(matrix[number], by_definition(row, instant))


def test_the_rows_of_training_are_those_of_serving_to_the_bit() -> None:
    matrix = ORDERS.vector.matrix(stored_rows(), ORDERS.event_ms.tolist())
    np.testing.assert_array_equal(matrix, ORDERS.matrix)


def test_no_rows_make_an_empty_matrix() -> None:
    assert DERIVING.matrix([], []).shape == (0, 3 + 1 + len(REQUEST_FEATURES))


@pytest.mark.parametrize("rows", [[[1.0, 2.0]], [[1.0, 2.0, 3.0, 4.0]], [[]], [[1.0, 2.0, 3.0], [1.0]]])
def test_a_row_of_another_length_is_refused(rows: list[list[float | None]]) -> None:
    with pytest.raises(ValueError, match="a row is 3 stored features"):
        DERIVING.matrix(rows, [START] * len(rows))
    with pytest.raises(ValueError, match="a row is 3 stored features"):
        DERIVING.packed(rows[-1], START)


def test_every_row_has_an_instant() -> None:
    with pytest.raises(ValueError, match=r"1 rows of .* 2 instants"):
        DERIVING.matrix([[1.0, 2.0, 3.0]], [START, START])


def test_scored_together_the_files_say_what_they_say_alone(files: dict[str, bytes]) -> None:
    together = pair_of(files)
    alone = [Scorer(files[name])(ORDERS.matrix) for name in FILES]
    for scores, expected in zip(together(ORDERS.matrix), alone, strict=True):
        assert scores.tobytes() == expected.tobytes()
    for number in range(50):
        one = together.one(ORDERS.matrix[number].tobytes())
        assert one == (alone[0][number], alone[1][number])


def test_rows_and_single_rows_are_answered_like_a_matrix(model: Model) -> None:
    rows, instants = stored_rows(), ORDERS.event_ms.tolist()
    expected = list(zip(*(scores.tolist() for scores in model.predict(ORDERS.matrix)), strict=True))
    assert model.predict_rows(rows, instants) == expected
    assert [model.predict_rows([row], [at])[0] for row, at in zip(rows, instants, strict=True)] == expected
    assert [model.predict_one(row, at) for row, at in zip(rows, instants, strict=True)] == expected
    assert model.predict_rows([], []) == []
    with pytest.raises(ValueError, match="a row is 4 stored features"):
        model.predict_one(rows[0][:3], instants[0])
    with pytest.raises(ValueError, match="a row is 4 stored features"):
        model.predict_rows([rows[0][:3]], instants[:1])
    with pytest.raises(ValueError, match="a row is 4 stored features"):
        model.predict_rows(rows[:1], instants[:2])


def test_one_row_of_crossed_quantiles_has_p90_at_the_median(
    trained: Trained, files: dict[str, bytes], tmp_path: Path
) -> None:
    crossed = {"median.onnx": files["p90.onnx"], "p90.onnx": files["median.onnx"]}
    registry = Registry(tmp_path / "models")
    model = registry.load("eta_streaming", registry.publish(manifest_of(trained, "abc", START), crossed))
    median, p90 = model.predict_rows(stored_rows()[:1], ORDERS.event_ms.tolist()[:1])[0]
    assert median == p90
    assert model.predict_one(stored_rows()[0], int(ORDERS.event_ms[0])) == (median, p90)


def test_threads_that_share_a_model_get_the_answers_of_their_own_rows(model: Model) -> None:
    rows, instants = stored_rows(), ORDERS.event_ms.tolist()
    expected, wrong = model.predict_rows(rows, instants), list[int]()

    def ask(first: int) -> None:
        for number in [*range(first, len(rows)), *range(first)]:
            if model.predict_rows([rows[number]], [instants[number]])[0] != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(first,)) for first in (0, 200, 400)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_row_of_another_width_reaches_no_model(files: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="different structures"):
        pair_of(files).one(bytes(4 * 6))


def _altered(content: bytes, operators: int | None = None, name: str | None = None) -> bytes:
    model = onnx.load_from_string(content)
    if operators is not None:
        model.opset_import[0].version = operators
    if name is not None:
        model.graph.input[0].name = model.graph.node[0].input[0] = name
    return bytes(model.SerializeToString())


def test_files_that_read_other_inputs_or_other_operators_are_not_scored_together(files: dict[str, bytes]) -> None:
    median, p90 = (files[name] for name in FILES)
    with pytest.raises(ValueError, match="the inputs of median and p90 are not the same"):
        merged(median, _altered(p90, name="others"))
    with pytest.raises(ValueError, match="different versions of ONNX"):
        merged(median, _altered(p90, operators=9))


def test_a_version_whose_files_do_not_belong_together_is_refused(
    trained: Trained, files: dict[str, bytes], tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "models")
    apart = {**files, "p90.onnx": _altered(files["p90.onnx"], name="others")}
    version = registry.publish(manifest_of(trained, "abc", START), apart)
    with pytest.raises(ModelBroken, match=r"p90\.onnx: cannot be scored together with median\.onnx"):
        registry.load("eta_streaming", version)


def test_a_provider_that_is_not_built_in_is_refused_by_name() -> None:
    assert CPU in available()
    with pytest.raises(NotAvailable, match=rf"'TpuExecutionProvider' is not in this onnxruntime, which has .*{CPU}"):
        Runtime(("TpuExecutionProvider", CPU))
    with pytest.raises(NotAvailable, match="names none"):
        Runtime(())


def test_two_threads_score_like_one_but_for_the_order_of_the_sum(files: dict[str, bytes]) -> None:
    one, two = (pair_of(files, threads)(ORDERS.matrix) for threads in (1, 2))
    for alone, shared in zip(one, two, strict=True):
        np.testing.assert_allclose(shared, alone, rtol=TOLERANCE)
