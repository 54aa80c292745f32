"""Reading features: one exchange for all views of a request, with statuses and ages.

A `ReadPlan` is compiled once for a list of views; `read` and `read_async` run it.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from feature_repo.stores import layout
from feature_repo.stores.features import Feature, Reading, Status, WindowDecoder
from feature_repo.stores.origins import trace, view_read
from feature_repo.stores.progress import TopicProgress, known_progress
from feature_repo.stores.read_plan import LOAD_SCRIPT, PresenceRead, ReadPlan, Wanted
from feature_repo.stores.reads import Trace, ViewRead
from feature_repo.stores.redis_client import Redis, exchange, refused
from feature_repo.stores.redis_pipe import RedisPipe
from feature_repo.stores.resp import NO_SCRIPT, ErrorReply, command
from feature_repo.stores.served import served_from
from feature_repo.views import PresenceView

__all__ = ["Answer", "Feature", "ReadPlan", "Status", "Wanted", "read", "read_async"]

_ROUNDS = 6
Wait = Callable[[Awaitable[list[Any]]], Awaitable[list[Any]]]


class ViewRows(NamedTuple):
    """The features of one `Wanted`: of each entity that was read, and which of them each row of the request is."""

    entities: list[list[Feature]]
    places: list[int | None]
    otherwise: list[Feature]
    """Those of a row that is no entity."""

    def row(self, number: int) -> list[Feature]:
        """The features of a row."""
        place = self.places[number]
        return self.otherwise if place is None else self.entities[place]


class Traced(NamedTuple):
    """What rows were read from: each view that is served, and of each row what it read of each of them."""

    views: list[ViewRead]
    rows: list[list[Trace]]


class Answer(NamedTuple):
    """What was read, of each `Wanted`, and the instant it holds at."""

    views: list[ViewRows]
    instant: int
    traced: Callable[[Sequence[int]], Traced]
    """Of some rows what their features were read from; of a plan with receipts."""

    @property
    def columns(self) -> list[list[list[Feature]]]:
        """Of each `Wanted` a column a feature, a `Feature` a row."""
        return [
            [[view.row(n)[i] for n in range(len(view.places))] for i in range(len(view.otherwise))]
            for view in self.views
        ]


def read(client: Redis, plan: ReadPlan, rows: Mapping[str, Sequence[object]], now: int) -> Answer:
    """The features of `plan` for `rows` ({column: an id a row}), at the reader's instant `now` (ms).

    Raises one of `redis_client.STORE_DOWN`. A bad id gives NOT_FOUND in its own row.
    """
    request = _Request(plan, rows, now)
    for _ in range(_ROUNDS):
        if request.take(exchange(client, *request.ask())):
            break
    return request.answer()


async def read_async(
    pipe: RedisPipe, plan: ReadPlan, rows: Mapping[str, Sequence[object]], now: int, wait: Wait | None = None
) -> Answer:
    """The same, for asyncio. `wait` may bound how long each exchange with the store is waited for."""
    request = _Request(plan, rows, now)
    for _ in range(_ROUNDS):
        replies = pipe.exchange(*request.ask())
        if request.take(await (wait(replies) if wait else replies)):
            break
    return request.answer()


class _Entities:
    """The distinct entities among the rows of a request, and which of them each row is."""

    def __init__(self, key: Callable[[Sequence[object]], bytes], columns: Sequence[Sequence[object]]) -> None:
        self.keys: list[bytes] = []
        self.ids: list[Sequence[object]] = []
        self.places: list[int | None] = []  # None for a bad id
        order: dict[bytes, int] = {}
        for ids in zip(*columns, strict=True):
            try:
                data = key(ids)
            except layout.BadEntity:
                self.places.append(None)
                continue
            place = order.get(data)
            if place is None:
                place = order[data] = len(order)
                self.keys.append(data)
                self.ids.append(ids)
            self.places.append(place)


class _Request:
    """One request: asks, takes the replies, and says whether they suffice."""

    def __init__(self, plan: ReadPlan, rows: Mapping[str, Sequence[object]], now: int) -> None:
        self._plan, self._now = plan, now
        self._instant = now
        self._shape = plan.shape
        self._refresh = self._load = False
        self._progress: dict[str, TopicProgress] = {}
        self._replied: list[Any] = []  # of each wanted what was read of each entity
        self._found: list[Any] = []  # the same, windows as their tiles
        self._entities = [_Entities(key, [rows[name] for name in columns]) for columns, key in plan.ids]

    def ask(self) -> tuple[bytes, int]:
        """The commands, and how many they are. Progress first: what is read after it is at least as new as it says."""
        plan, entities = self._plan, self._entities
        shape = self._shape = plan.shape
        parts, count = [], len(shape.topics)
        if plan.streams:
            self._refresh |= shape.digest is None
            parts.append(plan.ask_served if self._refresh else plan.ask_digest)
            count += 1
        if self._load:
            parts.append(LOAD_SCRIPT)
            count += 1
        parts.append(shape.progress)
        for read in shape.hashes:
            head, tail, keys = read.head, read.tail, entities[read.ids].keys
            parts += [b"%b%d\r\n%b%b" % (head, len(key), key, tail) for key in keys]
            count += len(keys)
        for presence in shape.presences:
            if ids := entities[presence.ids].ids:
                groups = [layout.group_name(one) for one in ids]
                parts.append(command(*presence.before, self._instant, *presence.after, *groups))
                count += 1
        return b"".join(parts), count

    def take(self, replies: list[Any]) -> bool:
        """Take the replies; False if they were asked for by outdated definitions, partitions or instant.

        Raises RedisError if the store refuses what it was asked, one of `STORE_DOWN` if it refuses everybody.
        """
        shape, plan, at = self._shape, self._plan, 0
        self._found = []
        for reply in replies:
            if isinstance(reply, ErrorReply):
                if self._load or not str(reply).startswith(NO_SCRIPT):
                    raise refused(reply)
                self._load = True
                return False
        if plan.streams:
            if not self._as_served(replies[0]):
                return False
            at = 1
        at += self._load
        topics = replies[at : at + len(shape.topics)]
        at += len(topics)
        self._progress = {t: known_progress(tuple(reply)) for t, reply in zip(shape.topics, topics, strict=True)}
        counts = {topic: max(found.partitions, 1) for topic, found in self._progress.items()}
        if counts != shape.partitions:
            plan.shape = replace(shape, partitions=counts)
            return False
        self._replied = [[] for _ in shape.reads]
        for read in shape.hashes:
            entities = self._entities[read.ids].keys
            found = replies[at : at + len(entities)]
            at += len(entities)
            for place, start, end in read.places:
                self._replied[place] = [reply[start:end] for reply in found]
        return self._settle_instant(replies[at:])

    def answer(self) -> Answer:
        """The features, from the replies last taken."""
        shape, plan = self._shape, self._plan
        reading = Reading(self._now, self._instant, self._progress)
        views = []
        found = self._found or [[] for _ in shape.reads]
        for place, (wanted, read, decoder, unserved) in enumerate(
            zip(plan.wanted, shape.reads, shape.decoders, plan.unserved, strict=True)
        ):
            entities = self._entities[shape.of[place]]
            if decoder is None or read is None or not self._found:
                features = [unserved.outside] * len(entities.keys)
            else:
                features = decoder.decode(reading, found[place])
                if read.features != wanted.features:
                    features = [_as_wanted(wanted, read, one, unserved.outside) for one in features]
            views.append(ViewRows(features, entities.places, unserved.not_found))
        return Answer(views, self._instant, self.traced)

    def traced(self, rows: Sequence[int]) -> Traced:
        """What the features of some rows were read from."""
        shape = self._shape
        assert shape.definitions, "the plan was made without receipts"
        views, columns = [], []
        told = zip(shape.reads, shape.definitions, shape.sorts, strict=True)
        for place, (read, definition, sort) in enumerate(told):
            if read is None:
                continue
            view, replies = read.view, self._replied[place] if self._replied else []
            noted = replies[0] if replies and isinstance(view, PresenceView) else None
            views.append(view_read(view, sort, self._instant, self._progress, noted))
            entities = self._entities[shape.of[place]].places
            columns.append([trace(view, definition, _of(replies, entities[row])) for row in rows])
        return Traced(views, [[column[i] for column in columns] for i in range(len(rows))])

    def _as_served(self, reply: Any) -> bool:
        """Whether what was asked is what is served; if not, the plan is made anew for the next round."""
        if isinstance(reply, list):
            served = served_from(dict(_pairs(reply)))
            self._refresh = False
            if served.digest != self._shape.digest:
                self._plan.follow(served)
                return False
            return True
        self._refresh = (reply or b"") != self._shape.digest
        return not self._refresh

    def _settle_instant(self, counted: list[Any]) -> bool:
        """Decode, and move the instant up to the newest time read; False if counts must be as of that."""
        newest, shape = self._instant, self._shape
        self._found = list(self._replied)
        for place, decoder in enumerate(shape.decoders):
            if isinstance(decoder, WindowDecoder):
                known = self._progress[decoder.stream.topic].of(decoder.stream)
                tiles = self._found[place] = [decoder.tiles(known, reply) for reply in self._replied[place]]
                for one in tiles:
                    for columns in one or ():
                        newest = max(newest, columns.newest)
        replies = iter(counted)
        for presence in shape.presences:
            if self._entities[presence.ids].ids:
                reply = next(replies)
                newest = max(newest, int(reply[0] or newest))
                self._take_counts(presence, reply)
        asked, self._instant = self._instant, newest
        return newest == asked or not counted

    def _take_counts(self, presence: PresenceRead, reply: list[Any]) -> None:
        """A presence view's reply: its newest time, what was applied to it, and the counts of each group."""
        counts, width = reply[2:], presence.width
        self._found[presence.place] = [counts[at : at + width] for at in range(0, len(counts), width)]
        self._replied[presence.place] = [reply] * len(self._found[presence.place])


def _of(replies: Sequence[Any], entity: int | None) -> Any:
    """The reply of an entity; None for a row that is none, or where nothing could be read."""
    return None if entity is None or not replies else replies[entity]


def _pairs(reply: list[bytes]) -> Iterable[tuple[bytes, bytes]]:
    """The fields of a hash and their values, which the store answers by turns."""
    return zip(reply[::2], reply[1::2], strict=True)


def _as_wanted(wanted: Wanted, read: Wanted, features: list[Feature], outside: list[Feature]) -> list[Feature]:
    """The wanted features of an entity; those that are not served are outside."""
    by_name = dict(zip(read.features, features, strict=True))
    return [by_name.get(name, other) for name, other in zip(wanted.features, outside, strict=True)]
