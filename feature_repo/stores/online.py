"""The Feast OnlineStore plugin: batch rows where Feast puts them, stream tiles beside them, honest statuses.

Feast's SDK, sync and async, reads through `feature_repo.stores.reading`; so does our own server.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from feast import Entity, FeatureService, FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.online_response import OnlineResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel

from feature_repo.clock import Clock, clock_of, from_ms
from feature_repo.settings import Settings, settings
from feature_repo.stores import layout
from feature_repo.stores.batch_rows import Row, delete_rows, write_rows
from feature_repo.stores.online_requests import EntityRows, Request, RequestPlans
from feature_repo.stores.reading import Answer, ReadPlan, Status, Wanted, read, read_async
from feature_repo.stores.redis_client import Redis, connect, connect_async
from feature_repo.stores.redis_pipe import RedisPipe
from feature_repo.stores.values import WIRE, from_proto, micros, serialized
from feature_repo.views import BatchView, compile_view, online_versioning

FeastRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
_WRITE_CHUNK = 2000


class TiffinOnlineStoreConfig(FeastConfigBaseModel):
    """Addresses are not set here: they are settings of the process."""

    type: Literal["feature_repo.stores.online.TiffinOnlineStore"] = "feature_repo.stores.online.TiffinOnlineStore"

    key_ttl_seconds: int | None = None
    """Seconds after the last write to a batch row at which the store deletes it; unset: never. Read then, it is
    NOT_FOUND. Needs Valkey 9 or Redis 7.4. A view's ``ttl`` says how old a value may be; this saves memory."""


