"""The drill's project: the project's own definitions, and every function over windows that slide within the drill."""

from datetime import timedelta

from feast import Entity, StreamFeatureView
from feast.aggregation import Aggregation

from feature_repo.definitions import *  # noqa: F403  # `feast apply` registers what it finds in one module
from feature_repo.definitions import order_placed, restaurant, stream_windows, zone

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
    aggregations = [
        Aggregation(column=column, function=function, time_window=window, name=prefix + feature)
        for feature, column, function, window in FEATURES
    ]
    return stream_windows(view, entity, order_placed, aggregations, HOP)


drill_restaurant_orders = every_function("drill_restaurant_orders", restaurant, "restaurant_")
drill_zone_orders = every_function("drill_zone_orders", zone, "zone_")
