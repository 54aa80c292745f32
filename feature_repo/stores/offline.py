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
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import _parse_feature_ref

from feature_repo.stores import offline_sql
from feature_repo.stores.duckdb_client import Connection, connect, identifier, parquet_files
from feature_repo.stores.online import store_settings
from feature_repo.stores.parquet_files import append_file, replace_file
from feature_repo.stores.sources import Source, relation
from feature_repo.stores.values import from_micros, micros
from feature_repo.views import compile_view

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
        self._config, self._run = config, run
        self._full, self._on_demand = full_feature_names, list(on_demand)
        self._metadata: Callable[[], RetrievalMetadata] | RetrievalMetadata | None = metadata

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
        """What the job retrieves; its entity rows are looked at when this is first asked for."""
        if callable(self._metadata):
            self._metadata = self._metadata()
        return self._metadata

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result as one Parquet file, atomically; in a folder it takes the place of what was there.

        Raises SavedDatasetLocationAlreadyExists.
        """
        assert isinstance(storage, SavedDatasetFileStorage)
        path = _path(storage.file_options.uri, self._config)
        if path.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(path))
        before = parquet_files(path) if path.is_dir() else []
        target = path / "rows.parquet" if path.is_dir() else path
        replace_file(target, self.to_arrow())
        for other in before:
            if other != target:
                other.unlink(missing_ok=True)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with connect(store_settings(self._config)) as connection:
            return self._run(connection)

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame


class TiffinOfflineStore(OfflineStore):
    """DuckDB over Parquet below the repository folder."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """The features of each entity row as of its instant.

        Batch features: the newest row not after the instant and within the TTL; ties in event time go to the greater
        created time. Stream features: computed from the event log at the instant.
        """
        if entity_df is None:
            raise NotImplementedError("entity rows are needed: a time range alone is not supported yet")
        joins, names = _joins(config, registry, feature_views, feature_refs, full_feature_names)
        rows = entity_df

        def run(connection: Connection) -> pa.Table:
            entities, _ = _register_entities(connection, rows)
            for name in sorted(set(names) & set(entities)):
                raise ValueError(
                    f"{name!r} is both an entity column and a feature: one would hide the other; "
                    "ask with full_feature_names=True"
                )
            first, last = connection.execute(
                "SELECT coalesce(min(__us), 0) // 1000, coalesce(max(__us), 0) // 1000 FROM entity_rows"
            ).fetchall()[0]
            span = offline_sql.Span(first, last)
            for i, join in enumerate(joins):
                connection.execute(f"CREATE TEMP TABLE join_{i} AS {offline_sql.join_sql(join, span)}")
            tables = " ".join(f"LEFT JOIN join_{i} USING (__row)" for i in range(len(joins)))
            columns = ", ".join(identifier(name) for name in [*entities, *names])
            query = f"SELECT {columns} FROM entity_rows {tables} ORDER BY __row"
            return _arrow(connection, query)

        return DuckDBRetrievalJob(
            config,
            run,
            full_feature_names,
            OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            lambda: _metadata(config, feature_refs, rows),
        )

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
        """Every row between the two instants; with every column of the source if no features are named."""
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
        """Append rows to a view's source as a file of its own, atomically; safe for several writers."""
        source = Source.of(feature_view.batch_source, config.repo_path)
        append_file(source.path, table)
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


