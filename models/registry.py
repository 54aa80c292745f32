"""The models in use: a plain folder, checked whenever it is read.

    <root>/<name>/<version>/median.onnx, p90.onnx, manifest.json
    <root>/<name>/current                                          the version in use, one line
    <root>/<name>/shadow                                           the version in the shadow, if there is one
    <root>/<name>/promotions.jsonl                                 what was in use, and since when, a line each

A version is published whole (written aside, synced, renamed) and never changed; `current` is replaced by a rename. So a
reader sees a whole version or none, whenever a publisher is killed. Instants are ms since the epoch, UTC.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import structlog

from feature_repo.settings import Settings
from feature_repo.stores.durable import sync_folder, write_synced
from models.model import Manifest, Model
from models.scoring import Pair, Runtime, Scorer, merged
from models.vector import REQUEST_FEATURES, FeatureVector, Matrix, request_features

__all__ = [
    "REQUEST_FEATURES",
    "FeatureVector",
    "Manifest",
    "Matrix",
    "Model",
    "ModelBroken",
    "Registry",
    "Scorer",
    "Watcher",
    "open_registry",
    "request_features",
]

FILES = ("median.onnx", "p90.onnx")
MANIFEST, CURRENT, SHADOW, PROMOTIONS = "manifest.json", "current", "shadow", "promotions.jsonl"
RECHECK_MS = 5_000
"""How long a watcher trusts the alias that it has read."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_log = structlog.get_logger(__name__)


