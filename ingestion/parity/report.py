"""What a run says. Imports nothing that is slow, so a process that only counts what others find starts at once."""

from typing import NamedTuple


class Told(NamedTuple):
    """What came of one story: how much was held against the oracle and history, and what was not the same, in words."""

    number: int
    checks: int
    mismatches: list[str]


class Report(NamedTuple):
    """What came of a run; `failed` is the story in which a mismatch was found, where the run ended."""

    checks: int
    mismatches: int
    stories: int
    seconds: float
    failed: Told | None


class Shown(NamedTuple):
    """A story that goes wrong, as short as it could be made, and what is not the same in it, in words."""

    mismatches: list[str]
    story: str


class ParityError(RuntimeError):
    """A story could not be played to its end; says which, and why."""
