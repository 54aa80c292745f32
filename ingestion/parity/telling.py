"""Stories of a seed about a user's definitions, told one after the other in a laboratory made for them."""

import time
from collections.abc import Generator, Iterable, Sequence

from feature_repo.settings import Settings
from ingestion.parity.generate import numbers_of, random_story
from ingestion.parity.lab import Lab, private_lab
from ingestion.parity.player import play
from ingestion.parity.report import ParityError, Report, Shown, Told
from ingestion.parity.shorten import shortened
from ingestion.parity.story import Story


def tell(settings: Settings, views: Sequence[str], seed: int, numbers: Iterable[int], checks: int) -> Generator[Told]:
    """Stories of these numbers until there were so many checks. Raises as `run.run` does."""
    done = 0
    with private_lab(settings, views) as lab:
        for number in numbers:
            told = _played(lab, seed, number)
            yield told
            done += told.checks
            if done >= checks:
                return


def again(settings: Settings, views: Sequence[str], seed: int, number: int) -> tuple[Report, Shown | None]:
    """Play one story of a seed again; if it goes wrong, show it. Raises as `run.run` does."""
    began = time.monotonic()
    with private_lab(settings, views) as lab:
        told = _played(lab, seed, number)
        report = Report(told.checks, len(told.mismatches), 1, time.monotonic() - began, None)
        if not told.mismatches:
            return report, None
        short, outcome = shortened(lab, _story(lab, seed, number))
    return report._replace(failed=told), Shown([str(mismatch) for mismatch in outcome.mismatches], str(short))


def _played(lab: Lab, seed: int, number: int) -> Told:
    try:
        outcome = play(lab, _story(lab, seed, number))
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ParityError(f"story {number} of seed {seed} could not be played: {what}") from error
    return Told(number, outcome.checks, [str(mismatch) for mismatch in outcome.mismatches])


def _story(lab: Lab, seed: int, number: int) -> Story:
    return random_story(lab.views, numbers_of(f"{seed}:{number}"))
