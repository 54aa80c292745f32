"""What JSON decoders leave to chance, decided by the bytes alone: so that all who read a record agree on it.

How deeply a decoder follows brackets depends on the stack of its caller; and one that skips a field does not look at
the UTF-8 in it, which another that keeps the field does.
"""

import re

MAX_DEPTH = 100

_BRACKETS = re.compile(rb'[{}[\]]|"(?:[^"\\]|\\.)*"?', re.DOTALL)


def json_fault(value: bytes) -> str | None:
    """Why a record's bytes are refused whatever they say: nested too deeply, or not UTF-8. None if they are neither."""
    if value.count(b"{") + value.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH}"
    if not value.isascii():
        try:
            value.decode()
        except UnicodeDecodeError as error:
            return f"not UTF-8 ({error})"
    return None


def _depth(value: bytes) -> int:
    """How deep the brackets outside of strings are nested."""
    depth = deepest = 0
    for token in _BRACKETS.findall(value):
        if token in (b"{", b"["):
            depth += 1
            deepest = max(deepest, depth)
        elif token in (b"}", b"]"):
            depth -= 1
    return deepest
