"""Reading features: one pipeline for all views of a request, with statuses and ages.

A `ReadPlan` is compiled once for a list of views; `read` and `read_async` run it. What a status means, and when a
stream feature is fresh, is decided here and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from feature_repo.stores import layout, scripts, tile_codec
from feature_repo.stores.progress import Progress
from feature_repo.stores.redis_client import AsyncRedis, Redis
from feature_repo.stores.values import NATIVE, Form, timestamp_micros
from feature_repo.views import BatchView, PresenceView, StreamView, View, WindowView
from feature_repo.windows import Tiles, floor_hop, read_window

_ROUNDS = 4


class Status(IntEnum):
    """What a feature's value is worth; the numbers are those of Feast's ``FieldStatus``."""

    PRESENT = 1
    NULL_VALUE = 2  # computed, and empty
    NOT_FOUND = 3  # a batch row never written, or an id that can be no key
    OUTSIDE_MAX_AGE = 4  # a batch row beyond its TTL, or a stream that is not fresh


class Feature(NamedTuple):
    """A feature as it was read. `event_ms` is the instant it speaks of (ms since the epoch); None if there is none."""

    value: Any
    status: Status
    event_ms: int | None


@dataclass(frozen=True)
class Wanted:
    """Some features of a view. `columns` are the request's names of the view's join keys, in their order."""

    view: View
    features: tuple[str, ...]
    columns: tuple[str, ...]


class Answer(NamedTuple):
    """What was read: of each `Wanted` a column a feature, a `Feature` a row; and the instant it holds at."""

    columns: list[list[list[Feature]]]
    instant: int


class ReadPlan:
    """What has to be asked of the store for a list of views; keeps the number of partitions it last saw."""

    def __init__(self, project: str, wanted: Sequence[Wanted]) -> None:
        self.project, self.wanted = project, tuple(wanted)
        self.topics = tuple(sorted({t for w in wanted if not isinstance(w.view, BatchView) for t in w.view.topics}))
        self.partitions = dict.fromkeys(self.topics, 1)
        self.keys = [layout.key_builder(project, w.view.join_keys, w.view.key_types) for w in wanted]

    def fields(self, wanted: Wanted) -> list[bytes]:
        """The fields of one entity's hash that a view needs."""
        view = wanted.view
        if isinstance(view, WindowView):
            return [layout.tiles_field(view, p) for p in range(self.partitions[view.topic])]
        assert isinstance(view, BatchView)
        name = view.stored_name
        return [*(layout.feature_field(name, f) for f in wanted.features), layout.time_field(name)]


def read(client: Redis, plan: ReadPlan, rows: Mapping[str, Sequence[object]], now: int, form: Form = NATIVE) -> Answer:
    """The features of `plan` for `rows` ({column: an id a row}), at the reader's instant `now` (ms).

    Raises one of `redis_client.STORE_DOWN`. A bad id gives NOT_FOUND in its own row.
    """
    reading = _Reading(plan, rows, now, form)
    for _ in range(_ROUNDS):
        pipe = client.pipeline(transaction=False)
        reading.ask(pipe)
        if reading.take(pipe.execute()):
            break
    return reading.answer()


async def read_async(
    client: AsyncRedis, plan: ReadPlan, rows: Mapping[str, Sequence[object]], now: int, form: Form = NATIVE
) -> Answer:
    """The same, for asyncio."""
    reading = _Reading(plan, rows, now, form)
    for _ in range(_ROUNDS):
        pipe = client.pipeline(transaction=False)
        reading.ask(pipe)
        if reading.take(await pipe.execute()):
            break
    return reading.answer()


