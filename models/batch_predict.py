"""Predictions made ahead: every restaurant and every hour of the coming day, by the batch model, into SQL tables.

A run is named by a hash of all that its rows follow from: kind, instant, model version and input. So the same run again
is the same run: one that was cut off goes on where it was, one that is published changes nothing. Instants are ms since
the epoch, UTC.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from feast import FeatureStore
from numpy.typing import NDArray

from feature_repo.clock import Clock, from_ms, iso
from feature_repo.progress_bar import Advance
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import connect, literal, parquet_files
from feature_repo.views import BatchView, View, features_hash, views_of_service
from models.registry import Model, open_registry
from models.stored import ETA, Run, StoredPredictions
from models.vector import request_features

SERVICE = "eta_batch"
"""The feature service and the model of the same name."""

RESTAURANTS = "restaurant_profile"
"""The view whose rows say which restaurants there are."""

CHUNK_RESTAURANTS = 1_000

TIMEOUT_S = 120.0
"""A batch job's statements write and drop many rows at once; nobody waits for their answer."""

HOURS = 24
_HOUR_MS = 3_600_000

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows by table, as `StoredPredictions.write` takes them."""


class NothingToPredict(ValueError):
    """There is no restaurant, no batch row in force, or no model that fits the features; says which."""


class Report(NamedTuple):
    """What a batch job did: the run, now published; `rows` is of all of it, `written` of this job alone.

    `seconds` is real time from reading the features to publishing; `rows_per_second` counts what was written.
    """

    run: Run
    rows: int
    written: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """How many rows a second were computed and written."""
        return self.written / self.seconds


class Inputs(NamedTuple):
    """What a run is computed from: `features` by restaurant, columns by full name, NaN where a value is missing.

    The range is of event times: the oldest and the newest of the batch rows in force at the run's instant.
    """

    restaurants: NDArray[np.int64]
    features: pd.DataFrame
    from_ms: int
    until_ms: int

    def digest(self) -> str:
        """A hash of restaurants and values."""
        values = self.features.to_numpy(dtype=np.float64)
        values = np.where(np.isnan(values), np.nan, values)  # one missing value is as good as another
        content = (",".join(self.features.columns).encode(), self.restaurants.tobytes(), values.tobytes())
        return hashlib.sha256(b"\0".join(content)).hexdigest()


def predict_etas(
    store: FeatureStore,
    settings: Settings,
    stored: StoredPredictions,
    now: Clock,
    progress: Advance = lambda done, total: None,
    as_of_ms: int | None = None,
) -> Report:
    """Predict every restaurant's delivery time for every hour of the coming day, by the model in use, and publish.

    The features are those known of `as_of_ms`, floored to the hour; of the present by default. Each hour of the day is
    predicted for its middle, where it comes next from there on (see `instants`). `progress` is told of chunks done.
    Raises NothingToPredict, ModelBroken, StoredUnreachable, RunRefused (a later run is published) and, for an instant
    still to come, ValueError: its run would keep those until then from being published.
    """
    began, present = time.perf_counter(), now()
    if as_of_ms is not None and as_of_ms > present:
        raise ValueError(f"as of {iso(as_of_ms)}: it is {iso(present)}, and what comes is not known yet")
    as_of = (present if as_of_ms is None else as_of_ms) // _HOUR_MS * _HOUR_MS
    model = open_registry(settings).load(SERVICE)
    views = views_of_service(store, store.get_feature_service(SERVICE))
    _check(model, views)
    inputs = read_inputs(store, settings, model, [view for view, _ in views], as_of)
    version = model.manifest.version
    run = Run(
        run_id=run_id(ETA, as_of, version, inputs.digest(), CHUNK_RESTAURANTS),
        kind=ETA,
        as_of_ms=as_of,
        model=model.manifest.name,
        model_version=version,
        input_from_ms=inputs.from_ms,
        input_until_ms=inputs.until_ms,
        started_ms=present,
    )
    starts = range(0, len(inputs.restaurants), CHUNK_RESTAURANTS)
    chunks = [partial(_rows, model, inputs, slice(first, first + CHUNK_RESTAURANTS), as_of) for first in starts]
    rows, written = run_chunks(stored, run, chunks, now, progress)
    return Report(run, rows, written, time.perf_counter() - began)


def run_chunks(
    stored: StoredPredictions,
    run: Run,
    chunks: Sequence[Callable[[], Rows]],
    now: Clock,
    progress: Advance = lambda done, total: None,
) -> tuple[int, int]:
    """Begin or go on with a run, write the chunks that are not there yet, publish it: (rows of it, rows written now).

    Each of `chunks` computes its rows when it is called; one that is written already is not. The run's id must change
    with whatever its rows and their division into chunks follow from (see `run_id`).
    """
    there = stored.begin(run)
    written = 0
    for number, compute in enumerate(chunks):
        if number not in there:
            rows = compute()
            stored.write(run, number, rows)
            written += sum(len(part) for part in rows.values())
        progress(number + 1, len(chunks))
    return stored.publish(run, now(), len(chunks)), written


def run_id(*follows_from: str | int) -> str:
    """The name of a run: a hash of all that its rows follow from, their division into chunks included."""
    return hashlib.sha256("\0".join(map(str, follows_from)).encode()).hexdigest()[:32]


def instants(as_of_ms: int) -> list[int]:
    """The instant by which each hour of the day (0 to 23, UTC) is predicted: its middle, on its next occurrence.

    `as_of_ms` is a whole hour; that hour itself comes first.
    """
    first = as_of_ms // _HOUR_MS % HOURS
    return [as_of_ms + (hour - first) % HOURS * _HOUR_MS + _HOUR_MS // 2 for hour in range(HOURS)]


def read_inputs(store: FeatureStore, settings: Settings, model: Model, views: Sequence[View], as_of_ms: int) -> Inputs:
    """The stored features of the model for every restaurant that batch history has a profile of, as of an instant.

    Restaurants come in the order of their ids. Raises NothingToPredict.
    """
    restaurants, oldest, newest = _in_force(settings, views, as_of_ms)
    asked = pd.DataFrame({"restaurant_id": restaurants, "event_timestamp": from_ms(as_of_ms)})
    service = store.get_feature_service(SERVICE)
    known = store.get_historical_features(entity_df=asked, features=service, full_feature_names=True).to_df()
    known = known.set_index("restaurant_id").loc[restaurants, list(model.vector.stored)]  # Feast promises no order
    if len(known) != len(restaurants):
        raise ValueError(f"{SERVICE}: {len(known)} rows for {len(restaurants)} restaurants: some would count twice")
    return Inputs(restaurants, known.astype("float64").reset_index(drop=True), oldest, newest)


def _in_force(settings: Settings, views: Sequence[View], as_of_ms: int) -> tuple[NDArray[np.int64], int, int]:
    """The restaurants by id, and the oldest and newest event time of their batch rows that are in force."""
    as_of, edges = from_ms(as_of_ms), []
    with connect(settings) as db:
        restaurants = db.execute(
            f"SELECT DISTINCT restaurant_id FROM {_history(settings, RESTAURANTS)} WHERE event_time <= ? ORDER BY 1",
            [as_of],
        ).fetchnumpy()["restaurant_id"]
        for view in views:
            if isinstance(view, BatchView):
                since = from_ms(as_of_ms - view.ttl) if view.ttl else from_ms(0)
                newest = (
                    f"SELECT max(event_time) AS t FROM {_history(settings, view.name)} "
                    "WHERE event_time <= ? AND event_time >= ? GROUP BY restaurant_id"
                )
                edge = f"SELECT epoch_ms(min(t)), epoch_ms(max(t)) FROM ({newest})"
                edges += [ms for ms in db.execute(edge, [as_of, since]).fetchall()[0] if ms is not None]
    if not edges:
        raise NothingToPredict(
            f"no batch row of {SERVICE} is in force at {iso(as_of_ms)}: compute some (tiffin batch-features) first, or "
            "every restaurant would be predicted from nothing"
        )
    return np.asarray(restaurants, dtype=np.int64), min(edges), max(edges)


def _history(settings: Settings, view: str) -> str:
    folder = settings.data / "batch" / view
    files = parquet_files(folder)
    if not files:
        raise NothingToPredict(f"{folder} holds no Parquet file: nothing is known of any restaurant")
    return f"read_parquet([{', '.join(literal(str(file)) for file in files)}])"


def _check(model: Model, views: Sequence[tuple[View, Sequence[str]]]) -> None:
    """Raise NothingToPredict for a model that was trained on other features than there are."""
    wanted = set(model.vector.stored)
    unknown = sorted(wanted - {f"{view.name}__{feature}" for view, features in views for feature in features})
    if unknown or features_hash(views, only=wanted) != model.manifest.definition_hash:
        reason = f"{unknown[0]} is not one of its service" if unknown else "they are defined otherwise by now"
        raise NothingToPredict(f"model {SERVICE} {model.manifest.version} knows other features: {reason}; train again")


def _rows(model: Model, inputs: Inputs, part: slice, as_of_ms: int) -> Rows:
    """The rows of some restaurants, of each hour of the day."""
    restaurants, known = inputs.restaurants[part], inputs.features.iloc[part]
    known = known.assign(**model.vector.derive(known))
    fixed = known.to_numpy(dtype=np.float32)
    moving = np.array([list(request_features(at).values()) for at in instants(as_of_ms)], dtype=np.float32)
    matrix = np.hstack([np.repeat(fixed, HOURS, axis=0), np.tile(moving, (len(fixed), 1))])
    median, p90 = model.predict(np.ascontiguousarray(matrix))
    hours = list(range(HOURS)) * len(fixed)
    columns = zip(np.repeat(restaurants, HOURS).tolist(), hours, median.tolist(), p90.tolist(), strict=True)
    names = ("restaurant_id", "hour", "eta_minutes", "eta_minutes_p90")
    return {"etas": [dict(zip(names, row, strict=True)) for row in columns]}
