"""Where things lie in the online store: keys and fields. Batch features lie exactly where Feast itself would put them.

<entity key><project>                             hash: an entity
    murmur3(view:feature)                           a batch feature, a serialized Value
    _ts:<view>                                      its event time, a serialized Timestamp
    _vs:<view>                                      event and created time: what decides between two writes
    murmur3(view:tiles hash:topic) + partition      tiles of a stream view (6 bytes)
{tiffin:<project>:presence:<view>:<hash>}:*       a presence view, in one slot
tiffin:<project>:served                           hash: the stream views that are served, as they are defined for it;
                                                  `digest` changes with any of them
tiffin:<project>:progress:<topic>                 hash: `<partition>:<tiles hash>` a view's progress in a partition;
                                                  `n` the number of partitions
tiffin:<project>:seen:<topic>:<log>:<partition>:<minute>   ids of the events of one minute, for repeats
tiffin:<project>:side-seen:...                    the same, of a view that is folded beside those that are served
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import SupportsIndex

import mmh3
from feast.protos.feast.types.Value_pb2 import ValueType as Tag
from feast.value_type import ValueType

from feature_repo.stores.values import whole_seconds
from feature_repo.views import PresenceView, WindowView

PARTITION_COUNT = b"n"
SERVED_DIGEST = b"digest"
TILES_FIELD_BYTES = 6
_I64, _I32 = struct.Struct("<IIq"), struct.Struct("<IIi")


class BadEntity(ValueError):
    """An entity id that cannot be a key: the join key, its value and what was expected."""


def key_builder(
    project: str, join_keys: Sequence[str], types: Sequence[ValueType]
) -> Callable[[Sequence[object]], bytes]:
    """A function from join key values (in the order of `join_keys`, which is sorted) to the entity's Redis key.

    The key is Feast's ``serialize_entity_key`` (version 3) followed by the project. The function raises BadEntity for
    a null or a value of another type.
    """
    head = _head(join_keys)
    tail = project.encode()
    packers = [_packer(name, kind) for name, kind in zip(join_keys, types, strict=True)]
    if len(packers) == 1:
        (only,) = packers
        return lambda values: head + only(values[0]) + tail
    return lambda values: head + b"".join(pack(v) for pack, v in zip(packers, values, strict=True)) + tail


def whole_key_parts(project: str, join_key: str) -> tuple[bytes, bytes]:
    """What lies before and behind the 8 bytes (little-endian) of the id in the key of an entity with one INT64 id."""
    return _head([join_key]) + struct.pack("<II", Tag.INT64, 8), project.encode()


def project_keys(project: str, join_keys: Iterable[Sequence[str]]) -> Callable[[bytes], bool]:
    """A test of Redis keys: this project's streams, and entities with one of these sets of join keys."""
    heads = {_head(names): len(names) for names in join_keys}
    streams = (f"tiffin:{project}:".encode(), f"{{tiffin:{project}:".encode())
    tail = project.encode()

    def ours(key: bytes) -> bool:
        if key.startswith(streams):
            return True
        for head, count in heads.items():
            at = len(head)
            if key.startswith(head):
                for _ in range(count):
                    at += 8 + int.from_bytes(key[at + 4 : at + 8], "little")
                return key[at:] == tail
        return False

    return ours


def feature_field(view: str, feature: str) -> bytes:
    """The field of a batch feature: murmur3 of ``view:feature``, little-endian, as Feast has it."""
    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def time_field(view: str) -> bytes:
    """The field of a batch row's event time."""
    return f"_ts:{view}".encode()


def version_field(view: str) -> bytes:
    """The field of a batch row's (event time, created time)."""
    return f"_vs:{view}".encode()


def tiles_field(view: WindowView, partition: int) -> bytes:
    """The field of a stream view's tiles of one partition.

    One a partition for every view: a reader then needs to know nothing of how producers choose partitions.
    """
    return struct.pack("<IH", mmh3.hash(f"{view.name}:{view.tiles_hash}:{view.topic}", signed=False), partition)


