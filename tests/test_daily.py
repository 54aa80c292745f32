"""The daily work: its steps, the cron line that starts it here, and the manifest that starts it on Kubernetes."""

import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import typer
import yaml
from apscheduler.triggers.cron import CronTrigger

import tiffin as program
from deploy import schedule
from deploy.daily import STEPS, Day, Step, daily
from feature_repo.clock import wall_clock
from feature_repo.settings import Settings
from models.stored import ETA, StoredPredictions, default_url
from tests.repo import wait_for
from tests.serving_stack import applied_folder
from tests.test_batch_predict import RESTAURANTS, append, prep, profile
from tests.test_cli import BIN, environment, failed, tiffin

MANIFEST = Path(schedule.__file__).parent / "kubernetes" / "daily.yaml"
DAY_MS = 86_400_000

_CHILD = """
import os, sys, time
from pathlib import Path
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
with (folder / "runs").open("a") as out:
    out.write(f"begin {os.getpid()}\\n")
time.sleep(seconds)
with (folder / "runs").open("a") as out:
    out.write("end\\n")
"""


def lines(folder: Path) -> list[str]:
    """What the children have written."""
    return (folder / "runs").read_text().splitlines() if (folder / "runs").exists() else []


@pytest.fixture
def every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cron line's finest is a minute."""
    monkeypatch.setattr(schedule, "cron_trigger", lambda line: CronTrigger(second="*", timezone=UTC))


def test_the_daily_work_may_be_repeated(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    repo = shutil.copytree(applied_folder(tmp_path_factory.getbasetemp()), tmp_path / "repo")
    midnight = wall_clock() // DAY_MS * DAY_MS
    append(repo, "restaurant_profile", [profile(r, midnight) for r in RESTAURANTS], midnight)
    append(repo, "restaurant_prep_stats", [prep(r, midnight) for r in RESTAURANTS], midnight)
    stored = StoredPredictions(default_url(Settings(TIFFIN_REPO=repo).data))
    for _ in range(2):
        done = tiffin("--repo", repo, "daily")
        assert done.returncode == 0, done.stderr
        said = [line for line in done.stdout.splitlines() if line.startswith(tuple(step.name for step in STEPS))]
        assert [line.partition(":")[0] for line in said] == [step.name for step in STEPS]
        assert "0 new rows of restaurant_prep_stats" in said[0]
        assert f"{len(RESTAURANTS) * 24} rows" in next(line for line in said if line.startswith("batch-predict"))
        assert any(line.startswith("picks: none: ") for line in said)
        assert len(stored.etas(RESTAURANTS, 12)[1]) == len(RESTAURANTS)
    runs = stored.history(ETA)
    assert len({run.as_of_ms for run in runs}) == len(runs), "one run an hour, however often it is asked for"
    stored.close()


def test_a_step_that_fails_ends_the_day_with_its_error() -> None:
    done: list[str] = []

    def work(name: str) -> str:
        if name == "second":
            raise RuntimeError("no second")
        done.append(name)
        return f"did {name}"

    steps = tuple(Step(name, lambda _, name=name: work(name)) for name in ("first", "second", "third"))  # type: ignore[misc]
    said: list[str] = []
    with pytest.raises(RuntimeError, match="no second"):
        daily(cast(Day, None), said.append, steps)
    assert done == ["first"]
    assert len(said) == 1
    assert said[0].startswith("first: did first (")


@pytest.mark.parametrize(
    ("line", "due"),
    [
        (schedule.CRON, "2026-03-04T03:30"),
        ("*/20 * * * *", "2026-03-03T12:20"),
        ("0 4 * * fri", "2026-03-06T04:00"),
        ("0 0 1 * *", "2026-04-01T00:00"),
    ],
)
def test_a_cron_line_is_due_in_utc(line: str, due: str) -> None:
    trigger = schedule.cron_trigger(line)
    found = trigger.get_next_fire_time(None, datetime(2026, 3, 3, 12, 5, tzinfo=UTC))
    assert found.isoformat(timespec="minutes") == f"{due}+00:00"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "it has 0 fields"),
        ("30 3 * *", "it has 4 fields"),
        ("60 3 * * *", "higher than the maximum value"),
        ("whenever 3 * * *", "whenever"),
        ("0 4 * * 1", "day of the week '1': name it"),
        ("0 4 1 * mon", "give one"),
        ("0 0 31 feb *", "that never comes"),
    ],
)
def test_a_bad_cron_line_is_told_of_in_one_line(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"cron line '{line}'".replace("*", r"\*")) as raised:
        schedule.cron_trigger(line)
    assert reason in str(raised.value)


def test_the_command_refuses_a_bad_cron_line() -> None:
    assert "cron line 'daily': it has 1 fields, not 5" in failed(tiffin("schedule", "--cron", "daily"))


@pytest.mark.usefixtures("every_second")
def test_work_is_started_when_it_is_due_one_run_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _CHILD, str(tmp_path), "1.6"]
    said: list[str] = []

    def enough() -> bool:
        return lines(tmp_path).count("end") >= 2

    schedule.schedule(Settings(TIFFIN_REPO=tmp_path), "each second", enough, said.append, command)
    words = [line.split()[0] for line in lines(tmp_path)]
    assert words[:4] == ["begin", "end", "begin", "end"]
    assert said[0].startswith("the daily work runs next at ")


@pytest.mark.usefixtures("every_second")
def test_a_run_under_way_ends_with_the_scheduler(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _CHILD, str(tmp_path), "300"]
    schedule.schedule(Settings(TIFFIN_REPO=tmp_path), "each second", lambda: bool(lines(tmp_path)), print, command)
    (line,) = lines(tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int(line.split()[1]), 0)


def test_sigterm_ends_the_command_in_order(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with said.open("w") as out:
        child = subprocess.Popen([BIN / "tiffin", "schedule"], stderr=out, stdout=out, env=environment())
    try:
        wait_for(lambda: "the daily work runs next at " in said.read_text(), "the scheduler's first word")
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
    assert "Traceback" not in said.read_text()


def test_the_manifest_runs_a_command_that_there_is_when_the_scheduler_would() -> None:
    manifest: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "CronJob")
    spec = manifest["spec"]
    assert spec["schedule"] == schedule.CRON
    assert spec["timeZone"] == "Etc/UTC"
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] == schedule.GRACE_SECONDS
    job = spec["jobTemplate"]["spec"]
    assert job["backoffLimit"] >= 1
    assert job["activeDeadlineSeconds"] > 0
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    name, *arguments = container["command"]
    assert name == "tiffin"
    commands: Any = typer.main.get_command(program.app)
    assert arguments == ["daily"]
    assert set(arguments) <= set(commands.commands)
    assert schedule.DAILY[-1:] == ("daily",)
    assert container["envFrom"] == [{"secretRef": {"name": "tiffin"}}]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == str(Settings(TIFFIN_REPO=Path(variables["TIFFIN_REPO"])).data)
    assert mount["name"] in {volume["name"] for volume in pod["volumes"]}


def test_the_command_runs_by_default_when_the_manifest_does() -> None:
    commands: Any = typer.main.get_command(program.app)
    (cron,) = (option for option in commands.commands["schedule"].params if option.name == "cron")
    assert cron.default == schedule.CRON
