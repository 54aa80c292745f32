"""How far each topic's features are behind, read off the progress in the online store."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from feature_repo.stores import layout
from feature_repo.stores.reading import topic_progress
from feature_repo.stores.redis_client import AsyncRedis


class TopicLag(NamedTuple):
    """A topic's lag. `seconds` is None while a partition was never folded; `epoch` is the highest of its partitions."""

    topic: str
    seconds: float | None
    epoch: int


async def stream_lags(client: AsyncRedis, project: str, topics: Sequence[str], now: int) -> list[TopicLag]:
    """The lag of each topic at `now` (ms). Raises one of `redis_client.STORE_DOWN`."""
    pipe: Any = client.pipeline(transaction=False)
    for topic in topics:
        pipe.hgetall(layout.progress_key(project, topic))
    lags = []
    for topic, reply in zip(topics, await pipe.execute(), strict=True):
        progress = topic_progress(reply)
        until = progress.complete_until
        epoch = max((p.epoch for p in progress.by_partition.values()), default=0)
        lags.append(TopicLag(topic, None if until is None else max(0, now - until) / 1000, epoch))
    return lags
