"""What a drill has found: the evidence that it leaves, judged once the log is known."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feast import FeatureStore

from deploy.chaos.comparison import Comparison, compare_history, compare_online
from deploy.chaos.honesty import Judge, Sighting, Verdict
from deploy.chaos.reader import Served
from deploy.chaos.truth import Archived, Truth, compare_archive
from feature_repo.clock import iso
from feature_repo.settings import Settings
from feature_repo.views import StreamView
from ingestion.log import Record

ZERO = ("lost", "duplicated", "mismatches", "dishonest", "archive_wrong", "dead_letters_missing")
"""The figures of a drill that must be 0."""

_SHOWN = 10


@dataclass(frozen=True)
class Evidence:
    """What is left when the load has ended and all of it is folded and archived."""

    records: Mapping[str, Sequence[Record]]
    """Everything in the log, by topic."""
    acknowledged: set[tuple[str, bytes]]
    """The messages that the log has acknowledged, with their topics."""
    served: Sequence[Served]
    """Every entity's features at several instants, after the load."""
    sightings: Sequence[Sighting]
    """What was served as computed meanwhile."""
    counts: Mapping[str, Any]
    """What else is worth telling."""


@dataclass(frozen=True)
class Figures:
    """The evidence, judged."""

    kinds: Counter[str]
    truth: Truth
    archived: Archived
    unlogged: int
    online: Comparison
    history: Comparison
    verdict: Verdict
    counts: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The figures by name.

        `events` are the distinct ones in the log, `records` all that lies there. `lost`: records that the archive does
        not have, and acknowledged events that the log does not have; `duplicated`: offsets that the archive has more
        than once; `archive_wrong`: archived rows that are not what lies in the log; `dead_letters_missing`: records
        that do not parse and were not said to. `mismatches`: features, online or from history, that are not what the
        log says, of `checks`, of which `nonempty` were neither null nor 0. `dishonest`: of the entities read during the
        drill and served as computed (`fresh`), those that no prefix of the log gives; of `decided` every feature could
        be decided. `unavailable` of the `reads` met no Redis. `died_unkilled`: processes that ended by themselves.
        """
        both = (self.online, self.history)
        return {
            "kills": self.kinds.total(),
            "events": self.truth.events,
            "lost": self.archived.lost + self.unlogged,
            "duplicated": self.archived.duplicated,
            "mismatches": sum(len(each.mismatches) for each in both),
            "dishonest": len(self.verdict.dishonest),
            "archive_wrong": self.archived.wrong,
            "dead_letters_missing": self.truth.dead_letters_missing(),
            "checks": sum(each.checks for each in both),
            "nonempty": sum(each.nonempty for each in both),
            "instants": len(self.history.instants),
            "records": sum(map(len, self.truth.records.values())),
            "kinds": dict(sorted(self.kinds.items())),
            **self.counts,
            "decided": self.verdict.decided,
        }

    def explain(self) -> None:
        """Say the first of what is wrong, one a line."""
        for side in (self.online, self.history):
            for wrong in side.mismatches[:_SHOWN]:
                say(
                    f"{wrong.side}: {wrong.feature} of {wrong.ids} at {iso(wrong.instant)} is {wrong.found}, "
                    f"the log says {wrong.truth}"
                )
        for seen in self.verdict.dishonest[:_SHOWN]:
            say(
                f"dishonest: {seen.view.name} of {seen.ids} at {iso(seen.instant)} was served as {dict(seen.values)} "
                f"(asked at {iso(seen.asked)}, answered at {iso(seen.answered)}): no prefix of the log gives this"
            )


def judged(
    given: Settings, store: FeatureStore, views: Sequence[StreamView], kinds: Counter[str], evidence: Evidence
) -> Figures:
    """Hold the evidence, the archive and history against the log. Needs no server."""
    truth = Truth(evidence.records)
    online = compare_online(evidence.served, truth)
    return Figures(
        kinds=kinds,
        truth=truth,
        archived=compare_archive(given, truth.records),
        unlogged=truth.lost_of(evidence.acknowledged),
        online=online,
        history=compare_history(store, views, online.instants, truth),
        verdict=Judge(truth).verdict(evidence.sightings),
        counts=evidence.counts,
    )


def say(text: str) -> None:
    """Tell whoever watches; standard output is for the figures."""
    sys.stderr.write(f"chaos: {text}\n")
