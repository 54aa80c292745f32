"""Which log the files of an archived topic are of: offsets of two logs have nothing to do with each other.

The first log that is archived has the topic's own folder, another a folder ``log=<hash>`` below it. In each lies a file
with the identity of its log. Receipts name a log by `progress.digest` of that identity.
"""

from collections.abc import Mapping
from pathlib import Path

from feature_repo.stores.progress import digest

FIRST_LOG = "first-log"
"""The file in a topic's folder with the identity of the first log."""

THIS_LOG = "identity"
"""The file in a folder ``log=<hash>`` with the identity of its log."""

FOLDER = "log="
SQL_HOME = f"regexp_extract(filename, '/({FOLDER}[^/]+)/date=', 1)"
"""SQL for the home of a file: the name of its log's folder, '' for the topic's own."""


def home_of(file: Path) -> str:
    """The home of a file of a topic: the name of its log's folder, '' for the topic's own."""
    home = file.parent.parent.name
    return home if home.startswith(FOLDER) else ""


def homes(folder: Path) -> Mapping[int, str]:
    """Of each log of a topic that says whose it is: its home, by the digest of its identity."""
    found = {"": folder / FIRST_LOG} | {path.parent.name: path for path in folder.glob(f"{FOLDER}*/{THIS_LOG}")}
    return {digest(path.read_text()): home for home, path in found.items() if path.exists()}
