"""Progress bars for what takes more than a moment."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

Advance = Callable[[float, float], None]
"""Told how much is done, and of how much."""


@contextmanager
def bar(what: str) -> Iterator[Advance]:
    """A bar on standard error, moved by what it gives."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda done, total: progress.update(task, completed=done, total=max(total, done))
        progress.update(task, completed=1.0, total=1.0)
