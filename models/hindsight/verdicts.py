"""What can be said of a feature that was served, and when which is said. Pure: what was found is given.

A feature is compared twice: with what its own reading gives (the part of the log, or the batch row, that its receipt
names), and with what is known now of that instant. The first must be the same, or it is a `BUG`. Where the second
differs there is a cause. Of several the one that we have most to answer for is said: `LAG`, then `LATE_EVENT`, then
`HISTORY`. An order that counted itself is `SELF_INCLUDED` whatever else: no training row sees that.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from feature_repo.clock import iso
from feature_repo.stores.hindsight import BatchAnswer, Event, StreamAnswer
from feature_repo.stores.hindsight_sql import HISTORY, LAG, LATE, OWN
from models.receipt import BatchRead, Served

TOLERANCE = 1e-9
"""Of numbers with a fraction: history rounds once more than serving does, which is less than this by far."""


class Verdict(StrEnum):
    """What is said of a feature, or of an answer."""

    EQUAL = "equal"
    LATE_EVENT = "late_event"
    LAG = "lag"
    HISTORY = "history"
    SELF_INCLUDED = "self_included"
    DEFINITION_CHANGED = "definition_changed"
    MODEL_CHANGED = "model_changed"
    UNKNOWN_LOG = "unknown_log"
    NOT_ARCHIVED = "not_archived"
    NOT_KEPT = "not_kept"
    BUG = "bug"


NOT_COMPARED = frozenset(
    {
        Verdict.SELF_INCLUDED,
        Verdict.DEFINITION_CHANGED,
        Verdict.MODEL_CHANGED,
        Verdict.UNKNOWN_LOG,
        Verdict.NOT_ARCHIVED,
        Verdict.NOT_KEPT,
    }
)
"""Verdicts of which nothing can be said about parity: they are in no ratio."""

ANSWER = "eta_minutes"
"""The answer itself is judged, too, under this name."""


NOT_FOLDED = "withheld: the stream was not folded far enough"


class Finding(NamedTuple):
    """A feature (or the answer) as served, by its own reading (`then`), and as known `now`; and what is said of it.

    Where nothing was computed again, it is not `told`.
    """

    feature: str
    served: Any
    status: str
    then: Any
    now: Any
    verdict: Verdict
    reason: str = ""
    events: Sequence[Event] = ()
    told: bool = True


def same(a: Any, b: Any) -> bool:
    """Whether two values are one: nulls, equal ones, or numbers with a fraction but for `TOLERANCE`."""
    a, b = _known(a), _known(b)
    if (isinstance(a, float) and isinstance(b, int | float)) or (isinstance(b, float) and isinstance(a, int)):
        return math.isclose(a, b, rel_tol=TOLERANCE)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def of_stream(feature: str, served: Served, told: StreamAnswer, is_entity: bool) -> Finding:
    """What is said of a stream feature. `is_entity`: whether the request named an entity of its view."""
    verdict, reason = _stream(served, told, is_entity)
    return Finding(feature, served.value, served.status, told.then, told.now, verdict, reason, told.events)


def withheld(feature: str, served: Served, reason: str) -> Finding:
    """What is said of a stream feature that was not served for its age, where nothing can be computed again."""
    verdict = Verdict.LAG if served.value is None else Verdict.BUG
    return Finding(feature, served.value, served.status, None, None, verdict, reason, told=False)


def of_batch(
    feature: str, name: str, served: Served, read: BatchRead, told: BatchAnswer, instant: int, now: int
) -> Finding:
    """What is said of the batch feature `name`, answered at `instant` by a reader whose clock showed `now` (ms)."""
    then = told.then.get(name) if served.status != "OUTSIDE_MAX_AGE" else None
    verdict, reason = _batch(name, served, read, told, instant, now)
    return Finding(feature, served.value, served.status, then, told.now.get(name), verdict, reason)


def _stream(served: Served, told: StreamAnswer, is_entity: bool) -> tuple[Verdict, str]:
    if served.status == "OUTSIDE_MAX_AGE":
        return withheld("", served, "").verdict, NOT_FOLDED
    if served.status == "NOT_FOUND":
        return _expect(not is_entity and served.value is None, "not found, though a stream has something of every id")
    if (fault := _fault(served)) or not same(served.value, told.then):
        return Verdict.BUG, fault or "its own part of the log says otherwise"
    if told.why & OWN:
        return Verdict.SELF_INCLUDED, "the order asked about was in the store already"
    return (Verdict.EQUAL, "") if same(served.value, told.now) else _cause(told.why)


def _cause(why: int) -> tuple[Verdict, str]:
    if why & LAG:
        return Verdict.LAG, "events that the log had were not folded yet"
    if why & LATE:
        return Verdict.LATE_EVENT, "events were appended after it was read"
    if why & HISTORY:
        return Verdict.HISTORY, "events never lay in the log that was read"
    return Verdict.BUG, "no event explains what is known now"


def _batch(
    name: str, served: Served, read: BatchRead, told: BatchAnswer, instant: int, now: int
) -> tuple[Verdict, str]:
    fault = _batch_fault(name, served, read, told, instant)
    if fault is not None:
        return Verdict.BUG, fault
    if same(served.value, told.now.get(name)):
        return Verdict.EQUAL, ""
    event, created = told.newest or (None, None)
    if event is None:
        return Verdict.BUG, "no archived row is known of that instant"
    if event == read.event_us and read.created_us in (None, created):
        return Verdict.BUG, "the row is the newest one by now, too"
    row = f"the row of {iso(event // 1000)}"
    if created is not None and created > now * 1000:
        return Verdict.LATE_EVENT, f"{row} was created after it was read, at {iso(created // 1000)}"
    return Verdict.LAG, f"{row} was not materialized yet"


def _batch_fault(name: str, served: Served, read: BatchRead, told: BatchAnswer, instant: int) -> str | None:
    """Why what was served cannot come of the row that was read; None if it can."""
    if read.event_us is None or served.status == "NOT_FOUND":
        found = read.event_us is not None or served.status != "NOT_FOUND" or served.value is not None
        return "a row was read and none was found, or the other way round" if found else None
    if read.event_us > instant * 1000:
        return f"the row is of {iso(read.event_us // 1000)}, after the instant of the answer"
    if not told.found:
        return f"no archived row is of {iso(read.event_us // 1000)} and was created when it was"
    if served.status == "OUTSIDE_MAX_AGE":
        return None if served.value is None else "too old to be served, and has a value"
    if not same(served.value, told.then.get(name)):
        return "the row that was read says otherwise"
    return _fault(served)


def _fault(served: Served) -> str | None:
    null = _known(served.value) is None
    expected = "NULL_VALUE" if null else "PRESENT"
    return None if served.status == expected else f"its status is {served.status}, not {expected}"


def _expect(fine: bool, otherwise: str) -> tuple[Verdict, str]:
    return (Verdict.EQUAL, "") if fine else (Verdict.BUG, otherwise)


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
