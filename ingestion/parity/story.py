"""What a story is made of: everything that happens to a log, its workers and its clock, as plain data.

Instants are ms since the epoch. A story says everything outright, so playing it again does the same again.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from feature_repo.clock import iso
from ingestion.log import Message

_SHOWN = 20  # messages of a batch

WORKERS = 2
"""Workers that a story has at most. Each believes that every partition is its own."""


@dataclass(frozen=True)
class Publish:
    """Messages are appended to a topic, at the present instant."""

    topic: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Wait:
    """The clock goes on to `until`."""

    until: int


@dataclass(frozen=True)
class Interruption:
    """What comes between a worker and the store, before or after the worker's call number `call` within a step.

    `what` is "dies" (no call of it follows), "fails" (the store does not answer) or "rival" (the other worker makes a
    step meanwhile).
    """

    call: int
    what: str
    after: bool


@dataclass(frozen=True)
class Step:
    """A worker reads and folds up to so many records; it begins if it is not there."""

    worker: int
    max_records: int
    interruption: Interruption | None = None


@dataclass(frozen=True)
class Leave:
    """A worker ends: it hands over, or dies without a word."""

    worker: int
    hands_over: bool


@dataclass(frozen=True)
class Check:
    """Everything is folded; then all features of `rows` ({join key: an id a row}) are held at each instant in turn.

    The reader's clock is `behind` ms behind at the first of them. The clock stands at the last when it is done.
    """

    instants: tuple[int, ...]
    rows: dict[str, list[Any]]
    behind: int = 0


Action = Publish | Wait | Step | Leave | Check


@dataclass(frozen=True)
class Story:
    """What happens from `start` on, on topics of so many partitions."""

    start: int
    partitions: int
    actions: tuple[Action, ...]

    def __str__(self) -> str:
        """A line an action, for people who look for what went wrong."""
        head = f"from {iso(self.start)}, {self.partitions} partitions"
        return "\n".join([head, *(f"  {_said(action)}" for action in self.actions)])


def _said(action: Action) -> str:
    match action:
        case Publish(topic, messages):
            more = f", and {len(messages) - _SHOWN} more" if len(messages) > _SHOWN else ""
            return f"publish to {topic}: " + ", ".join(_readable(message) for message in messages[:_SHOWN]) + more
        case Wait(until):
            return f"wait until {iso(until)}"
        case Check(instants, rows, behind):
            return f"check {rows} at {', '.join(map(iso, instants))}, first {behind} ms behind"
    return str(action)


def _readable(message: Message) -> str:
    try:
        return f"{message.key!r} {msgspec.json.decode(message.value)}"
    except (msgspec.DecodeError, UnicodeDecodeError):
        return f"{message.key!r} {message.value!r}"
