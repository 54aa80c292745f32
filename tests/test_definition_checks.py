"""A view that cannot be computed from the events is refused before a worker folds anything."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from feast.value_type import ValueType

from feature_repo.views import BadDefinition, PresenceView, WindowView
from feature_repo.windows import Aggregate, Layout
from ingestion.definition_checks import check_views

MEAN = Aggregate("prep", "prep_minutes", "mean", 600_000)


def window(aggregate: Aggregate = MEAN) -> WindowView:
    return WindowView(
        name="recent",
        join_keys=("restaurant_id",),
        key_types=(ValueType.INT64,),
        features={aggregate.name: ValueType.DOUBLE},
        topic="order_ready",
        aggregates=(aggregate,),
        layout=Layout.of(60_000, [aggregate]),
        max_lag=10_000,
        tiles_hash="x",
    )


PRESENCE = PresenceView(
    name="couriers",
    join_keys=("zone_id",),
    key_types=(ValueType.INT64,),
    features={"free": ValueType.INT64},
    topics=("courier_status",),
    member="courier_id",
    state="status",
    counts={"free": "available"},
    ttl=60_000,
    max_lag=10_000,
    tiles_hash="x",
)


def test_views_over_columns_that_events_have_are_taken() -> None:
    ids = Aggregate("couriers", "event_id", "count_distinct", 600_000)
    check_views([window(), window(ids), PRESENCE])


@pytest.mark.parametrize(
    ("view", "says"),
    [
        (lambda: replace(window(), topic="order_cooked"), "topic 'order_cooked' is not one of"),
        (lambda: window(replace(MEAN, column="prep_time")), "no column 'prep_time'"),
        (lambda: window(replace(MEAN, column="order_id")), "mean of order_id, which is no number"),
        (lambda: window(replace(MEAN, column="restaurant_id")), "mean of restaurant_id, which is no number"),
        (lambda: replace(window(), key_types=(ValueType.STRING,)), "join key restaurant_id is STRING, but id"),
        (lambda: replace(window(), join_keys=("zone_id",)), "no column 'zone_id'"),
        (lambda: replace(PRESENCE, member="driver"), "no column 'driver'"),
        (lambda: replace(PRESENCE, state="mood"), "no column 'mood'"),
    ],
)
def test_a_view_that_events_cannot_feed_is_refused_by_name(view: Callable[[], WindowView], says: str) -> None:
    with pytest.raises(BadDefinition, match=says):
        check_views([view()])
