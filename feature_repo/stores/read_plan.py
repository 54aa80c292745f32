"""What has to be asked of the online store for some views: compiled once, and again when what is served changes."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from feature_repo.stores import layout, scripts
from feature_repo.stores.features import Decoder, decoder
from feature_repo.stores.origins import stream_sort
from feature_repo.stores.reads import StreamSort
from feature_repo.stores.resp import around_key, command
from feature_repo.stores.served import Served
from feature_repo.stores.values import NATIVE, Form
from feature_repo.views import BatchView, PresenceView, StreamView, View, WindowView, features_hash

_READ_SCRIPT = hashlib.sha1(scripts.PRESENCE_READ.encode(), usedforsecurity=False).hexdigest()
LOAD_SCRIPT = command("SCRIPT", "LOAD", scripts.PRESENCE_READ)


@dataclass(frozen=True)
class Wanted:
    """Some features of a view. `columns` are the request's names of the view's join keys, in their order."""

    view: View
    features: tuple[str, ...]
    columns: tuple[str, ...]


class Ids(NamedTuple):
    """Columns of a request that name an entity, and the function from their values to its key."""

    columns: tuple[str, ...]
    key: Callable[[Sequence[object]], bytes]


class HashRead(NamedTuple):
    """One command an entity for all of its views that lie in its hash."""

    ids: int
    """Which of the plan's `Ids` name it."""
    head: bytes
    tail: bytes
    """The command around its key."""
    places: tuple[tuple[int, int, int], ...]
    """Of each view: its place among what is wanted, and its part of the reply, from one field to before another."""


class PresenceRead(NamedTuple):
    """One command for all groups of a presence view: the words before and after instant and ttl, then groups."""

    ids: int
    place: int
    """Among what is wanted."""
    before: tuple[bytes | str | int, ...]
    after: tuple[bytes | str | int, ...]
    width: int
    """How many counts there are of each group."""


@dataclass(frozen=True)
class Shape:
    """A plan as it is asked: what it knows of what is served, and of the number of partitions."""

    project: str
    of: tuple[int, ...]
    """Of each wanted which `Ids` name its entity."""
    digest: bytes | None
    """Of the definitions that are served; None before they are known."""
    reads: tuple[Wanted | None, ...]
    """Of each wanted what is read for it, by the definition that is served; None where nothing is."""
    topics: tuple[str, ...]
    partitions: Mapping[str, int]
    form: Form
    definitions: tuple[str, ...] = ()
    """Of each read the hash of its view's definition; empty where receipts are not asked for."""

    @cached_property
    def decoders(self) -> list[Decoder | None]:
        """Of each read what makes features of its replies."""
        return [None if read is None else decoder(read.view, read.features, self.form) for read in self.reads]

    @cached_property
    def sorts(self) -> list[StreamSort | None]:
        """Of each read what is told of it in receipts, if it is of a stream."""
        return [
            None if read is None or isinstance(read.view, BatchView) else stream_sort(read.view, definition)
            for read, definition in zip(self.reads, self.definitions, strict=True)
        ]

    @cached_property
    def progress(self) -> bytes:
        """The commands that read how far each topic is folded."""
        return b"".join(command("HGETALL", layout.progress_key(self.project, topic)) for topic in self.topics)

    @cached_property
    def hashes(self) -> list[HashRead]:
        """What is read of entities' hashes."""
        fields: dict[int, list[bytes]] = {}
        places: dict[int, list[tuple[int, int, int]]] = {}
        for place, (read, ids) in enumerate(zip(self.reads, self.of, strict=True)):
            if read is not None and not isinstance(read.view, PresenceView):
                found = fields.setdefault(ids, [])
                start = len(found)
                found += self._fields(read)
                places.setdefault(ids, []).append((place, start, len(found)))
        return [HashRead(ids, *around_key(["HMGET"], fields[ids]), tuple(places[ids])) for ids in fields]

    @cached_property
    def presences(self) -> list[PresenceRead]:
        """What is read of presence."""
        found = []
        for place, (read, ids) in enumerate(zip(self.reads, self.of, strict=True)):
            if read is not None and isinstance(read.view, PresenceView):
                states = [read.view.counts[feature] for feature in read.features]
                before = ("EVALSHA", _READ_SCRIPT, 1, layout.presence_base(self.project, read.view))
                found.append(PresenceRead(ids, place, before, (read.view.ttl, len(states), *states), len(states)))
        return found

    def _fields(self, read: Wanted) -> list[bytes]:
        """The fields of one entity's hash that a view needs."""
        view = read.view
        if isinstance(view, WindowView):
            return [layout.tiles_field(view, p) for p in range(self.partitions[view.topic])]
        assert isinstance(view, BatchView)
        name = view.stored_name
        versions = [layout.version_field(name)] if self.definitions else []
        return [*(layout.feature_field(name, f) for f in read.features), layout.time_field(name), *versions]


class ReadPlan:
    """The plan for a list of views, as the registry defines them. Safe to share: `shape` is replaced, never changed.

    With `receipts` answers know what they were read from; values come in `form`.
    """

    def __init__(self, project: str, wanted: Sequence[Wanted], receipts: bool = False, form: Form = NATIVE) -> None:
        self._receipts = receipts
        self.project, self.wanted = project, tuple(wanted)
        named = list(dict.fromkeys((w.columns, w.view.join_keys, w.view.key_types) for w in wanted))
        self.ids = [Ids(columns, layout.key_builder(project, keys, types)) for columns, keys, types in named]
        self.streams = any(not isinstance(w.view, BatchView) for w in wanted)
        served = layout.served_key(project)
        self.ask_digest = command("HGET", served, layout.SERVED_DIGEST)
        self.ask_served = command("HGETALL", served)
        batch = tuple(w if isinstance(w.view, BatchView) else None for w in self.wanted)
        of = tuple(named.index((w.columns, w.view.join_keys, w.view.key_types)) for w in wanted)
        digest = None if self.streams else b""
        self.shape = Shape(project, of, digest, batch, (), {}, form, self._definitions(batch))
        self.unserved = [decoder(w.view, w.features, form) for w in wanted]
        """Of each wanted what says that nothing of it is known or served."""

    def follow(self, served: Served) -> None:
        """Read by these definitions from now on."""
        reads = tuple(_served(wanted, served) for wanted in self.wanted)
        views = [read.view for read in reads if read is not None]
        topics = tuple(sorted({t for view in views if not isinstance(view, BatchView) for t in view.topics}))
        partitions = {topic: self.shape.partitions.get(topic, 1) for topic in topics}
        self.shape = replace(
            self.shape,
            digest=served.digest,
            reads=reads,
            topics=topics,
            partitions=partitions,
            definitions=self._definitions(reads),
        )

    def _definitions(self, reads: Sequence[Wanted | None]) -> tuple[str, ...]:
        if not self._receipts:
            return ()
        return tuple("" if r is None else features_hash([(r.view, tuple(r.view.features))]) for r in reads)

    def views(self) -> list[tuple[View, tuple[str, ...]]]:
        """The views as they are read, with their served features; as defined where none is served yet."""
        known = zip(self.wanted, self.shape.reads, strict=True)
        return [(read.view, read.features) for read in (read or wanted for wanted, read in known)]


def _served(wanted: Wanted, served: Served) -> Wanted | None:
    if isinstance(wanted.view, BatchView):
        return wanted
    view: StreamView | None = served.views.get(wanted.view.name)
    if view is None or (view.join_keys, view.key_types) != (wanted.view.join_keys, wanted.view.key_types):
        return None
    return replace(wanted, view=view, features=tuple(name for name in wanted.features if name in view.features))
