"""Training sets from receipts: what was really served, joined with what came true."""

from datetime import datetime

import numpy as np
import pandas as pd
from feast import FeatureStore

from feature_repo.clock import to_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import connect, literal, parquet_files
from feature_repo.stores.sources import relation
from models.dataset import MAX_DELIVERY_MINUTES, Dataset, NoTrainingRows, dataset_of, once_sql, vector_of
from models.receipt import Receipt, holds, receipt_from
from models.receipt_archive import CHUNK, receipt_files, receipts_sql

STORED_MODE = "stored"


def build_from_receipts(
    store: FeatureStore, settings: Settings, service_name: str, since: datetime, until: datetime
) -> Dataset:
    """The training set of a feature service from what was really served: the receipts of orders that were delivered.

    Orders are those predicted for in [since, until), each once, by its first prediction; the features are as they were
    served, null where they were withheld, their instant the prediction's. The label is minutes from placed to
    delivered. Left out are stored answers, which have no features, and predictions that had their own order among the
    recent ones already: at the moment that the model is for, nobody has. Raises NoTrainingRows.
    """
    vector = vector_of(store.get_feature_service(service_name))
    since_ms, until_ms = to_ms(since), to_ms(until)
    files = receipt_files(settings, since_ms, until_ms)
    if not files:
        raise NoTrainingRows(
            f"no receipt of {since.isoformat()} until {until.isoformat()} is archived: train on history"
        )
    served = f"order_id IS NOT NULL AND mode <> {literal(STORED_MODE)}"
    first = "QUALIFY row_number() OVER (PARTITION BY order_id ORDER BY at_ms, event_id) = 1"
    receipts = f"FROM ({receipts_sql(files, since_ms, until_ms, served)}) {first}"
    orders = parquet_files(settings.data / "log" / "order_placed")  # every record of an order: history may have it, too
    placed = (
        f'SELECT order_id, list({{part: "partition", o: "offset"}}) AS places FROM {relation(orders)} '
        'WHERE "partition" >= 0 GROUP BY order_id'
        if orders
        else "SELECT NULL::VARCHAR AS order_id, NULL AS places WHERE false"
    )
    labels = f"SELECT order_id, delivery_minutes FROM ({once_sql(settings, 'order_delivered', 'delivery_minutes')})"
    query = (
        f"SELECT r.order_id, r.at_ms, r.extra, d.delivery_minutes, p.places FROM ({receipts}) r "
        f"JOIN ({labels}) d USING (order_id) LEFT JOIN ({placed}) p USING (order_id) ORDER BY r.at_ms, r.order_id"
    )
    rows, left_out = [], 0
    with connect(settings) as connection:
        found = connection.execute(query)
        while chunk := found.fetchmany(CHUNK):  # receipts are long: few of them at a time
            for order_id, at, extra, minutes, places in chunk:
                receipt = receipt_from(extra)
                own = any(holds(receipt, "order_placed", place["part"], place["o"]) for place in places or ())
                if own or not 0.0 <= minutes <= MAX_DELIVERY_MINUTES:
                    left_out += 1
                    continue
                rows.append((order_id, at, minutes, [_number(receipt, name) for name in vector.stored]))
    if not rows:
        raise NoTrainingRows(
            f"no order predicted for from {since.isoformat()} until {until.isoformat()} was delivered ({left_out} left "
            "out): there is nothing to train on"
        )
    order_ids, instants, labels_found, stored = zip(*rows, strict=True)
    features = pd.DataFrame(np.array(stored, dtype=np.float64), columns=list(vector.stored))
    return dataset_of(service_name, vector, features, labels_found, order_ids, instants, left_out)


def _number(receipt: Receipt, name: str) -> float:
    """A feature as the model took it; NaN where it had no value, or was not read."""
    served = receipt.features.get(name)
    return float(served.value) if served is not None and isinstance(served.value, int | float) else np.nan
