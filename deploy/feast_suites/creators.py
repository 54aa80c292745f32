"""What Feast's suites ask of whoever configures them: data sources from frames, and stores by configuration.

The suites call these methods by name; their own base classes lie in Feast's test tree and are not needed.
"""

import importlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pandas as pd
from feast import FileSource
from feast.data_format import ParquetFormat
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage

from feature_repo.settings import settings

OnlineStores = dict[str, tuple[dict[str, Any], None]]
"""{name in the suites: (configuration, nothing that starts a server)}"""


class ParquetCreator:
    """Puts the suites' frames into Parquet files of a folder of its own, for the offline store named by `store`."""

    store: ClassVar[str]
    """``offline_store.type``"""
    engine: ClassVar[str]
    """``batch_engine.type``"""
    ours: ClassVar[bool] = False
    """Whether the store is ours: it takes entity rows as SQL, and sources that can be written to are folders."""

    def __init__(self, project_name: str, *_: Any, fixture_request: Any = None, **__: Any) -> None:
        self.project_name = project_name
        self._home = Path(tempfile.mkdtemp(prefix=project_name))
        if fixture_request is not None:  # the suites offer no other way to choose the compute engine
            fixture_request.param.batch_engine = {"type": self.engine}

    def create_data_source(
        self,
        df: pd.DataFrame,
        destination_name: str,
        created_timestamp_column: str | None = "created_ts",
        field_mapping: dict[str, str] | None = None,
        timestamp_field: str | None = "ts",
    ) -> FileSource:
        """A source of the rows of `df`, which are written as pandas writes them: nanoseconds and all."""
        path = self._folder(destination_name) / "rows.parquet"
        df.to_parquet(path)
        source = FileSource(
            path=str(path.parent if self.ours else path),
            file_format=ParquetFormat(),
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            field_mapping=field_mapping or {"ts_1": "ts"},
        )
        if self.ours:
            # What the suites put into the FROM clause of entity rows.
            source.table = f"read_parquet('{path}')"  # type: ignore[attr-defined]
        return source

    def create_saved_dataset_destination(self) -> SavedDatasetFileStorage:
        """Where a saved dataset goes: a file that is not there yet."""
        return SavedDatasetFileStorage(path=str(self._folder("dataset") / "rows.parquet"), file_format=ParquetFormat())

    def create_logged_features_destination(self) -> FileLoggingDestination:
        """A folder for logged features."""
        return FileLoggingDestination(path=str(self._folder("logged")))

    def create_offline_store_config(self) -> Any:
        """The offline store, by type alone."""
        return {"type": self.store}

    def setup(self, registry: Any) -> None:
        """Nothing to start."""

    def teardown(self) -> None:
        """Delete the files."""
        shutil.rmtree(self._home, ignore_errors=True)

    @staticmethod
    def xdist_groups() -> list[str]:
        """None: any worker may run the tests."""
        return []

    @staticmethod
    def test_markers() -> list[Any]:
        """None."""
        return []

    def _folder(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._home))


def use_for_all(creator: type[ParquetCreator]) -> None:
    """Take `creator` also where the suites take Feast's file store by default: in the online suites, for instance.

    Called while the suites' own configuration module imports ours, before anything has read its defaults.
    """
    name = next(name for name in sys.modules if name.endswith(".feature_repos.repo_configuration"))
    configuration = sys.modules[name]
    files = importlib.import_module(f"{name.rpartition('.')[0]}.universal.data_sources.file")
    configuration.OFFLINE_STORE_TO_PROVIDER_CONFIG["file"] = ("local", creator)
    vars(files)["FileDataSourceCreator"] = creator


def feasts_redis() -> OnlineStores:
    """Feast's Redis store on the server of ``REDIS_URL``, which must name host and port."""
    url = settings().redis_url
    parts = urlsplit(url.get_secret_value() if url else "")
    if not parts.hostname or not parts.port:
        raise ValueError("REDIS_URL must be redis://host:port: Feast's own store cannot be told less")
    return {"redis": ({"type": "redis", "connection_string": f"{parts.hostname}:{parts.port},db=0"}, None)}
