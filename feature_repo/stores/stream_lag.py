"""How far each topic's features are behind, read off the progress in the online store."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from feature_repo.stores import layout
from feature_repo.stores.reading import topic_progress
from feature_repo.stores.redis_client import AsyncRedis
from feature_repo.views import StreamView


class TopicLag(NamedTuple):
    """A topic's lag. `seconds` is None while a partition was never folded; `not_folded` names the views of it that no
    worker folds as they are defined here.
    """

    topic: str
    seconds: float | None
    not_folded: tuple[str, ...]


async def stream_lags(client: AsyncRedis, project: str, views: Sequence[StreamView], now: int) -> list[TopicLag]:
    """The lag of each topic of `views` at `now` (ms). Raises one of `redis_client.STORE_DOWN`."""
    topics = sorted({topic for view in views for topic in view.topics})
    pipe: Any = client.pipeline(transaction=False)
    for topic in topics:
        pipe.hgetall(layout.progress_key(project, topic))
    lags = []
    for topic, reply in zip(topics, await pipe.execute(), strict=True):
        progress = topic_progress(reply)
        until = progress.complete_until
        missing = [view.name for view in views if topic in view.topics and not progress.folded_everywhere(view)]
        lags.append(TopicLag(topic, None if until is None else max(0, now - until) / 1000, tuple(missing)))
    return lags
