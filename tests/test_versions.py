"""The versions of a model: which one answers, which one might, and how they compare on the same orders."""

from pathlib import Path

import pytest
from feast import FeatureStore
from typer.testing import CliRunner

from feature_repo.settings import Settings
from models.receipt import Prediction, Shadow
from models.registry import PROMOTIONS, ModelBroken, Registry
from models.version_commands import commands
from models.versions import compare, in_use, list_table
from tests.receipt_tools import archive, deliver, prediction
from tests.repo import MINUTE, START
from tests.serving_stack import Stack, publish_model

NAME = "eta_streaming"
DAY = 24 * 60 * MINUTE


@pytest.fixture(scope="module")
def three(shared: Stack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, list[str]]:
    """Three versions, the oldest first; the last is in use."""
    settings = Settings(TIFFIN_REPO=tmp_path_factory.mktemp("versions"))
    store: FeatureStore = shared.store
    versions = [publish_model(settings, store, NAME, seed=seed) for seed in (1, 2, 3)]
    return Registry(settings.data / "models"), versions


def test_going_back_goes_to_what_was_in_use_before_step_by_step(three: tuple[Registry, list[str]]) -> None:
    registry, (first, second, third) = three
    assert [p.version for p in registry.promotions(NAME)] == [first, second, third]
    assert registry.before(NAME) == second
    registry.promote(NAME, second, START)
    assert registry.before(NAME) == first, "not the one that was just left"
    registry.promote(NAME, third, START)
    assert registry.before(NAME) == second
    registry.promote(NAME, first, START)
    with pytest.raises(ModelBroken, match="no version in use before"):
        registry.before(NAME)
    registry.promote(NAME, second, START)
    registry.promote(NAME, third, START)


def test_a_line_that_was_cut_off_is_no_promotion(three: tuple[Registry, list[str]]) -> None:
    registry, versions = three
    before = registry.promotions(NAME)
    with (registry.root / NAME / PROMOTIONS).open("ab") as file:
        file.write(b'\n{"at": 17, "ver')
    assert registry.promotions(NAME) == before
    registry.promote(NAME, versions[2], START + 1)
    assert registry.promotions(NAME)[-1].at == START + 1


def test_a_version_is_found_by_its_end_alone(three: tuple[Registry, list[str]]) -> None:
    registry, versions = three
    assert registry.find(NAME, versions[1][-8:]) == versions[1]
    for nothing in ("", "zzz"):
        with pytest.raises(ValueError, match="must be meant"):
            registry.find(NAME, nothing)
    assert [manifest.version for manifest in in_use(registry)] == [versions[2]]


def test_a_shadow_must_be_sound_and_can_be_taken_away(three: tuple[Registry, list[str]]) -> None:
    registry, versions = three
    assert registry.shadow(NAME) is None
    registry.set_shadow(NAME, versions[0])
    assert registry.shadow(NAME) == versions[0]
    with pytest.raises(ModelBroken):
        registry.set_shadow(NAME, "20260101T000000Z-00000000")
    assert registry.shadow(NAME) == versions[0]
    assert list_table(registry).row_count == 3
    registry.set_shadow(NAME, None)
    registry.set_shadow(NAME, None)
    assert registry.shadow(NAME) is None


def shadowed(order: str, version: str, eta: float, other: str, shadow_eta: float) -> Prediction:
    shadow = Shadow(NAME, other, shadow_eta, shadow_eta + 5)
    return prediction(order, eta=eta, model_version=version, receipt={"shadow": shadow})


def test_two_versions_are_compared_on_the_orders_that_both_have_answered(tmp_path: Path) -> None:
    settings = Settings(TIFFIN_REPO=tmp_path)
    given = [
        shadowed("a", "v1", 30.0, "v2", 20.0),
        shadowed("b", "v2", 30.0, "v1", 40.0),
        shadowed("c", "v1", 99.0, "v3", 99.0),
        prediction("d", eta=99.0, model_version="v2"),
        shadowed("late", "v1", 99.0, "v2", 99.0),
    ]
    archive(settings, given)
    deliver(settings, {"a": 26.0, "b": 36.0, "c": 1.0, "d": 1.0})
    found = compare(settings, NAME, "v1", "v2", START - DAY, START + DAY)
    assert found.orders == 2
    assert found.first == pytest.approx((4.0, 4.0, 1.0))
    assert found.second == pytest.approx((6.0, -6.0, 0.5))
    assert compare(settings, NAME, "v2", "v1", START - DAY, START + DAY)[1:] == (found.second, found.first)
    assert compare(settings, NAME, "v1", "v3", START + 1, START + DAY) == (0, None, None)


def test_the_commands_change_what_is_in_use_and_say_so(
    three: tuple[Registry, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, (first, second, third) = three
    monkeypatch.setattr("feature_repo.settings.settings", lambda: Settings(TIFFIN_REPO=registry.root.parent.parent))

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(commands, words, env={"COLUMNS": "200"})
        assert done.exit_code == code, done.output
        return done.output + str(done.exception or "")

    assert first in run("promote", NAME, first[-8:])
    assert registry.current(NAME) == first
    assert third in run("promote", NAME, third)
    assert "is in use again" in run("rollback", NAME)
    assert registry.current(NAME) == first
    run("shadow", NAME, second)
    listed = run("list")
    assert "in use" in listed
    assert "shadow" in listed
    assert "No delivered order" in run("compare", NAME, first, second)
    run("shadow", NAME, "--off")
    assert registry.shadow(NAME) is None
    assert "must be meant" in run("promote", NAME, "x", code=1)
    assert "--off" in run("shadow", NAME, code=2)
