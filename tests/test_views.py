"""Definitions: what cannot be served is refused by view, feature and consequence; equal meanings hash equally."""

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from feast import Entity, FeatureView, Field, FileSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.data_format import ParquetFormat
from feast.types import Float64, Int32, Int64

from feature_repo.views import BadDefinition, BatchView, PresenceView, View, WindowView, compile_view, features_hash
from feature_repo.views import stream_views as compile_stream_views
from tests.repo import batch_view, presence_view, quietly, window_view

with quietly():
    from feature_repo import definitions

MINUTE = timedelta(minutes=1)
COUNTS = {"orders_5m": ("order_id", "count", 300_000), "basket": ("basket_total", "mean", 300_000)}


def as_registered(view: FeatureView, entity: Entity = definitions.restaurant) -> FeatureView:
    """The view as the registry gives it: apply fills in the entity columns."""
    view.entity_columns = [Field(name=entity.join_key, dtype=Int64)]
    return view


def windows(computed: dict[str, tuple[str, str, int]] | None = None, **changes: Any) -> StreamFeatureView:
    with quietly():
        view = window_view("recent", definitions.restaurant, COUNTS if computed is None else computed)
    for name, value in changes.items():
        setattr(view, name, value)
    as_registered(view)
    return view


def presence(**tags: str | None) -> StreamFeatureView:
    with quietly():
        view = presence_view()
    as_registered(view, definitions.zone)
    for name, value in tags.items():
        tag = "presence." + name.replace("__", ".")
        if value is None:
            del view.tags[tag]
        else:
            view.tags[tag] = value
    return view


def with_tags(view: StreamFeatureView, tags: dict[str, str]) -> StreamFeatureView:
    view.tags = tags
    return view


def compiled(view: FeatureView, versioned: bool = False) -> Any:
    return compile_view(view, versioned)


def test_a_window_view_is_compiled_from_the_definition_alone() -> None:
    view = compiled(windows())
    assert isinstance(view, WindowView)
    assert (view.topic, view.topics, view.join_keys) == ("order_placed", ("order_placed",), ("restaurant_id",))
    assert view.features == {"orders_5m": ValueType.INT64, "basket": ValueType.DOUBLE}
    assert {(a.name, a.column, a.function, a.window) for a in view.aggregates} == {
        ("orders_5m", "order_id", "count", 300_000),
        ("basket", "basket_total", "mean", 300_000),
    }
    assert (view.layout.hop, view.layout.hops_kept, view.reach, view.max_lag) == (60_000, 5, 360_000, 10_000)


def test_a_presence_view_is_compiled_from_its_tags() -> None:
    view = compiled(presence())
    assert isinstance(view, PresenceView)
    assert (view.member, view.state, view.counts) == (
        "courier_id",
        "status",
        {"available": "available", "busy": "busy"},
    )
    assert (view.topics, view.ttl, view.reach) == (("courier_status",), 600_000, 600_000)


def test_a_batch_view_keeps_its_ttl_and_types_and_not_its_join_key() -> None:
    view = compiled(as_registered(batch_view()))
    assert isinstance(view, BatchView)
    assert view.ttl == 86_400_000
    assert view.features == {"prep": ValueType.DOUBLE, "orders": ValueType.INT64, "cuisine": ValueType.STRING}


def test_a_stream_view_with_neither_aggregations_nor_presence_tags_is_a_batch_view() -> None:
    view = compiled(with_tags(presence(), {"team": "couriers", "max_lag_seconds": "soon"}))
    assert isinstance(view, BatchView)
    assert (view.name, view.ttl, set(view.features)) == ("couriers", 600_000, {"available", "busy"})
    assert compile_stream_views([with_tags(presence(), {}), windows()]) == (compiled(windows()),)


def test_rows_are_stored_by_version_only_where_feast_keeps_versions_apart() -> None:
    view = as_registered(batch_view())
    assert compiled(view).stored_name == compiled(view, versioned=True).stored_name == "profile"
    view.current_version_number = 2
    assert compiled(view).stored_name == "profile"
    assert compiled(view, versioned=True).stored_name == "profile_v2"
    view.projection.version_tag = 0
    assert compiled(view, versioned=True).stored_name == "profile"


