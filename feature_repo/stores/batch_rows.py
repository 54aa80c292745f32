"""Writing batch rows to the online store: Feast's own layout, and the newest row wins, atomically."""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from feature_repo.stores import layout, scripts
from feature_repo.stores.redis_client import Redis
from feature_repo.stores.values import timestamp_bytes
from feature_repo.views import BatchView

KEYS_A_CALL = 100  # Redis answers nobody else while a script runs
CALLS_A_PIPELINE = 20
_VERSION = struct.Struct(">QQ")
_BIAS = 2**63
T = TypeVar("T")


class Row(NamedTuple):
    """A row to write: join key values in the view's order, serialized ``Value``s, times in µs since the epoch."""

    ids: Sequence[object]
    values: Mapping[str, bytes]
    event_us: int
    created_us: int | None


def write_rows(client: Redis, project: str, view: BatchView, rows: Iterable[Row], expire_s: int | None = None) -> int:
    """Write rows; how many replaced what was stored.

    The greater (event time, created time) wins whatever the order of writing; a full tie goes to the later write.
    Features that a row leaves out keep no older value: they become null. With `expire_s` the entity's row is deleted
    that many seconds after the last write to it; this needs Valkey 9 or Redis 7.4. Raises layout.BadEntity for an id
    that can be no key, or one of `redis_client.STORE_DOWN`.
    """
    key = layout.key_builder(project, view.join_keys, view.key_types)
    names = list(view.features)
    fields = _fields(view)
    stamp, version = fields[-2:]
    script = client.register_script(scripts.NEWEST_WINS)
    written = 0
    chunks = _chunks(rows, KEYS_A_CALL)
    while calls := list(islice(chunks, CALLS_A_PIPELINE)):
        pipe = client.pipeline(transaction=False)
        for chunk in calls:
            args: list[bytes | int] = [version, len(names) + 1]
            for row in chunk:
                args.append(_VERSION.pack(row.event_us + _BIAS, (row.created_us or 0) + _BIAS))
                for name, field in zip(names, fields[:-2], strict=True):
                    args += [field, row.values.get(name, b"")]
                args += [stamp, timestamp_bytes(row.event_us)]
            keys = [key(row.ids) for row in chunk]
            script(keys=keys, args=args, client=pipe)
            if expire_s is not None:
                for entity in keys:  # the row alone: the entity's hash holds other views, and the tiles of streams
                    pipe.execute_command("HEXPIRE", entity, expire_s, "FIELDS", len(fields), *fields)  # type: ignore[no-untyped-call]
        written += sum(reply for reply in pipe.execute() if isinstance(reply, int))
    return written


def delete_rows(client: Redis, project: str, view: BatchView) -> None:
    """Delete every row of a view; an entity's other views stay. Looks at every key of the store."""
    ours = layout.project_keys(project, [view.join_keys])
    fields = _fields(view)
    keys = (key for key in client.scan_iter(count=1000) if ours(key))
    for chunk in _chunks(keys, KEYS_A_CALL * CALLS_A_PIPELINE):
        pipe = client.pipeline(transaction=False)
        for key in chunk:
            pipe.hdel(key, *fields)  # type: ignore[arg-type]  # redis-py types names as text
        pipe.execute()


def unpack_version(data: bytes) -> tuple[int, int | None]:
    """Event and created time, in µs since the epoch, of a row's version field; None for a row without created time."""
    event, created = _VERSION.unpack(data)
    return event - _BIAS, None if created == _BIAS else created - _BIAS


def _fields(view: BatchView) -> list[bytes]:
    """The fields of a row: its features, then its event time, then its version."""
    name = view.stored_name
    features = (layout.feature_field(name, feature) for feature in view.features)
    return [*features, layout.time_field(name), layout.version_field(name)]


def _chunks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk
