"""From what a request read to what is told of it (`reads`): what all of its rows have in common, and each row's part.

Instants are ms since the epoch, UTC, unless their names say µs. Pure: what was read is given.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from feature_repo.stores import layout, tile_codec
from feature_repo.stores.batch_rows import unpack_version
from feature_repo.stores.features import window_start
from feature_repo.stores.progress import Progress, TopicProgress
from feature_repo.stores.reads import BatchRead, StreamRead, TopicRead, Trace, ViewRead
from feature_repo.stores.values import timestamp_micros
from feature_repo.views import BatchView, PresenceView, StreamView, View, WindowView


def view_read(
    view: View, definition: str, instant: int, progress: Mapping[str, TopicProgress], noted: Sequence[Any] | None
) -> ViewRead:
    """A view as it was read; `noted` is the answer of a presence view's script, if there was one."""
    if isinstance(view, BatchView):
        return ViewRead(view.name, {}, None)
    found = {topic: progress.get(topic, TopicProgress(0, {})) for topic in view.topics}
    until = [known.complete_until(view) for known in found.values()]
    folded = [instant for instant in until if instant is not None]
    applied = {} if noted is None else _noted(noted)
    topics = {name: _topic(view, name, known.of(view), applied) for name, known in found.items()}
    complete = min(folded) if folded and len(folded) == len(until) else None
    read = StreamRead(definition, view.tiles_hash, instant, topics, complete)
    return ViewRead(view.name, _window_starts(view, instant), read)


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
    return [data[:size] if data is not None and len(data) >= size else None for data in reply or ()]


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


def _topic(
    view: StreamView, name: str, folded: Sequence[Progress | None], applied: Mapping[int, tile_codec.Header]
) -> TopicRead:
    """How far a view is folded from a topic, and what was applied to it, by the numbers of the partitions' logs."""
    epochs = [known and known.epoch for known in folded]
    headers = [
        applied.get(layout.log_number(view, name, p)) if isinstance(view, PresenceView) else None
        for p in range(len(folded))
    ]
    return TopicRead(
        epochs,
        [known and known.offset for known in folded],
        [h.offset if h and h.epoch == epoch else None for h, epoch in zip(headers, epochs, strict=True)],
        [known and known.log for known in folded],
    )


def _window_starts(view: StreamView, instant: int) -> dict[str, int]:
    """Where the windows of a stream view begin at an instant, by feature's full name."""
    if isinstance(view, WindowView):
        return {f"{view.name}__{a.name}": window_start(view, a, instant) for a in view.aggregates}
    return {f"{view.name}__{feature}": instant - view.ttl for feature in view.features}


def _noted(reply: Sequence[Any]) -> dict[int, tile_codec.Header]:
    """What was applied to a presence view, by the number of the partition's log."""
    names, values = reply[1][::2], reply[1][1::2]
    return {int(name): tile_codec.unpack_header(value) for name, value in zip(names, values, strict=True)}
