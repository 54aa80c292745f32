"""What is asked of history: a join a view, and the span of the entity rows' instants.

The SQL of joins works on a table ``entity_rows`` with ``__row`` (the row's number), ``__us`` and ``__ms`` (its instant
since the epoch, rounded down) and a column for each join key that a view is asked by.
"""

from dataclasses import dataclass

from feast.value_type import ValueType

from feature_repo.stores.duckdb_client import identifier
from feature_repo.stores.sources import Source
from feature_repo.views import View


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
        """SQL that selects the join keys of a source as ``k0``, ``k1`` ..."""
        return [f"{source.column(key)} AS k{i}" for i, (key, _) in enumerate(self.keys)]

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
