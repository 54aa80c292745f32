"""What is asked of history: a join a view, and the span of the entity rows' instants.

The SQL of joins works on a table ``entity_rows`` with ``__row`` (the row's number), ``__us`` and ``__ms`` (its instant
since the epoch, rounded down) and a column for each join key that a view is asked by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from feast import FeatureView, RepoConfig
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.registry.base_registry import BaseRegistry
from feast.utils import _parse_feature_ref
from feast.value_type import ValueType

from feature_repo.stores.duckdb_client import identifier
from feature_repo.stores.sources import Source
from feature_repo.views import BadDefinition, BatchView, View, compile_view
from feature_repo.windows import REPEAT_SLACK_MS


@dataclass(frozen=True)
class Join:
    """What to join: a view, its source, and the features wanted under their output names."""

    view: View
    source: Source
    features: tuple[tuple[str, str], ...]
    """(feature, output name) pairs"""
    keys: tuple[tuple[str, str], ...]
    """(join key of the view, column of ``entity_rows``) pairs; none for a view without entities"""
    ttl_us: int = 0
    more: tuple[Source, ...] = ()
    """the sources of a presence view's further topics, in their order"""
    memories: tuple[int, ...] = ()
    """of each topic, the time in ms within which the same ``event_id`` on a partition is a repeat"""
    short: frozenset[str] = frozenset()
    """the columns of ``entity_rows`` that are INTEGER: other ids are asked by nobody, and 32 bits are joined faster"""

    @property
    def kinds(self) -> dict[str, ValueType]:
        """The types of the join keys, by the columns of ``entity_rows``."""
        types = dict(zip(self.view.join_keys, self.view.key_types, strict=True))
        return {column: types[key] for key, column in self.keys}

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of all topics."""
        return self.source, *self.more

    def keys_of(self, source: Source) -> list[str]:
        """SQL that selects the join keys of a source as ``k0``, ``k1`` ...; an id that nobody can ask by is null."""
        columns = [(source.column(key), column in self.short) for key, column in self.keys]
        return [f"{f'TRY_CAST({key} AS INTEGER)' if short else key} AS k{i}" for i, (key, short) in enumerate(columns)]

    @property
    def key_names(self) -> list[str]:
        """``k0``, ``k1`` ..., as `keys_of` names them."""
        return [f"k{i}" for i in range(len(self.keys))]

    def equal(self, rows: str, found: str) -> list[str]:
        """The conditions that an entity row and what is found have the same keys."""
        return [f"{rows}.{identifier(column)} = {found}.k{i}" for i, (_, column) in enumerate(self.keys)]

    @property
    def whole(self) -> str:
        """The condition that an entity row has all of the view's keys; without, its features are null."""
        return " AND ".join(f"{identifier(column)} IS NOT NULL" for _, column in self.keys) or "true"


@dataclass(frozen=True)
class Span:
    """The instants of the entity rows, in µs: the first and the last.

    `arrival` asks for what was known at each instant, not for what is known now: batch rows created by then, and the
    part of the log appended by then.
    """

    first: int
    last: int
    arrival: bool = False

    @property
    def first_ms(self) -> int:
        """The first in ms, rounded down."""
        return self.first // 1000

    @property
    def last_ms(self) -> int:
        """The last in ms, rounded down."""
        return self.last // 1000


def partitioned(columns: list[str]) -> str:
    """``PARTITION BY`` these columns, or nothing if there are none."""
    return f"PARTITION BY {', '.join(columns)}" if columns else ""


def joins_of(
    config: RepoConfig,
    registry: BaseRegistry,
    feature_views: Sequence[FeatureView],
    feature_refs: Sequence[str],
    full: bool,
) -> tuple[list[Join], list[str]]:
    """A join a view, and the features' names in the order that they were asked for; joins name them o0, o1 ..."""
    tables = {str(table.projection.name_to_use()): table for table in feature_views}  # type: ignore[no-untyped-call]
    wanted: dict[str, list[tuple[str, str]]] = {}
    names: list[str] = []
    for ref in feature_refs:
        name, version, feature = _parse_feature_ref(ref)
        view_name = name if version is None else f"{name}@v{version}"
        if view_name in tables:  # the others are computed on demand
            wanted.setdefault(view_name, []).append((feature, f"o{len(names)}"))
            names.append(f"{view_name}__{feature}" if full else feature)
    memories = _memories(registry, config.project)
    return [_join(config, registry, memories, tables[name], tuple(wanted[name])) for name in wanted], names


def _join(
    config: RepoConfig,
    registry: BaseRegistry,
    memories: Mapping[str, int],
    table: FeatureView,
    features: tuple[tuple[str, str], ...],
) -> Join:
    view, mapped = compile_view(table), table.projection.join_key_map or {}
    topics = () if isinstance(view, BatchView) else view.topics
    return Join(
        view,
        Source.of(table.batch_source, config.repo_path),
        features,
        tuple((key, mapped.get(key, key)) for key in view.join_keys if key != DUMMY_ENTITY_ID),
        round(table.ttl.total_seconds() * 1e6) if table.ttl else 0,
        tuple(_log_of(config, registry, topic) for topic in topics[1:]),
        tuple(memories[topic] for topic in topics),
    )


def _memories(registry: BaseRegistry, project: str) -> dict[str, int]:
    """Of each topic, how far apart in ms the times of an event and its repeat may lie: see `stream_sql`."""
    reaches: dict[str, int] = {}
    for table in registry.list_stream_feature_views(project, allow_cache=True):
        try:
            view = compile_view(table)
        except BadDefinition:  # nothing folds it; it is refused where it is asked for
            continue
        if isinstance(view, BatchView):  # its rows are pushed
            continue
        for topic in view.topics:
            reaches[topic] = max(reaches.get(topic, 0), view.reach)
    return {topic: reach + REPEAT_SLACK_MS for topic, reach in reaches.items()}


def _log_of(config: RepoConfig, registry: BaseRegistry, topic: str) -> Source:
    """The archived log of a topic, by the stream source that is named like it."""
    stream = registry.get_data_source(topic, config.project, allow_cache=True)
    return Source.of(getattr(stream, "batch_source", None), config.repo_path)