def _joins(
    config: RepoConfig,
    registry: BaseRegistry,
    feature_views: Sequence[FeatureView],
    feature_refs: Sequence[str],
    full: bool,
) -> tuple[list[offline_sql.Join], list[str]]:
    """A join a view, and the names of the features in the order that they were asked for."""
    wanted: dict[str, list[tuple[str, str]]] = {}
    names = []
    for ref in feature_refs:
        view_name, _, feature = _parse_feature_ref(ref)
        output = f"{view_name}__{feature}" if full else feature
        wanted.setdefault(view_name, []).append((feature, output))
        names.append(output)
    joins = []
    for table in feature_views:
        name = str(table.projection.name_to_use())  # type: ignore[no-untyped-call]
        if name in wanted:
            view = compile_view(table)
            mapped = table.projection.join_key_map or {}
            columns = tuple(mapped.get(key, key) for key in view.join_keys)
            ttl_us = round(table.ttl.total_seconds() * 1e6) if table.ttl else 0
            source = Source.of(table.batch_source, config.repo_path)
            more = tuple(_log_of(config, registry, topic) for topic in getattr(view, "topics", ())[1:])
            joins.append(offline_sql.Join(view, source, tuple(wanted.pop(name)), columns, ttl_us, more))
    on_demand = {output for pairs in wanted.values() for _, output in pairs}
    return joins, [name for name in names if name not in on_demand]


def _log_of(config: RepoConfig, registry: BaseRegistry, topic: str) -> Source:
    """The archived log of a topic, by the stream source that is named like it."""
    stream = registry.get_data_source(topic, config.project, allow_cache=True)
    return Source.of(getattr(stream, "batch_source", None), config.repo_path)


def _register_entities(connection: Connection, rows: pd.DataFrame | pa.Table | str) -> tuple[list[str], str]:
    """Make the table ``entity_rows``; the names of its own columns, and which of them holds the instants."""
    table = _entity_table(connection, rows)
    schema = {field.name: field.type.to_pandas_dtype() for field in table.schema}
    stamp = infer_event_timestamp_from_entity_df(schema)
    instants = table.column(stamp)
    if not pa.types.is_timestamp(instants.type):
        instants = instants.cast(pa.timestamp("us"))
    unit = pa.timestamp("us", tz="UTC")
    if instants.type.tz is None:
        instants = instants.cast(pa.timestamp("us"), safe=False).cast(unit)  # naive times are UTC
    table = table.set_column(table.schema.get_field_index(stamp), stamp, instants.cast(unit, safe=False))
    names = list(table.column_names)
    table = table.append_column("__row", pa.array(range(table.num_rows), pa.int64()))
    connection.register("entity_input", table)
    connection.execute(
        f"CREATE TEMP TABLE entity_rows AS SELECT *, epoch_us({identifier(stamp)}) AS __us FROM entity_input"
    )
    return names, stamp


def _entity_table(connection: Connection, rows: pd.DataFrame | pa.Table | str) -> pa.Table:
    if isinstance(rows, str):
        return _arrow(connection, rows)
    return rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows, preserve_index=False)


def _metadata(config: RepoConfig, refs: list[str], rows: pd.DataFrame | pa.Table | str) -> RetrievalMetadata:
    """What is asked for: features, the entity rows' columns but their instants, and the first and last instant."""
    with connect(store_settings(config)) as connection:
        names, stamp = _register_entities(connection, rows)
        first, last = connection.execute("SELECT min(__us), max(__us) FROM entity_rows").fetchall()[0]
    moments = [None if us is None else from_micros(us) for us in (first, last)]
    return RetrievalMetadata(refs, [name for name in names if name != stamp], *moments)


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
        instant = source.micros(timestamp_field)
        bounds = [f"{instant} >= {micros(start)}"] if start else []
        bounds += [f"{instant} <= {micros(end)}"] if end else []
        selected = ", ".join(
            name if name == _EVERY_COLUMN else f"{source.column(name)} AS {identifier(name)}" for name in columns
        )
        where = f"WHERE {' AND '.join(bounds)}" if bounds else ""
        return _arrow(connection, f"SELECT {selected} FROM {relation(files)} {where} {qualify}")

    return DuckDBRetrievalJob(config, run)


def _arrow(connection: Connection, query: str) -> pa.Table:
    return connection.execute(query).to_arrow_table()


def _path(uri: str, config: RepoConfig) -> Path:
    path = Path(uri.removeprefix("file://"))
    return path if path.is_absolute() else Path(config.repo_path or ".") / path
