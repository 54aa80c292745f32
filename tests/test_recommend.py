"""Ranking, ties, what is popular, and the measure of recommendations, by hand; picks from history to the SQL tables."""

from pathlib import Path

import numpy as np
import pytest

from feature_repo.clock import from_ms
from feature_repo.settings import Settings
from models.embeddings import NoEmbeddings, Parameters, factorize
from models.evaluate_recommendations import evaluate, measure, report, tune
from models.order_history import NoOrders, OrderCounts, order_counts, order_span
from models.picks import publish_picks
from models.recommend import picks, popular, rank
from models.recommendation_methods import (
    BEFORE,
    NOTHING,
    ONLINE,
    ONLINE_TOLD,
    POPULAR,
    POPULAR_TOLD,
    POPULAR_ZONE,
    STORED,
    STORED_NEW,
    Methods,
)
from models.stored import PICKS, RunRefused, open_stored
from tests.orders import DAY, T, day_of, embed, placed, regulars


def counted(*rows: tuple[int | None, int, int, int]) -> OrderCounts:
    """Counts of (customer, restaurant, zone, orders)."""
    rows = tuple(sorted(rows, key=lambda row: (row[0] is not None, row)))
    customers = np.array([row[0] or 0 for row in rows], np.int64)
    known = np.array([row[0] is not None for row in rows])
    columns = [np.array([row[i] for row in rows], np.int64) for i in (1, 2, 3)]
    return OrderCounts(T - DAY, T, customers, known, *columns)


