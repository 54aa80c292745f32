"""The Feast OnlineStore plugin: batch rows where Feast puts them, stream tiles beside them, honest statuses.

Feast's SDK, sync and async, reads through `feature_repo.stores.reading`; so does our own server.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from feast import Entity, FeatureService, FeatureView, RepoConfig, StreamFeatureView
from feast import utils as feast_utils
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.repo_config import FeastConfigBaseModel
from feast.value_type import ValueType

from feature_repo.clock import Clock, clock_of, from_ms
from feature_repo.settings import Settings, settings
from feature_repo.stores import layout
from feature_repo.stores.batch_rows import Row, write_rows
from feature_repo.stores.reading import Answer, Feature, ReadPlan, Status, Wanted, read, read_async
from feature_repo.stores.redis_client import AsyncRedis, Redis, connect, connect_async
from feature_repo.stores.values import PROTO, from_proto, micros, to_proto
from feature_repo.views import BatchView, compile_view

EntityRows = list[dict[str, Any]] | Mapping[str, Sequence[Any] | Sequence[Value] | RepeatedValue]
FeastRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
_STATUSES = {status: FieldStatus.Value(status.name) for status in Status}
_PLANS_KEPT = 100
_WRITE_CHUNK = 2000


class TiffinOnlineStoreConfig(FeastConfigBaseModel):
    """Nothing to set here: addresses are settings of the process."""

    type: Literal["feature_repo.stores.online.TiffinOnlineStore"] = "feature_repo.stores.online.TiffinOnlineStore"


class _Request(NamedTuple):
    """A compiled request: what it reads, and how its answer is laid out."""

    context: Any  # Feast's resolution; held so that its identity stays its own
    plan: ReadPlan
    columns: list[str]
    kinds: dict[str, ValueType]
    names: list[str]


class TiffinOnlineStore(OnlineStore):
    """Redis or Valkey, by the process's settings. Connects at the first call."""

    def __init__(self) -> None:
        self._client: Redis | None = None
        self._async_client: tuple[asyncio.AbstractEventLoop, AsyncRedis] | None = None
        self._clock: Clock | None = None
        self._plans: dict[tuple[int, bool], _Request] = {}

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reads are asynchronous where they are asked for so."""
        return SupportedAsyncMethods(read=True)

    def client(self, config: RepoConfig) -> Redis:
        """The connection, made at first use."""
        if self._client is None:
            self._client = connect(store_settings(config))
        return self._client

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write batch rows, newest wins. Raises TypeError for a stream view, whose values come of its events alone."""
        view = _batch_view(table)
        for start in range(0, len(data), _WRITE_CHUNK):
            chunk = data[start : start + _WRITE_CHUNK]
            write_rows(self.client(config), config.project, view, (_row(view, row) for row in chunk))
            if progress:
                progress(len(chunk))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Feast's generic read of one view: (event time, {feature: value}), or (None, None) where nothing is known."""
        view = compile_view(table)
        features = tuple(requested_features or view.features)
        rows = _columns(view.join_keys, entity_keys)
        plan = ReadPlan(config.project, [Wanted(view, features, view.join_keys)])
        answer = read(self.client(config), plan, rows, self._now(config), PROTO)
        return _feast_rows(features, answer, len(entity_keys))

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """The same, for asyncio."""
        view = compile_view(table)
        features = tuple(requested_features or view.features)
        rows = _columns(view.join_keys, entity_keys)
        plan = ReadPlan(config.project, [Wanted(view, features, view.join_keys)])
        answer = await read_async(self._connected(config), plan, rows, self._now(config), PROTO)
        return _feast_rows(features, answer, len(entity_keys))

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
        """Feast's read, in one pipeline for all views. Statuses are the store's own, not inferred from nulls."""
        request = self._request(registry, project, features, full_feature_names)
        if request is None or include_feature_view_version_metadata:
            return super().get_online_features(
                config,
                features,
                entity_rows,
                registry,
                project,
                full_feature_names,
                include_feature_view_version_metadata,
            )
        rows = _columnar(entity_rows, request.columns)
        return _response(request, rows, read(self.client(config), request.plan, rows, self._now(config), PROTO))

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
        request = self._request(registry, project, features, full_feature_names)
        if request is None or include_feature_view_version_metadata:
            return await super().get_online_features_async(
                config,
                features,
                entity_rows,
                registry,
                project,
                full_feature_names,
                include_feature_view_version_metadata,
            )
        rows = _columnar(entity_rows, request.columns)
        answer = await read_async(self._connected(config), request.plan, rows, self._now(config), PROTO)
        return _response(request, rows, answer)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Called by `feast apply`: refuses definitions that could not be served. Touches no data.

        Raises views.BadDefinition or layout.BadEntity.
        """
        for table in tables_to_keep:
            if isinstance(table, FeatureView):
                view = compile_view(table)
                layout.key_builder(config.project, view.join_keys, view.key_types)

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

    def _connected(self, config: RepoConfig) -> AsyncRedis:
        loop = asyncio.get_running_loop()
        if self._async_client is None or self._async_client[0] is not loop:  # a connection belongs to its loop
            self._async_client = (loop, connect_async(store_settings(config)))
        return self._async_client[1]

    def _now(self, config: RepoConfig) -> int:
        if self._clock is None:
            self._clock = clock_of(settings())
        return self._clock()

    def _request(
        self, registry: BaseRegistry, project: str, features: list[str] | FeatureService, full: bool
    ) -> _Request | None:
        """The compiled request, by Feast's own cached resolution; None where only Feast's generic path will do."""
        context = feast_utils._get_cached_request_context(registry, project, features, full)
        found = self._plans.get((id(context), full))
        if found is not None and found.context is context:
            return found
        _, on_demand, _, _, _, grouped, _, needed_data, entityless = context
        if on_demand or needed_data or entityless:
            return None
        wanted, names, kinds = [], [], {}
        for table, requested in grouped:
            view = compile_view(table)
            mapped = table.projection.join_key_map or {}
            wanted.append(Wanted(view, tuple(requested), tuple(mapped.get(key, key) for key in view.join_keys)))
            for feature in requested:
                name = f"{table.projection.name_to_use()}__{feature}" if full else feature
                names.append(name)
                kinds[name] = view.features[feature]
            kinds |= {mapped.get(k, k): kind for k, kind in zip(view.join_keys, view.key_types, strict=True)}
        columns = sorted({column for w in wanted for column in w.columns})
        if len(self._plans) >= _PLANS_KEPT:
            self._plans.clear()
        request = _Request(context, ReadPlan(project, wanted), columns, kinds, names)
        self._plans[id(context), full] = request
        return request


def store_settings(config: RepoConfig) -> Settings:
    """The process's settings, for the repository folder that Feast was pointed at."""
    return settings().model_copy(update={"repo": Path(config.repo_path or settings().repo).resolve()})


