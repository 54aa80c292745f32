"""Changed definitions: nothing that is served changes by `apply`; a backfill folds them beside, and changes over."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from feast import Field
from feast.types import Int64

from feature_repo.stores import layout
from feature_repo.stores.reading import Feature, Status
from feature_repo.stores.redis_client import STORE_DOWN
from feature_repo.views import PresenceView, StreamView, WindowView, compile_view
from feature_repo.windows import Aggregate, Layout
from ingestion import backfill as work
from ingestion.archive_reader import ArchivedLog
from ingestion.backfill import Change, NotBackfilled, backfill, plan_change, sweep
from ingestion.log import LogUnavailable
from ingestion.worker import Worker
from tests.repo import (
    COURIERS,
    HOP,
    MINUTE,
    ORDERS,
    PRESENCE_TTL,
    START,
    Lab,
    courier,
    drain,
    order,
    presence_view,
    quietly,
)

LONGER = Aggregate("r_orders_9m", "order_id", "count", 9 * MINUTE)


@pytest.fixture
def worker(lab: Lab) -> Worker:
    """A worker that has folded seven orders, one a minute, each of them sent twice."""
    made = lab.worker()
    drain(made)
    for i in range(7):
        lab.clock.now = START + i * MINUTE
        lab.publish(order(f"e{i}", lab.clock.now), order(f"e{i}", lab.clock.now))
        drain(made)
    return made


def with_longer_window(views: Sequence[StreamView]) -> tuple[StreamView, ...]:
    """The views as they are after one line more in `by_restaurant`."""
    before = next(view for view in views if view.name == "by_restaurant")
    assert isinstance(before, WindowView)
    aggregates = (*before.aggregates, LONGER)
    after = replace(
        before,
        features={**before.features, LONGER.name: before.features["r_orders_5m"]},
        aggregates=aggregates,
        layout=Layout.of(HOP, aggregates),
        tiles_hash="with a longer window",
    )
    return tuple(after if view is before else view for view in views)


def change_of(lab: Lab, *names: str) -> Change:
    return plan_change(lab.store.served(), lab.views, names)


def run(lab: Lab, change: Change) -> bool:
    return backfill(lab.log, lab.store, ArchivedLog(lab.repo.settings), lab.clock, change, lambda: False)


def row(lab: Lab) -> dict[str, Feature]:
    return lab.read("by_restaurant", 7)[0]


def test_a_changed_definition_alone_changes_nothing_though_workers_and_readers_start_anew(
    lab: Lab, worker: Worker
) -> None:
    before = row(lab)
    lab.views = with_longer_window(lab.views)
    worker.close()
    lab.publish(order("more", lab.clock.now))
    drain(lab.worker())
    after = row(lab)
    assert after.pop("r_orders_9m") == Feature(None, Status.OUTSIDE_MAX_AGE, None)
    assert after.keys() == before.keys()
    assert [after[name].value for name in ("r_orders_5m", "r_orders_7m")] == [7, 8]


def test_a_backfilled_window_holds_what_came_before_it_was_defined(lab: Lab, worker: Worker) -> None:
    lab.views = with_longer_window(lab.views)
    change = change_of(lab, "by_restaurant")
    assert [view.name for view in change.folded] == ["by_restaurant"]
    assert run(lab, change)
    assert row(lab)["r_orders_9m"] == Feature(7, Status.PRESENT, lab.clock.now)
    switch = lab.store.served().switches["by_restaurant"]
    assert switch.at == lab.clock.now
    assert set(switch.offsets) == {f"{ORDERS}/0", f"{ORDERS}/1"}
    lab.clock.now += MINUTE
    lab.publish(order("more", lab.clock.now), order("e3", START + 3 * MINUTE))
    drain(worker)
    assert (row(lab)["r_orders_9m"].value, row(lab)["r_orders_7m"].value) == (8, 8), "the worker follows what is served"
    assert not change_of(lab).changed


def test_while_it_is_folded_everything_is_served_as_before(lab: Lab, worker: Worker) -> None:
    before = row(lab)
    lab.views = with_longer_window(lab.views)
    looks: list[dict[str, Feature]] = []

    def look(_: float) -> None:
        looks.append(row(lab))
        assert {name: looks[-1][name] for name in before} == before
        assert looks[-1]["r_orders_9m"].status == Status.OUTSIDE_MAX_AGE

    archive = ArchivedLog(lab.repo.settings)
    assert backfill(lab.log, lab.store, archive, lab.clock, change_of(lab), lambda: False, look)
    assert looks


def test_a_backfill_that_is_stopped_leaves_what_is_served(lab: Lab, worker: Worker) -> None:
    before, lab.views = row(lab), with_longer_window(lab.views)
    archive = ArchivedLog(lab.repo.settings)
    assert not backfill(lab.log, lab.store, archive, lab.clock, change_of(lab), stop=lambda: True)
    after = row(lab)
    assert {name: after[name] for name in before} == before


def test_a_function_that_the_tiles_can_answer_already_is_served_at_once(lab: Lab, worker: Worker) -> None:
    view = lab.view("by_restaurant")
    assert isinstance(view, WindowView)
    more = Aggregate("r_orders_6m", "order_id", "count", 6 * MINUTE)
    features = {**view.features, more.name: view.features["r_orders_5m"]}
    after = replace(view, features=features, aggregates=(*view.aggregates, more))
    lab.views = tuple(after if v is view else v for v in lab.views)
    change = change_of(lab)
    assert (change.changed, change.folded) == (("by_restaurant",), ())
    assert run(lab, change)
    assert row(lab)["r_orders_6m"].value == 7


def test_a_view_that_is_gone_is_dropped_and_one_that_is_new_is_folded(lab: Lab, worker: Worker) -> None:
    every = lab.views
    lab.views = tuple(view for view in every if view.name != "by_zone")
    change = change_of(lab)
    assert change.gone == ("by_zone",)
    assert run(lab, change)
    assert set(lab.store.served().views) == {"by_restaurant", "couriers", "open_orders"}
    lab.views = every
    assert lab.read("by_zone", 3)[0]["z_orders_7m"].status == Status.OUTSIDE_MAX_AGE
    assert run(lab, change_of(lab, "by_zone"))
    assert lab.read("by_zone", 3)[0]["z_orders_7m"] == Feature(7, Status.PRESENT, lab.clock.now)


def test_sweeping_removes_what_was_replaced_and_nothing_else(lab: Lab, worker: Worker) -> None:
    before, lab.views = lab.store.served(), with_longer_window(lab.views)
    change = change_of(lab)
    old = before.views["by_restaurant"]
    run(lab, change)
    drain(worker)
    kept = {name: lab.read(name, 3 if name != "by_restaurant" else 7) for name in change.changed}
    assert sweep(lab.client, lab.store, change, before, wait_s=0) == 3, "progress of two partitions, one restaurant"
    assert isinstance(old, WindowView)
    left = [field for key in lab.client.scan_iter(_type="hash") for field in lab.client.hkeys(key)]  # type: ignore[union-attr]
    assert not [field for field in left if field.startswith(layout.tiles_field(old, 0)[:4])]
    assert not [field for field in left if field.endswith(old.tiles_hash.encode())]
    assert {name: lab.read(name, 3 if name != "by_restaurant" else 7) for name in change.changed} == kept


def test_a_presence_that_lasts_longer_counts_members_that_were_forgotten_before(lab: Lab) -> None:
    made = lab.worker()
    drain(made)
    lab.publish(courier("early", START), topic=COURIERS)
    drain(made)
    lab.clock.now += PRESENCE_TTL + MINUTE
    lab.publish(courier("late", lab.clock.now, who=2), topic=COURIERS)
    drain(made)
    assert lab.value("available", 3) == 1
    with quietly():
        after = presence_view(timedelta(milliseconds=2 * PRESENCE_TTL))
        after.entity_columns = [Field(name="zone_id", dtype=Int64)]
        longer = compile_view(after)
    assert isinstance(longer, PresenceView)
    lab.views = tuple(longer if view.name == "couriers" else view for view in lab.views)
    change = change_of(lab)
    assert change.folded == (longer,)
    assert run(lab, change)
    assert lab.value("available", 3) == 2


def test_a_hiccup_of_the_log_or_the_store_only_delays_it(
    lab: Lab, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.views = with_longer_window(lab.views)
    change, hiccups = change_of(lab), iter([LogUnavailable("a hiccup"), STORE_DOWN[0]("another")])
    partitions = lab.log.partitions

    def shaky(topic: str) -> int:
        if error := next(hiccups, None):
            raise error
        return partitions(topic)

    monkeypatch.setattr(lab.log, "partitions", shaky)
    monkeypatch.setattr(work, "_RETRY_S", 0.0)
    assert run(lab, change)
    assert next(hiccups, None) is None
    assert row(lab)["r_orders_9m"] == Feature(7, Status.PRESENT, lab.clock.now)


def test_a_change_that_was_planned_on_other_definitions_than_are_served_by_now_is_refused(
    lab: Lab, worker: Worker
) -> None:
    lab.views = with_longer_window(lab.views)
    late = change_of(lab)
    lab.views = tuple(view for view in lab.views if view.name != "by_zone")
    assert run(lab, change_of(lab))
    with pytest.raises(NotBackfilled, match="changed meanwhile"):
        run(lab, late)
    assert "by_zone" not in lab.store.served().views


def test_a_name_that_is_no_view_and_a_store_that_serves_nothing_are_refused(lab: Lab) -> None:
    with pytest.raises(NotBackfilled, match="nothing is served yet"):
        change_of(lab)
    drain(lab.worker())
    with pytest.raises(NotBackfilled, match="'nobody' is no stream view: there are by_restaurant"):
        change_of(lab, "nobody")


def test_after_the_store_was_emptied_a_worker_serves_what_it_folded_not_what_is_defined_by_now(
    lab: Lab, worker: Worker
) -> None:
    lab.views = with_longer_window(lab.views)
    for key in lab.client.scan_iter():
        if not key.startswith((b"log:", b"lease", b"group:")):
            lab.client.delete(key)
    lab.clock.now += MINUTE
    for _ in range(3):
        drain(worker)
    assert row(lab)["r_orders_7m"].value == 7
    assert row(lab)["r_orders_9m"].status == Status.OUTSIDE_MAX_AGE