def vectors(*rows: list[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array(rows, np.float32)


def test_the_greater_product_comes_first_and_of_equals_the_lower_id() -> None:
    candidates = np.array([9, 4, 7, 5], np.int64)
    ranked = rank(vectors([1, 2])[0], candidates, vectors([1, 1], [0, 0.5], [1, 1], [3, -1]))
    assert ranked.restaurant_id.tolist() == [7, 9, 4, 5]
    assert ranked.score.tolist() == [3, 3, 1, 1]


def test_picks_are_what_ranking_each_customer_gives() -> None:
    dice = np.random.default_rng(3)
    customers = dice.normal(size=(50, 8)).astype(np.float32)
    restaurants = dice.normal(size=(30, 8)).astype(np.float32)
    restaurants[11] = restaurants[4]  # equals
    ids = np.arange(30, dtype=np.int64) * 3
    chosen, scores = picks(customers, ids, restaurants)
    assert chosen.shape == (50, 10)
    for customer, theirs, score in zip(customers, chosen, scores, strict=True):
        shuffled = dice.permutation(30)
        alone = rank(customer, ids[shuffled], restaurants[shuffled])
        assert theirs.tolist() == alone.restaurant_id[:10].tolist()
        assert score.tolist() == alone.score[:10].tolist()


def test_fewer_restaurants_than_picks_are_all_picked() -> None:
    chosen, _ = picks(vectors([1], [-1]), np.array([1, 2], np.int64), vectors([1], [2]))
    assert chosen.tolist() == [[2, 1], [1, 2]]


def test_ids_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="does not ascend"):
        picks(vectors([1]), np.array([2, 1], np.int64), vectors([1], [2]))


def test_what_is_popular_counts_orders_by_zone_and_everywhere() -> None:
    lists = popular(counted((1, 10, 1, 2), (2, 10, 2, 2), (None, 11, 1, 4), (3, 12, 1, 3), (3, 13, 2, 2)))
    found = {zone: (ranked.restaurant_id.tolist(), ranked.score.tolist()) for zone, ranked in lists.items()}
    assert found == {
        None: ([10, 11, 12, 13], [4, 4, 3, 2]),
        1: ([11, 12, 10], [4, 3, 2]),
        2: ([10, 13], [2, 2]),
    }
    assert popular(counted((1, 10, 1, 2), (2, 11, 1, 1)), count=1)[1].restaurant_id.tolist() == [10]


def test_hit_rate_and_recall_by_hand() -> None:
    test = counted((1, 10, 1, 5), (1, 11, 1, 1), (2, 12, 1, 1), (3, 10, 1, 1), (3, 10, 2, 1), (3, 13, 1, 1))
    lists = np.array([[10, 99], [99, 98], [13, 10]], np.int64)
    found = measure(lists, np.array([1, 2, 3], np.int64), test)
    assert list(found) == pytest.approx([3, 2 / 3, (0.5 + 0 + 1) / 3])
    assert measure(lists[1:2], np.array([2], np.int64), test) == (1, 0, 0)
    assert measure(lists[:0], np.array([], np.int64), test).customers == 0


def test_methods_by_hand() -> None:
    # Zone 1 has 10 and 11, zone 2 has 20 and 21. Customer 1 is of zone 1, customer 2 orders in both, 3 is new.
    train = counted((1, 10, 1, 3), (1, 11, 1, 1), (2, 20, 2, 4), (2, 10, 1, 1), (4, 21, 2, 5), (None, 11, 1, 9))
    test = counted((1, 20, 2, 1), (2, 20, 2, 1), (3, 10, 1, 1))
    methods = Methods(factorize(train, Parameters(factors=2)), train, test).lists(np.array([1, 2, 3], np.int64))
    found = {name: [[i for i in row if i != NOTHING] for row in lists.tolist()] for name, lists in methods.items()}
    everywhere = [11, 21, 10, 20]
    assert found[POPULAR] == [everywhere] * 3
    assert found[POPULAR_ZONE][0][:2] == [11, 10]
    assert found[POPULAR_ZONE][1:] == [[21, 20, 10, 11], everywhere]
    assert [row[:2] for row in found[POPULAR_TOLD]] == [[21, 20], [21, 20], [11, 10]]
    assert found[BEFORE][0][:2] == [10, 11]
    assert found[BEFORE][1][:3] == [20, 10, 21]
    assert [set(row) for row in found[ONLINE]] == [{10, 11}, {10, 11, 20, 21}, set(everywhere)]
    assert [set(row) for row in found[ONLINE_TOLD][:2]] == [{20, 21}, {20, 21}]
    assert found[ONLINE_TOLD][2][:2] == [11, 10], "a new customer gets what is popular there"
    assert found[STORED][2] == everywhere
    assert set(found[STORED][0]) == set(everywhere)
    assert [set(row) for row in found[STORED_NEW]] == [{20, 21}, {11, 21}, set(everywhere)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(TIFFIN_REPO=tmp_path)


def test_tastes_are_found_and_measured_on_later_orders(settings: Settings) -> None:
    """Customers like the even or the odd restaurants, and try another of them each time."""
    regulars(settings, days=12)
    test_from, until, now = from_ms(T - 2 * DAY), from_ms(T), T
    found = evaluate(settings, test_from, until, now, lambda *_: None, Parameters(factors=4, regularization=1, alpha=4))
    metrics = found.metrics["all"]
    assert metrics[STORED].recall > metrics[POPULAR].recall + 0.2
    assert metrics[STORED_NEW].recall > 0, "what they had not tried before, but others of their taste"
    assert found.metrics["with history"][STORED].customers + found.metrics["new"][STORED].customers == 40
    assert found.train.until_ms == T - 2 * DAY == found.test.since_ms
    assert found.train.since_ms == order_span(settings)[0]
    title = str(report(found).title)
    assert "4 factors" in title
    assert f"{found.test.total} orders from 2026-03-08 00:00 until 2026-03-10 00:00 to test on" in title


def test_the_test_range_decides_nothing(settings: Settings) -> None:
    regulars(settings, days=8)
    steps: list[float] = []
    before = tune(settings, from_ms(T - 2 * DAY), T, lambda done, total: steps.append(done / total), Parameters())
    assert steps[-1] == 1
    placed(settings, *((T - DAY + n, 1, 77, 1) for n in range(500)))
    assert tune(settings, from_ms(T - 2 * DAY), T, lambda *_: None, Parameters()) == before


def test_a_test_range_without_customers_is_refused(settings: Settings) -> None:
    placed(settings, (T - 3 * DAY, 1, 1, 1), (T - DAY, None, 1, 1))
    with pytest.raises(NoOrders, match="names its customer"):
        evaluate(settings, from_ms(T - 2 * DAY), from_ms(T), T, lambda *_: None, Parameters())
    with pytest.raises(NoOrders, match="holds no order placed"):
        order_counts(settings, from_ms(T), from_ms(T + DAY), T + DAY)


def test_picks_and_popular_restaurants_are_published_once(settings: Settings) -> None:
    regulars(settings, days=8)
    placed(settings, (T - DAY, None, 500, 9))
    made = embed(settings)
    stored = open_stored(settings)
    report = publish_picks(settings, stored, lambda: T + 5, lambda *_: None)
    popular_rows = sum(len(found.restaurant_id) for found in popular(order_counts_28(settings)).values())
    assert report.rows == report.written == 40 * 10 + popular_rows
    run = report.run
    assert (run.kind, run.as_of_ms, run.model_version) == (PICKS, T, made.factorization)
    assert (run.input_from_ms, run.input_until_ms) == (T - 28 * DAY, T)
    theirs = stored.picks(3)
    assert theirs is not None
    ids, scores = picks(made.customer_vectors[2:3], made.restaurant_id, made.restaurant_vectors)
    assert (theirs.restaurants, theirs.scores) == (ids[0].tolist(), scores[0].tolist())
    assert theirs.run.run_id == run.run_id
    nine, everywhere = stored.popular(9), stored.popular(None)
    assert nine is not None
    assert everywhere is not None
    assert (nine.restaurants, nine.scores) == ([500], [1.0])
    assert 500 in everywhere.restaurants
    again = publish_picks(settings, stored, lambda: T + 6, lambda *_: None)
    assert (again.run.run_id, again.rows, again.written) == (run.run_id, report.rows, 0)
    stored.close()


def test_late_orders_make_another_run_and_an_older_day_is_refused(settings: Settings) -> None:
    regulars(settings, days=8)
    embed(settings)
    embed(settings, T - DAY)
    stored = open_stored(settings)
    first = publish_picks(settings, stored, lambda: T + 5).run
    placed(settings, (T - 1, None, 500, 9))  # of nobody: the vectors stay, what is popular changes
    second = publish_picks(settings, stored, lambda: T + 6).run
    assert first.model_version == second.model_version
    assert first.run_id != second.run_id
    with pytest.raises(RunRefused, match="back in time"):
        publish_picks(settings, stored, lambda: T + 7, as_of=day_of(T - DAY))
    current = stored.current(PICKS)
    assert current is not None
    assert current.run_id == second.run_id
    stored.close()


def test_without_vectors_nothing_is_picked(settings: Settings) -> None:
    regulars(settings, days=2)
    stored = open_stored(settings)
    with pytest.raises(NoEmbeddings, match="tiffin embeddings"):
        publish_picks(settings, stored, lambda: T)
    embed(settings)
    with pytest.raises(NoEmbeddings, match="as of 2026-03-01"):
        publish_picks(settings, stored, lambda: T, as_of=day_of(T - 9 * DAY))
    assert stored.current(PICKS) is None
    stored.close()


def order_counts_28(settings: Settings) -> OrderCounts:
    return order_counts(settings, from_ms(T - 28 * DAY), from_ms(T), T + 5)
