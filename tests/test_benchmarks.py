"""The benchmarks run, on a town of a hundred restaurants: both sides hold the same, and each figure comes out."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import growth, predict, sdk_read
from benchmarks.events import Town
from benchmarks.figures import FIGURES, Bench, Figure, Measured, Side
from benchmarks.load import BadReply, Load, request
from benchmarks.table import as_json, table
from deploy.processes import Process, wait
from deploy.servers import free_port
from tests.repo import quietly

SMALL = Town(restaurants=100, zones=5, couriers=50, customers=500)
NAMES = {figure.name for figure in FIGURES}


@pytest.mark.parametrize(
    ("run", "figures"),
    [
        (
            lambda bench: predict.run(bench, SMALL, kafka=False),
            {
                "predict_rps_vs_feast_serve",
                "predict_rps_vs_bare_fastapi",
                "predict_p99_vs_bare_fastapi",
                "batch100_latency_vs_feast_sdk",
            },
        ),
        (lambda bench: sdk_read.run(bench, SMALL), {"sdk_read_vs_feast_1", "sdk_read_vs_feast_100"}),
        (lambda bench: growth.run(bench, SMALL), {"growth_read_1m_vs_10k"}),
    ],
    ids=["predict", "sdk_read", "growth"],
)
def test_a_part_measures_its_figures(tmp_path: Path, run: Callable[[Bench], list[Measured]], figures: set[str]) -> None:
    with quietly():
        found = run(Bench(tmp_path, tiny=True))
    assert {measured.name for measured in found} == figures
    assert figures <= NAMES
    assert all(measured.ratio > 0 for measured in found)


def test_a_figure_says_whether_it_reaches_its_bar_and_its_aim() -> None:
    figure = Figure("a", "b", bar=2, aim=4)
    measured = Measured("a", Side("x", "ms", [9.0, 3.0, 6.0]), Side("y", "ms", [2.0]))
    shown = as_json(figure, measured)
    assert (shown["ratio"], shown["reaches_bar"], shown["reaches_aim"]) == (3.0, True, False)
    assert Figure("a", "b", bar=3, aim=1, lower=True).reaches(3.0, 3)
    assert not Figure("a", "b", bar=3, aim=1, lower=True).reaches(3.0, 1)
    assert Figure("a", "b").reaches(3.0, None) is None
    name = FIGURES[0].name
    assert f"| `{name}` | {FIGURES[0].what} (6 ms / 2 ms) | 3 | 15 | 25 |" in table({"figures": {name: shown}})


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    process = Process("echo", tmp_path, [sys.executable, "-m", "benchmarks.echo", str(port)])
    process.start()

    def answers() -> bool:
        try:
            return Load(port, [request("/echo", b'{"restaurant_id":1}')], 1).closed_loop(0.0) > 0
        except ConnectionRefusedError:
            return False

    assert wait(answers, 30.0), process.log.read_text()
    yield port
    process.stop()


def test_every_request_is_sent_and_its_answer_is_whole(echo: int) -> None:
    seen: list[bytes] = []
    bodies = [b'{"restaurant_id":%d}' % number for number in range(50)]
    Load(echo, [request("/echo", body) for body in bodies], 4).closed_loop(0.3, seen.append)
    assert {b'{"restaurant_id":%d,"zone_id":null}' % number for number in range(50)} == set(seen)
    took = Load(echo, [request("/echo", bodies[0])], 2).open_loop(200, 0.25)
    assert len(took) == 50
    assert min(took) > 0


def test_an_answer_that_is_none_is_no_figure(echo: int) -> None:
    with pytest.raises(BadReply, match="422"):
        Load(echo, [request("/echo", b"{}")], 1).closed_loop(0.1)
