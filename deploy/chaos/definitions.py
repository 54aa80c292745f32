"""The drill's project: the project's own definitions, and every function over windows that slide within the drill."""

from datetime import timedelta

from feast import Entity, Field, StreamFeatureView
from feast.aggregation import Aggregation
from feast.types import Float64, Int64

from feature_repo.definitions import *  # noqa: F403  # `feast apply` registers what it finds in one module
from feature_repo.definitions import MAX_LAG_SECONDS, order_placed, restaurant, zone

HOP = timedelta(seconds=5)
SHORT, MIDDLE, LONG = timedelta(seconds=20), timedelta(minutes=1), timedelta(minutes=5)
FEATURES = (
    ("placed_20s", "order_id", "count", SHORT),
    ("items_20s", "item_count", "sum", SHORT),
    ("customers_1m", "customer_id", "count_distinct", MIDDLE),
    ("basket_mean_1m", "basket_total", "mean", MIDDLE),
    ("basket_last_1m", "basket_total", "last", MIDDLE),
    ("basket_std_5m", "basket_total", "std", LONG),
    ("basket_min_5m", "basket_total", "min", LONG),
    ("basket_max_5m", "basket_total", "max", LONG),
)


def every_function(view: str, entity: Entity, prefix: str) -> StreamFeatureView:
    """Windows of every function over the orders placed, by `entity`, in tiles of five seconds."""
    kinds = {"count": Int64, "count_distinct": Int64}
    return StreamFeatureView(
        name=view,
        entities=[entity],
        ttl=LONG,
        source=order_placed,
        timestamp_field="event_time",
        aggregations=[
            Aggregation(column=column, function=function, time_window=window, name=prefix + feature)
            for feature, column, function, window in FEATURES
        ],
        enable_tiling=True,
        tiling_hop_size=HOP,
        schema=[Field(name=prefix + name, dtype=kinds.get(function, Float64)) for name, _, function, _ in FEATURES],
        tags={"max_lag_seconds": MAX_LAG_SECONDS},
    )


drill_restaurant_orders = every_function("drill_restaurant_orders", restaurant, "restaurant_")
drill_zone_orders = every_function("drill_zone_orders", zone, "zone_")
