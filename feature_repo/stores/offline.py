"""The Feast OfflineStore plugin: point-in-time joins in DuckDB over Parquet, stream features from the event log."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, OnDemandFeatureView, RepoConfig
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import compute_non_entity_date_range

from feature_repo.stores.duckdb_client import Connection, connect, identifier
from feature_repo.stores.entity_rows import STAMP, BadEntityRows, EntityRows, read_entity_rows, register, rows_in_range
from feature_repo.stores.joins import joins_of
from feature_repo.stores.online import store_settings
from feature_repo.stores.parquet_files import append_file, publish_file, replace_file
from feature_repo.stores.retrieval import features_of
from feature_repo.stores.sources import Source, relation
from feature_repo.stores.values import from_micros, micros
from feature_repo.views import BatchView, compile_view

_EVERY_COLUMN = "* EXCLUDE (filename, file_row_number)"


class TiffinOfflineStoreConfig(FeastConfigBaseModel):
    """Nothing to set here: memory and threads are settings of the process."""

    type: Literal["feature_repo.stores.offline.TiffinOfflineStore"] = "feature_repo.stores.offline.TiffinOfflineStore"


class DuckDBRetrievalJob(RetrievalJob):
    """A query that runs when its result is asked for, in a database of its own."""

    def __init__(
        self,
        config: RepoConfig,
        run: Callable[[Connection], pa.Table],
        full_feature_names: bool = False,
        on_demand: Sequence[OnDemandFeatureView] = (),
        metadata: Callable[[], RetrievalMetadata] | None = None,
    ) -> None:
        self._config, self._run, self._describe = config, run, metadata
        self._full, self._on_demand = full_feature_names, list(on_demand)
        self._metadata: RetrievalMetadata | None = None

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named ``view__feature``."""
        return self._full

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """What Feast computes on top of the result."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """What the job retrieves, and its first and last instant; reads the entity rows when it is first asked for."""
        if self._metadata is None and self._describe is not None:
            self._metadata = self._describe()
        return self._metadata

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result as one Parquet file, atomically. Raises SavedDatasetLocationAlreadyExists, BadEntityRows."""
        assert isinstance(storage, SavedDatasetFileStorage)
        path = _path(storage.file_options.uri, self._config)
        if path.is_dir() or (path.exists() and not allow_overwrite):
            raise SavedDatasetLocationAlreadyExists(location=str(path))
        table = self.to_arrow()
        if STAMP not in table.column_names:
            raise BadEntityRows(f"no column {STAMP!r} in {table.column_names}: Feast reads saved datasets by it")
        try:
            (replace_file if allow_overwrite else publish_file)(path, table)
        except FileExistsError:  # meanwhile
            raise SavedDatasetLocationAlreadyExists(location=str(path)) from None

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with connect(store_settings(self._config)) as connection:
            return self._run(connection)

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame


