"""Every aggregation function and every kind of presence, beside the definitions of feature_repo: for `tiffin parity`.

Windows and hops are short, so that a random story of some minutes crosses many of their edges.
"""

from collections.abc import Sequence
from datetime import timedelta

from feast import Entity, Field, KafkaSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64

from feature_repo.definitions import *  # noqa: F403  # Feast registers every object that it finds here
from feature_repo.definitions import (
    courier_status,
    customer,
    order_delivered,
    order_placed,
    order_ready,
    restaurant,
    zone,
)

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
NUMBERS = ("count", "sum", "mean", "min", "max", "std", "last", "count_distinct")
COUNTS = ("count", "count_distinct")

order = Entity(name="order", join_keys=["order_id"], value_type=ValueType.STRING)


def windows(
    name: str,
    entities: list[Entity],
    source: KafkaSource,
    hop: timedelta,
    of: dict[str, tuple[Sequence[str], timedelta]],
) -> StreamFeatureView:
    """A view with a feature for each function of each column: `of` maps columns to functions and the window."""
    aggregations = [
        Aggregation(column=column, function=function, time_window=window, name=f"{name}_{column}_{function}")
        for column, (functions, window) in of.items()
        for function in functions
    ]
    return StreamFeatureView(
        name=name,
        entities=entities,
        ttl=max(window for _, window in of.values()),
        source=source,
        timestamp_field="event_time",
        aggregations=aggregations,
        enable_tiling=True,
        tiling_hop_size=hop,
        schema=[Field(name=a.name, dtype=Int64 if a.function in COUNTS else Float64) for a in aggregations],
    )


def presence(
    name: str, entities: list[Entity], sources: list[KafkaSource], ttl: timedelta, member: str, state: str, *counts: str
) -> StreamFeatureView:
    """A view that counts members by their state; a state of "topic" is the topic of a member's latest event."""
    topics = {"presence.topics": " ".join(source.name for source in sources)} if len(sources) > 1 else {}
    return StreamFeatureView(
        name=name,
        entities=entities,
        ttl=ttl,
        source=sources[0],
        timestamp_field="event_time",
        schema=[Field(name=f"{name}_{counted}", dtype=Int64) for counted in counts],
        tags={
            "presence.member": member,
            "presence.state": state,
            **{f"presence.count.{name}_{counted}": counted for counted in counts},
            **topics,
        },
    )


# The entity is the topic's key: its events lie in one partition. Decimals, and whole numbers, both with nulls.
by_restaurant = windows(
    "by_restaurant",
    [restaurant],
    order_placed,
    MINUTE,
    {
        "basket_total": (NUMBERS, 5 * MINUTE),
        "item_count": (NUMBERS, 2 * MINUTE),
        "customer_id": (COUNTS, 3 * MINUTE),
    },
)

# An entity across partitions, and a derived column.
by_zone = windows(
    "by_zone",
    [zone],
    order_delivered,
    10 * SECOND,
    {"delivery_minutes": (NUMBERS, MINUTE), "order_id": (COUNTS, MINUTE)},
)

# The shortest window, of two hops; an entity that may be null in an event, which is then an event of nobody.
by_customer = windows("by_customer", [customer], order_placed, MINUTE, {"basket_total": (NUMBERS, 2 * MINUTE)})

# Two join keys.
by_place = windows("by_place", [zone, restaurant], order_placed, 2 * MINUTE, {"item_count": (NUMBERS, 10 * MINUTE)})

# A text join key, and instants.
by_order = windows(
    "by_order", [order], order_ready, MINUTE, {"prep_minutes": (NUMBERS, 4 * MINUTE), "placed_at": (COUNTS, 4 * MINUTE)}
)

couriers = presence(
    "couriers", [zone], [courier_status], 5 * MINUTE, "courier_id", "status", "available", "busy", "offline"
)

# Members by the topic of their latest event: over two topics, and over three.
open_orders = presence(
    "open_orders", [zone], [order_placed, order_delivered], 4 * MINUTE, "order_id", "topic", "order_placed"
)
stages = presence(
    "stages",
    [restaurant],
    [order_placed, order_ready, order_delivered],
    3 * MINUTE,
    "order_id",
    "topic",
    "order_placed",
    "order_ready",
    "order_delivered",
)
places = presence("places", [restaurant, zone], [order_placed], 2 * MINUTE, "order_id", "topic", "order_placed")
