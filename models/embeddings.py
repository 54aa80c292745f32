"""Embeddings of customers and restaurants from who ordered where; the only module that imports ``implicit``.

Alternating least squares on implicit feedback (Hu, Koren, Volinsky: Collaborative Filtering for Implicit Feedback
Datasets, ICDM 2008): what is fitted is the preference p = 1 where a customer ordered at a restaurant, else 0, with the
confidence c = 1 + alpha * r, r the number of orders. Their product of vectors says how well the two suit each other.

Both sides of one factorization are comparable with each other and with nothing else: fitted anew, the axes mean
something else, even on almost the same orders. So every row carries the name of the factorization that it is of.
"""

import hashlib
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from importlib.metadata import version

import numpy as np
import pyarrow as pa
from implicit.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from feature_repo.clock import from_ms, iso, to_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import connect, literal, parquet_files
from feature_repo.stores.parquet_files import append_file
from models.order_history import Ints, OrderCounts, order_counts
from models.recommend import CUSTOMERS, DAYS, RESTAURANTS, SIDES

_INSTANT = pa.timestamp("us", tz="UTC")

Vectors = NDArray[np.float32]


class NoEmbeddings(ValueError):
    """There are no vectors of one factorization to work with: of which day, and why."""


@dataclass(frozen=True)
class Parameters:
    """What a factorization is made by. `days` of history before the midnight that it is as of."""

    factors: int = 32
    regularization: float = 300.0
    alpha: float = 160.0
    iterations: int = 15
    days: int = DAYS
    seed: int = 7


@dataclass(frozen=True)
class Embeddings:
    """One factorization: vectors [rows, factors] by ascending id. `as_of_ms` is a midnight UTC, none of it is later."""

    factorization: str
    as_of_ms: int
    restaurant_id: Ints
    restaurant_vectors: Vectors
    customer_id: Ints
    customer_vectors: Vectors


def midnight(day: date) -> datetime:
    """When `day` begins, UTC."""
    return datetime.combine(day, time(), UTC)


def factorize(counts: OrderCounts, parameters: Parameters) -> Embeddings:
    """The vectors of all that ordered or were ordered from. Equal input gives equal bytes, on one machine.

    Orders without a customer are left out. Raises NoEmbeddings if all are.
    """
    orders = counts.of_customers()
    if not len(orders.orders):
        raise NoEmbeddings(f"none of {counts.total} orders names its customer: nobody can be told from anybody else")
    customers, row = np.unique(orders.customer_id, return_inverse=True)
    restaurants, column = np.unique(orders.restaurant_id, return_inverse=True)
    shape = (len(customers), len(restaurants))
    times = csr_matrix((orders.orders.astype(np.float32), (row, column)), shape)  # sums a pair's zones
    # `implicit` takes what it is given as the confidence; its own alpha would leave out the 1.
    times.data = np.float32(1.0) + np.float32(parameters.alpha) * times.data
    with threadpool_limits(1):  # sums in several threads have no certain order
        model = AlternatingLeastSquares(
            factors=parameters.factors,
            regularization=parameters.regularization,
            alpha=1.0,
            iterations=parameters.iterations,
            use_gpu=False,
            num_threads=1,
            random_state=parameters.seed,
        )
        model.fit(times, show_progress=False)
    return Embeddings(
        _name(orders, parameters), counts.until_ms, restaurants, model.item_factors, customers, model.user_factors
    )


def compute(settings: Settings, as_of: date, now_ms: int, parameters: Parameters | None = None) -> dict[str, int]:
    """Append the embeddings as of midnight UTC of `as_of` to both views' batch rows; the rows written, by view.

    They cover orders placed before it, of records appended by `now_ms`, which is the rows' ``created``. What is stored
    already as the newest of that day is not written again. Raises NoOrders, NoEmbeddings, and ValueError for a
    midnight still to come.
    """
    chosen = parameters or Parameters()
    until = midnight(as_of)
    if to_ms(until) > now_ms:
        raise ValueError(
            f"as of {as_of}: it is {iso(now_ms)}, and what is ordered until that midnight is not known yet"
        )
    counts = order_counts(settings, until - timedelta(days=chosen.days), until, now_ms)
    made = factorize(counts, chosen)
    sides = {
        RESTAURANTS: (made.restaurant_id, made.restaurant_vectors),
        CUSTOMERS: (made.customer_id, made.customer_vectors),
    }
    written = {}
    for view, (ids, vectors) in sides.items():
        stored, _ = _stored(settings, view, made.as_of_ms, made.factorization, now_ms)
        written[view] = 0 if np.array_equal(stored, ids) else len(ids)
        if written[view]:
            append_file(settings.data / "batch" / view, _table(view, made, ids, vectors, now_ms))
    return written


