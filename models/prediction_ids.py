"""Ids of predictions: ULIDs (26 characters of Crockford's base 32), which sort by time. See the ULID specification."""

import re
import secrets

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


_LATEST_MS = 253_402_000_000_000  # days before the last that a datetime can hold
PATTERN = f"^[0-7][{_ALPHABET}]{{25}}$"
"""What an id looks like."""


class NoPredictionId(ValueError):
    """Text that is no prediction's id."""


def prediction_id(now: int, random_bits: int | None = None) -> str:
    """A ULID: 48 bits of `now` (ms since the epoch), then 80 random bits.

    >>> prediction_id(0, 0), prediction_id(1, 33)
    ('00000000000000000000000000', '00000000010000000000000011')
    """
    number = (now % 2**48) << 80 | (secrets.randbits(80) if random_bits is None else random_bits)
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])


def made_at(text: str) -> int:
    """When an id was made, in ms since the epoch. Raises NoPredictionId.

    >>> made_at(prediction_id(1_700_000_000_123))
    1700000000123
    """
    number = 0
    for character in text[:10] if re.fullmatch(PATTERN, text) else "":
        number = number << 5 | _ALPHABET.index(character)
    if not 0 < number < _LATEST_MS:
        raise NoPredictionId(f"{text[:80]!r} is no prediction's id: the 26 characters of a ULID are expected")
    return number
