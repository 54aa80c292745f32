"""Whether stream views can be computed from the events there are: checked before anything is folded."""

from collections.abc import Sequence

from feast.value_type import ValueType

from feature_repo.views import TOPIC_STATE, BadDefinition, StreamView, WindowView
from ingestion.events import EVENT_TYPES, column_kinds, nullable_columns

_COUNTED = ("count", "count_distinct")  # what takes any column
_KEY_KINDS = {ValueType.INT64: "id", ValueType.INT32: "id", ValueType.STRING: "text"}


def check_views(views: Sequence[StreamView]) -> None:
    """Raises BadDefinition: the view, the column or topic that it cannot be computed from, and what is there."""
    for view in views:
        for topic in view.topics:
            if topic not in EVENT_TYPES:
                raise BadDefinition(f"{view.name}: topic {topic!r} is not one of {', '.join(EVENT_TYPES)}")
            kinds = column_kinds(topic)
            for key, kind in zip(view.join_keys, view.key_types, strict=True):
                _column(view, topic, kinds, key)
                if kinds[key] != _KEY_KINDS.get(kind):
                    raise BadDefinition(
                        f"{view.name}: join key {key} is {kind.name}, but {kinds[key]} in events of {topic}: "
                        "no event would find its entity"
                    )
            _columns(view, topic, kinds)


def _columns(view: StreamView, topic: str, kinds: dict[str, str]) -> None:
    if not isinstance(view, WindowView):
        for column in {view.member, view.state} - {TOPIC_STATE}:
            _column(view, topic, kinds, column)
        for column in sorted({view.member, view.state, *view.join_keys} & nullable_columns(topic)):
            raise BadDefinition(f"{view.name}: {column} may be null in events of {topic}: nobody could be told by it")
        return
    for aggregate in view.aggregates:
        _column(view, topic, kinds, aggregate.column)
        if aggregate.function not in _COUNTED and kinds[aggregate.column] != "number":
            raise BadDefinition(
                f"{view.name}.{aggregate.name}: {aggregate.function} of {aggregate.column}, which is no number "
                f"({kinds[aggregate.column]}): it could not be computed"
            )


def _column(view: StreamView, topic: str, kinds: dict[str, str], column: str) -> None:
    if column not in kinds:
        raise BadDefinition(
            f"{view.name}: events of {topic} have no column {column!r} (they have {', '.join(kinds)}): "
            "nothing would be counted"
        )
