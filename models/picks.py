"""Weekly picks: every customer's best restaurants and what is popular, ahead, into SQL tables.

A run is named by a hash of all that its rows follow from: the factorization, which stands for the orders that it was
made of, and what is popular. So the same run again is the same run. Instants are ms since the epoch, UTC.
"""

import hashlib
import time
from collections.abc import Mapping
from datetime import date, timedelta
from functools import partial

from feature_repo.clock import Clock, from_ms
from feature_repo.progress_bar import Advance
from feature_repo.settings import Settings
from models.batch_predict import Report, Rows, run_chunks, run_id
from models.embeddings import Embeddings, stored_embeddings
from models.order_history import order_counts
from models.recommend import DAYS, Ranked, chunks, picks, popular
from models.stored import PICKS, Run, StoredPredictions

MODEL = "als"
CHUNK_CUSTOMERS = 2_000


def publish_picks(
    settings: Settings,
    stored: StoredPredictions,
    now: Clock,
    progress: Advance = lambda done, total: None,
    as_of: date | None = None,
) -> Report:
    """Pick for every customer with a vector, and publish, with what was ordered most in the DAYS before.

    The vectors are the newest computed as of midnight UTC of `as_of`, by default of the newest day there is. Raises
    NoEmbeddings, NoOrders, StoredUnreachable, RunRefused (a later run is published).
    """
    began, present = time.perf_counter(), now()
    made = stored_embeddings(settings, as_of, present)
    until = from_ms(made.as_of_ms)
    counts = order_counts(settings, until - timedelta(days=DAYS), until, present)
    favourites = popular(counts)
    run = Run(
        run_id=run_id(PICKS, made.as_of_ms, made.factorization, _digest(favourites), CHUNK_CUSTOMERS),
        kind=PICKS,
        as_of_ms=made.as_of_ms,
        model=MODEL,
        model_version=made.factorization,
        input_from_ms=counts.since_ms,
        input_until_ms=counts.until_ms,
        started_ms=present,
    )
    work = [partial(_popular_rows, favourites)]
    work += [partial(_pick_rows, made, part) for part in chunks(len(made.customer_id), CHUNK_CUSTOMERS)]
    rows, written = run_chunks(stored, run, work, now, progress)
    return Report(run, rows, written, time.perf_counter() - began)


def _digest(favourites: Mapping[int | None, Ranked]) -> str:
    digest = hashlib.sha256()
    for zone_id, ranked in favourites.items():
        digest.update(repr(zone_id).encode() + ranked.restaurant_id.tobytes() + ranked.score.tobytes())
    return digest.hexdigest()


def _pick_rows(made: Embeddings, part: slice) -> Rows:
    ids, scores = picks(made.customer_vectors[part], made.restaurant_id, made.restaurant_vectors)
    return {
        "picks": [
            {"customer_id": customer, "rank": rank, "restaurant_id": restaurant, "score": score}
            for customer, best, theirs in zip(
                made.customer_id[part].tolist(), ids.tolist(), scores.tolist(), strict=True
            )
            for rank, (restaurant, score) in enumerate(zip(best, theirs, strict=True))
        ]
    }


def _popular_rows(favourites: Mapping[int | None, Ranked]) -> Rows:
    return {
        "popular": [
            {"zone_id": zone_id, "rank": rank, "restaurant_id": restaurant, "score": score}
            for zone_id, ranked in favourites.items()
            for rank, (restaurant, score) in enumerate(
                zip(ranked.restaurant_id.tolist(), ranked.score.tolist(), strict=True)
            )
        ]
    }
