"""One prediction, computed again: of each feature what was served, what its own reading gives, what is known now."""

from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from feature_repo.clock import iso
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import connect
from feature_repo.stores.hindsight_sql import HISTORY, LAG, LATE, OWN
from models.hindsight.answers import Pair
from models.hindsight.compare import Sources, judge
from models.hindsight.verdicts import ANSWER, Finding, Verdict
from models.prediction_ids import made_at
from models.receipt import Prediction
from models.receipt_archive import find_receipt

_EVENT_IS = {
    LATE: "appended after it was read",
    LAG: "not folded yet",
    HISTORY: "not of that log",
    OWN: "its own order",
}


class UnknownPrediction(LookupError):
    """No receipt has this id; says where was looked."""


@dataclass(frozen=True)
class Replay:
    """A prediction and what is said of it; `would_be` is (median, p90) minutes by what is known now, if that is all
    known.
    """

    prediction: Prediction
    findings: list[Finding]
    would_be: Pair | None

    @property
    def explained(self) -> bool:
        """Whether nothing is a bug."""
        return all(finding.verdict is not Verdict.BUG for finding in self.findings)


def replay(settings: Settings, sources: Sources, prediction_id: str) -> Replay:
    """The prediction, computed again; the archive is taken as it stands.

    Raises NoPredictionId, UnknownPrediction, BadReceipt.
    """
    at = made_at(prediction_id)
    prediction = find_receipt(settings, prediction_id, at)
    if prediction is None:
        raise UnknownPrediction(f"no prediction {prediction_id} of about {iso(at)} is archived in {settings.data}/log")
    with connect(settings) as connection:
        ((*findings, answer),) = judge(connection, sources, [prediction], detail=True)
    would_be = sources.answers.would_be(prediction, {f.feature: f.now for f in findings if f.told})
    return Replay(prediction, [*findings, answer._replace(now=would_be)], would_be)


def shown(replay: Replay) -> Group:
    """The prediction as a table, for people."""
    prediction = replay.prediction
    of = ", ".join(f"{name} {key}" for name, key in prediction.receipt.keys.items()) or prediction.restaurant_id
    title = f"{prediction.event_id}: {of} at {iso(prediction.at)}, {prediction.mode}, {prediction.model_version}"
    table = Table(title=title, title_justify="left")
    for heading in ("feature", "served", "by its reading", "known now", "verdict"):
        table.add_column(heading, overflow="fold")
    notes: list[str] = []
    for finding in replay.findings:
        values = (_text(v) for v in (finding.served, finding.then, finding.now))
        name = f"{ANSWER}, p90" if finding.feature == ANSWER else finding.feature
        table.add_row(name, *values, finding.verdict.value)
        if finding.reason:
            notes.append(f"{name}: {finding.verdict.value}: {finding.reason}")
            notes += [f"    {e.id} appended {iso(e.appended)}: {_EVENT_IS.get(e.why, '')}" for e in finding.events]
    return Group(table, *map(escape, notes))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(_text(each) for each in value)
    return f"{value:.6g}" if isinstance(value, float) else escape(str(value))
