"""Feast's ``get_online_features`` as one read plan: what a request needs, and how its answer is laid out.

Feast resolves the names (and caches that); reading, statuses and the layout of the answer are ours, whatever kind of
view is asked for. Only on-demand views are computed by Feast, on top of what was read.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, SupportsIndex

from feast import FeatureService
from feast import utils as feast_utils
from feast.errors import RequestDataNotFoundInEntityRowsException
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureViewState
from feast.infra.registry.base_registry import BaseRegistry
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from feature_repo.stores import feast_messages
from feature_repo.stores.feast_messages import column_of, column_of_ids
from feature_repo.stores.feast_response import Column, LazyResponse
from feature_repo.stores.reading import Answer, ReadPlan, Status, Wanted
from feature_repo.stores.values import WIRE, from_proto, to_proto, wire
from feature_repo.views import compile_view

EntityRows = list[dict[str, Any]] | Mapping[str, Sequence[Any] | Sequence[Value] | RepeatedValue]
Columns = dict[str, list[Any]]
PLANS_KEPT = 100
_WHOLE = (ValueType.INT64, ValueType.INT32)
_WHOLE_NUMBER = re.compile("0|-?[1-9][0-9]{0,18}")
_OF_KIND = {ValueType.BYTES: (bytes,), ValueType.UNIX_TIMESTAMP: (datetime, int)}
_PLAIN = ((str, ValueType.STRING), (bool, ValueType.BOOL), (float, ValueType.DOUBLE))
_SHOWN = 200  # characters of an id that is none
_STATUSES = {status: FieldStatus.Value(status.name) for status in Status}


class Context(NamedTuple):
    """What Feast's own (cached) resolution of a request gives, in its order."""

    refs: list[str]
    on_demand: list[Any]
    entity_names: dict[str, str]
    entity_types: dict[str, ValueType]
    join_keys: set[str]
    grouped: list[tuple[Any, list[str]]]
    result_names: frozenset[str]
    request_data: set[str]
    entityless: bool