def _batch_view(table: FeatureView) -> BatchView:
    view = None if isinstance(table, StreamFeatureView) else compile_view(table)
    if not isinstance(view, BatchView):
        raise TypeError(
            f"{table.name} is a stream view: its values are computed from events, so rows written to it would be "
            f"served beside them. Push events to its topic instead"
        )
    return view


def _row(view: BatchView, row: FeastRow) -> Row:
    key, values, event, created = row
    ids = dict(zip(key.join_keys, (from_proto(value) for value in key.entity_values), strict=True))
    serialized = {name: value.SerializeToString() for name, value in values.items()}
    return Row(
        [ids[name] for name in view.join_keys], serialized, micros(event), None if created is None else micros(created)
    )


def _columns(join_keys: Sequence[str], keys: Sequence[EntityKey]) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = {name: [] for name in join_keys}
    for key in keys:
        ids = dict(zip(key.join_keys, key.entity_values, strict=True))
        for name in join_keys:
            columns[name].append(from_proto(ids[name]))
    return columns


def _columnar(rows: EntityRows, needed: Sequence[str]) -> dict[str, list[object]]:
    """Entity rows as Feast takes them (a list of rows, or columns of values or messages), by column.

    Raises ValueError, naming the join key, if one is missing or the columns differ in length.
    """
    columns: Mapping[str, Any]
    if isinstance(rows, Mapping):
        columns = {name: list(c.val) if isinstance(c, RepeatedValue) else list(c) for name, c in rows.items()}
    else:
        columns = {name: [row.get(name) for row in rows] for name in needed if any(name in row for row in rows)}
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ValueError(f"entity rows have no {missing[0]!r}: features by {', '.join(needed)} cannot be looked up")
    lengths = {len(columns[name]) for name in needed}
    if len(lengths) != 1:
        raise ValueError(f"entity columns {', '.join(needed)} differ in length: rows cannot be told apart")
    return {name: [from_proto(v) if isinstance(v, Value) else v for v in columns[name]] for name in needed}


def _response(request: _Request, rows: Mapping[str, Sequence[object]], answer: Answer) -> OnlineResponse:
    response = GetOnlineFeaturesResponse()
    response.metadata.feature_names.val.extend([*request.columns, *request.names])
    for name in request.columns:
        vector = response.results.add()
        for value in rows[name]:
            vector.values.append(_id_value(request.kinds[name], value))
            vector.statuses.append(_STATUSES[Status.PRESENT])
            vector.event_timestamps.add()
    for column in (column for view in answer.columns for column in view):
        vector = response.results.add()
        for feature in column:
            vector.values.append(feature.value)
            vector.statuses.append(_STATUSES[feature.status])
            stamp = vector.event_timestamps.add()
            if feature.event_ms is not None:
                stamp.FromMilliseconds(feature.event_ms)
    return OnlineResponse(response, feature_types=request.kinds)


def _id_value(kind: ValueType, value: object) -> Value:
    try:
        return to_proto(kind, value)
    except (TypeError, ValueError):  # an id of the wrong type, shown as it came
        return Value(string_val=str(value))


def _feast_rows(
    features: Sequence[str], answer: Answer, count: int
) -> list[tuple[datetime | None, dict[str, Value] | None]]:
    rows: list[tuple[datetime | None, dict[str, Value] | None]] = []
    for i in range(count):
        found: list[Feature] = [column[i] for column in answer.columns[0]]
        times = [f.event_ms for f in found if f.event_ms is not None]
        if not times or all(f.status == Status.NOT_FOUND for f in found):
            rows.append((None, None))
        else:
            values = {name: f.value for name, f in zip(features, found, strict=True)}
            rows.append((from_ms(max(times)).astimezone(UTC), values))
    return rows
