"""The Feast ComputeEngine plugin: batch views are materialized by their newest rows; stream views have none.

Views that are transformed, or made of other views, go through Feast's own local engine, with our stores below it.

Materializing reads the newest row of each entity in DuckDB, in chunks, and writes it under newest-wins, so running it
again, or over a range that was done, changes nothing. It looks back a whole TTL before the range's end: rows that were
written late are found however long ago the last run was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from feast import Entity, FeatureView, OnDemandFeatureView
from feast.infra.common.materialization_job import (
    MaterializationJob,
    MaterializationJobStatus,
    MaterializationTask,
)
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel

from feature_repo.stores.batch_rows import write_batches
from feature_repo.stores.duckdb_client import connect
from feature_repo.stores.offline_sql import newest_rows_sql
from feature_repo.stores.online import TiffinOnlineStore, store_settings
from feature_repo.stores.sources import Source
from feature_repo.stores.values import micros
from feature_repo.views import BatchView, compile_view, online_versioning

CHUNK_ROWS = 5_000


class TiffinComputeEngineConfig(FeastConfigBaseModel):
    """Nothing to set here."""

    type: Literal["feature_repo.stores.engine.TiffinComputeEngine"] = "feature_repo.stores.engine.TiffinComputeEngine"


@dataclass
class Job(MaterializationJob):
    """A materialization that is over."""

    name: str
    failure: BaseException | None = None

    def status(self) -> MaterializationJobStatus:
        """Succeeded, or in error."""
        return MaterializationJobStatus.ERROR if self.failure else MaterializationJobStatus.SUCCEEDED

    def error(self) -> BaseException | None:
        """Why it failed."""
        return self.failure

    def should_be_retried(self) -> bool:
        """Never by itself: the caller sees the error."""
        return False

    def job_id(self) -> str:
        """The view and the range."""
        return self.name

    def url(self) -> str | None:
        """None: it ran here."""
        return None


class TiffinComputeEngine(ComputeEngine):
    """Runs in this process, in DuckDB."""

    def update(
        self,
        project: str,
        views_to_delete: Sequence[FeatureView],
        views_to_keep: Sequence[FeatureView | OnDemandFeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
    ) -> None:
        """Nothing to prepare."""

    def teardown_infra(self, project: str, fvs: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Nothing to tear down."""

    def _materialize_one(self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any) -> MaterializationJob:
        view = compile_view(task.feature_view, online_versioning(self.repo_config))
        job = Job(f"{view.name}-{task.start_time.isoformat()}-{task.end_time.isoformat()}")
        if not isinstance(view, BatchView):
            return job  # its values are computed from events when they are read: there is nothing to materialize
        if _is_transformed(task.feature_view):
            feasts = LocalComputeEngine(
                repo_config=self.repo_config, offline_store=self.offline_store, online_store=self.online_store
            )
            return feasts._materialize_one(registry, task, **kwargs)
        try:
            self._write(task, view)
        except Exception as error:  # Feast's contract: the job carries the error, and the caller raises it
            job.failure = error
        return job

    def _write(self, task: MaterializationTask, view: BatchView) -> None:
        assert isinstance(self.online_store, TiffinOnlineStore)
        source = Source.of(task.feature_view.batch_source, self.repo_config.repo_path)
        files = source.files()
        if not files:
            return
        last = micros(task.end_time)
        first = min(micros(task.start_time), last - view.ttl * 1000)
        query = newest_rows_sql(source, view, files, first, last)
        client, expire_s = self.online_store.client(self.repo_config), self.repo_config.online_store.key_ttl_seconds
        with connect(store_settings(self.repo_config)) as connection:
            connection.execute(f"CREATE TEMP TABLE newest AS {query}")
            ((count,),) = connection.execute("SELECT count(*) FROM newest").fetchall()
            bar = task.tqdm_builder(count) if task.tqdm_builder else None
            batches = connection.execute("FROM newest").to_arrow_reader(CHUNK_ROWS)
            for done in write_batches(client, self.repo_config.project, view, batches, expire_s):
                if bar is not None:
                    bar.update(done)
            if bar is not None:
                bar.close()


def _is_transformed(view: FeatureView) -> bool:
    """Whether its rows are more than its source's columns: what then is to be done, Feast's own engine knows."""
    return bool(getattr(view, "feature_transformation", None) or getattr(view, "source_views", None))
