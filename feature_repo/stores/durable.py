"""Writes that outlast a power cut: the content on disk, and the name in its folder."""

import os
from pathlib import Path


def write_synced(file: Path, content: bytes) -> None:
    """Write `file` and wait until its content is on disk."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