class _Reading:
    """One request: asks, takes the replies, and says whether they suffice."""

    def __init__(self, plan: ReadPlan, rows: Mapping[str, Sequence[object]], now: int, form: Form) -> None:
        self._plan, self._now, self._form = plan, now, form
        self._instant = now
        self._rows = len(next(iter(rows.values()))) if rows else 0
        self._places: list[list[int | None]] = []  # of each wanted and row: which distinct entity it is
        self._entities: list[dict[bytes, list[object]]] = []  # of each wanted: the distinct keys and their ids
        for wanted, key in zip(plan.wanted, plan.keys, strict=True):
            columns = [rows[name] for name in wanted.columns]
            distinct: dict[bytes, list[object]] = {}
            order: dict[bytes, int] = {}
            places: list[int | None] = []
            for ids in zip(*columns, strict=True):
                try:
                    data = key(ids)
                except layout.BadEntity:
                    places.append(None)
                    continue
                places.append(order.setdefault(data, len(order)))
                distinct.setdefault(data, list(ids))
            self._places.append(places)
            self._entities.append(distinct)

    def ask(self, pipe: Any) -> None:
        """Queue the commands. Progress first: what is read after it is at least as new as it says."""
        for topic in self._plan.topics:
            pipe.hgetall(layout.progress_key(self._plan.project, topic))
        for wanted, entities in zip(self._plan.wanted, self._entities, strict=True):
            view = wanted.view
            if isinstance(view, PresenceView):
                base = layout.presence_base(self._plan.project, view)
                states = [view.counts[feature] for feature in wanted.features]
                for ids in entities.values():
                    group = layout.group_name(ids)
                    pipe.eval(scripts.PRESENCE_READ, 1, base, self._instant, view.ttl, group, *states)
            else:
                fields = self._plan.fields(wanted)
                for key in entities:
                    pipe.hmget(key, fields)

    def take(self, replies: list[Any]) -> bool:
        """Take the replies; False if they were asked for with an outdated number of partitions or instant."""
        at = len(self._plan.topics)
        self._progress = dict(zip(self._plan.topics, map(topic_progress, replies[:at]), strict=True))
        counts = {topic: max(found.partitions, 1) for topic, found in self._progress.items()}
        complete = counts == self._plan.partitions
        self._plan.partitions = counts
        self._replies: list[list[Any]] = []
        for entities in self._entities:
            self._replies.append(replies[at : at + len(entities)])
            at += len(entities)
        return self._settle_instant() and complete

    def answer(self) -> Answer:
        """The features, from the replies last taken."""
        columns = []
        for wanted, places, replies in zip(self._plan.wanted, self._places, self._decoded, strict=True):
            decoded = [self._features(wanted, reply) for reply in replies]
            missing = [Feature(self._form.computed(k, None), Status.NOT_FOUND, None) for k in _kinds(wanted)]
            rows = [missing if place is None else decoded[place] for place in places]
            columns.append([[row[i] for row in rows] for i in range(len(wanted.features))])
        return Answer(columns, self._instant)

    def _settle_instant(self) -> bool:
        """Decode tiles, and move the instant up to the newest time read; False if presence must be read at it."""
        newest, presence = self._instant, self._instant
        self._decoded: list[list[Any]] = []
        for wanted, replies in zip(self._plan.wanted, self._replies, strict=True):
            view = wanted.view
            if isinstance(view, WindowView):
                tiles = [self._tiles(view, reply) for reply in replies]
                newest = max([newest, *(t.newest for found in tiles for t in found or () if t.newest is not None)])
                self._decoded.append(tiles)
            else:
                if isinstance(view, PresenceView):
                    presence = max([presence, *(int(reply[0]) for reply in replies if reply[0])])
                self._decoded.append(replies)
        asked, self._instant = self._instant, max(newest, presence)
        return self._instant == asked or not any(isinstance(w.view, PresenceView) for w in self._plan.wanted)

    def _tiles(self, view: WindowView, reply: Sequence[bytes | None]) -> list[Tiles] | None:
        """The tiles of an entity in each partition.

        None if they cannot be trusted: a field is of a newer epoch than the progress read, or damaged.
        """
        found: list[Tiles] = []
        for partition, data in enumerate(reply):
            progress = self._progress[view.topic].by_partition.get(partition)
            if data is None or progress is None:
                continue
            try:
                epoch = tile_codec.unpack_header(data).epoch
                if epoch == progress.epoch:
                    found.append(tile_codec.unpack(view.layout, partition, data))
            except tile_codec.CorruptField:
                return None
            if epoch > progress.epoch:
                return None
        return found

    def _features(self, wanted: Wanted, reply: Any) -> list[Feature]:
        if isinstance(wanted.view, BatchView):
            return self._batch(wanted.view, wanted, reply)
        if isinstance(wanted.view, WindowView):
            return self._window(wanted.view, wanted, reply)
        return self._presence(wanted.view, wanted, reply)

    def _batch(self, view: BatchView, wanted: Wanted, reply: Sequence[bytes | None]) -> list[Feature]:
        *values, stamp = reply
        nulls = [self._form.computed(kind, None) for kind in _kinds(wanted)]
        if stamp is None:
            return [Feature(null, Status.NOT_FOUND, None) for null in nulls]
        event_ms = timestamp_micros(stamp) // 1000
        if view.ttl and self._instant - event_ms > view.ttl:
            return [Feature(null, Status.OUTSIDE_MAX_AGE, event_ms) for null in nulls]
        features = []
        for data, null in zip(values, nulls, strict=True):
            value = null if data is None else self._form.stored(data)
            status = Status.NULL_VALUE if self._form.is_null(value) else Status.PRESENT
            features.append(Feature(value, status, event_ms))
        return features

    def _window(self, view: WindowView, wanted: Wanted, tiles: list[Tiles] | None) -> list[Feature]:
        aggregates = {a.name: a for a in view.aggregates}
        known_until = self._progress[view.topic].complete_until
        newest = max((t.newest for t in tiles or () if t.newest is not None), default=None)
        features = []
        for name in wanted.features:
            aggregate, kind = aggregates[name], view.features[name]
            start = floor_hop(self._instant, view.layout.hop) - aggregate.window
            if tiles is None or not self._fresh(view, start):
                features.append(Feature(self._form.computed(kind, None), Status.OUTSIDE_MAX_AGE, known_until))
                continue
            value = read_window(view.layout, aggregate, tiles, self._instant)
            status = Status.NULL_VALUE if value is None else Status.PRESENT
            # A window without events speaks of the instant up to which silence is known.
            spoken_of = newest if newest is not None and newest >= start else known_until
            features.append(Feature(self._form.computed(kind, value), status, spoken_of))
        return features

    def _presence(self, view: PresenceView, wanted: Wanted, reply: Sequence[Any]) -> list[Feature]:
        fresh = self._fresh(view, self._instant - view.ttl)
        known = [self._progress[topic].complete_until for topic in view.topics]
        known_until = min((until for until in known if until is not None), default=None) if all(known) else None
        features = []
        for name, count in zip(wanted.features, reply[2:], strict=True):
            value = self._form.computed(view.features[name], int(count) if fresh else None)
            features.append(Feature(value, Status.PRESENT if fresh else Status.OUTSIDE_MAX_AGE, known_until))
        return features

    def _fresh(self, view: StreamView, window_start: int) -> bool:
        return all(
            found.partitions > 0
            and all(
                (progress := found.by_partition.get(p)) is not None
                and progress.covers(self._now, window_start, view.max_lag)
                and found.folds(progress, view)
                for p in range(found.partitions)
            )
            for found in (self._progress[topic] for topic in view.topics)
        )


