"""Finding one prediction again: in the archive, or in the part of the log that is not archived yet."""

from feature_repo.settings import Settings
from ingestion.events import PREDICTIONS
from ingestion.log import EventLog
from models.prediction_ids import made_at
from models.receipt import BadReceipt, Prediction, prediction_from
from models.receipt_archive import find_receipt

MAX_READ = 500_000
"""So many records of the log are looked at, at most: the archive is never further behind."""

_SLACK_MS = 60_000  # an answer's instant may be ahead of the log's clock
_POLL_MS, _RECORDS = 50, 5_000


class PredictionFinder:
    """Looks into the archive of the settings' repository, then into `log` from when the prediction was made."""

    def __init__(self, settings: Settings, log: EventLog) -> None:
        self._settings, self._log = settings, log

    def __call__(self, prediction_id: str) -> Prediction | None:
        """The prediction, if it is kept. Raises LogUnavailable."""
        return find_receipt(self._settings, prediction_id, made_at(prediction_id)) or self._in_log(prediction_id)

    def _in_log(self, prediction_id: str) -> Prediction | None:
        since, mark = made_at(prediction_id) - _SLACK_MS, prediction_id.encode()
        consumer = self._log.consumer(
            [PREDICTIONS], None, lambda gained: {where: self._log.offset_at(where, since) for where in gained}
        )
        try:
            read = 0
            while read < MAX_READ:
                records = consumer.poll(_POLL_MS, _RECORDS)
                for record in (record for batch in records.values() for record in batch):
                    read += 1
                    if mark in record.value and (found := _readable(record.value)) and found.event_id == prediction_id:
                        return found
                ends = consumer.ends()
                if ends and all(consumer.position(where) >= end for where, end in ends.items()):
                    return None
            return None
        finally:
            consumer.close()


def _readable(value: bytes) -> Prediction | None:
    try:
        return prediction_from(value)
    except BadReceipt:
        return None
