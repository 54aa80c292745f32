"""What the runner of Feast's suites makes of their reports. The suites themselves lie in Feast's source tree."""

import json
from pathlib import Path

import pytest

from deploy.feast_suites.run import Outcome, count, good, outcomes_of, report, run
from deploy.processes import ServiceError

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.integration.online_store.test_universal_online" name="test_a[LOCAL:x-full:True]"/>
<testcase classname="tests.integration.online_store.test_universal_online" name="test_b">
  <failure message="AssertionError: assert 1 == 2&#10;more">where</failure></testcase>
<testcase classname="tests.integration.offline_store.test_universal_historical_retrieval" name="test_c">
  <error message="failed on setup"/></testcase>
<testcase classname="tests.integration.materialization.test_universal_materialization" name="test_d">
  <skipped message="no such store"/></testcase>
</testsuite></testsuites>"""
OUTCOMES = [
    Outcome("online", "test_a", "passed", ""),
    Outcome("online", "test_b", "failed", "AssertionError: assert 1 == 2"),
    Outcome("historical", "test_c", "error", "failed on setup"),
    Outcome("materialization", "test_d", "skipped", "no such store"),
]
NONE = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}


def failed(*tests: str) -> list[Outcome]:
    return [Outcome("online", test, "failed", "") for test in tests]


def test_a_report_is_read_by_suite_and_test(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    assert outcomes_of(tmp_path / "junit.xml") == OUTCOMES


def test_outcomes_are_counted_by_suite_and_configuration() -> None:
    assert count({"ours": OUTCOMES, "feasts": []}) == {
        "online": {"ours": NONE | {"passed": 1, "failed": 1}, "feasts": NONE},
        "historical": {"ours": NONE | {"errors": 1}, "feasts": NONE},
        "materialization": {"ours": NONE | {"skipped": 1}, "feasts": NONE},
    }


def test_what_our_stores_fail_is_right_only_if_nothing_but_the_ttl_is_why() -> None:
    by_ttl, in_docker = "test_odfv_write_methods", "test_async_online_retrieval_with_event_timestamps_dynamo"
    assert good({"ours": failed(by_ttl, in_docker), "ours_without_ttl": failed(in_docker)})
    assert not good({"ours": failed(by_ttl), "ours_without_ttl": failed(by_ttl)})
    assert not good({"ours": failed("test_a"), "ours_without_ttl": []})
    assert not good({"ours": failed("test_a"), "ours_without_ttl": failed("test_a")})


def test_the_report_names_each_failure_and_ends_in_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    report(dict.fromkeys(("feasts_dask", "feasts", "ours", "ours_without_ttl"), OUTCOMES), said.append)
    assert "online | 1 / 1 / 0 / 0 | 1 / 1 / 0 / 0 | 1 / 1 / 0 / 0 | 1 / 1 / 0 / 0" in said
    assert "ours: test_b failed: AssertionError: assert 1 == 2" in said
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["suites"]["historical"]["ours"] == NONE | {"errors": 1}


def test_a_folder_without_the_suites_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="it is not a source tree of Feast"):
        run(tmp_path, print)