class ModelBroken(RuntimeError):
    """A model that must not answer: the file that is at fault, and why."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = file, reason


class Promotion(msgspec.Struct, frozen=True):
    """That a version was put into use, and when (ms since the epoch)."""

    at: int
    version: str


class Registry:
    """The folder of models, ``<data>/models``."""

    def __init__(self, root: Path, runtime: Runtime | None = None) -> None:
        self.root, self._runtime = root, runtime

    def publish(self, manifest: Manifest, files: Mapping[str, bytes]) -> str:
        """Store a version and return it; the manifest's own `version` and `sha256` are filled in here.

        Publishing the same content again changes nothing. It is not in use before `promote`.
        Raises ValueError for a name that is no plain word, or files other than FILES.
        """
        if set(files) != set(FILES):
            raise ValueError(f"files {sorted(files)}: a version is exactly {', '.join(FILES)}")
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        manifest = msgspec.structs.replace(manifest, sha256=sums)
        manifest = _decoded(msgspec.json.encode(manifest))  # as readers will see it: a whole number may be a float
        manifest = msgspec.structs.replace(manifest, version=manifest.content_version())
        folder = self._folder(manifest.name)
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".publishing-", dir=folder))
        try:
            document = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
            for name, content in {**files, MANIFEST: document}.items():
                write_synced(aside / name, content)
            aside.chmod(0o755)  # a temporary folder is its owner's alone; the API may run as somebody else
            sync_folder(aside)
            if not (folder / manifest.version).exists():
                aside.rename(folder / manifest.version)
                sync_folder(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return manifest.version

    def promote(self, name: str, version: str, now_ms: int | None = None) -> None:
        """Put `version` into use, and note it at `now_ms` (the version's own creation, if left out).

        Raises ModelBroken, and changes nothing, if it cannot be loaded.
        """
        model = self.load(name, version)
        at = model.manifest.created_ms if now_ms is None else now_ms
        self._point(name, CURRENT, version)
        with (self._folder(name) / PROMOTIONS).open("ab") as file:
            # Begins with the end of a line: the one before may have been cut off.
            file.write(b"\n" + msgspec.json.encode(Promotion(at, version)))
            file.flush()
            os.fsync(file.fileno())

    def promotions(self, name: str) -> list["Promotion"]:
        """What was put into use, in order; a line that was cut off when its writer was killed is left out."""
        file = self._folder(name) / PROMOTIONS
        found = []
        for line in file.read_bytes().splitlines() if file.exists() else []:
            with suppress(msgspec.MsgspecError):
                found.append(msgspec.json.decode(line, type=Promotion))
        return found

    def before(self, name: str) -> str:
        """The version that was in use before the present one; going back twice goes back two steps.

        Raises ModelBroken if none is known or none is left.
        """
        current, stack = self.current(name), list[str]()
        for promotion in self.promotions(name):
            if promotion.version in stack:  # back to where it was: what came after it is undone
                del stack[stack.index(promotion.version) :]
            stack.append(promotion.version)
        if current in stack and stack.index(current) > 0:
            return stack[stack.index(current) - 1]
        raise ModelBroken(self._folder(name) / PROMOTIONS, f"knows of no version in use before {current}")

    def set_shadow(self, name: str, version: str | None) -> None:
        """Put a version into the shadow, or none. Raises ModelBroken, and changes nothing, if it cannot be loaded."""
        if version is None:
            (self._folder(name) / SHADOW).unlink(missing_ok=True)
            sync_folder(self._folder(name))
            return
        self.load(name, version)
        self._point(name, SHADOW, version)

    def shadow(self, name: str) -> str | None:
        """The version in the shadow; None if there is none. Raises ModelBroken if the alias is no version."""
        alias = self._folder(name) / SHADOW
        return _named(alias) if alias.exists() else None

    def _point(self, name: str, alias: str, version: str) -> None:
        folder = self._folder(name)
        handle, aside = tempfile.mkstemp(prefix=f".{alias}-", dir=folder)
        os.close(handle)
        write_synced(Path(aside), f"{version}\n".encode())
        Path(aside).chmod(0o644)
        Path(aside).replace(folder / alias)
        sync_folder(folder)

    def versions(self, name: str) -> list[str]:
        """Every published version, oldest first."""
        folder = self._folder(name)
        return (
            sorted(path.name for path in folder.iterdir() if _VERSION.fullmatch(path.name)) if folder.is_dir() else []
        )

    def find(self, name: str, end: str) -> str:
        """The version that is, or ends with, this text. Raises ValueError if none or several do."""
        found = [version for version in self.versions(name) if version.endswith(end)]
        if len(found) != 1 or not end:
            raise ValueError(f"{name} has {len(found) or 'no'} versions that end with {end!r}: one must be meant")
        return found[0]

    def manifest(self, name: str, version: str) -> Manifest:
        """What is known of a version; its files are not looked at. Raises ModelBroken."""
        return _read_manifest(self._folder(name) / self._version(name, version) / MANIFEST, name)

    def current(self, name: str) -> str:
        """The version in use. Raises ModelBroken if none was promoted, or the alias is no version."""
        return _named(self._folder(name) / CURRENT)

    def load(self, name: str, version: str | None = None) -> Model:
        """A version (default: the one in use), checked: checksums, width, finite answers to rows of zeros and of NaN.

        Raises ModelBroken naming the file and the reason.
        """
        folder = self._folder(name) / self._version(name, version)
        manifest = _read_manifest(folder / MANIFEST, name)
        width = len(FeatureVector(manifest.stored_features).names)
        median, p90 = (_sound(folder / file, manifest.sha256.get(file), width) for file in FILES)
        try:
            return Model(manifest, Pair(merged(median, p90), width, self._runtime))
        except Exception as error:  # each is sound by itself; onnxruntime raises its own classes
            raise ModelBroken(folder / FILES[1], f"cannot be scored together with {FILES[0]} ({error})") from None

    def _version(self, name: str, version: str | None) -> str:
        if version is None:
            return self.current(name)
        if not _VERSION.fullmatch(version):
            raise ValueError(f"version {version!r}: expected like 20261122T180405Z-0123abcd")
        return version

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"model name {name!r}: lower-case letters, digits and _ only, since it is a folder's name")
        return self.root / name


def open_registry(settings: Settings) -> Registry:
    """The registry of the repository folder, its models scored as the settings say. Raises NotAvailable."""
    names = (name.strip() for name in settings.execution_providers.split(","))
    runtime = Runtime(tuple(name for name in names if name), settings.model_threads)
    return Registry(settings.data / "models", runtime)


class Watcher:
    """The model in use, followed: a promoted version is taken up without restart, a broken one is refused.

    `last_error` says why the version named by the alias is not the one answering; None when it is. With `shadow` it is
    the version in the shadow that is followed, and that there is none is no error.
    """

    def __init__(self, registry: Registry, name: str, recheck_ms: int = RECHECK_MS, shadow: bool = False) -> None:
        self.last_error: ModelBroken | None = None
        self._registry, self._name, self._recheck_ms, self._shadow = registry, name, recheck_ms, shadow
        self._model: Model | None = None
        self._checked: int | None = None

    def current(self, now: int) -> Model:
        """The model to answer with at `now` (ms). Raises ModelBroken if there never was a sound one.

        The alias is read again when `recheck_ms` have passed, or the clock has been set back.
        """
        if (model := self.find(now)) is None:
            assert self.last_error is not None  # _check leaves a model or an error
            # A new one: the same one, raised at every request, would gather a traceback of them all.
            raise ModelBroken(self.last_error.file, self.last_error.reason)
        return model

    def find(self, now: int) -> Model | None:
        """The same; None if there is none."""
        if self._checked is None or abs(now - self._checked) >= self._recheck_ms:
            self._checked = now
            self._check()
        return self._model

    def _check(self) -> None:
        try:
            if self._shadow:
                version = self._registry.shadow(self._name)
                if version is None:
                    self._model = self.last_error = None
                    return
            else:
                version = self._registry.current(self._name)
            if self._model is None or version != self._model.manifest.version:
                self._model = self._registry.load(self._name, version)
                _log.info("model_loaded", name=self._name, version=version)
        except ModelBroken as error:
            if str(error) != str(self.last_error):  # once, not at every check
                kept = self._model.manifest.version if self._model else None
                _log.error("model_refused", name=self._name, file=str(error.file), reason=error.reason, kept=kept)
            self.last_error = error
        else:
            self.last_error = None


def _named(alias: Path) -> str:
    try:
        version = alias.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelBroken(alias, f"names no version in use ({error})") from None
    if not _VERSION.fullmatch(version):
        raise ModelBroken(alias, f"{version[:80]!r} is no version")
    return version


def _decoded(document: bytes) -> Manifest:
    return msgspec.json.decode(document, type=Manifest)


def _read_manifest(file: Path, name: str) -> Manifest:
    """The manifest, as long as it is what was published: its content gives the version that its folder is named by."""
    try:
        manifest = _decoded(file.read_bytes())
        version = manifest.content_version()
    except (OSError, OverflowError, msgspec.MsgspecError) as error:  # overflow: an instant that no year holds
        raise ModelBroken(file, f"cannot be read ({error})") from None
    if manifest.name != name or not manifest.version == version == file.parent.name:
        raise ModelBroken(file, f"is not what was published as {name} {file.parent.name}")
    derived = (*FeatureVector(manifest.stored_features).derived, *REQUEST_FEATURES)
    if (*manifest.derived_features, *manifest.request_features) != derived:
        raise ModelBroken(
            file, f"wants {manifest.derived_features} and {manifest.request_features}, this program derives {derived}"
        )
    return manifest


def _sound(file: Path, sha256: str | None, width: int) -> bytes:
    """The content of a file that scores rows of this width."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelBroken(file, f"cannot be read ({error})") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ModelBroken(file, "its checksum is not the manifest's: damaged, or exchanged")
    try:
        scores = Scorer(content)(np.array([[0.0] * width, [np.nan] * width], dtype=np.float32))
    except Exception as error:  # onnxruntime raises its own classes, of no common base
        raise ModelBroken(file, f"does not take a row of {width} features ({error})") from None
    if not np.isfinite(scores).all():
        raise ModelBroken(file, f"answers {scores.tolist()} to rows of zeros and of missing values")
    return content