def stored_embeddings(settings: Settings, as_of: date | None, now_ms: int) -> Embeddings:
    """The newest factorization written by `now_ms`: as of midnight of `as_of`, or of the newest day there is.

    Raises NoEmbeddings if there is none, or if only one side of it is there.
    """
    midnight_ms = None if as_of is None else to_ms(midnight(as_of))
    newest = _newest(settings, midnight_ms, now_ms)
    if newest is None:
        day = "" if as_of is None else f" as of {as_of}"
        raise NoEmbeddings(f"{settings.data / 'batch' / CUSTOMERS} holds no rows{day}: run `tiffin embeddings` first")
    as_of_ms, factorization = newest
    restaurants, restaurant_vectors = _stored(settings, RESTAURANTS, as_of_ms, factorization, now_ms)
    customers, customer_vectors = _stored(settings, CUSTOMERS, as_of_ms, factorization, now_ms)
    if not len(restaurants):
        raise NoEmbeddings(
            f"{RESTAURANTS} has no rows of factorization {factorization} as of {from_ms(as_of_ms).date()}, whose "
            "customers are there: nothing can be compared with them. Run `tiffin embeddings` again"
        )
    return Embeddings(factorization, as_of_ms, restaurants, restaurant_vectors, customers, customer_vectors)


def _name(orders: OrderCounts, parameters: Parameters) -> str:
    """A name that stands for the vectors: of all that they are computed from."""
    digest = hashlib.sha256(repr((asdict(parameters), version("implicit"), orders.until_ms)).encode())
    for column in (orders.customer_id, orders.restaurant_id, orders.orders):
        digest.update(column.tobytes())
    return digest.hexdigest()[:16]


def _table(view: str, made: Embeddings, ids: Ints, vectors: Vectors, now_ms: int) -> pa.Table:
    side = SIDES[view]
    offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * vectors.shape[1])
    instants = {name: pa.array([from_ms(t)] * len(ids), _INSTANT) for name, t in _stamps(made, now_ms).items()}
    return pa.table(
        {
            f"{side}_id": pa.array(ids, pa.int64()),
            f"{side}_vector": pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel(), pa.float32())),
            f"{side}_factorization": pa.array([made.factorization] * len(ids), pa.string()),
            **instants,
        }
    )


def _stamps(made: Embeddings, now_ms: int) -> dict[str, int]:
    return {"event_time": made.as_of_ms, "created": now_ms}


def _rows(settings: Settings, view: str) -> str | None:
    """A query for the newest row of each entity and day, or None if there are no rows."""
    files = parquet_files(settings.data / "batch" / view)
    if not files:
        return None
    paths = ", ".join(literal(str(file)) for file in files)
    side = SIDES[view]
    return (
        f"SELECT {side}_id AS id, {side}_vector AS vector, {side}_factorization AS factorization, created, "
        f"epoch_ms(event_time) AS as_of_ms FROM read_parquet([{paths}]) WHERE created <= $now "
        f"QUALIFY row_number() OVER (PARTITION BY {side}_id, event_time ORDER BY created DESC) = 1"
    )


def _newest(settings: Settings, as_of_ms: int | None, now_ms: int) -> tuple[int, str] | None:
    """(as_of_ms, factorization) of the customers' newest row."""
    rows = _rows(settings, CUSTOMERS)
    if rows is None:
        return None
    of_day = "" if as_of_ms is None else f"WHERE as_of_ms = {as_of_ms} "
    with connect(settings) as db:
        query = f"SELECT as_of_ms, factorization FROM ({rows}) {of_day}ORDER BY as_of_ms DESC, created DESC, id LIMIT 1"
        found = db.execute(query, {"now": from_ms(now_ms)}).fetchone()
    return None if found is None else (int(found[0]), str(found[1]))


def _stored(settings: Settings, view: str, as_of_ms: int, factorization: str, now_ms: int) -> tuple[Ints, Vectors]:
    """Ids and vectors whose newest row of that day is of this factorization, by ascending id."""
    rows = _rows(settings, view)
    if rows is None:
        return np.empty(0, np.int64), np.empty((0, 0), np.float32)
    with connect(settings) as db:
        query = f"SELECT id, vector FROM ({rows}) WHERE as_of_ms = $as_of AND factorization = $name ORDER BY id"
        given = {"now": from_ms(now_ms), "as_of": as_of_ms, "name": factorization}
        table = db.execute(query, given).to_arrow_table().combine_chunks()
    ids = table["id"].to_numpy().astype(np.int64)
    flat = table["vector"].combine_chunks().flatten() if len(ids) else pa.array([], pa.float32())
    return ids, flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(ids), -1 if len(ids) else 0)
