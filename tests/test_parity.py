"""One meaning: what the worker folds and the reader sums is what history says, on random logs with random faults.

The definitions are those of ``examples/every_function``. What it means to agree is said in `ingestion.parity.compare`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from feature_repo.settings import Settings, settings
from feature_repo.stores import scripts
from feature_repo.stores.reading import Answer
from feature_repo.views import WindowView
from feature_repo.windows import FUNCTIONS
from ingestion.log import Released, StartAt, TopicPartition
from ingestion.parity.generate import NUMBERS, numbers_of, random_story
from ingestion.parity.lab import Lab, private_lab
from ingestion.parity.player import Outcome, play
from ingestion.parity.run import run
from ingestion.parity.telling import again
from ingestion.redis_log import RedisLog
from ingestion.seen import SeenIds
from tests.repo import REPO_FOLDER, quietly

EVERY_FUNCTION = REPO_FOLDER.parent / "examples" / "every_function"
FEW = ("by_restaurant", "by_zone", "couriers", "open_orders")
ENOUGH = 40
"""Stories among which one must show a fault."""

SHORT = 8
"""Lines that a shortened story has at most."""


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIFFIN_DUCKDB_THREADS", "1")
        settings.cache_clear()
        yield
    settings.cache_clear()


@pytest.fixture(scope="module")
def lab(one_thread: None) -> Iterator[Lab]:
    with quietly(), private_lab(Settings(TIFFIN_REPO=EVERY_FUNCTION)) as made:
        yield made


@pytest.fixture(scope="module")
def few(lab: Lab) -> Lab:
    """The same with some of the views, which is quicker."""
    return Lab(lab.feast, lab.settings, lab.client, [view for view in lab.views if view.name in FEW])


def played(lab: Lab, seed: str) -> Outcome:
    with quietly():
        return play(lab, random_story(lab.views, numbers_of(seed)))


@examples(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(numbers=st.lists(st.integers(0, NUMBERS - 1), min_size=20, max_size=50))
def test_online_equals_history_and_the_oracle_whatever_happens(lab: Lab, numbers: list[int]) -> None:
    story = random_story(lab.views, numbers)
    with quietly():
        outcome = play(lab, story)
    assert outcome.checks > 0
    assert not outcome.mismatches, f"{outcome.mismatches[0]}\n{story}"


def test_the_definitions_have_every_function_and_presence_over_one_topic_and_several(lab: Lab) -> None:
    windows = [view for view in lab.views if isinstance(view, WindowView)]
    assert {aggregate.function for view in windows for aggregate in view.aggregates} == set(FUNCTIONS)
    assert {len(view.topics) for view in lab.views if not isinstance(view, WindowView)} == {1, 2, 3}
    assert {len(view.join_keys) for view in lab.views} == {1, 2}


# The faults that must show. Each is put where the product would have it; the stories are those of fixed seeds.
def online_edge(patch: pytest.MonkeyPatch) -> None:
    """A window's edge is a millisecond off where it is served."""
    real = Lab.online

    def shifted(self: Lab, rows: dict[str, list[Any]], now: int) -> Answer:
        answer = real(self, rows, now + 1)
        return answer._replace(instant=answer.instant - 1)

    patch.setattr(Lab, "online", shifted)


def history_edge(patch: pytest.MonkeyPatch) -> None:
    """A window's edge is a millisecond off in history."""
    real = Lab.offline
    patch.setattr(Lab, "offline", lambda self, rows, instants: real(self, rows, [instant - 1 for instant in instants]))


def no_fence(patch: pytest.MonkeyPatch) -> None:
    """A write is accepted whatever is stored."""
    compared = "== ARGV[at + 1]"
    assert compared in scripts.FENCED_WRITE
    patch.setattr(scripts, "FENCED_WRITE", scripts.FENCED_WRITE.replace(compared, "~= 'anything'"))


def repeats_count(patch: pytest.MonkeyPatch) -> None:
    """Ids are noted and not looked at."""
    real = SeenIds.is_repeat
    patch.setattr(SeenIds, "is_repeat", lambda self, *event: real(self, *event) and False)


def handover_drops(patch: pytest.MonkeyPatch) -> None:
    """Whoever takes a partition over begins at its end."""
    real = RedisLog.consumer

    def consumer(self: RedisLog, topics: Sequence[str], group: str | None, start_at: StartAt, *gone: Released) -> Any:
        def late(gained: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
            return {where: self.offset_at(where, 2**52) if offset else 0 for where, offset in start_at(gained).items()}

        return real(self, topics, group, late if gone else start_at, *gone)  # readers of other kinds hand nothing over

    patch.setattr(RedisLog, "consumer", consumer)


def last_write_wins(patch: pytest.MonkeyPatch) -> None:
    """A member is where the latest write puts it, not its latest event."""
    compared = "not stored or later(register, stored)"
    assert compared in scripts.PRESENCE_APPLY
    patch.setattr(scripts, "PRESENCE_APPLY", scripts.PRESENCE_APPLY.replace(compared, "true"))


@pytest.mark.parametrize(
    "fault",
    [online_edge, history_edge, no_fence, repeats_count, handover_drops, last_write_wins],
    ids=lambda fault: fault.__name__,
)
def test_a_fault_that_is_put_in_shows(
    few: Lab, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    fault(monkeypatch)
    assert any(played(few, f"more:{number}").mismatches for number in range(ENOUGH))


def test_a_run_says_which_story_went_wrong_and_that_story_does_it_again(
    one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeats_count(monkeypatch)
    made = Settings(TIFFIN_REPO=EVERY_FUNCTION)
    with quietly():
        report = run(made, ["by_zone"], seed=1, checks=10**6)
        assert report.failed is not None
        assert report.mismatches == len(report.failed.mismatches) > 0
        repeated, shown = again(made, ["by_zone"], 1, report.failed.number)
    assert repeated.failed == report.failed
    assert shown is not None
    assert shown.mismatches
    assert len(shown.story.splitlines()) <= SHORT, shown.story


def test_a_story_that_goes_right_is_not_shown(one_thread: None) -> None:
    with quietly():
        report, shown = again(Settings(), ["zone_couriers"], 7, 0)
    assert (report.mismatches, report.stories, report.failed, shown) == (0, 1, None, None)


def test_a_run_ends_when_there_were_enough_checks(one_thread: None) -> None:
    seen: list[tuple[float, float]] = []
    with quietly():
        report = run(Settings(), ["zone_couriers"], 7, 50, advance=lambda done, total: seen.append((done, total)))
    assert report.failed is None
    assert (report.mismatches, report.stories) == (0, len(seen))
    assert seen[-1] == (report.checks, 50)
    assert report.checks >= 50 > (seen[-2][0] if len(seen) > 1 else 0)


def test_an_unknown_view_is_told_which_there_are(one_thread: None) -> None:
    with quietly(), pytest.raises(ValueError, match=r"no stream view is named 'nothing': there are .*zone_couriers"):
        run(Settings(), ["zone_couriers", "nothing"], seed=1, checks=1)
