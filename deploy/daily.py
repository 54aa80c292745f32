"""What is done once a day, as a plain list of steps: batch features, vectors, online store, predictions made ahead.

Each step may be repeated at any time: what was done already is not done again, what was cut off goes on.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

from feast import FeatureStore

from feature_repo.clock import Clock, from_ms
from feature_repo.progress_bar import bar
from feature_repo.settings import Settings
from feature_repo.views import BatchView, compile_view
from ingestion.batch_features import compute
from models.batch_predict import TIMEOUT_S, NothingToPredict, predict_etas
from models.embeddings import NoEmbeddings
from models.embeddings import compute as compute_embeddings
from models.order_history import NoOrders
from models.picks import publish_picks
from models.stored import open_stored

Say = Callable[[str], None]


class Day(NamedTuple):
    """What the steps work on; `now` is the clock of the settings."""

    store: FeatureStore
    settings: Settings
    now: Clock


class Step(NamedTuple):
    """A named piece of the day's work; `work` gives one line about what it did."""

    name: str
    work: Callable[[Day], str]


def batch_features(day: Day) -> str:
    """Append the rows of the days that have none yet, or whose events have changed since."""
    rows = compute(day.settings, None, None, day.now())
    return ", ".join(f"{count} new rows of {view}" for view, count in rows.items())


def embeddings(day: Day) -> str:
    """Append the vectors of customers and restaurants as of the last midnight; none where nobody can be told apart."""
    now = day.now()
    try:
        rows = compute_embeddings(day.settings, from_ms(now).date(), now)
    except (NoOrders, NoEmbeddings) as error:
        return f"none: {error}"
    return ", ".join(f"{count} new rows of {view}" for view, count in rows.items())


def materialize(day: Day) -> str:
    """Bring the newest row of every entity of every batch view online."""
    until = from_ms(day.now())
    batch = [v.name for v in day.store.list_feature_views() if isinstance(compile_view(v), BatchView)]
    day.store.materialize(until - timedelta(days=1), until, feature_views=batch)
    return f"the newest rows of {', '.join(batch)} are online"


def batch_predict(day: Day) -> str:
    """Predict the coming day of every restaurant."""
    stored = open_stored(day.settings, TIMEOUT_S)
    try:
        with bar("predicting ahead") as advance:
            done = predict_etas(day.store, day.settings, stored, day.now, advance)
    except NothingToPredict as error:  # of history that ended long ago no batch row is in force
        return f"none: {error}"
    finally:
        stored.close()
    return f"run {done.run.run_id}: {done.rows} rows, {done.written} written now ({done.rows_per_second:,.0f} rows/s)"


def picks(day: Day) -> str:
    """Pick restaurants for every customer, by the newest vectors there are."""
    stored = open_stored(day.settings, TIMEOUT_S)
    try:
        with bar("picking restaurants") as advance:
            done = publish_picks(day.settings, stored, day.now, advance)
    except (NoOrders, NoEmbeddings) as error:
        return f"none: {error}"
    finally:
        stored.close()
    return f"run {done.run.run_id}: {done.rows} rows, {done.written} written now ({done.rows_per_second:,.0f} rows/s)"


BEFORE_MODELS = (
    Step("batch-features", batch_features),
    Step("embeddings", embeddings),
    Step("materialize", materialize),
)
BY_MODELS = (Step("batch-predict", batch_predict), Step("picks", picks))
FEATURES, VECTORS, ONLINE = BEFORE_MODELS
STEPS = (FEATURES, VECTORS, *BY_MODELS, ONLINE)
"""The day's work, in this order: each step works on what those before it made. The online store comes last: what is
made ahead is for when it cannot be reached, and does without it.
"""


def daily(day: Day, say: Say, steps: tuple[Step, ...] = STEPS) -> None:
    """Do the steps, one after the other, saying what each did and how long it took.

    The first that fails ends the day, with its error: those after it would work on what is not there.
    """
    for step in steps:
        began = time.perf_counter()
        said = step.work(day)
        say(f"{step.name}: {said} ({time.perf_counter() - began:.1f} s)")
