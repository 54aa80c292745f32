"""An audit: many predictions held against history, and how many features are not what they should be.

A sample is one of restaurants: each with all of its predictions in the range, or none. It is chosen by a hash, so the
same seed chooses the same ones, and a greater share has all of a smaller one.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from rich.table import Column, Table

from feature_repo.clock import iso
from feature_repo.progress_bar import Advance
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import Connection, connect
from feature_repo.stores.progress import digest
from models.hindsight.compare import Sources, judge
from models.hindsight.verdicts import NOT_COMPARED, Verdict
from models.receipt import BadReceipt, Prediction, receipt_from
from models.receipt_archive import COLUMNS, receipt_files, receipts_sql

CHUNK = 5_000
"""Predictions that are computed again at a time."""

_SHOWN = 10
_SHARES = 2**64


class ParityBroken(RuntimeError):
    """More features than are let pass are not what the log says."""


class Bug(NamedTuple):
    """A feature of a prediction that is not what it should be."""

    prediction_id: str
    feature: str
    served: Any
    then: Any
    reason: str


@dataclass
class AuditReport:
    """What came of the predictions of since <= at < until (ms): how often each verdict was given, by feature.

    `unreadable` predictions have no receipt that can be read: nothing can be said of them. `bugs` are the first few.
    """

    since: int
    until: int
    receipts: int = 0
    unreadable: int = 0
    features: dict[str, Counter[Verdict]] = field(default_factory=dict)
    bugs: list[Bug] = field(default_factory=list)

    @property
    def causes(self) -> Counter[Verdict]:
        """How often each verdict was given."""
        return sum(self.features.values(), Counter[Verdict]())

    @property
    def compared(self) -> int:
        """Features and answers of which something can be said: all but those with a verdict of `NOT_COMPARED`."""
        return sum(count for verdict, count in self.causes.items() if verdict not in NOT_COMPARED)

    @property
    def ratio(self) -> float:
        """The share of bugs in what was compared; 0 of nothing."""
        return self.causes[Verdict.BUG] / self.compared if self.compared else 0.0

    def to_json(self) -> str:
        """One line with all of it."""
        figures = {
            "since": iso(self.since),
            "until": iso(self.until),
            "receipts": self.receipts,
            "unreadable": self.unreadable,
            "compared": self.compared,
            "mismatch_ratio": self.ratio,
            "causes": _plain(self.causes),
            "features": {feature: _plain(counts) for feature, counts in sorted(self.features.items())},
            "bugs": [bug._asdict() for bug in self.bugs],
        }
        return msgspec.json.encode(figures).decode()


def audit(
    settings: Settings,
    sources: Sources,
    since: int,
    until: int,
    sample: float = 1.0,
    seed: int = 0,
    chunk: int = CHUNK,
    advance: Advance = lambda done, total: None,
) -> AuditReport:
    """Hold the predictions of since <= at < until (ms) of a share of the restaurants against history.

    The archive is taken as it stands. Raises ValueError for a share outside of ]0, 1].
    """
    if not 0 < sample <= 1:
        raise ValueError(f"sample is {sample}: a share greater than 0, up to 1, is expected")
    report = AuditReport(since, until)
    files = receipt_files(settings, since, until)
    if not files or until <= since:
        return report
    with connect(settings) as reading, connect(settings) as working:
        total = _choose(reading, files, report, sample, seed)
        for predictions in _chunks(reading, files, report, chunk):
            for prediction, findings in zip(predictions, judge(working, sources, predictions), strict=True):
                for finding in findings:
                    report.features.setdefault(finding.feature, Counter())[finding.verdict] += 1
                    if finding.verdict is Verdict.BUG and len(report.bugs) < _SHOWN:
                        told = (finding.feature, finding.served, finding.then, finding.reason)
                        report.bugs.append(Bug(prediction.event_id, *told))
            report.receipts += len(predictions)
            advance(report.receipts + report.unreadable, total)
    return report


def shown(report: AuditReport) -> Table:
    """The figures as a table, for people: a line a feature, a column a verdict that was given."""
    verdicts = [verdict for verdict in Verdict if report.causes[verdict]]
    table = Table(Column("feature", overflow="fold"), *verdicts, title=f"{report.receipts} predictions")
    for feature, counts in sorted(report.features.items()):
        table.add_row(feature, *(str(counts[verdict] or "") for verdict in verdicts))
    table.add_section()
    table.add_row("all", *(str(report.causes[verdict]) for verdict in verdicts))
    return table


def write_metrics(report: AuditReport, file: Path, now: int) -> None:
    """Write the figures as a text file for Prometheus' node exporter, whole or not at all. `now` in ms."""
    registry = CollectorRegistry()
    gauges = {
        "tiffin_parity_mismatch_ratio": ("Share of bugs among the features compared", report.ratio),
        "tiffin_parity_compared_features": ("Features of predictions that were compared", report.compared),
        "tiffin_parity_audited_at_seconds": ("When the audit was made", now / 1000),
    }
    for name, (said, value) in gauges.items():
        Gauge(name, said, registry=registry).set(value)
    by_cause = Gauge(
        "tiffin_parity_features", "Features of predictions by what is said of them", ["cause"], registry=registry
    )
    for verdict in Verdict:
        by_cause.labels(cause=verdict.value).set(report.causes[verdict])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(file), registry)


def _choose(connection: Connection, files: Sequence[Path], report: AuditReport, sample: float, seed: int) -> int:
    """Make the table ``chosen``: restaurant and instant of each prediction of the sample; how many there are."""
    every = receipts_sql(list(files), report.since, report.until, extra=False)
    connection.execute(f"CREATE TEMP TABLE chosen AS SELECT restaurant_id, at_ms FROM ({every})")
    ids = [i for (i,) in connection.execute("SELECT DISTINCT restaurant_id FROM chosen").fetchall()]
    others = [i for i in ids if digest(f"{seed}:{i}") >= sample * _SHARES]
    connection.execute("DELETE FROM chosen WHERE restaurant_id IN (SELECT unnest($ids::BIGINT[]))", {"ids": others})
    ((total,),) = connection.execute("SELECT count(*) FROM chosen").fetchall()
    return int(total)


def _chunks(
    connection: Connection, files: Sequence[Path], report: AuditReport, size: int
) -> Iterator[list[Prediction]]:
    """The chosen predictions in the order of their instants, about so many at a time.

    Receipts are large: they are read slice by slice of time, for to sort them all would take all of the memory.
    """
    before = "sum(count(*)) OVER (ORDER BY at_ms) - count(*)"
    numbered = f"SELECT at_ms, ({before}) // $size AS slice FROM chosen GROUP BY at_ms"
    slices = f"SELECT min(at_ms), max(at_ms) FROM ({numbered}) GROUP BY slice ORDER BY 1"
    for first, last in connection.execute(slices, {"size": size}).fetchall():
        chosen = "restaurant_id IN (SELECT restaurant_id FROM chosen)"
        query = f"SELECT * FROM ({receipts_sql(list(files), first, last + 1, chosen)}) ORDER BY at_ms, event_id"
        predictions = []
        for row in connection.execute(query).fetchall():
            try:
                receipt = receipt_from(row[-1])
            except BadReceipt:
                report.unreadable += 1
            else:
                predictions.append(Prediction(**dict(zip(COLUMNS, row[:-1], strict=True)), receipt=receipt))
        yield predictions


def _plain(counts: Mapping[Verdict, int]) -> dict[str, int]:
    return {verdict.value: counts[verdict] for verdict in Verdict if counts[verdict]}
