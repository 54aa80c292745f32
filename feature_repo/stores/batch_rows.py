"""Writing batch rows to the online store: Feast's own layout, and the newest row wins, atomically."""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from feast.value_type import ValueType

from feature_repo.stores import layout, packing, scripts
from feature_repo.stores.redis_client import RawConnection, Redis, raw_connection
from feature_repo.stores.values import timestamp_bytes
from feature_repo.views import BatchView

KEYS_A_CALL = 100  # Redis answers nobody else while a script runs
CALLS_A_PIPELINE = 20
_VERSION = struct.Struct(">QQ")
_BIAS = 2**63
_DIGEST = hashlib.sha1(scripts.NEWEST_WINS.encode(), usedforsecurity=False).hexdigest().encode()
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
    version = fields[-1]
    script = client.register_script(scripts.NEWEST_WINS)
    written = 0
    chunks = _chunks(rows, KEYS_A_CALL)
    while calls := list(islice(chunks, CALLS_A_PIPELINE)):
        pipe = client.pipeline(transaction=False)
        for chunk in calls:
            args: list[bytes | int] = [version, len(fields) - 1, *fields[:-1]]
            for row in chunk:
                args.append(_VERSION.pack(row.event_us + _BIAS, (row.created_us or 0) + _BIAS))
                args += [row.values.get(name, b"") for name in names]
                args.append(timestamp_bytes(row.event_us))
            keys = [key(row.ids) for row in chunk]
            script(keys=keys, args=args, client=pipe)
            if expire_s is not None:
                for entity in keys:  # the row alone: the entity's hash holds other views, and the tiles of streams
                    pipe.execute_command("HEXPIRE", entity, expire_s, "FIELDS", len(fields), *fields)  # type: ignore[no-untyped-call]
        written += sum(reply for reply in pipe.execute() if isinstance(reply, int))
    return written


def write_batches(
    client: Redis,
    project: str,
    view: BatchView,
    batches: Iterable[pa.RecordBatch],
    expire_s: int | None = None,
) -> Iterator[int]:
    """Write rows by the batch, as `write_rows` does; after each, how many of its rows were dealt with.

    Batches have a column a join key and a feature, named like it, and ``__event`` and ``__created`` (µs, nulls of the
    latter allowed). Rows that lack a join key are rows of nobody. While the store writes one batch the next is packed;
    no more are held. Raises what `write_rows` does.
    """
    load = b"*3\r\n" + b"".join(map(packing.word, (b"SCRIPT", b"LOAD", scripts.NEWEST_WINS.encode())))
    with raw_connection(client) as connection, ThreadPoolExecutor(1) as sender:
        under_way: Future[int] | None = None
        for batch in batches:
            commands, count = _commands(project, view, batch, load, expire_s)
            if under_way is not None:
                yield under_way.result()
            under_way = sender.submit(_run, connection, commands, count, batch.num_rows)
        if under_way is not None:
            yield under_way.result()


def _run(connection: RawConnection, commands: bytes, count: int, rows: int) -> int:
    connection.run(commands, count)
    return rows


def _commands(
    project: str, view: BatchView, batch: pa.RecordBatch, first: bytes, expire_s: int | None
) -> tuple[bytes, int]:
    """What writes a batch, behind the command `first`, and how many commands that are."""
    fields = _fields(view)
    named = b"".join(map(packing.word, (fields[-1], b"%d" % (len(fields) - 1), *fields[:-1])))
    keys, rows = _packed(project, view, batch)
    commands: list[bytes | memoryview[int]] = [first]
    for start in range(0, len(keys), KEYS_A_CALL):
        stop = min(start + KEYS_A_CALL, len(keys))
        commands.append(b"*%d\r\n" % (4 + len(fields) + (stop - start) * (1 + len(fields))))
        commands += [packing.word(b"EVALSHA"), packing.word(_DIGEST), packing.word(b"%d" % (stop - start))]
        commands += [packing.data_of(keys, start, stop), named, packing.data_of(rows, start, stop)]
    count = 1 + -(-len(keys) // KEYS_A_CALL)
    if expire_s is not None and len(
        keys
    ):  # the row alone: the entity's hash holds other views, and the tiles of streams
        told = b"".join(map(packing.word, (b"%d" % expire_s, b"FIELDS", b"%d" % len(fields), *fields)))
        expiring = packing.joined(b"*%d\r\n" % (5 + len(fields)) + packing.word(b"HEXPIRE"), keys, told)
        commands.append(packing.data_of(expiring, 0, len(keys)))
        count += len(keys)
    return b"".join(commands), count


def _packed(project: str, view: BatchView, batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """The keys of a batch's rows, and what the script is given of each: version, values and event time, as words."""
    for key in view.join_keys:
        batch = batch.filter(batch.column(key).is_valid())
    event = batch.column("__event").to_numpy()
    created = batch.column("__created").fill_null(0).to_numpy()
    version = np.stack([event, created], axis=1).astype(np.uint64) + np.uint64(_BIAS)
    values = [packing.serialized_values(batch.column(name), kind) for name, kind in view.features.items()]
    row = [packing.fixed(version.astype(">u8")), *values, packing.serialized_instants(event)]
    return packing.words(_keys(project, view, batch)), packing.joined(*map(packing.words, row))


def _keys(project: str, view: BatchView, batch: pa.RecordBatch) -> pa.Array:
    columns = [batch.column(key) for key in view.join_keys]
    if view.key_types == (ValueType.INT64,) and columns[0].type == pa.int64():
        before, after = layout.whole_key_parts(project, view.join_keys[0])
        return packing.joined(before, packing.fixed(columns[0].to_numpy().astype("<i8")), after)
    key = layout.key_builder(project, view.join_keys, view.key_types)
    return pa.array([key(ids) for ids in zip(*(column.to_pylist() for column in columns), strict=True)], pa.binary())


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
