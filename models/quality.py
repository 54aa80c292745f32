"""How good predictions were: receipts held against what came true, by zone and by mode, and drift of the features.

An order counts once, by its first prediction, and once it was delivered. What came true is the time from the
prediction's instant to the delivery: that is what an ETA promises.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.table import Table

from feature_repo.clock import from_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import Connection, connect, parquet_files
from feature_repo.stores.sources import relation
from models.drift import psi
from models.receipt_archive import read_receipts, receipt_files, receipts_sql
from models.registry import Manifest

SAMPLE = 20_000
"""Drift is measured on so many predictions at most, chosen by the hash of their id."""

ALL = "all"
MAX_MINUTES = 1_440.0
"""An order that took longer is a fault of the record."""


class Quality(NamedTuple):
    """The predictions of a zone and a mode (`ALL`: of all of them), errors in minutes.

    `bias` is the mean of predicted minus true: above 0, orders came earlier than promised. `coverage_p90` is the share
    that came within the 90th percentile promised. `waiting` counts those of which no outcome is known.
    """

    zone: str
    mode: str
    outcomes: int
    waiting: int
    mae: float | None
    bias: float | None
    coverage_p90: float | None


class Drift(NamedTuple):
    """A feature's population stability index against the training sample of the model that it was served to."""

    model: str
    version: str
    feature: str
    values: int
    psi: float


_JOINED = """
WITH first AS (
    FROM ({receipts}) WHERE order_id IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY order_id ORDER BY at_ms, event_id) = 1
), joined AS (
    SELECT coalesce(zone_id::VARCHAR, 'unknown') AS zone, mode, eta_minutes, eta_minutes_p90,
        (delivered_ms - at_ms) / 60000.0 AS took
    FROM first LEFT JOIN ({outcomes}) USING (order_id)
), known AS (
    SELECT *, CASE WHEN took BETWEEN 0 AND {longest} THEN took END AS true_minutes FROM joined
)
SELECT coalesce(zone, '{all}'), coalesce(mode, '{all}'), count(true_minutes), count(*) - count(true_minutes),
    avg(abs(eta_minutes - true_minutes)), avg(eta_minutes - true_minutes),
    avg((true_minutes <= eta_minutes_p90)::INT) FILTER (WHERE true_minutes IS NOT NULL)
FROM known GROUP BY CUBE (zone, mode)
ORDER BY grouping(zone) DESC, grouping(mode) DESC, TRY_CAST(zone AS BIGINT), zone, mode
"""


def quality(settings: Settings, since_ms: int, until_ms: int) -> list[Quality]:
    """Of the predictions with since <= instant < until, by zone and mode; the first line is of all. Empty without any.

    Only what is archived counts.
    """
    files = receipt_files(settings, since_ms, until_ms)
    if not files:
        return []
    with connect(settings) as connection:
        query = _JOINED.format(
            receipts=receipts_sql(files, since_ms, until_ms, extra=False),
            outcomes=outcomes_sql(settings, since_ms),
            longest=MAX_MINUTES,
            all=ALL,
        )
        found = [Quality(*row) for row in connection.execute(query).fetchall()]
    return [line for line in found if line.outcomes or line.waiting]


def drift(settings: Settings, manifests: Sequence[Manifest], since_ms: int, until_ms: int) -> list[Drift]:
    """How far the features served to each of these models in since <= instant < until lie from its training sample.

    A model that was trained before samples were kept is left out, as is one that answered nothing.
    """
    sampled = {manifest.version: manifest for manifest in manifests if manifest.bins}
    files = receipt_files(settings, since_ms, until_ms)
    if not sampled or not files:
        return []
    served: dict[str, dict[str, list[float]]] = {}
    with connect(settings) as connection:
        for chunk in read_receipts(connection, _sample(connection, receipts_sql(files, since_ms, until_ms))):
            for prediction in chunk:
                manifest = sampled.get(prediction.model_version)
                if manifest is not None and prediction.receipt.features:
                    columns = served.setdefault(manifest.version, {name: [] for name in manifest.bins})
                    for name, column in columns.items():
                        found = prediction.receipt.features.get(name)
                        number = found is not None and isinstance(found.value, int | float)
                        column.append(float(found.value) if found is not None and number else np.nan)
    return [
        Drift(sampled[version].name, version, name, len(values), psi(sampled[version].bins[name], np.array(values)))
        for version, columns in served.items()
        for name, values in columns.items()
    ]


def quality_table(found: Sequence[Quality], since_ms: int, until_ms: int) -> Table:
    """The figures as a table."""
    title = f"Predictions from {from_ms(since_ms):%Y-%m-%d %H:%M} to {from_ms(until_ms):%Y-%m-%d %H:%M} UTC, minutes"
    table = Table("zone", "mode", "delivered", "waiting", "MAE", "bias", "within p90", title=title)
    for line in found:
        errors = (f"{line.mae:.2f}", f"{line.bias:+.2f}") if line.mae is not None else ("", "")
        covered = "" if line.coverage_p90 is None else f"{line.coverage_p90:.3f}"
        table.add_row(line.zone, line.mode, str(line.outcomes), str(line.waiting), *errors, covered)
    return table


def drift_tables(found: Sequence[Drift]) -> list[Table]:
    """A table a model: the features, those that moved most first."""
    tables = []
    for model, version in sorted({(line.model, line.version) for line in found}):
        table = Table("feature", "values", "PSI", title=f"Served to {model} {version}, against its training sample")
        of_model = [line for line in found if line.version == version]
        for line in sorted(of_model, key=lambda d: -d.psi):
            table.add_row(line.feature, str(line.values), f"{line.psi:.3f}")
        tables.append(table)
    return tables


def outcomes_sql(settings: Settings, since_ms: int) -> str:
    """A query for the deliveries of orders that were predicted for since an instant: order_id, delivered_ms.

    Of files that may hold them: an event is never appended before it happens.
    """
    day = f"date={from_ms(since_ms).date().isoformat()}"
    files = [file for file in parquet_files(settings.data / "log" / "order_delivered") if file.parent.name >= day]
    if not files:
        return "SELECT NULL::VARCHAR AS order_id, NULL::BIGINT AS delivered_ms WHERE false"
    return f"SELECT order_id, min(epoch_ms(delivered_at)) AS delivered_ms FROM {relation(files)} GROUP BY ALL"


def _sample(connection: Connection, query: str) -> str:
    count = connection.execute(f"SELECT count(*) FROM ({query})").fetchone()
    assert count is not None
    share = min(1.0, SAMPLE / max(1, count[0]))
    return f"FROM ({query}) WHERE hash(event_id) % 1000000 < {round(share * 1_000_000)}"
