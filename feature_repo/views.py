"""Feast's feature views, compiled once into what the stores and the worker need: plain, comparable, checked.

Takes views as the registry gives them (`feast apply` has filled in their entity columns). Everything is read off the
definitions; nothing is restated.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from feast import FeatureService, FeatureStore, FeatureView, OnDemandFeatureView, RepoConfig, StreamFeatureView
from feast.value_type import ValueType

from feature_repo.windows import Aggregate, Layout

DEFAULT_HOP = timedelta(minutes=1)
DEFAULT_MAX_LAG_SECONDS = 10.0
_PRESENCE = "presence."
_PRESENCE_MEMBER, _PRESENCE_STATE, _PRESENCE_COUNT = "presence.member", "presence.state", "presence.count."
_PRESENCE_TOPICS = "presence.topics"
TOPIC_STATE = "topic"
"""As the state column of a presence view: the topic that the member's latest event came on."""


class BadDefinition(ValueError):
    """A definition that cannot be served; says the view, what is wrong with it and what would follow."""


@dataclass(frozen=True)
class BatchView:
    """A view whose rows are materialized or pushed. `ttl` in ms, 0 for none; `features` map to Feast's value types."""

    name: str
    join_keys: tuple[str, ...]
    key_types: tuple[ValueType, ...]
    features: Mapping[str, ValueType]
    ttl: int
    version: int = 0
    """Feast's version of the view, where its online versioning is on; rows of several versions lie side by side"""

    @property
    def stored_name(self) -> str:
        """The name that its rows are stored under, as Feast forms it."""
        return f"{self.name}_v{self.version}" if self.version else self.name


@dataclass(frozen=True)
class WindowView:
    """A view of sliding windows over one topic; times in ms. `tiles_hash` names what its stored tiles hold."""

    name: str
    join_keys: tuple[str, ...]
    key_types: tuple[ValueType, ...]
    features: Mapping[str, ValueType]
    topic: str
    aggregates: tuple[Aggregate, ...]
    layout: Layout
    max_lag: int
    tiles_hash: str

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics that it is folded from: its one."""
        return (self.topic,)

    @property
    def reach(self) -> int:
        """How far before an instant its windows can reach: W + h."""
        return self.layout.horizon + self.layout.hop


@dataclass(frozen=True)
class PresenceView:
    """A view that counts members by group and state, by each member's latest event; times in ms.

    Of events of one time, one on a later topic of `topics` is the later.
    """

    name: str
    join_keys: tuple[str, ...]
    key_types: tuple[ValueType, ...]
    features: Mapping[str, ValueType]
    topics: tuple[str, ...]
    member: str
    state: str
    counts: Mapping[str, str]
    """{feature: the state that it counts}"""
    ttl: int
    max_lag: int
    tiles_hash: str

    @property
    def reach(self) -> int:
        """How far before an instant its members' latest events can lie."""
        return self.ttl


StreamView = WindowView | PresenceView
View = BatchView | StreamView


def compile_view(view: FeatureView | OnDemandFeatureView, versioned: bool = False) -> View:
    """The compiled form of a view from the registry. Raises BadDefinition.

    A stream feature view with neither aggregations nor tags ``presence.*`` is a batch view: its rows are pushed. So is
    an on-demand view that is stored when it is written. `versioned`: whether Feast's online versioning is on.
    """
    names = tuple(sorted(column.name for column in view.entity_columns))
    types = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
    common: dict[str, Any] = {
        "name": view.name,
        "join_keys": names,
        "key_types": tuple(types[name] for name in names),
        "features": {f.name: f.dtype.to_value_type() for f in view.features if f.name not in types},
    }
    if isinstance(view, StreamFeatureView) and (view.aggregations or any(t.startswith(_PRESENCE) for t in view.tags)):
        common["max_lag"] = _max_lag(view)
        return _window_view(view, common) if view.aggregations else _presence_view(view, common)
    return BatchView(**common, ttl=_ms(getattr(view, "ttl", None)), version=_version(view) if versioned else 0)


def stream_views(views: Iterable[FeatureView]) -> tuple[StreamView, ...]:
    """The compiled stream views among `views`, by name. Raises BadDefinition."""
    compiled = (compile_view(view) for view in views if isinstance(view, StreamFeatureView))
    return tuple(sorted((v for v in compiled if not isinstance(v, BatchView)), key=lambda v: v.name))


def views_of_service(store: FeatureStore, service: FeatureService) -> list[tuple[View, tuple[str, ...]]]:
    """The views of a feature service, compiled, in its order, each with the features that the service takes of it."""
    compiled = []
    versioned = online_versioning(store.config)
    for projection in service.feature_view_projections:
        view = store.registry.get_any_feature_view(projection.name, store.project, allow_cache=True)
        assert isinstance(view, FeatureView)
        compiled.append((compile_view(view, versioned), tuple(feature.name for feature in projection.features)))
    return compiled


def online_versioning(config: RepoConfig) -> bool:
    """Whether the repository keeps the rows of a view's versions apart (``enable_online_feature_view_versioning``)."""
    return bool(getattr(config.registry, "enable_online_feature_view_versioning", False))


