"""How far the stream features are behind, read off the progress in the online store."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from feature_repo.stores import layout
from feature_repo.stores.progress import TopicProgress, topic_progress
from feature_repo.stores.redis_client import AsyncRedis
from feature_repo.stores.served import Served, served_from
from feature_repo.views import StreamView


class ViewLag(NamedTuple):
    """How a view that is served is folded."""

    view: str
    seconds: float | None
    """How far it is behind; None while a partition of its topics was never folded."""
    covered: bool
    """Whether all that its windows reach is folded, as far as it goes: not so for a while after a new epoch."""
    epochs: Mapping[tuple[str, int], int]
    """By (topic, partition): the instant (ms) when it was begun to be folded anew."""


class StreamLag(NamedTuple):
    """How the views that are served are folded, and the names of those that are not served as they are defined."""

    views: list[ViewLag]
    outdated: list[str]


async def stream_lag(client: AsyncRedis, project: str, defined: Sequence[StreamView], now: int) -> StreamLag:
    """The lag of the `defined` views, as they are served, at `now` (ms). Raises one of `redis_client.STORE_DOWN`."""
    topics = sorted({topic for view in defined for topic in view.topics})
    pipe: Any = client.pipeline(transaction=False)
    pipe.hgetall(layout.served_key(project))
    for topic in topics:
        pipe.hgetall(layout.progress_key(project, topic))
    kept, *replies = await pipe.execute()
    served: Served = served_from(kept)
    progress = dict(zip(topics, (topic_progress(reply.items()) for reply in replies), strict=True))
    views = [served.views[view.name] for view in defined if view.name in served.views]
    lags = [_lag(view, progress, now) for view in views if progress.keys() >= set(view.topics)]
    return StreamLag(lags, served.outdated(defined))


def _lag(view: StreamView, progress: Mapping[str, TopicProgress], now: int) -> ViewLag:
    known = {(topic, p): found for topic in view.topics for p, found in enumerate(progress[topic].of(view))}
    folded = {place: found for place, found in known.items() if found is not None}
    complete = [until for topic in view.topics if (until := progress[topic].complete_until(view)) is not None]
    whole = len(complete) == len(view.topics)
    return ViewLag(
        view.name,
        max(0, now - min(complete)) / 1000 if whole else None,
        whole and all(found.covered_from <= now - view.reach for found in folded.values()),
        {place: found.epoch for place, found in folded.items()},
    )
