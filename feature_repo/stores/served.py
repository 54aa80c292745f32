"""The stream views that are served, as they were defined when their tiles were folded: kept in the online store itself.

`feast apply` changes the registry alone. Workers fold, and readers read, what is kept here; a changed definition comes
in when its tiles are folded up to the present, at a recorded vector of offsets.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from feature_repo.stores.layout import SERVED_DIGEST
from feature_repo.views import PresenceView, StreamView, WindowView

_VIEW, _SWITCHED = b"view:", b"switched:"


class Switch(msgspec.Struct, frozen=True):
    """When a definition came to be served (ms since the epoch), and the offset of each partition (``topic/number``)."""

    at: int
    offsets: dict[str, int]


class _Kept(msgspec.Struct):
    window: WindowView | None = None
    presence: PresenceView | None = None


@dataclass(frozen=True)
class Served:
    """What is served. An empty `digest` says that nothing is."""

    digest: bytes = b""
    views: Mapping[str, StreamView] = field(default_factory=dict)
    switches: Mapping[str, Switch] = field(default_factory=dict)

    def outdated(self, defined: Iterable[StreamView]) -> list[str]:
        """The names of the views that are not served as they are `defined`."""
        return [view.name for view in defined if self.views.get(view.name) != view]


def served_from(reply: Mapping[bytes, bytes]) -> Served:
    """What the hash in the store says."""
    views, switches = {}, {}
    for name, data in reply.items():
        if name.startswith(_VIEW):
            kept = msgspec.json.decode(data, type=_Kept)
            view = kept.window or kept.presence
            assert view is not None
            views[view.name] = view
        elif name.startswith(_SWITCHED):
            switches[name.removeprefix(_SWITCHED).decode()] = msgspec.json.decode(data, type=Switch)
    return Served(reply.get(SERVED_DIGEST, b""), views, switches)


def served_hash(views: Iterable[StreamView], switches: Mapping[str, Switch]) -> dict[bytes, bytes]:
    """The hash that says so."""
    said: dict[bytes, bytes] = {}
    for view in views:
        kept = _Kept(window=view) if isinstance(view, WindowView) else _Kept(presence=view)
        said[_VIEW + view.name.encode()] = msgspec.json.encode(kept, order="deterministic")
        if view.name in switches:
            said[_SWITCHED + view.name.encode()] = msgspec.json.encode(switches[view.name])
    content = b"\0".join(part for pair in sorted(said.items()) for part in pair)
    return said | {SERVED_DIGEST: hashlib.sha256(content).hexdigest()[:16].encode()}
