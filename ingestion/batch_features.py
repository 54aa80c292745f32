"""Batch features: daily rows over the event log's history, by DuckDB.

A row with event time T (midnight UTC) covers only what happened before T. Rows are appended and never rewritten: a day
computed again gets a later ``created``, and readers take the newest. Rows that say what is stored already are left out.
An event counts once by its ``event_id``: the record of the lowest append time, partition and offset.
"""

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pyarrow as pa

from feature_repo.clock import from_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import Connection, connect, literal, parquet_files
from feature_repo.stores.parquet_files import append_file
from ingestion.event_files import log_dates, log_folder
from ingestion.events import arrow_schema

STATS, PROFILE = "restaurant_prep_stats", "restaurant_profile"
# What is kept of each topic's events; `took` is in whole microseconds, so a mean does not depend on its rows' order.
_TOPICS = {
    "order_placed": "restaurant_id, event_time, zone_id",
    "order_ready": "restaurant_id, event_time, epoch_us(ready_at) - epoch_us(placed_at) AS took",
    "order_delivered": "restaurant_id, event_time, epoch_us(delivered_at) - epoch_us(placed_at) AS took",
}
_REACH = timedelta(days=28)
_CHUNK_DAYS = 28  # an event counts in 28 days' rows: computing many days at once multiplies the log by that
_PROFILE_RENEWED_AFTER = timedelta(days=7)  # well within the view's TTL, lest a restaurant lose its zone

_INSTANT = pa.timestamp("us", tz="UTC")
_STATS_FEATURES = {
    "mean_prep_minutes_7d": pa.float64(),
    "mean_prep_minutes_28d": pa.float64(),
    "p90_prep_minutes_28d": pa.float64(),
    "mean_delivery_minutes_28d": pa.float64(),
    "orders_28d": pa.int64(),
}
_PROFILE_FEATURES = {
    "zone_id": pa.int64(),
    "cuisine": pa.string(),
    "latitude": pa.float64(),
    "longitude": pa.float64(),
}

_STATS_ROWS = """
WITH days AS (
    SELECT unnest(generate_series($first::TIMESTAMPTZ, $last::TIMESTAMPTZ, INTERVAL 1 DAY)) AS t
), known AS (
    SELECT restaurant_id, min(event_time) AS since FROM (
        SELECT restaurant_id, event_time, append_time FROM order_placed_log
        UNION ALL SELECT restaurant_id, event_time, append_time FROM order_ready_log
        UNION ALL SELECT restaurant_id, event_time, append_time FROM order_delivered_log
    ) WHERE append_time <= $now GROUP BY ALL
), prep AS (
    SELECT t, restaurant_id,
        avg_minutes(sum(took) FILTER (event_time >= t - INTERVAL 7 DAY),
                    count(*) FILTER (event_time >= t - INTERVAL 7 DAY)) AS mean_prep_minutes_7d,
        avg_minutes(sum(took), count(*)) AS mean_prep_minutes_28d,
        quantile_cont(took, 0.9) / 60e6 AS p90_prep_minutes_28d
    FROM days JOIN order_ready_once AS e ON e.event_time >= t - INTERVAL 28 DAY AND e.event_time < t
    GROUP BY ALL
), delivery AS (
    SELECT t, restaurant_id, avg_minutes(sum(took), count(*)) AS mean_delivery_minutes_28d
    FROM days JOIN order_delivered_once AS e ON e.event_time >= t - INTERVAL 28 DAY AND e.event_time < t
    GROUP BY ALL
), orders AS (
    SELECT t, restaurant_id, count(*) AS orders_28d
    FROM days JOIN order_placed_once AS e ON e.event_time >= t - INTERVAL 28 DAY AND e.event_time < t
    GROUP BY ALL
)
SELECT restaurant_id, t AS event_time, mean_prep_minutes_7d, mean_prep_minutes_28d, p90_prep_minutes_28d,
    mean_delivery_minutes_28d, coalesce(orders_28d, 0) AS orders_28d
FROM days JOIN known ON since < t
    LEFT JOIN prep USING (t, restaurant_id) LEFT JOIN delivery USING (t, restaurant_id)
    LEFT JOIN orders USING (t, restaurant_id)
"""

# A restaurant's first profile is as of the first midnight after it was first seen, by what was seen until then.
_MISSING_PROFILES = """
WITH first AS (
    SELECT restaurant_id, date_trunc('day', min(event_time)) + INTERVAL 1 DAY AS t FROM order_placed_once GROUP BY ALL
), zones AS (
    SELECT restaurant_id, t, zone_id, count(*) AS orders
    FROM order_placed_once JOIN first USING (restaurant_id) WHERE event_time < t GROUP BY ALL
)
SELECT restaurant_id, t AS event_time, arg_min(zone_id, (-orders, zone_id)) AS zone_id,
    NULL::VARCHAR AS cuisine, NULL::DOUBLE AS latitude, NULL::DOUBLE AS longitude
FROM zones ANTI JOIN profiles USING (restaurant_id) WHERE t <= $until GROUP BY ALL
"""

_RENEWED_PROFILES = """
WITH newest AS (
    FROM profiles QUALIFY row_number() OVER (PARTITION BY restaurant_id ORDER BY event_time DESC, created DESC) = 1
)
SELECT restaurant_id, zone_id, cuisine, latitude, longitude,
    unnest(generate_series(event_time + $age::INTERVAL, $until::TIMESTAMPTZ, $age::INTERVAL)) AS event_time
FROM newest
"""


_LONGEST = timedelta(days=28)
"""The longest window of a feature."""


