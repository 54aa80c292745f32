"""Ids of predictions: ULIDs (26 characters of Crockford's base 32), which sort by time. See the ULID specification."""

import secrets

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def prediction_id(now: int, random_bits: int | None = None) -> str:
    """A ULID: 48 bits of `now` (ms since the epoch), then 80 random bits.

    >>> prediction_id(0, 0), prediction_id(1, 33)
    ('00000000000000000000000000', '00000000010000000000000011')
    """
    number = (now % 2**48) << 80 | (secrets.randbits(80) if random_bits is None else random_bits)
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