def test_every_definition_of_the_project_can_be_served() -> None:
    entities = {"restaurant": definitions.restaurant, "zone": definitions.zone, "customer": definitions.customer}
    views = [v for v in vars(definitions).values() if isinstance(v, FeatureView)]
    assert len(views) > 8
    for view in views:
        compiled(as_registered(view, entities[view.entities[0]]))


def test_stream_views_come_by_name_without_the_batch_views() -> None:
    views = compile_stream_views([presence(), as_registered(batch_view()), windows()])
    assert [view.name for view in views] == ["couriers", "recent"]


BAD: dict[str, tuple[Callable[[], FeatureView], str]] = {
    "an unknown function": (
        lambda: windows({"p90": ("basket_total", "p90", 300_000)}),
        r"recent\.p90: function 'p90' is not one of .*: nothing would compute it",
    ),
    "a window that the hop does not divide": (
        lambda: windows(tiling_hop_size=timedelta(seconds=7)),
        r"recent\.\w+: hop 7000 ms does not divide window 300000 ms: the trailing edge would jump",
    ),
    "an aggregation without a window": (
        lambda: windows(
            aggregations=[Aggregation(column="order_id", function="count", name="orders_5m")],
            features=[Field(name="orders_5m", dtype=Int64)],
        ),
        r"recent\.orders_5m: hop 60000 ms does not divide window 0 ms",
    ),
    "a feature that nothing computes": (
        lambda: windows(features=[Field(name=n, dtype=Float64) for n in ("orders_5m", "basket", "ghost")]),
        "recent: feature 'ghost' is in the schema but not among the aggregations: it would never be served",
    ),
    "an aggregation without a feature": (
        lambda: windows(features=[Field(name="orders_5m", dtype=Float64)]),
        "recent: feature 'basket' is among the aggregations but not the schema: it would never be served",
    ),
    "no topic": (
        lambda: windows(stream_source=None),
        "recent: its source is no KafkaSource with a topic: the worker could not read it",
    ),
    "a lag that is no number": (
        lambda: windows(tags={"max_lag_seconds": "soon"}),
        "recent: tag max_lag_seconds is 'soon', not a number of seconds between 0 and a day",
    ),
    "a lag of nothing": (lambda: windows(tags={"max_lag_seconds": "0"}), "recent: tag max_lag_seconds is '0'"),
    "a lag that is not a number": (lambda: windows(tags={"max_lag_seconds": "nan"}), "max_lag_seconds is 'nan'"),
    "a presence without a member": (
        lambda: presence(member=None),
        r"couriers: tags presence\.\* but no tag 'presence.member': no presence could be computed",
    ),
    "a presence with its tags misspelled": (
        lambda: with_tags(presence(), {"presence.members": "courier_id", "presence.stat": "status"}),
        r"couriers: tags presence\.\* but no tag 'presence.member': no presence could be computed",
    ),
    "a presence without a state": (lambda: presence(state=None), "couriers: .*'presence.state'"),
    "a presence feature that counts nothing": (
        lambda: presence(count__busy=None),
        "couriers: feature 'busy' is in the schema but not among the tags presence.count",
    ),
    "a presence count without a feature": (
        lambda: presence(count__lost="lost"),
        "couriers: feature 'lost' is among the tags presence.count.* but not the schema",
    ),
    "topics that do not begin with the source's": (
        lambda: presence(topics="order_placed courier_status", state="topic"),
        "couriers: tag presence.topics is 'order_placed courier_status': it must begin with the source's topic",
    ),
    "several topics with a column as the state": (
        lambda: presence(topics="courier_status order_placed"),
        "couriers: .*several topics need the state 'topic'",
    ),
    "no topics at all": (lambda: presence(topics=" "), "couriers: tag presence.topics is ''"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_definition_is_refused_with_view_feature_and_consequence(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(BadDefinition, match=message):
        compiled(make())


def test_a_presence_without_a_ttl_is_refused() -> None:
    with quietly():
        view = presence_view(ttl=timedelta(0))
    with pytest.raises(BadDefinition, match="couriers: ttl is 0 ms: members that fell silent would count for ever"):
        compiled(as_registered(view, definitions.zone))


# Hashes of what features mean.


def meaning(*views: FeatureView, only: set[str] | None = None) -> str:
    described: list[tuple[View, list[str]]] = [(v, list(v.features)) for v in map(compiled, views)]
    dice = random.Random(len(described))
    dice.shuffle(described)
    for _, names in described:
        dice.shuffle(names)
    return features_hash(described, only)


def test_the_order_of_features_and_views_and_the_version_change_no_hash() -> None:
    other = windows(
        dict(reversed(COUNTS.items())), version="v7", description="new words", tags={"max_lag_seconds": "3"}
    )
    assert meaning(windows(), presence()) == meaning(presence(), other)


CHANGED = {
    "the window": {**COUNTS, "orders_5m": ("order_id", "count", 240_000)},
    "the function": {**COUNTS, "basket": ("basket_total", "max", 300_000)},
    "the column": {**COUNTS, "orders_5m": ("item_count", "count", 300_000)},
    "the name": {"orders_five": COUNTS["orders_5m"], "basket": COUNTS["basket"]},
}


@pytest.mark.parametrize("what", CHANGED)
def test_another_meaning_hashes_otherwise(what: str) -> None:
    assert meaning(windows(CHANGED[what])) != meaning(windows())


def test_another_hop_topic_view_or_type_hashes_otherwise() -> None:
    others = [
        windows(tiling_hop_size=timedelta(seconds=30)),
        windows(stream_source=definitions.order_ready),
        windows(name="other"),
        windows(features=[Field(name="orders_5m", dtype=Float64), Field(name="basket", dtype=Float64)]),
    ]
    assert len({meaning(view) for view in (windows(), *others)}) == 5


def test_a_presence_hashes_by_member_state_counted_state_and_ttl() -> None:
    with quietly():
        shorter = as_registered(presence_view(ttl=MINUTE), definitions.zone)
    others = [presence(member="zone_id"), presence(state="zone_id"), presence(count__busy="offline"), shorter]
    assert len({meaning(view) for view in (presence(), *others)}) == 5


def test_a_new_window_does_not_change_the_hash_of_the_features_beside_it() -> None:
    more = windows({**COUNTS, "orders_30m": ("order_id", "count", 1_800_000)})
    kept = {"recent__orders_5m", "recent__basket"}
    assert meaning(more, only=kept) == meaning(windows(), only=kept)
    assert meaning(more) != meaning(windows())


def test_what_tiles_hold_is_named_by_everything_that_changes_them() -> None:
    same = [windows(), windows(dict(reversed(COUNTS.items()))), windows(tags={"max_lag_seconds": "3"})]
    assert len({compiled(view).tiles_hash for view in same}) == 1
    other = [windows(features) for what, features in CHANGED.items() if what in ("the function", "the column")]
    other += [windows(tiling_hop_size=timedelta(seconds=30)), windows(stream_source=definitions.order_ready)]
    by_short_id = windows()
    by_short_id.entity_columns = [Field(name="restaurant_id", dtype=Int32)]
    assert len({compiled(view).tiles_hash for view in (same[0], *other, by_short_id)}) == 6


def test_a_presence_of_another_ttl_is_folded_anew_for_members_beyond_it_were_forgotten() -> None:
    with quietly():
        longer = as_registered(presence_view(ttl=20 * MINUTE), definitions.zone)
    assert compiled(longer).tiles_hash != compiled(presence()).tiles_hash


def test_a_batch_view_hashes_by_its_ttl() -> None:
    views = [as_registered(batch_view(ttl=ttl)) for ttl in (MINUTE, 2 * MINUTE, MINUTE)]
    assert len({meaning(view) for view in views}) == 2


def test_a_batch_view_over_other_files_means_the_same() -> None:
    one, other = as_registered(batch_view()), as_registered(batch_view())
    other.batch_source = FileSource(path="elsewhere", file_format=ParquetFormat(), timestamp_field="event_time")
    assert meaning(one) == meaning(other)
