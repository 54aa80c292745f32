"""Requests of Feast's reads: resolved by Feast, compiled once, and answered in Feast's form."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

from feast import FeatureService
from feast import utils as feast_utils
from feast.infra.registry.base_registry import BaseRegistry
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.value_type import ValueType

from feature_repo.stores.reading import Answer, ReadPlan, Status, Wanted
from feature_repo.stores.values import from_proto, to_proto
from feature_repo.views import compile_view

EntityRows = list[dict[str, Any]] | Mapping[str, Sequence[Any] | Sequence[Value] | RepeatedValue]
PLANS_KEPT = 100
_STATUSES = {status: FieldStatus.Value(status.name) for status in Status}
_WHOLE = (ValueType.INT64, ValueType.INT32)
_WHOLE_NUMBER = re.compile("0|-?[1-9][0-9]{0,18}")
_SHOWN = 200  # characters of an id that is none


class Request(NamedTuple):
    """A compiled request: what it reads, and how its answer is laid out."""

    context: Any  # Feast's resolution; held so that its identity stays its own
    plan: ReadPlan
    columns: list[str]
    kinds: dict[str, ValueType]
    names: list[str]
    versions: list[tuple[str, int]]  # of the views, by the names that Feast gives them


class RequestPlans:
    """The requests compiled last, at most `PLANS_KEPT`; each is dropped when the cached registry changes."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, bool], Request] = {}

    def find(
        self, registry: BaseRegistry, project: str, features: list[str] | FeatureService, full: bool
    ) -> Request | None:
        """The compiled request, by Feast's own cached resolution; None where only Feast's generic path will do.

        Raises what Feast raises for features that it does not know. The first time it takes milliseconds.
        """
        # A view keeps what was written while more is: Feast would refuse to read one that is being materialized.
        registry.serve_features_while_materializing = True
        context = feast_utils._get_cached_request_context(registry, project, features, full)
        found = self._found.get((id(context), full))
        if found is not None and found.context is context:
            return found
        if len(feast_utils._feature_resolution_cache) > PLANS_KEPT:
            feast_utils._feature_resolution_cache.clear()  # it has no bound of its own
        if len(self._found) >= PLANS_KEPT:
            self._found.clear()
        request = _compiled(context, project, full)
        if request is not None:
            self._found[id(context), full] = request
        return request


def columnar(rows: EntityRows, request: Request) -> dict[str, list[object]]:
    """Entity rows as Feast takes them (a list of rows, or columns of values or messages), by the columns needed.

    The text of a whole number is that number where an id is one: Feast's command line knows only texts. Raises
    ValueError, naming the join key, if one is missing or the columns differ in length.
    """
    columns: Mapping[str, Any]
    needed = request.columns
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
    return {name: [_id_of(request.kinds[name], value) for value in columns[name]] for name in needed}


def response(
    request: Request, rows: Mapping[str, Sequence[object]], answer: Answer, with_versions: bool
) -> OnlineResponse:
    """Feast's answer: the entity columns, then the features, each with its values, statuses and event times."""
    message = GetOnlineFeaturesResponse()
    message.metadata.feature_names.val.extend([*request.columns, *request.names])
    for view, version in request.versions if with_versions else ():
        message.metadata.feature_view_metadata.add(name=view, version=version)
    for name in request.columns:
        vector = message.results.add()
        for value in rows[name]:
            vector.values.append(_id_value(request.kinds[name], value))
            vector.statuses.append(_STATUSES[Status.PRESENT])
            vector.event_timestamps.add()
    for column in (column for view in answer.columns for column in view):
        vector = message.results.add()
        for feature in column:
            vector.values.append(feature.value)
            vector.statuses.append(_STATUSES[feature.status])
            stamp = vector.event_timestamps.add()
            if feature.event_ms is not None:
                stamp.FromMilliseconds(feature.event_ms)
    return OnlineResponse(message, feature_types=request.kinds)


def _compiled(context: Any, project: str, full: bool) -> Request | None:
    _, on_demand, _, _, _, grouped, _, needed_data, entityless = context
    if on_demand or needed_data or entityless:
        return None
    wanted, names = [], []
    kinds: dict[str, ValueType] = {}
    versions: dict[str, int] = {}
    for table, requested in grouped:
        view = compile_view(table)
        mapped = table.projection.join_key_map or {}
        wanted.append(Wanted(view, tuple(requested), tuple(mapped.get(key, key) for key in view.join_keys)))
        for feature in requested:
            if feature not in view.features:
                raise KeyError(f"Feature {feature} is not one of view {view.name}")
            name = f"{table.projection.name_to_use()}__{feature}" if full else feature
            names.append(name)
            kinds[name] = view.features[feature]
        kinds |= {mapped.get(k, k): kind for k, kind in zip(view.join_keys, view.key_types, strict=True)}
        versions[table.projection.name_alias or table.projection.name] = table.current_version_number or 0
    columns = sorted({column for w in wanted for column in w.columns})
    return Request(context, ReadPlan(project, wanted), columns, kinds, names, list(versions.items()))


def _id_of(kind: ValueType, value: Any) -> object:
    found = from_proto(value) if isinstance(value, Value) else value
    if isinstance(found, str) and kind in _WHOLE and _WHOLE_NUMBER.fullmatch(found):
        return int(found)
    return found


def _id_value(kind: ValueType, value: object) -> Value:
    """An id as it came: one of the wrong type (a 1.5, a "07") is shown as such, not as the id that it resembles."""
    if value is None:
        return Value()
    try:
        if isinstance(value, str):
            return Value(string_val=value)
        if isinstance(value, bool):
            return Value(bool_val=value)
        if isinstance(value, float):
            return Value(double_val=value)
        if isinstance(value, int) or isinstance(value, SupportsIndex):  # noqa: SIM101  # the second alone costs 100 times as much
            return to_proto(kind if kind == ValueType.INT32 else ValueType.INT64, value)
    except ValueError:  # too great a number, or half a surrogate pair
        pass
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else ascii(value)
    return Value(string_val=text[:_SHOWN])