class TiffinOfflineStore(OfflineStore):
    """DuckDB over Parquet below the repository folder."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        *,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """The features of each entity row as of its instant, rows and their other columns as they were given.

        Batch features: the newest row not after the instant and within the TTL; ties in event time go to the greater
        created time. Stream features: computed from the event log at the instant. With `filter_by_created_timestamp`
        both are what was known at the instant: batch rows created by then, events appended by then.

        Without entity rows there is a row at each instant from `start_date` to `end_date` at which a batch row or an
        event says something of an entity. A row that lacks one of a view's join keys gets nulls of it.
        Raises BadEntityRows, FeastEntityDFMissingColumnsError, or BadSource, when the result is asked for.
        """
        settings = store_settings(config)
        joins, names = joins_of(config, registry, feature_views, feature_refs, full_feature_names)
        between = None if entity_df is not None else compute_non_entity_date_range(feature_views, start_date, end_date)

        def rows(connection: Connection) -> EntityRows:
            given = rows_in_range(joins, *between) if between else entity_df
            return read_entity_rows(connection, given, config.repo_path)

        def run(connection: Connection) -> pa.Table:
            entities = rows(connection)
            for name in sorted(set(names) & set(entities.table.column_names)):
                raise BadEntityRows(
                    f"{name!r} is both an entity column and a feature: one would hide the other; "
                    "ask with full_feature_names=True"
                )
            register(connection, entities, {column: kind for join in joins for column, kind in join.kinds.items()})
            span = entities.span(filter_by_created_timestamp)
            found, table = features_of(connection, joins, span, entities.table.num_rows), entities.table
            for i, name in enumerate(names):
                table = table.append_column(name, found[f"o{i}"])
            return table

        def metadata() -> RetrievalMetadata:
            if between:
                keys = sorted({column for join in joins for column in join.kinds})
                return RetrievalMetadata(feature_refs, keys, *between)
            with connect(settings) as connection:
                entities = rows(connection)
            span = entities.span()
            return RetrievalMetadata(feature_refs, entities.keys, from_micros(span.first), from_micros(span.last))

        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        return DuckDBRetrievalJob(config, run, full_feature_names, on_demand, metadata)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each entity between the two instants."""
        columns = [*(join_key_columns or [DUMMY_ENTITY_ID]), *feature_name_columns, timestamp_field]
        order = f"{identifier(timestamp_field)} DESC"
        if created_timestamp_column:
            columns.append(created_timestamp_column)
            order += f", {identifier(created_timestamp_column)} DESC"
        partition = ", ".join(identifier(name) for name in join_key_columns) or "NULL"
        order += ", filename DESC, file_row_number DESC"
        newest = f"QUALIFY row_number() OVER (PARTITION BY {partition} ORDER BY {order}) = 1"
        return _pull(config, data_source, columns, timestamp_field, start_date, end_date, newest)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row between the two instants, or all of a source without a time: that is how a saved dataset is read.

        Every column of the source, if no features are named.

        (Feast keeps the bounds of the first dataset that was saved under a name, whatever is saved there later.)
        """
        if not data_source.timestamp_field:
            start_date = end_date = None
        columns = [*(join_key_columns or [DUMMY_ENTITY_ID]), *feature_name_columns, timestamp_field]
        if created_timestamp_column:
            columns.append(created_timestamp_column)
        if not feature_name_columns:
            columns = [_EVERY_COLUMN, *([] if join_key_columns else [DUMMY_ENTITY_ID])]
        return _pull(config, data_source, columns, timestamp_field, start_date, end_date)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append rows to a view's source as a file of its own, atomically; safe for several writers.

        The columns may have the names of the source or those that it maps them to. Raises TypeError for a stream view,
        whose values come of its events alone, BadSource for other columns than the source's files have.
        """
        if not isinstance(compile_view(feature_view), BatchView):
            raise TypeError(f"{feature_view.name} is computed from its events: rows written to it would be ignored")
        source = Source.of(feature_view.batch_source, config.repo_path)
        append_file(source.path, source.as_stored(table))
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Append logged features as a file of their own."""
        assert isinstance(logging_config.destination, FileLoggingDestination)
        table = pq.read_table(data) if isinstance(data, Path) else data
        append_file(_path(logging_config.destination.path, config), table)

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Sources may come to be after they are defined, so only their kind is checked. Raises sources.BadSource."""
        Source.of(data_source, config.repo_path)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> list[tuple[str, str]]:
        """Column names and Arrow types of a source's first file."""
        files = Source.of(data_source, config.repo_path).files()
        schema = pq.read_schema(files[0]) if files else pa.schema([])
        return [(field.name, str(field.type)) for field in schema]


def _pull(
    config: RepoConfig,
    data_source: DataSource,
    columns: Sequence[str],
    timestamp_field: str,
    start: datetime | None,
    end: datetime | None,
    qualify: str = "",
) -> RetrievalJob:
    source = Source.of(data_source, config.repo_path)

    def run(connection: Connection) -> pa.Table:
        files = source.files()
        if not files:
            return pa.table({name: pa.nulls(0) for name in columns if name != _EVERY_COLUMN})
        selected = ", ".join(
            name if name == _EVERY_COLUMN else f"{source.column(name)} AS {identifier(name)}" for name in columns
        )
        within = "true"
        if start or end:
            bounds = [micros(bound) if bound else None for bound in (start, end)]
            within = source.within(timestamp_field, *bounds)
        return _arrow(connection, f"SELECT {selected} FROM {relation(files)} WHERE {within} {qualify}")

    return DuckDBRetrievalJob(config, run)


def _arrow(connection: Connection, query: str) -> pa.Table:
    return connection.execute(query).to_arrow_table()


def _path(uri: str, config: RepoConfig) -> Path:
    path = Path(uri.removeprefix("file://"))
    return path if path.is_absolute() else Path(config.repo_path or ".") / path