class TiffinOnlineStore(OnlineStore):
    """Redis or Valkey, by the settings and the clock given; else, as Feast makes it, by the process's own.

    Connects at the first call.
    """

    def __init__(self, given: Settings | None = None, clock: Clock | None = None) -> None:
        self._client: Redis | None = None
        self._async_client: tuple[asyncio.AbstractEventLoop, RedisPipe] | None = None
        self._settings, self._clock = given, clock
        self._plans = RequestPlans()

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reads are asynchronous where they are asked for so."""
        return SupportedAsyncMethods(read=True)

    def client(self, config: RepoConfig) -> Redis:
        """The connection, made at first use."""
        if self._client is None:
            self._client = connect(self._settings or store_settings(config))
        return self._client

    def prepare(
        self, config: RepoConfig, registry: BaseRegistry, features: list[str] | FeatureService, full_feature_names: bool
    ) -> tuple[str, ...] | None:
        """Resolve a request before its first read: that may take milliseconds, which an event loop does not have.

        The entity columns that it needs; None where more is done than reading them: Feast computes on-demand views.
        Raises what Feast raises for features that it does not know.
        """
        request = self._request(config, registry, config.project, features, full_feature_names)
        if request.entityless or request.context.on_demand:
            return None
        return tuple(request.columns)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write batch rows, newest wins. Raises TypeError for a stream view, whose values come of its events alone."""
        view = _batch_view(config, table)
        for start in range(0, len(data), _WRITE_CHUNK):
            chunk = data[start : start + _WRITE_CHUNK]
            self.write(config, view, (_row(view, row) for row in chunk))
            if progress:
                progress(len(chunk))

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """The same, in a thread, so that the loop goes on."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def write(self, config: RepoConfig, view: BatchView, rows: Iterable[Row]) -> int:
        """Write rows of a batch view, newest wins; how many replaced what was stored. Raises what `write_rows` does."""
        return write_rows(self.client(config), config.project, view, rows, config.online_store.key_ttl_seconds)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Feast's generic read of one view: (event time, {feature: value}), or (None, None) where nothing is known."""
        plan, rows = _one_view(config, table, entity_keys, requested_features)
        return _feast_rows(plan, read(self.client(config), plan, rows, self._now(config)))

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """The same, for asyncio."""
        plan, rows = _one_view(config, table, entity_keys, requested_features)
        return _feast_rows(plan, await read_async(self._connected(config), plan, rows, self._now(config)))

    def get_online_features(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: EntityRows,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """Feast's read, in one pipeline for all views. Statuses are the store's own, not inferred from nulls.

        A null id, or one of another type, is NOT_FOUND in its own row. Views are read whatever their lifecycle state:
        a materialization under way refuses nothing.
        """
        request = self._request(config, registry, project, features, full_feature_names)
        rows = request.rows(entity_rows)
        answer = read(self.client(config), request.plan, rows, self._now(config))
        return request.response(rows, answer, include_feature_view_version_metadata)

    async def get_online_features_async(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: EntityRows,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """The same, for asyncio."""
        request = self._request(config, registry, project, features, full_feature_names)
        rows = request.rows(entity_rows)
        answer = await read_async(self._connected(config), request.plan, rows, self._now(config))
        return request.response(rows, answer, include_feature_view_version_metadata)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Called by `feast apply`: refuses definitions that could not be served, deletes the rows of removed views.

        What streams have left of a removed view stays: it is bounded, and names the definition it is of. Raises
        views.BadDefinition or layout.BadEntity.
        """
        versioned = online_versioning(config)
        for table in tables_to_keep:
            view = compile_view(table, versioned)
            layout.key_builder(config.project, view.join_keys, view.key_types)
        for table in tables_to_delete:
            if isinstance(view := compile_view(table, versioned), BatchView):
                delete_rows(self.client(config), config.project, view)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Delete this project's entities and streams from the store."""
        client = self.client(config)
        ours = layout.project_keys(config.project, {compile_view(table).join_keys for table in tables})
        for key in client.scan_iter(count=1000):
            if ours(key):
                client.unlink(key)

    async def initialize(self, config: RepoConfig) -> None:
        """Feast's hook at a server's start: the asynchronous connection is made in its loop."""
        self._connected(config)

    async def close(self) -> None:
        """Feast's hook at a server's end."""
        if self._async_client is not None:
            await self._async_client[1].aclose()
            self._async_client = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self, config: RepoConfig) -> RedisPipe:
        loop = asyncio.get_running_loop()
        if self._async_client is None or self._async_client[0] is not loop:  # a connection belongs to its loop
            self._async_client = (loop, RedisPipe(connect_async(self._settings or store_settings(config))))
        return self._async_client[1]

    def _now(self, config: RepoConfig) -> int:
        if self._clock is None:
            self._clock = clock_of(settings())
        return self._clock()

    def _is_versioned_read_supported(self) -> bool:
        return True

    def _request(
        self,
        config: RepoConfig,
        registry: BaseRegistry,
        project: str,
        features: list[str] | FeatureService,
        full: bool,
    ) -> Request:
        return self._plans.find(registry, project, features, full, online_versioning(config))


def store_settings(config: RepoConfig) -> Settings:
    """The process's settings, for the repository folder that Feast was pointed at."""
    return settings().model_copy(update={"repo": Path(config.repo_path or settings().repo).resolve()})


def _batch_view(config: RepoConfig, table: FeatureView) -> BatchView:
    view = compile_view(table, online_versioning(config))
    if not isinstance(view, BatchView):
        raise TypeError(
            f"{table.name} is a stream view: its values are computed from events, so rows written to it would be "
            f"served beside them. Push events to its topic instead"
        )
    return view


def _row(view: BatchView, row: FeastRow) -> Row:
    key, values, event, created = row
    ids = dict(zip(key.join_keys, (from_proto(value) for value in key.entity_values), strict=True))
    stored = {name: serialized(value) for name, value in values.items()}
    return Row(
        [ids[name] for name in view.join_keys], stored, micros(event), None if created is None else micros(created)
    )


def _one_view(
    config: RepoConfig, table: FeatureView, keys: Sequence[EntityKey], requested: Sequence[str] | None
) -> tuple[ReadPlan, dict[str, list[object]]]:
    """The plan of a read of one view, and the ids to read, by join key."""
    view = compile_view(table, online_versioning(config))
    columns: dict[str, list[object]] = {name: [] for name in view.join_keys}
    for key in keys:
        ids = dict(zip(key.join_keys, key.entity_values, strict=True))
        for name in view.join_keys:
            columns[name].append(from_proto(ids[name]))
    return ReadPlan(
        config.project, [Wanted(view, tuple(requested or view.features), view.join_keys)], form=WIRE
    ), columns


def _feast_rows(plan: ReadPlan, answer: Answer) -> list[tuple[datetime | None, dict[str, Value] | None]]:
    rows: list[tuple[datetime | None, dict[str, Value] | None]] = []
    features = plan.wanted[0].features
    for found in zip(*answer.columns[0], strict=True):
        times = [f.event_ms for f in found if f.event_ms is not None]
        if not times or all(f.status == Status.NOT_FOUND for f in found):
            rows.append((None, None))
        else:
            values = {name: Value.FromString(f.value) for name, f in zip(features, found, strict=True)}
            rows.append((from_ms(max(times)).astimezone(UTC), values))
    return rows
