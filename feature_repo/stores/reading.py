"""Reading features: one pipeline for all views of a request, with statuses and ages.

A `ReadPlan` is compiled once for a list of views; `read` and `read_async` run it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from feature_repo.stores import layout, scripts
from feature_repo.stores.features import Feature, Reading, Status, entity_tiles
from feature_repo.stores.origins import Origin, read_of
from feature_repo.stores.progress import TopicProgress, topic_progress
from feature_repo.stores.read_plan import ReadPlan, Shape, Wanted
from feature_repo.stores.redis_client import AsyncRedis, Redis
from feature_repo.stores.served import served_from
from feature_repo.stores.values import NATIVE, Form
from feature_repo.views import BatchView, PresenceView, WindowView

__all__ = ["Answer", "Feature", "ReadPlan", "Status", "Wanted", "read", "read_async"]

_ROUNDS = 6


class Answer(NamedTuple):
    """What was read: of each `Wanted` a column a feature, a `Feature` a row; and the instant it holds at."""

    columns: list[list[list[Feature]]]
    instant: int
    origins: Callable[[int], list[Origin]]
    """Of a row what its features were read from, a view each that is served; of a plan with receipts."""


def read(client: Redis, plan: ReadPlan, rows: Mapping[str, Sequence[object]], now: int, form: Form = NATIVE) -> Answer:
    """The features of `plan` for `rows` ({column: an id a row}), at the reader's instant `now` (ms).

    Raises one of `redis_client.STORE_DOWN`. A bad id gives NOT_FOUND in its own row.
    """
    request = _Request(plan, rows, now, form)
    for _ in range(_ROUNDS):
        pipe = client.pipeline(transaction=False)
        request.ask(pipe)
        if request.take(pipe.execute()):
            break
    return request.answer()


async def read_async(
    client: AsyncRedis,
    plan: ReadPlan,
    rows: Mapping[str, Sequence[object]],
    now: int,
    form: Form = NATIVE,
    wait: Callable[[Awaitable[list[Any]]], Awaitable[list[Any]]] | None = None,
) -> Answer:
    """The same, for asyncio. `wait` may bound how long each answer of the store is waited for."""
    request = _Request(plan, rows, now, form)
    for _ in range(_ROUNDS):
        pipe = client.pipeline(transaction=False)
        request.ask(pipe)
        replies = pipe.execute()
        if request.take(await (wait(replies) if wait else replies)):
            break
    return request.answer()


class _Entities:
    """The distinct entities among the rows of one `Wanted`, and which of them each row is."""

    def __init__(self, key: Any, columns: Sequence[Sequence[object]]) -> None:
        self.ids: dict[bytes, Sequence[object]] = {}
        self.places: list[int | None] = []  # None for a bad id
        order: dict[bytes, int] = {}
        for ids in zip(*columns, strict=True):
            try:
                data = key(ids)
            except layout.BadEntity:
                self.places.append(None)
                continue
            self.places.append(order.setdefault(data, len(order)))
            self.ids.setdefault(data, ids)


class _Request:
    """One request: asks, takes the replies, and says whether they suffice."""

    def __init__(self, plan: ReadPlan, rows: Mapping[str, Sequence[object]], now: int, form: Form) -> None:
        self._plan, self._now, self._form = plan, now, form
        self._instant = now
        self._shape = plan.shape
        self._refresh = False
        self._progress: dict[str, TopicProgress] = {}
        self._replied: list[list[Any]] = []  # of each read and entity
        self._decoded: list[list[Any]] = []  # the same, windows as their tiles
        self._entities = [
            _Entities(key, [rows[name] for name in wanted.columns])
            for wanted, key in zip(plan.wanted, plan.keys, strict=True)
        ]

    def ask(self, pipe: Any) -> None:
        """Queue the commands. Progress first: what is read after it is at least as new as it says."""
        shape = self._shape = self._plan.shape
        served = layout.served_key(self._plan.project)
        if self._plan.streams:
            if self._refresh or shape.digest is None:
                pipe.hgetall(served)
            else:
                pipe.hget(served, layout.SERVED_DIGEST)
        for topic in shape.topics:
            pipe.hgetall(layout.progress_key(self._plan.project, topic))
        for read, entities in zip(shape.reads, self._entities, strict=True):
            if read is None:
                continue
            view = read.view
            if isinstance(view, PresenceView):
                base = layout.presence_base(self._plan.project, view)
                states = [view.counts[feature] for feature in read.features]
                for ids in entities.ids.values():
                    group = layout.group_name(ids)
                    pipe.eval(scripts.PRESENCE_READ, 1, base, self._instant, view.ttl, group, *states)
            else:
                fields = shape.fields(read)
                for key in entities.ids:
                    pipe.hmget(key, fields)

    def take(self, replies: list[Any]) -> bool:
        """Take the replies; False if they were asked for by outdated definitions, partitions or instant."""
        shape, rest, self._decoded = self._shape, iter(replies), []
        if self._plan.streams and not self._as_served(next(rest)):
            return False
        self._progress = {topic: topic_progress(next(rest)) for topic in shape.topics}
        counts = {topic: max(found.partitions, 1) for topic, found in self._progress.items()}
        if counts != shape.partitions:
            self._plan.shape = shape._replace(partitions=counts)
            return False
        replied = [
            [] if read is None else [next(rest) for _ in entities.ids]
            for read, entities in zip(shape.reads, self._entities, strict=True)
        ]
        self._replied = replied
        return self._settle_instant(shape, replied)

    def answer(self) -> Answer:
        """The features, from the replies last taken."""
        reading = Reading(self._now, self._instant, self._progress, self._form)
        columns = []
        found = self._decoded or [[] for _ in self._plan.wanted]
        for wanted, read, entities, decoded in zip(
            self._plan.wanted, self._shape.reads, self._entities, found, strict=True
        ):
            features = [_features(reading, wanted, read, one) for one in decoded]
            nothing = [reading.outside(wanted.view, name) for name in wanted.features]
            missing = reading.not_found(wanted.view, wanted.features)
            rows = [missing if place is None else features[place] if features else nothing for place in entities.places]
            columns.append([[row[i] for row in rows] for i in range(len(wanted.features))])
        return Answer(columns, self._instant, self.origins)

    def origins(self, row: int) -> list[Origin]:
        """What the features of a row were read from."""
        shape = self._shape
        assert shape.definitions, "the plan was made without receipts"
        found: list[Origin] = []
        replied = self._replied or [[] for _ in self._plan.wanted]
        for read, entities, replies, definition in zip(
            shape.reads, self._entities, replied, shape.definitions, strict=True
        ):
            if read is not None:
                place = entities.places[row]
                reply = None if place is None or not replies else replies[place]
                given = read_of(read.view, definition, self._instant, self._progress, reply)
                found.append(Origin(read.view, given))
        return found

    def _as_served(self, reply: Any) -> bool:
        """Whether what was asked is what is served; if not, the plan is made anew for the next round."""
        if isinstance(reply, dict):
            served = served_from(reply)
            self._refresh = False
            if served.digest != self._shape.digest:
                self._plan.follow(served)
                return False
            return True
        self._refresh = (reply or b"") != self._shape.digest
        return not self._refresh

    def _settle_instant(self, shape: Shape, replied: Sequence[list[Any]]) -> bool:
        """Decode tiles, and move the instant up to the newest time read; False if presence must be read at it."""
        newest, counted = self._instant, False
        self._decoded = []
        for read, replies in zip(shape.reads, replied, strict=True):
            view = read and read.view
            if isinstance(view, WindowView):
                tiles = [entity_tiles(view, self._progress[view.topic], reply) for reply in replies]
                newest = max([newest, *(t.newest for found in tiles for t in found or () if t.newest is not None)])
                self._decoded.append(tiles)
                continue
            if isinstance(view, PresenceView):
                counted = True
                newest = max([newest, *(int(reply[0]) for reply in replies if reply[0])])
            self._decoded.append(replies)
        asked, self._instant = self._instant, newest
        return newest == asked or not counted


def _features(reading: Reading, wanted: Wanted, read: Wanted | None, found: Any) -> list[Feature]:
    """The wanted features of an entity; those that are not served are outside."""
    assert read is not None
    if isinstance(read.view, BatchView):
        features = reading.batch(read.view, read.features, found)
    elif isinstance(read.view, WindowView):
        features = reading.window(read.view, read.features, found)
    else:
        features = reading.presence(read.view, read.features, found)
    if read.features == wanted.features:
        return features
    by_name = dict(zip(read.features, features, strict=True))
    return [by_name.get(name) or reading.outside(wanted.view, name) for name in wanted.features]
