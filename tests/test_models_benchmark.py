"""The three levers of inference on a tiny repository: every variant judged alike, drawn, and nothing registered."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from benchmarks.city import City, trained_city
from feature_repo.settings import settings
from models.__main__ import commands
from models.benchmark import FASTER, HARDWARE, HIDDEN, SIZES, SMALLER, Line, SeenBefore, benchmark
from models.benchmark_table import NoPlot, check_plot, levers_table, plot
from models.dataset import split
from models.pipeline import default_split
from models.registry import Registry, open_registry
from models.scoring import NotAvailable, Pair, available, quantized
from models.small_network import Network, distill, network_file
from models.vector import Matrix
from tests.repo import quietly

NAME = "eta_streaming"
WIDTH = 5


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> City:
    with quietly():
        return trained_city(tmp_path_factory.mktemp("benchmark") / "repo", days=1)


@pytest.fixture(scope="module")
def lines(city: City) -> list[Line]:
    training, test = split(city.orders, default_split(city.orders))
    return benchmark(Registry(city.settings.data / "models"), training, test, calls=20)


def made_up(count: int) -> tuple[Matrix, NDArray[np.float64]]:
    """Rows with gaps, and minutes that follow from them."""
    dice = np.random.default_rng(5)
    rows = dice.normal(10, 4, (count, WIDTH)).astype(np.float32)
    minutes = 20 + rows[:, 0] + np.where(rows[:, 1] > 10, 5.0, 0.0)
    rows[dice.random(rows.shape) < 0.1] = np.nan
    return rows, minutes.astype(np.float64)


def by_hand(network: Network, rows: Matrix) -> NDArray[np.float64]:
    missing = np.isnan(rows)
    layer = np.hstack([np.where(missing, 0.0, (rows - network.mean) / network.scale), missing])
    for number, (weights, bias) in enumerate(network.layers, 1):
        layer = layer @ weights + bias
        if number < len(network.layers):
            layer = np.maximum(layer, 0.0)
    return layer


def test_every_lever_has_its_variants_each_with_times_size_and_error(lines: list[Line]) -> None:
    by_lever = {lever: [line for line in lines if line.lever == lever] for lever in (FASTER, SMALLER, HARDWARE)}
    assert len(by_lever[FASTER]) == 7
    assert len(by_lever[SMALLER]) == len(SIZES) + 2 * len(HIDDEN)
    assert [line.name for line in by_lever[HARDWARE]] == ["two threads", *available()]
    for line in lines:
        assert len(line.micros) == 3
        assert min(line.micros) > 0
        assert line.size > 0
        assert 0 < line.mae < 60
        assert 0.5 < line.within_p90 <= 1


def test_what_is_only_run_faster_errs_as_the_registry_says(city: City, lines: list[Line]) -> None:
    figures = Registry(city.settings.data / "models").load(NAME).manifest.metrics["model"]
    for line in lines:
        if line.lever != SMALLER:
            assert line.mae == pytest.approx(figures["mae"], abs=1e-4), line.name
            assert line.within_p90 == pytest.approx(figures["coverage_p90"], abs=1e-3)
    assert lines[0].name == "LightGBM's predict", "trained again on the same orders it is the same model"


def test_smaller_models_are_smaller(lines: list[Line]) -> None:
    served = next(line for line in lines if "served" in line.name)
    assert all(line.size < served.size for line in lines if line.lever == SMALLER)


def test_nothing_is_registered(city: City, lines: list[Line]) -> None:
    assert lines
    assert len(Registry(city.settings.data / "models").versions(NAME)) == 1


def test_a_model_that_was_trained_on_the_orders_it_would_be_judged_on_is_refused(city: City) -> None:
    training, test = city.orders.take(np.arange(1000)), city.orders.take(np.arange(1000, 1100))
    with pytest.raises(SeenBefore, match="would know the answers"):
        benchmark(Registry(city.settings.data / "models"), training, test)


def test_the_command_prints_the_table_and_writes_the_plot(
    city: City, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIFFIN_REPO", str(city.settings.repo))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("models.benchmark.SIZES", SIZES[-1:])
    monkeypatch.setattr("models.benchmark.HIDDEN", HIDDEN[-1:])
    settings.cache_clear()
    picture = tmp_path / "levers.png"
    try:
        with quietly():
            done = CliRunner().invoke(commands, ["models", "benchmark", NAME, "--out", str(picture)])
            other = CliRunner().invoke(commands, ["models", "benchmark", "eta"])
    finally:
        settings.cache_clear()
    assert done.exit_code == 0, done.output
    assert "one graph" in done.output
    assert "int8" in done.output
    assert f"execution providers of this onnxruntime: {', '.join(available())}" in done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert other.exit_code == 2
    assert "is none of our models" in other.output


def test_a_plot_is_png_or_svg_in_a_folder_that_is_there(lines: list[Line], tmp_path: Path) -> None:
    with pytest.raises(NoPlot, match=r"levers\.pdf: a plot is one of \.png, \.svg"):
        check_plot(tmp_path / "levers.pdf")
    with pytest.raises(NoPlot, match="there is no folder"):
        check_plot(tmp_path / "nowhere" / "levers.svg")
    plot({NAME: lines, "eta_batch": lines}, tmp_path / "levers.svg")
    drawn = (tmp_path / "levers.svg").read_text()
    assert "<svg" in drawn
    assert levers_table(NAME, lines).row_count == len(lines)


def test_the_file_of_a_network_says_what_the_network_says_of_missing_values_too() -> None:
    rows, minutes = made_up(800)
    network = distill(rows, minutes, minutes + 9, (8, 4))
    probes = np.concatenate([rows, np.full((1, WIDTH), np.nan, np.float32)])
    expected = by_hand(network, probes)
    median, p90 = Pair(network_file(network), WIDTH)(probes)
    np.testing.assert_allclose(np.stack([median, p90], axis=1), expected, rtol=1e-4)


def test_a_distilled_network_has_learnt_and_8_bits_keep_most_of_it() -> None:
    rows, minutes = made_up(6000)
    known = np.isfinite(rows).all(axis=1)
    content = network_file(distill(rows, minutes, minutes + 9, (32, 16)))
    for file, allowed in ((content, 1.0), (quantized(content), 1.5)):
        median, p90 = Pair(file, WIDTH)(rows[known])
        assert np.abs(median - minutes[known]).mean() < allowed < minutes.std() / 2
        assert np.abs(p90 - median - 9).mean() < allowed
    assert len(quantized(content)) != len(content)


def test_a_feature_that_is_always_missing_or_always_the_same_is_no_trouble() -> None:
    rows, minutes = made_up(400)
    rows[:, 2], rows[:, 3] = np.nan, 7.0
    median, p90 = Pair(network_file(distill(rows, minutes, minutes, (4,))), WIDTH)(rows)
    assert np.isfinite(median).all()
    assert np.isfinite(p90).all()


def test_settings_name_where_models_are_scored(city: City) -> None:

    good = city.settings.model_copy(update={"execution_providers": " CPUExecutionProvider ,", "model_threads": 2})
    model = open_registry(good).load(NAME)
    assert model.pair.session.get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(NotAvailable, match="TIFFIN_EXECUTION_PROVIDERS: 'GpuExecutionProvider' is not in this"):
        open_registry(city.settings.model_copy(update={"execution_providers": "GpuExecutionProvider"}))