class Request(NamedTuple):
    """A compiled request."""

    context: Context
    plan: ReadPlan
    columns: list[str]
    """the join keys that a caller gives"""
    data: list[str]
    """what on-demand views take from the request"""
    entityless: bool
    full: bool
    names: list[str]
    """of the features, in their order"""
    kinds: dict[str, ValueType]
    metadata: bytes
    """the answer's own, serialized: the names of its columns"""
    versions: dict[str, int]

    def rows(self, given: EntityRows) -> Columns:
        """The entity rows by column, whatever form Feast allows them to come in.

        The text of a whole number is that number where an id is one: Feast's command line knows only texts. Raises
        ValueError, naming the join key, if one is missing, or if columns differ in length; and Feast's
        RequestDataNotFoundInEntityRowsException.
        """
        needed = [*self.columns, *self.data]
        columns: Columns
        if isinstance(given, Mapping):
            columns = {name: list(c.val) if isinstance(c, RepeatedValue) else list(c) for name, c in given.items()}
            lengths = {len(column) for name, column in columns.items() if name in needed or self.entityless}
        else:
            columns = {name: [row.get(name) for row in given] for name in needed if any(name in row for row in given)}
            lengths = {len(given)}
        lacking = [name for name in self.columns if name not in columns]
        if lacking:
            raise ValueError(
                f"entity rows have no {lacking[0]!r}: features by {', '.join(self.columns)} cannot be looked up"
            )
        lacking = [name for name in self.data if name not in columns]
        if lacking:
            raise RequestDataNotFoundInEntityRowsException(lacking)  # type: ignore[no-untyped-call]
        if len(lengths) != 1:
            raise ValueError(f"entity columns {', '.join(columns)} differ in length: rows cannot be told apart")
        rows: Columns = {name: columns[name] for name in self.data}
        for name in self.columns:
            rows[name] = [_id_of(self.kinds[name], value) for value in columns[name]]
        if self.entityless:
            rows[DUMMY_ENTITY_ID] = [DUMMY_ENTITY_VAL] * lengths.pop()
        return rows

    def response(self, rows: Columns, answer: Answer, with_versions: bool) -> OnlineResponse:
        """The answer as Feast's clients expect it, on-demand views computed."""
        if self.context.on_demand:
            response = self._message(rows, answer, with_versions)
            self._add_on_demand(response)
            return OnlineResponse(response, feature_types=self.kinds)
        ids = [
            Column(name, [_id_bytes(self.kinds[name], value) for value in rows[name]], [None] * len(rows[name]))
            for name in self.columns
        ]
        read = [column for view in answer.columns for column in view]
        columns = [
            Column(name, [feature.value for feature in column], [feature.event_ms for feature in column])
            for name, column in zip(self.names, read, strict=True)
        ]
        return LazyResponse(ids + columns, self.kinds, lambda: self._message(rows, answer, with_versions))

    def _message(self, rows: Columns, answer: Answer, with_versions: bool) -> GetOnlineFeaturesResponse:
        columns = [column_of_ids([_id_bytes(self.kinds[name], value) for value in rows[name]]) for name in self.columns]
        for name in self.data:  # their type is what they are, as in Feast; nulls alone have that of the definition
            kind = ValueType.UNKNOWN if any(value is not None for value in rows[name]) else self.kinds[name]
            values = python_values_to_proto_values(rows[name], kind)
            columns.append(column_of_ids([value.SerializeToString() for value in values]))
        columns += [column_of(column) for view in answer.columns for column in view]
        response = feast_messages.answer(self.metadata, columns)
        if with_versions:
            for name, version in self.versions.items():
                response.metadata.feature_view_metadata.add(name=name, version=version)
        return response

    def _add_on_demand(self, response: GetOnlineFeaturesResponse) -> None:
        context, read = self.context, len(response.results)
        for name, vector in zip(self.columns, response.results[: len(self.columns)], strict=True):
            _keep_one_type(vector, f"{self.kinds[name].name.lower()}_val")
        feast_utils._augment_response_with_on_demand_transforms(
            response, context.refs, context.on_demand, self.full, feature_types=self.kinds
        )
        for vector in response.results[read:]:  # Feast calls whatever was computed PRESENT
            for i, value in enumerate(vector.values):
                if value.WhichOneof("val") is None:
                    vector.statuses[i] = _STATUSES[Status.NULL_VALUE]
        feast_utils._drop_unneeded_columns(response, {*context.result_names, *self.columns})


class RequestPlans:
    """The requests compiled last, at most `PLANS_KEPT`; when the cached registry changes, each is compiled anew."""

    def __init__(self) -> None:
        # By the identity of Feast's cached resolution, which is held, so that its identity stays its own.
        self._found: dict[tuple[int, bool], tuple[object, Request]] = {}

    def find(
        self, registry: BaseRegistry, project: str, features: list[str] | FeatureService, full: bool, versioned: bool
    ) -> Request:
        """The compiled request, by Feast's own cached resolution; `versioned`: whether its online versioning is on.

        Raises what Feast raises for features that it does not know. The first time it takes milliseconds.
        """
        context = feast_utils._get_cached_request_context(_Servable(registry), project, features, full)
        found = self._found.get((id(context), full))
        if found is not None and found[0] is context:
            return found[1]
        if len(feast_utils._feature_resolution_cache) > PLANS_KEPT:
            feast_utils._feature_resolution_cache.clear()  # it has no bound of its own
        if len(self._found) >= PLANS_KEPT:
            self._found.clear()
        request = compile_request(project, context, full, versioned)
        self._found[id(context), full] = context, request
        return request


