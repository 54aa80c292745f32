"""Reading request bodies, bounded."""

import msgspec
from fastapi import Request

from serving.problems import Problem

MAX_BYTES = 5_000_000
JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a body as JSON raises."""


async def read_body(request: Request, most: int = MAX_BYTES) -> bytes:
    """The body. Raises Problem 413 as soon as it is longer than `most` bytes."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise Problem(413, "Too large", f"more than {most} bytes at once: nothing was taken, send less")
        chunks.append(chunk)
    return b"".join(chunks)
