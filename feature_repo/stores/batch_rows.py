"""Writing batch rows to the online store: Feast's own layout, and the newest row wins, atomically."""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from feature_repo.stores import layout, scripts
from feature_repo.stores.redis_client import Redis
from feature_repo.stores.values import timestamp_bytes
from feature_repo.views import BatchView

KEYS_A_CALL = 100  # Redis answers nobody else while a script runs
CALLS_A_PIPELINE = 20
_VERSION = struct.Struct(">QQ")
_BIAS = 2**63


class Row(NamedTuple):
    """A row to write: join key values in the view's order, serialized ``Value``s, times in µs since the epoch."""

    ids: Sequence[object]
    values: Mapping[str, bytes]
    event_us: int
    created_us: int | None


def write_rows(client: Redis, project: str, view: BatchView, rows: Iterable[Row]) -> int:
    """Write rows; how many replaced what was stored.

    The greater (event time, created time) wins whatever the order of writing; a full tie goes to the later write.
    Features that a row leaves out keep no older value: they become null. Raises layout.BadEntity for an id that can be
    no key, or one of `redis_client.STORE_DOWN`.
    """
    key = layout.key_builder(project, view.join_keys, view.key_types)
    names = list(view.features)
    fields = [layout.feature_field(view.name, name) for name in names]
    stamp, version = layout.time_field(view.name), layout.version_field(view.name)
    script = client.register_script(scripts.NEWEST_WINS)
    written = 0
    chunks = _chunks(rows, KEYS_A_CALL)
    while calls := list(islice(chunks, CALLS_A_PIPELINE)):
        pipe = client.pipeline(transaction=False)
        for chunk in calls:
            args: list[bytes | int] = [version, len(names) + 1]
            for row in chunk:
                args.append(_VERSION.pack(row.event_us + _BIAS, (row.created_us or 0) + _BIAS))
                for name, field in zip(names, fields, strict=True):
                    args += [field, row.values.get(name, b"")]
                args += [stamp, timestamp_bytes(row.event_us)]
            script(keys=[key(row.ids) for row in chunk], args=args, client=pipe)
        written += sum(pipe.execute())
    return written


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk
