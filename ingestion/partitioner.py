"""Which partition a key belongs to: Kafka's own default, so that every producer of every home agrees."""

from functools import lru_cache
from struct import iter_unpack

_SEED = 0x9747B28C
_MIX = 0x5BD1E995
_MASK = 0xFFFFFFFF


@lru_cache(maxsize=65_536)
def murmur2(data: bytes) -> int:
    """The 32-bit murmur2 hash of `data` as Kafka's clients compute it, unsigned. Remembered, for keys come again.

    >>> murmur2(b"abc")
    479470107
    """
    mixed = _SEED ^ len(data)
    whole = len(data) & ~3
    for (word,) in iter_unpack("<I", data[:whole]):
        scrambled = word * _MIX & _MASK
        scrambled ^= scrambled >> 24
        mixed = (mixed * _MIX & _MASK) ^ (scrambled * _MIX & _MASK)
    if whole < len(data):
        mixed = (mixed ^ int.from_bytes(data[whole:], "little")) * _MIX & _MASK
    mixed ^= mixed >> 13
    mixed = mixed * _MIX & _MASK
    return mixed ^ mixed >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition, of `partitions` (at least 1), that records with `key` go to."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
