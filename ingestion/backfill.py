"""Bringing changed definitions to be served: their tiles are folded up to the present, then readers change over.

A worker at the side folds the changed views out of the archive and the log under names of their own, while the group
goes on with those that are served. When they have caught up, what is served is replaced at once, with the offsets that
the new tiles were folded to; workers and readers follow what is served.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import structlog

from feature_repo.clock import Clock
from feature_repo.stores import layout
from feature_repo.stores.redis_client import STORE_DOWN, Redis
from feature_repo.stores.served import Served, Switch
from feature_repo.stores.stream_store import StreamStore
from feature_repo.views import PresenceView, StreamView, WindowView
from feature_repo.windows import floor_hop
from ingestion.archive_reader import ArchivedLog
from ingestion.folding import LostPartition
from ingestion.log import EventLog, LogUnavailable
from ingestion.worker import Worker

_RETRY_S = 0.5
_QUIET_S = 2.5  # workers look at what is served every second
_SCAN = 1000

logger = structlog.get_logger(__name__)


class NotBackfilled(RuntimeError):
    """What is served was not changed; says why and what to do."""


@dataclass(frozen=True)
class Change:
    """What is to be served after it: `views`. `folded` of them need tiles of their own.

    `digest` is that of what is served before it.
    """

    digest: bytes
    views: tuple[StreamView, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    folded: tuple[StreamView, ...]


def plan_change(served: Served, defined: Sequence[StreamView], names: Sequence[str]) -> Change:
    """What serving the `defined` views changes: those of the `names`, or all, those that are gone included.

    Raises NotBackfilled where nothing is served yet, or a name is that of no view.
    """
    if not served.digest:
        raise NotBackfilled("nothing is served yet: the first worker that is started serves what is defined")
    by_name = {view.name: view for view in defined}
    unknown = sorted(set(names) - by_name.keys() - served.views.keys())
    if unknown:
        raise NotBackfilled(f"{unknown[0]!r} is no stream view: there are {', '.join(sorted(by_name))}")
    chosen = set(names) or by_name.keys() | served.views.keys()
    after = {name: view for name, view in served.views.items() if name not in chosen}
    after |= {name: by_name[name] for name in chosen if name in by_name}
    changed = [view for name, view in sorted(after.items()) if served.views.get(name) != view]
    hashes = {view.tiles_hash for view in served.views.values()}
    return Change(
        digest=served.digest,
        views=tuple(after[name] for name in sorted(after)),
        changed=tuple(view.name for view in changed),
        gone=tuple(sorted(served.views.keys() - after.keys())),
        folded=tuple(view for view in changed if view.tiles_hash not in hashes),
    )


def backfill(
    log: EventLog,
    store: StreamStore,
    archive: ArchivedLog,
    clock: Clock,
    change: Change,
    stop: Callable[[], bool],
    say: Callable[[float], None] = lambda share: None,
) -> bool:
    """Fold what `change` needs, and serve it. False if `stop()` came before that: nothing has changed then.

    `say` is told the share of the log that is folded. Raises NotBackfilled if what is served changed meanwhile.
    """
    offsets: dict[str, int] = {}
    if change.folded:
        worker = Worker(log, store, change.folded, clock, group=None, archive=archive, side=True)
        try:
            folded = False
            while not folded:
                if stop():
                    return False
                folded = _folded(worker, log, clock, say)
            offsets = {f"{where.topic}/{where.partition}": held.offset for where, held in worker.held().items()}
        finally:
            worker.close()
    switch = Switch(clock(), offsets)
    switches = {**store.served().switches, **dict.fromkeys(change.changed, switch)}
    if not store.serve(change.views, switches, expected=change.digest):
        raise NotBackfilled("what is served was changed meanwhile by somebody else: look, and try again")
    logger.info("serving changed definitions", changed=change.changed, gone=change.gone, offsets=offsets)
    return True


def sweep(client: Redis, store: StreamStore, change: Change, before: Served, wait_s: float = _QUIET_S) -> int:
    """Remove what the views that `change` replaced were read from: how many fields and keys there were.

    Waits first, for workers may still fold them for a moment.
    """
    hashes = {view.tiles_hash for view in change.views}
    gone = [view for view in before.views.values() if view.tiles_hash not in hashes]
    if not gone:
        return 0
    time.sleep(wait_s)
    redis: Any = client
    removed = 0
    for view in gone:
        for topic in view.topics:
            key = layout.progress_key(store.project, topic)
            ending = f":{view.tiles_hash}".encode()
            removed += _drop(redis, key, [field for field in redis.hkeys(key) if field.endswith(ending)])
        if isinstance(view, PresenceView):
            found = redis.scan_iter(match=_literal(layout.presence_base(store.project, view)) + b":*", count=_SCAN)
            removed += sum(redis.unlink(key) for key in found)
        else:
            removed += _drop_tiles(redis, store.project, view)
    return removed


def _drop_tiles(redis: Any, project: str, view: WindowView) -> int:
    ours = layout.project_keys(project, [view.join_keys])
    head, removed = layout.tiles_field(view, 0)[:-2], 0
    keys = (key for key in redis.scan_iter(count=_SCAN, _type="hash") if ours(key))
    while chunk := list(islice(keys, _SCAN)):
        pipe = redis.pipeline(transaction=False)
        for key in chunk:
            pipe.hkeys(key)
        for key, fields in zip(chunk, pipe.execute(), strict=True):
            tiles = [field for field in fields if len(field) == len(head) + 2 and field.startswith(head)]
            removed += _drop(redis, key, tiles)
    return removed


def _drop(redis: Any, key: bytes, fields: Sequence[bytes]) -> int:
    return int(redis.hdel(key, *fields)) if fields else 0


def _literal(key: bytes) -> bytes:
    """A pattern that matches the key alone."""
    return re.sub(rb"([\\*?\[\]])", rb"\\\1", key)


def _folded(worker: Worker, log: EventLog, clock: Clock, say: Callable[[float], None]) -> bool:
    """Go a step on: whether everything is folded, and said so in the store. After a hiccup the next step goes on."""
    try:
        worker.step()
        if not _caught_up(worker, log, clock(), say):
            return False
        worker.write_progress()
        return _caught_up(worker, log, clock(), say)  # unless a partition had to be let go
    except (LogUnavailable, LostPartition, *STORE_DOWN) as error:
        logger.warning("backfill interrupted", error=str(error))
        worker.recover(error)
        time.sleep(_RETRY_S)
        return False


def _caught_up(worker: Worker, log: EventLog, now: int, say: Callable[[float], None]) -> bool:
    """Whether every view is folded as far as what is served has to be, in every partition."""
    folds = [fold for held in worker.held().values() for fold in held.folds]
    if len(worker.held()) < sum(log.partitions(topic) for topic in worker.topics):
        return False
    say(max(0.0, min((fold.complete_until - now) / fold.view.reach + 1 for fold in folds)))
    return all(fold.stored.covers(now, _window_start(fold.view, now), fold.view.max_lag // 2) for fold in folds)


def _window_start(view: StreamView, now: int) -> int:
    return now - view.ttl if isinstance(view, PresenceView) else floor_hop(now, view.layout.hop) - view.layout.horizon
