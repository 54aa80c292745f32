"""What has to be asked of the online store for some views: compiled once, and again when what is served changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from feature_repo.stores import layout
from feature_repo.stores.served import Served
from feature_repo.views import BatchView, StreamView, View, WindowView, features_hash


@dataclass(frozen=True)
class Wanted:
    """Some features of a view. `columns` are the request's names of the view's join keys, in their order."""

    view: View
    features: tuple[str, ...]
    columns: tuple[str, ...]


class Shape(NamedTuple):
    """A plan as it is asked: what it knows of what is served, and of the number of partitions."""

    digest: bytes | None
    """Of the definitions that are served; None before they are known."""
    reads: tuple[Wanted | None, ...]
    """Of each wanted what is read for it, by the definition that is served; None where nothing is."""
    topics: tuple[str, ...]
    partitions: Mapping[str, int]
    definitions: tuple[str, ...] = ()
    """Of each read the hash of its view's definition; empty where receipts are not asked for."""

    def fields(self, read: Wanted) -> list[bytes]:
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

    With `receipts` answers know what they were read from.
    """

    def __init__(self, project: str, wanted: Sequence[Wanted], receipts: bool = False) -> None:
        self._receipts = receipts
        self.project, self.wanted = project, tuple(wanted)
        self.keys = [layout.key_builder(project, w.view.join_keys, w.view.key_types) for w in wanted]
        self.streams = any(not isinstance(w.view, BatchView) for w in wanted)
        batch = tuple(w if isinstance(w.view, BatchView) else None for w in self.wanted)
        self.shape = Shape(None if self.streams else b"", batch, (), {}, self._definitions(batch))

    def follow(self, served: Served) -> None:
        """Read by these definitions from now on."""
        reads = tuple(_served(wanted, served) for wanted in self.wanted)
        views = [read.view for read in reads if read is not None]
        topics = tuple(sorted({t for view in views if not isinstance(view, BatchView) for t in view.topics}))
        partitions = {topic: self.shape.partitions.get(topic, 1) for topic in topics}
        self.shape = Shape(served.digest, reads, topics, partitions, self._definitions(reads))

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
