"""The Redis protocol (RESP): commands as bytes, so that a compiled request is packed once and not at every call."""

from collections.abc import Iterable

import hiredis

NO_SCRIPT = "NOSCRIPT"
"""What the error begins with when a server does not know a script by its hash."""

Word = bytes | str | int


class ErrorReply(Exception):
    """What the server answers to a command that it refuses; it is given as a reply, not raised."""


def command(*words: Word) -> bytes:
    """A whole command."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # typed as a tuple of one word
    return packed


def around_key(before: Iterable[Word], after: Iterable[Word]) -> tuple[bytes, bytes]:
    """A command without its key: what comes before the key's length, and what after the key."""
    first, last = list(before), list(after)
    head = b"*%d\r\n" % (len(first) + 1 + len(last)) + b"".join(map(_bulk, first)) + b"$"
    return head, b"\r\n" + b"".join(map(_bulk, last))


def reply_reader() -> hiredis.Reader:
    """A parser of replies: `feed` it, and `gets` the next one, or ``...`` if it has not come whole."""
    return hiredis.Reader(replyError=ErrorReply, notEnoughData=...)


def _bulk(word: Word) -> bytes:
    data = word if isinstance(word, bytes) else str(word).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)
