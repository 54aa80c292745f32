"""Predictions against history: what is said of each feature of each, by what its receipt says it was read from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from feature_repo.stores.duckdb_client import Connection
from feature_repo.stores.hindsight import (
    BatchAnswer,
    BatchQuestion,
    Definition,
    Prefix,
    StreamAnswer,
    StreamQuestion,
    ask_batch,
    ask_stream,
    names_entity,
)
from feature_repo.stores.log_homes import homes
from feature_repo.views import BatchView, StreamView
from models.hindsight.answers import Answers
from models.hindsight.verdicts import NOT_FOLDED, Finding, Verdict, of_batch, of_stream, withheld
from models.receipt import BatchRead, Prediction, Served, StreamRead

OWN_ORDER = "order_id"
"""The column of events by which an order is known."""

Covered = Callable[[str, str], Mapping[int, int]]
"""(topic, home of a log) -> of each partition the highest offset that is archived."""

_NOTHING = Prefix(None, ())


@dataclass(frozen=True)
class Sources:
    """What predictions are held against: the views by name, the answers, and how far the archive goes.

    Without `covered` everything that was read is taken to be archived.
    """

    definitions: Mapping[str, Definition]
    answers: Answers
    covered: Covered | None = None

    @cached_property
    def places(self) -> Mapping[str, tuple[str, str]]:
        """The view and the feature by the feature's full name."""
        return {
            f"{view}__{feature}": (view, feature)
            for view, definition in self.definitions.items()
            for feature, _ in definition.join.features
        }


def judge(
    connection: Connection, sources: Sources, predictions: Sequence[Prediction], detail: bool = False
) -> list[list[Finding]]:
    """What is said of each prediction: of its features as the receipt has them, then of its answer.

    In `detail` findings name events. `connection` is taken for this alone.
    """
    told: dict[tuple[int, str], Any] = {}
    for view, definition in sources.definitions.items():
        reads = [(i, p, p.receipt.reads.get(view)) for i, p in enumerate(predictions)]
        asked = [(i, p, read) for i, p, read in reads if read is not None and read.definition == definition.meaning]
        if isinstance(definition.join.view, BatchView):
            rows = [(i, p, read) for i, p, read in asked if isinstance(read, BatchRead)]
            given = [BatchQuestion(p.receipt.keys, p.at, read.event_us, read.created_us) for _, p, read in rows]
            answers: Sequence[Any] = ask_batch(connection, definition.join, given) if given else []
            told |= {(i, view): answer for (i, _, _), answer in zip(rows, answers, strict=True)}
        else:
            streams = [(i, p, read) for i, p, read in asked if isinstance(read, StreamRead)]
            questions = [_question(definition.join.view, p, read) for _, p, read in streams]
            answers = ask_stream(connection, definition.join, questions, OWN_ORDER, detail) if questions else []
            told |= {(i, view): answer for (i, _, _), answer in zip(streams, answers, strict=True)}
    archive = _Archive(sources)
    answered = sources.answers.judge(predictions)
    return [
        [*(_feature(archive, p, name, served, told, i) for name, served in p.receipt.features.items()), answered[i]]
        for i, p in enumerate(predictions)
    ]


class _Archive:
    """How far the archive goes, asked once a log."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._known: dict[tuple[str, int], Mapping[int, int]] = {}

    def lacks(self, view: str, read: StreamRead) -> bool:
        """Whether something of what was read is not archived."""
        covered = self.sources.covered
        join = self.sources.definitions[view].join
        if covered is None or not isinstance(join.view, StreamView):
            return False
        for topic, source in zip(join.view.topics, join.sources, strict=True):
            prefix = _prefix(read, topic)
            if prefix.log is not None:
                if (topic, prefix.log) not in self._known:
                    home = homes(source.path).get(prefix.log)
                    self._known[topic, prefix.log] = {} if home is None else covered(topic, home)
                known = self._known[topic, prefix.log]
                if any(upto > known.get(p, -1) + 1 for p, upto in enumerate(prefix.upto)):
                    return True
        return False


def _feature(
    archive: _Archive, prediction: Prediction, name: str, served: Served, told: Mapping[tuple[int, str], Any], i: int
) -> Finding:
    sources = archive.sources
    if name not in sources.places:
        return _unsaid(name, served, Verdict.DEFINITION_CHANGED, "it is not defined any more")
    view, feature = sources.places[name]
    read, answer = prediction.receipt.reads.get(view), told.get((i, view))
    if read is None:
        return _unread(name, served)
    if read.definition != sources.definitions[view].meaning:
        return _unsaid(name, served, Verdict.DEFINITION_CHANGED, f"{view} is defined otherwise by now")
    if isinstance(read, StreamRead) and isinstance(sources.definitions[view].join.view, StreamView):
        return _stream(archive, prediction, name, served, answer and answer[feature])
    if isinstance(read, BatchRead) and isinstance(answer, BatchAnswer):
        return of_batch(name, feature, served, read, answer, prediction.at, prediction.receipt.now)
    return _unsaid(name, served, Verdict.BUG, f"the receipt says that {view} was read as what it is not")


def _stream(
    archive: _Archive, prediction: Prediction, name: str, served: Served, answer: StreamAnswer | None
) -> Finding:
    view, _ = archive.sources.places[name]
    if answer is None:
        if served.status == "OUTSIDE_MAX_AGE":
            return withheld(name, served, NOT_FOLDED)
        return _unsaid(name, served, Verdict.UNKNOWN_LOG, "no archived file says that it is of the log that was read")
    keys, read = prediction.receipt.keys, prediction.receipt.reads[view]
    is_entity = served.status != "NOT_FOUND" or names_entity(archive.sources.definitions[view].join, keys)
    finding = of_stream(name, served, answer, is_entity)
    if finding.verdict is Verdict.BUG and isinstance(read, StreamRead) and archive.lacks(view, read):
        return finding._replace(verdict=Verdict.NOT_ARCHIVED, reason="not all of what was read is in the archive")
    return finding


def _unread(name: str, served: Served) -> Finding:
    if served.status == "OUTSIDE_MAX_AGE":
        return withheld(name, served, "withheld: its view was not served yet")
    return _unsaid(name, served, Verdict.BUG, "the receipt does not say what it was read from")


def _question(view: Any, prediction: Prediction, read: StreamRead) -> StreamQuestion:
    receipt = prediction.receipt
    prefixes = [_prefix(read, topic) for topic in view.topics]
    return StreamQuestion(receipt.keys, read.instant, receipt.now, prediction.order_id, prefixes)


def _prefix(read: StreamRead, topic: str) -> Prefix:
    """What was read of a topic; partitions that nothing was folded of have no log, and no events."""
    found = read.topics.get(topic)
    if found is None:
        return _NOTHING
    logs = {log for log in found.log if log is not None}
    # Partitions change over to another log one by one; a reading of two is of neither.
    return Prefix(min(logs) if len(logs) == 1 else None if not logs else -1, found.prefix)


def _unsaid(feature: str, served: Served, verdict: Verdict, reason: str) -> Finding:
    return Finding(feature, served.value, served.status, None, None, verdict, reason, told=False)
