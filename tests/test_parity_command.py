"""``tiffin parity`` as a user runs it: on definitions of their own, with nothing of theirs touched."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo import REPO_FOLDER, wait_for
from tests.test_cli import BIN, environment

NOWHERE = {"REDIS_URL": "unix:///nowhere.sock", "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
"""What the settings name is not used: reaching for it would fail."""

DEADLINE_S = 240.0

REPEATS_COUNT = """
import sys, tiffin
from ingestion.seen import SeenIds
noted = SeenIds.is_repeat
SeenIds.is_repeat = lambda self, *event: noted(self, *event) and False
tiffin.main()
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of definitions."""
    every_function = REPO_FOLDER.parent / "examples" / "every_function"
    return Path(
        shutil.copytree(every_function, tmp_path / "mine", ignore=shutil.ignore_patterns("data", "__pycache__"))
    )


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    made = tmp_path / "t"
    made.mkdir()
    return made


def run(command: list[str | Path], temporary: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    where = environment(**NOWHERE, TMPDIR=str(temporary))
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False, env=where, cwd=cwd)


def test_definitions_are_held_in_two_processes_and_nothing_is_left_behind(
    mine: Path, temporary: Path, tmp_path: Path
) -> None:
    before = sorted(mine.iterdir())
    (somewhere := tmp_path / "somewhere").mkdir()
    words = ["--views", "by_zone,couriers", "--checks", "300", "--processes", "2", "--seed", "5"]
    done = run([BIN / "tiffin", "--repo", mine, "parity", *words], temporary, somewhere)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == ["checks", "mismatches", "stories", "seconds", "seed"]
    assert (found["mismatches"], found["seed"]) == (0, 5)
    assert found["checks"] >= 300
    assert found["stories"] >= 2
    assert sorted(mine.iterdir()) == before
    assert list(temporary.iterdir()) == list(somewhere.iterdir()) == []


def test_a_run_that_is_told_to_stop_leaves_nothing_behind(mine: Path, temporary: Path) -> None:
    words = ["--views", "by_zone", "--checks", str(10**9), "--processes", "2"]
    command: list[str | Path] = [BIN / "tiffin", "--repo", mine, "parity", *words]
    where = environment(**NOWHERE, TMPDIR=str(temporary))
    child = subprocess.Popen(command, env=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    servers = "tiffin-parity-*/data/valkey/appendonlydir"
    try:
        wait_for(lambda: child.poll() is not None or len([*temporary.glob(servers)]) == 2, "two servers", DEADLINE_S)
        assert child.poll() is None
        child.terminate()
        assert child.wait(DEADLINE_S) == 128 + signal.SIGTERM
        assert list(temporary.iterdir()) == []
    finally:
        child.kill()


def test_a_mismatch_ends_the_run_with_1_and_says_how_to_see_it_again(mine: Path, temporary: Path) -> None:
    words = ["parity", "--views", "by_zone", "--seed", "5"]
    done = run([sys.executable, "-c", REPEATS_COUNT, "--repo", mine, *words], temporary)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["mismatches"] > 0
    first, how = done.stderr.strip().splitlines()[-2:]
    assert first.startswith("by_zone__by_zone_")
    assert all(word in first for word in ("{'zone_id': ", " ms): online ", ", oracle ", ", offline "))
    assert how.startswith(f"to see that story: tiffin --repo {mine} parity --views by_zone --seed 5 --story ")
    assert list(temporary.iterdir()) == []