def features_hash(views: Sequence[tuple[View, Sequence[str]]], only: Collection[str] | None = None) -> str:
    """A hash of what features mean; `only` keeps some, by full name (``view__feature``).

    Equal definitions hash equally, whatever their order or version. How late a feature may be served is not in it.
    """
    described = [
        _described(view, feature)
        for view, features in views
        for feature in features
        if only is None or f"{view.name}__{feature}" in only
    ]
    return _digest(sorted(described, key=lambda d: json.dumps(d, sort_keys=True)))


def _window_view(view: StreamFeatureView, common: dict[str, Any]) -> WindowView:
    aggregates = tuple(
        Aggregate(a.name or f"{a.function}_{a.column}", a.column, a.function, _ms(a.time_window))
        for a in view.aggregations
    )
    _same_names(view.name, common["features"], (a.name for a in aggregates), "aggregations")
    topic = _topic(view)
    try:
        layout = Layout.of(_ms(view.tiling_hop_size or DEFAULT_HOP), aggregates)
    except ValueError as error:
        raise BadDefinition(f"{view.name}.{error}") from None
    tiles = [topic, _keys(common), layout.hop, [[p.column, p.kind] for p in layout.parts]]
    return WindowView(
        **common,
        topic=topic,
        aggregates=aggregates,
        layout=layout,
        tiles_hash=_digest([view.name, *tiles, layout.hops_kept]),
    )


def _presence_view(view: StreamFeatureView, common: dict[str, Any]) -> PresenceView:
    missing = [tag for tag in (_PRESENCE_MEMBER, _PRESENCE_STATE) if tag not in view.tags]
    if missing:
        raise BadDefinition(f"{view.name}: tags {_PRESENCE}* but no tag {missing[0]!r}: no presence could be computed")
    counts = {
        tag.removeprefix(_PRESENCE_COUNT): state for tag, state in view.tags.items() if tag.startswith(_PRESENCE_COUNT)
    }
    _same_names(view.name, common["features"], counts, f"tags {_PRESENCE_COUNT}*")
    ttl = _ms(view.ttl)
    if ttl <= 0:
        raise BadDefinition(f"{view.name}: ttl is {ttl} ms: members that fell silent would count for ever")
    member, state = view.tags[_PRESENCE_MEMBER], view.tags[_PRESENCE_STATE]
    topics = tuple(view.tags.get(_PRESENCE_TOPICS, _topic(view)).split())
    if topics[:1] != (_topic(view),) or (len(topics) > 1 and state != TOPIC_STATE):
        raise BadDefinition(
            f"{view.name}: tag {_PRESENCE_TOPICS} is {' '.join(topics)!r}: it must begin with the source's topic "
            f"{_topic(view)!r}, and several topics need the state {TOPIC_STATE!r}: their events have no other in common"
        )
    digest = _digest([view.name, topics, common["join_keys"], member, state, ttl])  # members beyond it are forgotten
    return PresenceView(**common, topics=topics, member=member, state=state, counts=counts, ttl=ttl, tiles_hash=digest)


def _keys(common: Mapping[str, Any]) -> list[object]:
    """The join keys as the keys of entities hold them: a number of 32 bits is another key than one of 64."""
    keys = zip(common["join_keys"], common["key_types"], strict=True)
    return [[name, kind.name] if kind == ValueType.INT32 else name for name, kind in keys]


def _same_names(view: str, features: Iterable[str], computed: Iterable[str], what: str) -> None:
    declared, given = set(features), set(computed)
    if declared != given:
        name = sorted(declared ^ given)[0]
        side = f"in the schema but not among the {what}" if name in declared else f"among the {what} but not the schema"
        raise BadDefinition(f"{view}: feature {name!r} is {side}: it would never be served")


def _version(view: FeatureView | OnDemandFeatureView) -> int:
    """The version asked for (``view@v2:feature``), else the view's present one."""
    asked = getattr(view.projection, "version_tag", None)
    return int(getattr(view, "current_version_number", None) or 0 if asked is None else asked)


def _topic(view: StreamFeatureView) -> str:
    options = getattr(view.stream_source, "kafka_options", None)
    topic = getattr(options, "topic", "")
    if not topic:
        raise BadDefinition(f"{view.name}: its source is no KafkaSource with a topic: the worker could not read it")
    return str(topic)


def _max_lag(view: StreamFeatureView) -> int:
    text = view.tags.get("max_lag_seconds", str(DEFAULT_MAX_LAG_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 86_400:
        raise BadDefinition(
            f"{view.name}: tag max_lag_seconds is {text!r}, not a number of seconds between 0 and a day"
        )
    return round(seconds * 1000)


def _described(view: View, feature: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "view": view.name,
        "feature": feature,
        "type": view.features[feature].name,
        "keys": [[name, kind.name] for name, kind in zip(view.join_keys, view.key_types, strict=True)],
    }
    if isinstance(view, WindowView):
        aggregate = next(a for a in view.aggregates if a.name == feature)
        window = [aggregate.column, aggregate.function, aggregate.window, view.layout.hop]
        return described | {"topic": view.topic, "window": window}
    if isinstance(view, PresenceView):
        presence = [view.member, view.state, view.counts[feature], view.ttl]
        return described | {"topics": view.topics, "presence": presence}
    return described | {"ttl": view.ttl}


def _digest(described: object) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _ms(span: timedelta | None) -> int:
    return 0 if span is None else span // timedelta(milliseconds=1)