def progress_key(project: str, topic: str) -> bytes:
    """The hash that holds the progress of each of the topic's partitions."""
    return f"tiffin:{project}:progress:{topic}".encode()


def progress_field(tiles_hash: str, partition: int) -> bytes:
    """The field of a topic's progress that speaks of one view in one partition."""
    return f"{partition}:{tiles_hash}".encode()


def served_key(project: str) -> bytes:
    """The hash that holds the definitions that are served."""
    return f"tiffin:{project}:served".encode()


def seen_key(project: str, topic: str, log: int, partition: int, bucket: int, side: bool = False) -> bytes:
    """The ids of the events of one bucket of event time; `log` is the hash of the topic's identity."""
    return f"tiffin:{project}:{'side-' if side else ''}seen:{topic}:{log}:{partition}:{bucket}".encode()


def presence_prefix(project: str) -> bytes:
    """What the keys of every presence view begin with."""
    return f"{{tiffin:{project}:presence:".encode()


def presence_base(project: str, view: PresenceView) -> bytes:
    """What the keys of a presence view begin with; the braces keep them in one slot of a Redis Cluster."""
    return presence_prefix(project) + f"{view.name}:{view.tiles_hash}}}".encode()


def log_number(view: PresenceView, topic: str, partition: int) -> int:
    """A number for a partition of one of a presence view's topics; later topics have the greater ones."""
    return view.topics.index(topic) << 16 | partition


def group_name(ids: Sequence[object]) -> str:
    """What a presence view calls the group with these join key values: the values joined by a unit separator."""
    return "\x1f".join(str(value) for value in ids)


def _head(join_keys: Sequence[str]) -> bytes:
    return struct.pack("<I", len(join_keys)) + b"".join(
        struct.pack("<II", Tag.STRING, len(name.encode())) + name.encode() for name in join_keys
    )


def _packer(name: str, kind: ValueType) -> Callable[[object], bytes]:
    def raw(value: object) -> bytes:
        if not isinstance(value, bytes):
            raise BadEntity(f"{name}: {value!r} is not bytes")
        return struct.pack("<II", Tag.BYTES, len(value)) + value

    def instant(value: object) -> bytes:
        try:
            return _I64.pack(Tag.UNIX_TIMESTAMP, 8, whole_seconds(value))
        except (TypeError, struct.error):
            raise BadEntity(f"{name}: {value!r} is neither a datetime nor whole seconds since the epoch") from None

    def text(value: object) -> bytes:
        if not isinstance(value, str):
            raise BadEntity(f"{name}: {value!r} is not text")
        try:
            data = value.encode()
        except UnicodeEncodeError:  # half a surrogate pair, which JSON lets through
            raise BadEntity(f"{name}: {value!r} is not text that UTF-8 can hold") from None
        return struct.pack("<II", Tag.STRING, len(data)) + data

    def whole(form: struct.Struct, tag: int, size: int) -> Callable[[object], bytes]:
        def pack(value: object) -> bytes:
            if type(value) is not int and (isinstance(value, bool) or not isinstance(value, SupportsIndex)):
                raise BadEntity(f"{name}: {value!r} is not a whole number")
            try:
                return form.pack(tag, size, value)
            except struct.error:
                raise BadEntity(f"{name}: {value} does not fit into {size * 8} bits") from None

        return pack

    if kind == ValueType.STRING:
        return text
    if kind == ValueType.INT64:
        return whole(_I64, Tag.INT64, 8)
    if kind == ValueType.INT32:
        return whole(_I32, Tag.INT32, 4)
    if kind == ValueType.BYTES:
        return raw
    if kind == ValueType.UNIX_TIMESTAMP:
        return instant
    raise BadEntity(
        f"{name}: {kind.name} join keys are not supported: use INT64, INT32, STRING, BYTES or UNIX_TIMESTAMP"
    )
