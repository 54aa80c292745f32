"""From what a request read to what is told of it (`reads`): what all of its rows have in common, and each row's part.

Instants are ms since the epoch, UTC, unless their names say µs. Pure: what was read is given.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from feature_repo.stores import layout, tile_codec
from feature_repo.stores.batch_rows import unpack_version
from feature_repo.stores.progress import TopicProgress
from feature_repo.stores.reads import BatchRead, Folded, StreamSort, Trace, ViewRead
from feature_repo.stores.values import timestamp_micros
from feature_repo.views import BatchView, PresenceView, StreamView, View, WindowView


def stream_sort(view: StreamView, definition: str) -> StreamSort:
    """What is told of a stream view whatever is read of it."""
    if isinstance(view, WindowView):
        windows = {f"{view.name}__{a.name}": a.window for a in view.aggregates}
        return StreamSort(definition, view.tiles_hash, view.layout.hop, windows)
    windows = {f"{view.name}__{feature}": view.ttl for feature in view.features}
    return StreamSort(definition, view.tiles_hash, 1, windows)


def view_read(
    view: View,
    sort: StreamSort | None,
    instant: int,
    progress: Mapping[str, TopicProgress],
    noted: Sequence[Any] | None,
) -> ViewRead:
    """A view as it was read: its `sort` if it is of a stream, and the answer of a presence view's script."""
    if isinstance(view, BatchView):
        return ViewRead(view.name, instant, None, {}, {})
    folded: dict[str, list[Folded]] = {
        topic: list(progress[topic].of(view)) if topic in progress else [] for topic in view.topics
    }
    applied = {} if noted is None or not isinstance(view, PresenceView) else _noted(view, noted, folded)
    return ViewRead(view.name, instant, sort, folded, applied)


def trace(view: View, definition: str, reply: Sequence[Any] | None) -> Trace:
    """What one row read of a view, by its reply; None for an id of no entity.

    A batch row's reply ends with its event time and its version; a window view's has a field a partition.
    """
    if isinstance(view, BatchView):
        stamp, version = (None, None) if reply is None else reply[-2:]
        return batch_read(definition, stamp, version)
    if isinstance(view, PresenceView):
        return None
    size = tile_codec.HEADER.size
    return [data[:size] if data and len(data) >= size else None for data in reply or ()]


@lru_cache(4096)
def batch_read(definition: str, stamp: bytes | None, version: bytes | None) -> BatchRead:
    """Of a batch row's event time and version; rows that were computed together have them in common."""
    if stamp is None:
        return BatchRead(definition, None, None)
    event_us, created_us = timestamp_micros(stamp), None
    if version is not None:
        versioned_us, created = unpack_version(version)
        created_us = created if versioned_us == event_us else None  # Feast wrote over a row of ours
    return BatchRead(definition, event_us, created_us)


def _noted(
    view: PresenceView, reply: Sequence[Any], folded: Mapping[str, Sequence[Any]]
) -> dict[str, list[bytes | None]]:
    """What was applied to a presence view, from the fields and values that its script answers by turns."""
    noted = dict(zip(reply[1][::2], reply[1][1::2], strict=True))
    return {
        topic: [noted.get(b"%d" % layout.log_number(view, topic, p)) for p in range(len(partitions))]
        for topic, partitions in folded.items()
    }