def compute(settings: Settings, as_of_start: date | None, as_of_end: date | None, now_ms: int) -> dict[str, int]:
    """Append the rows of each midnight from `as_of_start` to `as_of_end` (both included, never later than `now_ms`).

    None: from the day after history begins to 28 days after it ends, when nothing of it counts any more, or today.
    Only records appended by `now_ms` count; it is the rows' ``created``. Gives the rows written by view; an empty
    history gives none.
    """
    now = from_ms(now_ms)
    days = [dates for topic in _TOPICS if (dates := log_dates(settings, topic))]
    if not days:
        return {STATS: 0, PROFILE: 0}
    first = as_of_start or min(dates[0] for dates in days) + timedelta(days=1)
    last = min(as_of_end or max(dates[-1] for dates in days) + _LONGEST, now.date())
    written = 0
    while first <= last:
        until = min(first + timedelta(days=_CHUNK_DAYS - 1), last)
        written += _stats_rows(settings, first, until, now)
        first = until + timedelta(days=1)
    return {STATS: written, PROFILE: profile_rows(settings, last, now_ms)}


def profile_rows(settings: Settings, as_of: date, now_ms: int) -> int:
    """Give a profile to restaurants that have orders and none, and renew those that grow old; the rows written.

    A profile made here has the restaurant's most frequent zone (the lowest of equals) and nulls. One whose newest row
    is a week old at midnight of `as_of` is stated again for every week since, lest it pass out of the view's TTL.
    """
    now, until = from_ms(now_ms), _midnight(as_of)
    folder = settings.data / "batch" / PROFILE
    with connect(settings) as db:
        _read_log(db, settings, "order_placed", None, now)
        _view(db, "given", parquet_files(folder), _batch_schema(_PROFILE_FEATURES))
        db.execute("CREATE TEMP TABLE profiles AS FROM given")
        db.execute(f"CREATE TEMP TABLE missing AS {_MISSING_PROFILES}", {"until": until})
        db.execute("INSERT INTO profiles BY NAME SELECT *, $now::TIMESTAMPTZ AS created FROM missing", {"now": now})
        parameters = {"until": until, "age": _PROFILE_RENEWED_AFTER}
        db.execute(f"INSERT INTO missing BY NAME {_RENEWED_PROFILES}", parameters)
        rows = db.execute("FROM missing ORDER BY event_time, restaurant_id").to_arrow_table()
    return _append(folder, rows, now, _PROFILE_FEATURES)


def _stats_rows(settings: Settings, first: date, last: date, now: datetime) -> int:
    folder = settings.data / "batch" / STATS
    same = " AND ".join(f"stored.{name} IS NOT DISTINCT FROM fresh.{name}" for name in _STATS_FEATURES)
    with connect(settings) as db:
        db.execute("CREATE MACRO avg_minutes(total, n) AS CASE WHEN n > 0 THEN total / (n * 60e6) END")
        for topic in _TOPICS:
            # One day more than the windows reach: a producer's clock may run ahead of the append time by a minute.
            _read_log(db, settings, topic, first - _REACH - timedelta(days=1), now)
        _view(db, "stored_rows", parquet_files(folder), _batch_schema(_STATS_FEATURES))
        db.execute(
            "CREATE VIEW stored AS FROM stored_rows QUALIFY row_number() OVER "
            "(PARTITION BY restaurant_id, event_time ORDER BY created DESC) = 1"
        )
        days = {"first": _midnight(first), "last": _midnight(last), "now": now}
        db.execute(f"CREATE TEMP TABLE fresh AS {_STATS_ROWS}", days)
        rows = db.execute(
            "SELECT * FROM fresh ANTI JOIN stored ON stored.restaurant_id = fresh.restaurant_id "
            f"AND stored.event_time = fresh.event_time AND {same} ORDER BY event_time, restaurant_id"
        ).to_arrow_table()
    return _append(folder, rows, now, _STATS_FEATURES)


def _read_log(db: Connection, settings: Settings, topic: str, since: date | None, now: datetime) -> None:
    """Make ``<topic>_log`` (every record) and ``<topic>_once``: each event once, of files appended since `since`.

    Older files cannot matter: an event's time is never later than its append time.
    """
    files = parquet_files(log_folder(settings, topic))
    recent = [file for file in files if since is None or file.parent.name >= f"date={since.isoformat()}"]
    _view(db, f"{topic}_log", files, arrow_schema(topic))
    _view(db, f"{topic}_recent", recent, arrow_schema(topic))
    db.execute(
        f"CREATE TEMP TABLE {topic}_once AS SELECT {_TOPICS[topic]} FROM {topic}_recent WHERE append_time <= $now "
        'QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY append_time, partition, "offset") = 1',
        {"now": now},
    )


def _view(db: Connection, name: str, files: list[Path], schema: pa.Schema) -> None:
    """A view of `files`, or, if there are none, of an empty table."""
    if files:
        paths = ", ".join(literal(str(file)) for file in files)
        db.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{paths}])")
    else:
        db.register(name, schema.empty_table())


def _batch_schema(features: dict[str, pa.DataType]) -> pa.Schema:
    """The columns of a restaurant's batch view."""
    return pa.schema({"restaurant_id": pa.int64(), **features, "event_time": _INSTANT, "created": _INSTANT})


def _append(folder: Path, rows: pa.Table, now: datetime, features: dict[str, pa.DataType]) -> int:
    """Publish `rows` with ``created`` `now`; nothing if there are none. Gives their number."""
    if rows.num_rows:
        schema = _batch_schema(features)
        stamped = rows.append_column("created", pa.array([now] * rows.num_rows, _INSTANT))
        append_file(folder, stamped.select(schema.names).cast(schema))
    return int(rows.num_rows)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