class TopicProgress(NamedTuple):
    """The progress of a topic: how many partitions it has, those that were folded, and the views folded by hash."""

    partitions: int
    by_partition: dict[int, Progress]
    views: dict[int, frozenset[str]]

    def folds(self, progress: Progress, view: StreamView) -> bool:
        """Whether `view`, as it is defined here, is what the partition's worker folds: else a missing field is no 0."""
        return view.tiles_hash in self.views.get(progress.views, ())

    def folded_everywhere(self, view: StreamView) -> bool:
        """Whether every partition folds `view` as it is defined here."""
        known = self.by_partition.values()
        return len(known) == self.partitions > 0 and all(self.folds(progress, view) for progress in known)

    @property
    def complete_until(self) -> int | None:
        """The instant up to which every partition is folded; None if one is not folded at all."""
        if len(self.by_partition) < max(self.partitions, 1):
            return None
        return min(progress.complete_until for progress in self.by_partition.values())


def topic_progress(reply: Mapping[bytes, bytes]) -> TopicProgress:
    """The progress in a topic's hash."""
    count = int(reply.get(layout.PARTITION_COUNT, 0))
    found = {int(name): Progress.unpack(data) for name, data in reply.items() if name.isdigit()}
    views = {
        int(name.removeprefix(layout.VIEWS_FOLDED)): frozenset(hashes.decode().split())
        for name, hashes in reply.items()
        if name.startswith(layout.VIEWS_FOLDED)
    }
    return TopicProgress(count, {p: progress for p, progress in found.items() if p < count}, views)


def _kinds(wanted: Wanted) -> list[Any]:
    return [wanted.view.features[name] for name in wanted.features]