def compile_request(project: str, found: Any, full: bool, versioned: bool) -> Request:
    """The plan of a resolved request; `versioned`: whether Feast's online versioning is on."""
    context = Context(*found)
    wanted: list[Wanted] = []
    names: list[str] = []
    kinds: dict[str, ValueType] = {}
    versions: dict[str, int] = {}
    for table, requested in context.grouped:
        view = compile_view(table, versioned)
        mapped = getattr(table.projection, "join_key_map", None) or {}
        wanted.append(Wanted(view, tuple(requested), tuple(mapped.get(key, key) for key in view.join_keys)))
        shown = table.projection.name_to_use()
        for feature in requested:
            if feature not in view.features:
                raise KeyError(f"Feature {feature} is not one of view {view.name}")
            names.append(f"{shown}__{feature}" if full else feature)
            kinds[names[-1]] = view.features[feature]
        kinds |= {mapped.get(k, k): kind for k, kind in zip(view.join_keys, view.key_types, strict=True)}
        plain = table.projection.name_alias or table.projection.name
        versions.setdefault(plain, int(getattr(table, "current_version_number", 0) or 0))
    columns = sorted({column for w in wanted for column in w.columns} - {DUMMY_ENTITY_ID})
    for view in context.on_demand:
        kinds |= {name: kind for name, kind in view.get_request_data_schema().items() if name not in kinds}
    data = sorted(context.request_data - set(columns))
    plan = ReadPlan(project, wanted, form=WIRE)
    named = GetOnlineFeaturesResponse()
    named.metadata.feature_names.val.extend([*columns, *data, *names])
    metadata = named.SerializeToString()
    return Request(context, plan, columns, data, context.entityless, full, names, kinds, metadata, versions)


class _Servable:
    """A registry whose views can be read whatever their state.

    Feast refuses to read a view while, or after, a materialization of it failed or was killed. What is stored is served
    with its status and age, so there is nothing to refuse.
    """

    def __init__(self, registry: BaseRegistry) -> None:
        self._registry = registry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def get_any_feature_view(self, *args: Any, **kwargs: Any) -> Any:
        return _without_state(self._registry.get_any_feature_view(*args, **kwargs))

    def get_feature_view_by_version(self, *args: Any, **kwargs: Any) -> Any:
        return _without_state(self._registry.get_feature_view_by_version(*args, **kwargs))


def _without_state(view: Any) -> Any:
    view.state = FeatureViewState.STATE_UNSPECIFIED  # registries make the object anew at every call
    return view


def _id_of(kind: ValueType, value: Any) -> object:
    found = from_proto(value) if isinstance(value, Value) else value
    if isinstance(found, str) and kind in _WHOLE and _WHOLE_NUMBER.fullmatch(found):
        return int(found)
    return found


def _id_bytes(kind: ValueType, value: object) -> bytes:
    if kind == ValueType.INT64 and type(value) is int and 0 <= value < 2**63:
        return wire(kind, value)
    return bytes(_id_value(kind, value).SerializeToString())


def _id_value(kind: ValueType, value: object) -> Value:
    """An id as it came: one of the wrong type (a 1.5, a "07") is shown as such, not as the id that it resembles."""
    if value is None:
        return Value()
    try:
        if isinstance(value, _OF_KIND.get(kind, ())):
            return to_proto(kind, value)
        for plain, shown_as in _PLAIN:
            if isinstance(value, plain):
                return to_proto(shown_as, value)
        if isinstance(value, int) or isinstance(value, SupportsIndex):  # noqa: SIM101  # the second alone costs 100 times as much
            return to_proto(kind if kind == ValueType.INT32 else ValueType.INT64, value)
    except (TypeError, ValueError, OverflowError):  # too great a number, or half a surrogate pair
        pass
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else ascii(value)
    return Value(string_val=text[:_SHOWN])


def _keep_one_type(vector: Any, field: str) -> None:
    """Make ids of another type null: a column of two types would fail the computation of every row."""
    for i, value in enumerate(vector.values):
        if value.WhichOneof("val") not in (None, field):
            value.Clear()
            vector.statuses[i] = _STATUSES[Status.NULL_VALUE]
