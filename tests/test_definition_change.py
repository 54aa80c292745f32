"""A reader and a worker with different definitions: what the worker does not fold is never served as a known zero."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from feature_repo.stores.progress import Progress
from feature_repo.stores.reading import ReadPlan, Status, Wanted, read
from feature_repo.stores.redis_client import Redis
from feature_repo.stores.stream_store import StreamStore
from feature_repo.views import PresenceView, StreamView
from tests.test_definition_checks import PRESENCE, window

PROJECT, VIEWS, NOW = "change", 77, 10_000_000
STANDING = Progress(epoch=1, offset=0, covered_from=-(10**9), complete_until=NOW, newest=0, log=1, views=VIEWS)


def served(client: Redis, view: StreamView) -> Status:
    (feature,) = view.features
    plan = ReadPlan(PROJECT, [Wanted(view, (feature,), view.join_keys)])
    return read(client, plan, {view.join_keys[0]: [1]}, NOW).columns[0][0][0].status


@pytest.mark.parametrize("make", [window, lambda: PRESENCE])
def test_a_view_that_no_worker_folds_as_it_is_defined_here_is_never_a_known_zero(
    redis_client: Redis, make: Callable[[], StreamView]
) -> None:
    view = make()
    store = StreamStore(redis_client, PROJECT)
    for topic in view.topics:
        store.describe_topic(topic, 1, VIEWS, [view.tiles_hash])
        store.swap_progress(topic, 0, None, STANDING)
    known = Status.PRESENT if isinstance(view, PresenceView) else Status.NULL_VALUE
    assert served(redis_client, view) == known, "what is folded, and empty, is known"
    assert served(redis_client, replace(view, tiles_hash="defined otherwise")) == Status.OUTSIDE_MAX_AGE


def test_a_worker_of_other_definitions_takes_over_and_readers_of_the_old_ones_notice(redis_client: Redis) -> None:
    store, view = StreamStore(redis_client, PROJECT), window()
    store.describe_topic(view.topic, 2, VIEWS, [view.tiles_hash])
    for partition in (0, 1):
        store.swap_progress(view.topic, partition, None, STANDING)
    assert served(redis_client, view) == Status.NULL_VALUE
    store.describe_topic(view.topic, 2, VIEWS + 1, ["defined otherwise"])
    store.swap_progress(view.topic, 1, STANDING, STANDING._replace(epoch=2, views=VIEWS + 1))
    assert served(redis_client, view) == Status.OUTSIDE_MAX_AGE, "one partition is enough"


def test_progress_that_nobody_described_makes_nothing_fresh(redis_client: Redis) -> None:
    store, view = StreamStore(redis_client, PROJECT), window()
    store.describe_topic(view.topic, 1, VIEWS, [view.tiles_hash])
    store.swap_progress(view.topic, 0, None, STANDING._replace(views=VIEWS + 1))
    assert served(redis_client, view) == Status.OUTSIDE_MAX_AGE
