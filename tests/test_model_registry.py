"""The registry of models: whole versions or none, the broken ones refused, promotion without restart."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from models.export import export, manifest_of
from models.registry import Manifest, Model, ModelBroken, Registry, Watcher
from models.train import train
from models.vector import REQUEST_FEATURES, FeatureVector, request_features
from tests.test_train_export import START, STORED, halves, made_up_orders

NAME = "eta_streaming"
ORDERS = made_up_orders(600)
SECOND = 1_000


@pytest.fixture(scope="module")
def trained() -> tuple[Manifest, dict[str, bytes]]:
    pair = train(*halves(ORDERS))
    return manifest_of(pair, "abc", START), dict(export(pair, ORDERS.matrix))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models")


@pytest.fixture
def publish(registry: Registry, trained: tuple[Manifest, dict[str, bytes]]) -> Callable[[int], str]:
    """Publishes the same pair as if trained some seconds after START."""
    manifest, files = trained
    return lambda seconds: registry.publish(
        msgspec.structs.replace(manifest, created_ms=START + seconds * SECOND), files
    )


def test_a_published_version_is_in_use_only_once_promoted(registry: Registry, publish: Callable[[int], str]) -> None:
    version = publish(0)
    assert version.startswith("20261102T000000Z-")
    assert registry.versions(NAME) == [version]
    with pytest.raises(ModelBroken, match="names no version in use"):
        registry.load(NAME)
    registry.promote(NAME, version)
    model = registry.load(NAME)
    assert model.manifest.version == version
    assert model.vector == FeatureVector(STORED)
    median, p90 = model.predict(ORDERS.matrix)
    assert median.shape == p90.shape == (600,)
    assert np.abs(median - ORDERS.label).mean() < 6


def test_versions_sort_by_their_creation_and_the_same_content_is_one_version(
    registry: Registry, publish: Callable[[int], str]
) -> None:
    later, earlier, again = publish(100), publish(5), publish(100)
    assert again == later
    assert registry.versions(NAME) == [earlier, later]


def test_a_whole_number_among_the_metrics_does_not_change_the_version_when_read(
    registry: Registry, trained: tuple[Manifest, dict[str, bytes]]
) -> None:
    manifest, files = trained
    version = registry.publish(msgspec.structs.replace(manifest, metrics={"model": {"mae": 3}}), files)
    assert registry.load(NAME, version).manifest.metrics == {"model": {"mae": 3.0}}


def test_p90_is_never_below_the_median(registry: Registry, trained: tuple[Manifest, dict[str, bytes]]) -> None:
    manifest, files = trained
    crossed = {"median.onnx": files["p90.onnx"], "p90.onnx": files["median.onnx"]}
    median, p90 = registry.load(NAME, registry.publish(manifest, crossed)).predict(ORDERS.matrix)
    assert (p90 >= median).all()
    assert (p90 == median).mean() > 0.9, "these two cross nearly everywhere"


def test_one_row_from_names_and_the_instant_is_the_row_of_the_matrix(
    registry: Registry, publish: Callable[[int], str]
) -> None:
    model = registry.load(NAME, publish(0))
    for at in range(20):
        read: dict[str, float | None] = {"another__feature": 1.0}
        for name in STORED:
            value = float(ORDERS.features[name].iloc[at])
            read[name] = None if np.isnan(value) else value
        row = model.vector.row(read, int(ORDERS.event_ms[at]))
        np.testing.assert_array_equal(row[0], ORDERS.matrix[at])
        np.testing.assert_array_equal(model.predict(row)[0], model.predict(ORDERS.matrix)[0][at : at + 1])


def test_a_feature_that_was_not_read_is_no_missing_value() -> None:
    with pytest.raises(ValueError, match="'couriers__available' was not read"):
        FeatureVector(STORED).row(dict.fromkeys(STORED[:3], 1.0), START)
    with pytest.raises(ValueError, match="named twice"):
        FeatureVector(("a__b", REQUEST_FEATURES[0]))


def test_request_features_follow_the_utc_day_and_week() -> None:
    assert list(request_features(START).values()) == [0.0, 1.0, 0.0], "2026-11-02 is a Monday"
    before, after = (np.array(list(request_features(START + m * 60_000).values())) for m in (-1, 1))
    assert before[2] == 6.0
    assert np.abs(before[:2] - after[:2]).max() < 0.01, "a minute before and after midnight are neighbours"


@pytest.mark.parametrize("matrix", [np.zeros((1, 6), np.float32), np.zeros((1, 7)), np.zeros(7, np.float32)])
def test_another_width_or_type_is_refused(
    matrix: np.ndarray[tuple[int, ...], np.dtype[np.float32]], registry: Registry, publish: Callable[[int], str]
) -> None:
    with pytest.raises(ValueError, match=r"takes float32 \[n, 7\]"):
        registry.load(NAME, publish(0)).predict(matrix)


def _cut_short(folder: Path) -> None:
    file = folder / "p90.onnx"
    file.write_bytes(file.read_bytes()[:-100])


def _exchanged(folder: Path) -> None:
    (folder / "median.onnx").write_bytes((folder / "p90.onnx").read_bytes())


def _gone(folder: Path) -> None:
    (folder / "median.onnx").unlink()


def _other_order(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace(STORED[0], "x").replace(STORED[1], STORED[0]).replace("x", STORED[1]))


def _beyond_time(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace(f'"created_ms": {START + SECOND}', f'"created_ms": {10**18}'))


def _no_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


BROKEN = [
    (_cut_short, "p90.onnx", "checksum"),
    (_exchanged, "median.onnx", "checksum"),
    (_gone, "median.onnx", "cannot be read"),
    (_other_order, "manifest.json", "not what was published"),
    (_beyond_time, "manifest.json", "cannot be read"),
    (_no_json, "manifest.json", "cannot be read"),
]


@pytest.mark.parametrize(("damage", "file", "reason"), BROKEN)
def test_a_damaged_version_is_refused_and_the_old_model_goes_on(
    damage: Callable[[Path], None], file: str, reason: str, registry: Registry, publish: Callable[[int], str]
) -> None:
    old, new = publish(0), publish(1)
    registry.promote(NAME, old)
    watcher = Watcher(registry, NAME)
    assert watcher.current(0).manifest.version == old
    registry.promote(NAME, new)
    damage(registry.root / NAME / new)
    with capture_logs() as logs:
        for now in (5_000, 10_000):
            assert watcher.current(now).manifest.version == old
    assert watcher.last_error is not None
    assert watcher.last_error.file.name == file
    assert reason in watcher.last_error.reason
    assert [(log["event"], log["kept"]) for log in logs] == [("model_refused", old)], "said once"
    with pytest.raises(ModelBroken, match=reason):
        registry.promote(NAME, new)


def test_files_of_another_width_cannot_be_promoted(
    registry: Registry, trained: tuple[Manifest, dict[str, bytes]], publish: Callable[[int], str]
) -> None:
    old = publish(0)
    registry.promote(NAME, old)
    manifest, files = trained
    wider = registry.publish(msgspec.structs.replace(manifest, stored_features=(*STORED, "a__b")), files)
    with pytest.raises(ModelBroken, match=r"median\.onnx: .*8 features"):
        registry.promote(NAME, wider)
    assert registry.current(NAME) == old


def test_a_file_that_is_no_onnx_is_refused(registry: Registry, trained: tuple[Manifest, dict[str, bytes]]) -> None:
    manifest, files = trained
    version = registry.publish(manifest, {**files, "p90.onnx": b"not a model"})
    with pytest.raises(ModelBroken, match=r"p90\.onnx: does not take a row of 7 features"):
        registry.load(NAME, version)


def test_a_promotion_is_taken_up_without_restart_at_the_next_check(
    registry: Registry, publish: Callable[[int], str]
) -> None:
    old, new = publish(0), publish(1)
    registry.promote(NAME, old)
    watcher = Watcher(registry, NAME, recheck_ms=5_000)
    first = watcher.current(1_000)
    registry.promote(NAME, new)
    assert watcher.current(5_999) is first
    assert watcher.current(6_000).manifest.version == new
    registry.promote(NAME, old)
    assert watcher.current(0).manifest.version == old, "a clock set back delays nothing"


def test_a_repaired_version_is_taken_up(registry: Registry, publish: Callable[[int], str]) -> None:
    version = publish(0)
    registry.promote(NAME, version)
    file = registry.root / NAME / version / "median.onnx"
    content = file.read_bytes()
    file.write_bytes(b"")
    watcher = Watcher(registry, NAME)
    with pytest.raises(ModelBroken, match="checksum"):
        watcher.current(0)
    file.write_bytes(content)
    assert isinstance(watcher.current(5_000), Model)
    assert watcher.last_error is None


@pytest.mark.parametrize("alias", [b"../../elsewhere\n", b"", b"\xff\xfe"])
def test_an_alias_that_is_no_version_is_refused(
    alias: bytes, registry: Registry, publish: Callable[[int], str]
) -> None:
    publish(0)
    (registry.root / NAME / "current").write_bytes(alias)
    with pytest.raises(ModelBroken, match=r"current: "):
        registry.current(NAME)


def test_names_versions_and_files_outside_the_rules_are_refused(
    registry: Registry, trained: tuple[Manifest, dict[str, bytes]]
) -> None:
    manifest, files = trained
    with pytest.raises(ValueError, match="model name"):
        registry.load("../eta")
    with pytest.raises(ValueError, match=r"version '\.\./x'"):
        registry.load(NAME, "../x")
    with pytest.raises(ValueError, match="a version is exactly median"):
        registry.publish(manifest, {"median.onnx": files["median.onnx"]})


def test_a_publisher_that_fails_leaves_no_version(
    registry: Registry, trained: tuple[Manifest, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("models.registry.sync_folder", full_disk)
    with pytest.raises(OSError, match="No space"):
        registry.publish(*trained)
    assert list((registry.root / NAME).iterdir()) == []
    assert registry.versions(NAME) == []


def test_the_registry_brings_along_no_training_library() -> None:
    code = (
        "import sys, models.registry; print(sorted({'lightgbm', 'feast', 'onnxmltools', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
