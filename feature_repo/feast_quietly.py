"""Feast without its warnings about what we know: that stream views are new to it, and how its own parts are named."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import yaml
from feast import FeatureStore
from feast.repo_config import load_repo_config
from feast.repo_operations import apply_total, parse_repo

from feature_repo.settings import Settings


def quiet() -> None:
    """Leave out Feast's notice that stream feature views are experimental: what is experimental there, we replace.

    Feast also shows every library's deprecation notices; kafka-python's, on Python 3.11, tell a user nothing.
    """
    warnings.filterwarnings("ignore", "Stream feature views are experimental", RuntimeWarning)
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)


def apply_definitions(settings: Settings) -> None:
    """What `feast apply` does in the repository folder: registers every object of its modules."""
    quiet()
    repo = settings.repo
    (repo / "data").mkdir(exist_ok=True)
    # Feast's own command works in the folder and imports its modules from there, as top-level ones.
    with contextlib.chdir(repo), _importing_from(repo):
        apply_total(load_repo_config(repo, repo / "feature_store.yaml"), repo, skip_source_validation=False)


def register_elsewhere(settings: Settings, folder: Path) -> FeatureStore:
    """The feature store of the repository folder's definitions as they are now, in a registry of its own.

    Everything relative in them (the sources' paths) is below `folder`. The repository folder is only read.
    """
    quiet()
    described = yaml.safe_load((settings.repo / "feature_store.yaml").read_text())
    (folder / "data").mkdir(exist_ok=True)
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(described | {"registry": "data/registry.db"}))
    with contextlib.chdir(settings.repo), _importing_from(settings.repo), _no_bytecode():
        found = parse_repo(settings.repo)
    feast = FeatureStore(repo_path=str(folder))
    with contextlib.chdir(folder):
        feast.apply([*found.entities, *found.data_sources, *found.feature_views, *found.stream_feature_views])
    return feast


def open_store(settings: Settings) -> FeatureStore:
    """The feature store of the repository folder. Connects nowhere yet.

    Its history can be asked while a materialization is under way, which Feast refuses by default.
    """
    quiet()
    store = FeatureStore(repo_path=str(settings.repo))
    store.registry.serve_features_while_materializing = True
    return store


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in {path.stem for path in folder.glob("*.py")} & (set(sys.modules) - before):
            del sys.modules[name]  # another folder's `definitions` is another module
