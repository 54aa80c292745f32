"""Receipts in the archive: the Parquet files of the topic ``eta_predictions``, each prediction once."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from feature_repo.clock import from_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import Connection, connect, parquet_files
from feature_repo.stores.sources import relation
from models.receipt import BadReceipt, Prediction, receipt_from

TOPIC = "eta_predictions"
COLUMNS = (
    "event_id",
    "restaurant_id",
    "zone_id",
    "customer_id",
    "order_id",
    "at",
    "mode",
    "eta_minutes",
    "eta_minutes_p90",
    "model",
    "model_version",
)
"""What a prediction has beside its receipt; in queries its instant is ``at_ms``, in ms since the epoch."""

CHUNK = 2_000
_DAY = timedelta(days=1)


def receipt_files(settings: Settings, since_ms: int, until_ms: int) -> list[Path]:
    """The files that may hold predictions of since <= at < until: those of the days, and of one before and after.

    An answer's instant may be ahead of its append time by a minute, and is behind it while the log is down.
    """
    first, last = from_ms(since_ms).date() - _DAY, from_ms(until_ms).date() + _DAY
    named = (f"date={first.isoformat()}", f"date={last.isoformat()}")
    files = parquet_files(settings.data / "log" / TOPIC)
    return [file for file in files if named[0] <= file.parent.name <= named[1]]


def receipts_sql(files: list[Path], since_ms: int, until_ms: int, where: str = "true", extra: bool = True) -> str:
    """A query for the predictions of these files with since <= at < until: their `COLUMNS`, and ``extra``.

    One that was published twice counts once.
    """
    columns = ", ".join('epoch_ms("at") AS at_ms' if name == "at" else name for name in COLUMNS)
    within = f'"at" >= make_timestamptz({since_ms * 1000}) AND "at" < make_timestamptz({until_ms * 1000})'
    return (
        f"SELECT {columns}{', extra' if extra else ''} FROM {relation(files)} WHERE {within} AND {where} "
        'QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY append_time, "partition", "offset") = 1'
    )


def read_receipts(connection: Connection, query: str) -> Iterator[list[Prediction]]:
    """The predictions of a query of `receipts_sql`, in chunks; those whose receipt cannot be read are left out."""
    found = connection.execute(query)
    while rows := found.fetchmany(CHUNK):
        chunk = []
        for row in rows:
            with suppress(BadReceipt):
                chunk.append(_prediction(row))
        yield chunk


def find_receipt(settings: Settings, prediction_id: str, made_at_ms: int) -> Prediction | None:
    """The prediction with this id, if it is archived; `made_at_ms` is the time in its id."""
    slack = _DAY // timedelta(milliseconds=1)
    files = receipt_files(settings, made_at_ms, made_at_ms)
    if not files:
        return None
    query = receipts_sql(files, made_at_ms - slack, made_at_ms + slack, "event_id = $id")
    with connect(settings) as connection:
        row = connection.execute(query, {"id": prediction_id}).fetchone()
    return None if row is None else _prediction(row)


def _prediction(row: tuple[Any, ...]) -> Prediction:
    return Prediction(**dict(zip(COLUMNS, row[:-1], strict=True)), receipt=receipt_from(row[-1]))
