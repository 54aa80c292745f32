"""Many stories about a user's definitions, in one process or several: what `tiffin parity` runs."""

import logging
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import count
from multiprocessing.connection import Connection, wait

import structlog

from feature_repo.settings import Settings
from ingestion.parity.report import ParityError, Report, Told

_END_S = 30.0


def run(
    settings: Settings,
    views: Sequence[str],
    seed: int,
    checks: int,
    processes: int = 1,
    advance: Callable[[float, float], None] = lambda done, total: None,
) -> Report:
    """Tell stories about the stream views of the repository folder, all or those named, until there were `checks`.

    Story number K of a seed is the same in every run. The run ends at the first story with a mismatch. Raises
    ValueError for a name that no view has, BadDefinition for definitions that cannot be served, ParityError.
    """
    began = time.monotonic()
    done = stories = 0
    failed: Told | None = None
    with closing(_told(settings, views, seed, checks, processes)) as source:
        for told in source:
            done, stories = done + told.checks, stories + 1
            advance(done, checks)
            if told.mismatches:
                failed = told
                break
    return Report(done, len(failed.mismatches) if failed else 0, stories, time.monotonic() - began, failed)


def silence() -> None:
    """Say nothing of what workers say: in these stories they are interrupted all the time."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _told(settings: Settings, views: Sequence[str], seed: int, checks: int, processes: int) -> Generator[Told]:
    if processes > 1:
        return _share(settings, views, seed, checks, processes)
    from ingestion.parity.telling import tell  # noqa: PLC0415  # a process that only counts needs no Feast

    return tell(settings, views, seed, count(), checks)


def _share(settings: Settings, views: Sequence[str], seed: int, checks: int, processes: int) -> Generator[Told]:
    """The same from several processes, each with a laboratory of its own and its share of the numbers and checks."""
    spawned = multiprocessing.get_context("spawn")  # a fork would share what Feast and DuckDB hold
    readers, children = [], []
    try:
        for first in range(processes):
            reader, writer = spawned.Pipe(duplex=False)
            arguments = (writer, settings, views, seed, (first, processes), -(-checks // processes))
            child = spawned.Process(target=_work, args=arguments, daemon=True)
            child.start()
            writer.close()
            readers.append(reader)
            children.append(child)
        yield from _received(list(readers))
        for child in children:
            child.join(_END_S)
    finally:
        for reader in readers:
            reader.close()  # at the latest, a child ends when it cannot tell its next story
        for child in children:
            child.terminate()
        for child in children:
            child.join(_END_S)
            child.kill()


def _received(readers: list[Connection]) -> Iterator[Told]:
    while readers:
        for ready in wait(readers):
            assert isinstance(ready, Connection)
            try:
                message = ready.recv()
            except EOFError:
                raise ParityError("a process ended before its share was done: the others were stopped") from None
            if message is None:
                readers.remove(ready)
            elif isinstance(message, Exception):
                raise message
            else:
                yield message


def _work(
    writer: Connection, settings: Settings, views: Sequence[str], seed: int, numbers: tuple[int, int], checks: int
) -> None:
    """A process of its own: sends what came of each story, then None, or the error that ended it."""
    from ingestion.parity.telling import tell  # noqa: PLC0415  # see above

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it too, and ends this one
    signal.signal(signal.SIGTERM, _end)
    silence()
    try:
        with closing(tell(settings, views, seed, count(*numbers), checks)) as stories:
            for told in stories:
                writer.send(told)
        writer.send(None)
    except (BrokenPipeError, SystemExit):
        return
    except Exception as error:
        writer.send(ValueError(str(error)) if isinstance(error, ValueError) else ParityError(str(error)))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends already


def _end(number: int, _: object) -> None:
    """Unwind, once: told again, the laboratory would not be cleared away."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)
