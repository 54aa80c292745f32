"""Every Feast object of the project: entities, sources, feature views and feature services.

To add a window, add one ``Aggregation`` line to a ``stream_windows`` call below; to add a stream view, add one such
call. The worker, the reader and the training sets name no feature, window or TTL: they go by what ``feast apply`` puts
into the registry from this file; what changes in a stream view is served once ``tiffin backfill`` has folded it.

Paths are relative to the repository folder that ``feast apply`` runs in. Times are UTC.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, KafkaSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat, ParquetFormat
from feast.types import Array, Float32, Float64, Int64, String

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)

# How far behind the stream may be before its features are served as OUTSIDE_MAX_AGE (tag `max_lag_seconds`).
MAX_LAG_SECONDS = "10"

restaurant = Entity(name="restaurant", join_keys=["restaurant_id"], value_type=ValueType.INT64)
zone = Entity(name="zone", join_keys=["zone_id"], value_type=ValueType.INT64)
customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)


def event_stream(topic: str) -> KafkaSource:
    """One topic of events, with the archived event log behind it for history.

    The schema of the events is ``ingestion.events``; the broker's address is a setting, not a definition.
    """
    return KafkaSource(
        name=topic,
        topic=topic,
        kafka_bootstrap_servers="",
        message_format=JsonFormat(schema_json=""),
        timestamp_field="event_time",
        batch_source=FileSource(
            name=f"{topic}_log",
            path=f"data/log/{topic}",
            file_format=ParquetFormat(),
            timestamp_field="event_time",
            created_timestamp_column="append_time",
        ),
    )


def stream_windows(
    name: str, entity: Entity, source: KafkaSource, aggregations: list[Aggregation], hop: timedelta = MINUTE
) -> StreamFeatureView:
    """Sliding windows over one topic, one feature an aggregation, in tiles of one hop.

    Counts are Int64, everything else Float64. The TTL is the greatest window: an event older than that counts nowhere.
    """
    counts = ("count", "count_distinct")
    return StreamFeatureView(
        name=name,
        entities=[entity],
        ttl=max(aggregation.time_window or MINUTE for aggregation in aggregations),
        source=source,
        timestamp_field="event_time",
        aggregations=aggregations,
        enable_tiling=True,
        tiling_hop_size=hop,
        schema=[Field(name=a.name, dtype=Int64 if a.function in counts else Float64) for a in aggregations],
        tags={"max_lag_seconds": MAX_LAG_SECONDS},
    )


def daily_batch(name: str, entity: Entity, ttl: timedelta, schema: list[Field]) -> FeatureView:
    """Batch features, computed once a day from history: a row with event time T covers only what happened before T."""
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=ttl,
        schema=schema,
        source=FileSource(
            name=f"{name}_rows",
            path=f"data/batch/{name}",
            file_format=ParquetFormat(),
            timestamp_field="event_time",
            created_timestamp_column="created",
        ),
    )


order_placed = event_stream("order_placed")
order_ready = event_stream("order_ready")
order_delivered = event_stream("order_delivered")
courier_status = event_stream("courier_status")

restaurant_profile = daily_batch(
    "restaurant_profile",
    restaurant,
    ttl=30 * DAY,
    schema=[
        Field(name="zone_id", dtype=Int64),
        Field(name="cuisine", dtype=String),
        Field(name="latitude", dtype=Float64),
        Field(name="longitude", dtype=Float64),
    ],
)

restaurant_prep_stats = daily_batch(
    "restaurant_prep_stats",
    restaurant,
    ttl=7 * DAY,
    schema=[
        Field(name="mean_prep_minutes_7d", dtype=Float64),
        Field(name="mean_prep_minutes_28d", dtype=Float64),
        Field(name="p90_prep_minutes_28d", dtype=Float64),
        Field(name="mean_delivery_minutes_28d", dtype=Float64),
        Field(name="orders_28d", dtype=Int64),
    ],
)

# Vectors of one factorization can be compared with each other and with no others: its name comes with every vector.
restaurant_embedding = daily_batch(
    "restaurant_embedding",
    restaurant,
    ttl=7 * DAY,
    schema=[
        Field(name="restaurant_vector", dtype=Array(Float32)),
        Field(name="restaurant_factorization", dtype=String),
    ],
)

customer_embedding = daily_batch(
    "customer_embedding",
    customer,
    ttl=7 * DAY,
    schema=[
        Field(name="customer_vector", dtype=Array(Float32)),
        Field(name="customer_factorization", dtype=String),
    ],
)

restaurant_recent_orders = stream_windows(
    "restaurant_recent_orders",
    restaurant,
    order_placed,
    aggregations=[
        Aggregation(column="order_id", function="count", time_window=10 * MINUTE, name="orders_10m"),
        Aggregation(column="order_id", function="count", time_window=30 * MINUTE, name="orders_30m"),
        Aggregation(column="basket_total", function="mean", time_window=30 * MINUTE, name="basket_mean_30m"),
    ],
)

restaurant_recent_prep = stream_windows(
    "restaurant_recent_prep",
    restaurant,
    order_ready,
    aggregations=[
        Aggregation(column="prep_minutes", function="mean", time_window=30 * MINUTE, name="prep_minutes_mean_30m"),
        Aggregation(column="prep_minutes", function="max", time_window=30 * MINUTE, name="prep_minutes_max_30m"),
    ],
)

zone_recent_orders = stream_windows(
    "zone_recent_orders",
    zone,
    order_placed,
    aggregations=[
        Aggregation(column="order_id", function="count", time_window=10 * MINUTE, name="zone_orders_10m"),
    ],
)

zone_recent_deliveries = stream_windows(
    "zone_recent_deliveries",
    zone,
    order_delivered,
    aggregations=[
        Aggregation(column="order_id", function="count", time_window=10 * MINUTE, name="zone_deliveries_10m"),
        Aggregation(
            column="delivery_minutes", function="mean", time_window=30 * MINUTE, name="zone_delivery_minutes_mean_30m"
        ),
    ],
)

# Presence: how many couriers are in a state in a zone, by each courier's latest event. `member` is the event's column
# that says who, `state` the column that says what; the group is the view's entity. Each feature counts one state.
# A courier unheard of for longer than the TTL counts nowhere.
zone_couriers = StreamFeatureView(
    name="zone_couriers",
    entities=[zone],
    ttl=timedelta(hours=4),
    source=courier_status,
    timestamp_field="event_time",
    schema=[Field(name="couriers_available", dtype=Int64), Field(name="couriers_busy", dtype=Int64)],
    tags={
        "presence.member": "courier_id",
        "presence.state": "status",
        "presence.count.couriers_available": "available",
        "presence.count.couriers_busy": "busy",
        "max_lag_seconds": MAX_LAG_SECONDS,
    },
)

# Open orders: a presence view over two topics. A member's state is the topic of its latest event (`topic`), so an order
# counts from the moment it is placed until it is delivered; one never delivered counts for the TTL.
zone_open_orders = StreamFeatureView(
    name="zone_open_orders",
    entities=[zone],
    ttl=timedelta(hours=3),
    source=order_placed,
    timestamp_field="event_time",
    schema=[Field(name="zone_open_orders", dtype=Int64)],
    tags={
        "presence.member": "order_id",
        "presence.state": "topic",
        "presence.topics": "order_placed order_delivered",
        "presence.count.zone_open_orders": "order_placed",
        "max_lag_seconds": MAX_LAG_SECONDS,
    },
)

eta_batch = FeatureService(name="eta_batch", features=[restaurant_profile, restaurant_prep_stats])

eta_streaming = FeatureService(
    name="eta_streaming",
    features=[
        restaurant_profile,
        restaurant_prep_stats,
        restaurant_recent_orders,
        restaurant_recent_prep,
        zone_recent_orders,
        zone_recent_deliveries,
        zone_couriers,
        zone_open_orders,
    ],
)

recommend = FeatureService(name="recommend", features=[restaurant_embedding, customer_embedding])
