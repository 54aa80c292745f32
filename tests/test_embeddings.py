"""Embeddings: the same bytes of the same orders, nothing that came later, and rows that Feast reads, off and online."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.clock import from_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import parquet_files
from feature_repo.stores.reading import ReadPlan, Status, Wanted, read
from feature_repo.stores.redis_client import Redis
from feature_repo.views import compile_view
from ingestion.event_files import events_table, publish_events
from models.embeddings import Embeddings, NoEmbeddings, compute, factorize, stored_embeddings
from models.order_history import NoOrders, order_counts
from models.recommend import CUSTOMERS, RESTAURANTS
from tests.orders import DAY, SMALL, T, day_of, embed, placed, regulars
from tests.repo import PROJECT, Repo, applied_repo, offline, quietly

with quietly():
    from feature_repo import definitions


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(TIFFIN_REPO=tmp_path)


def rows(settings: Settings, view: str) -> pa.Table:
    """All rows of a view, as written."""
    return pa.concat_tables([pq.read_table(file) for file in parquet_files(settings.data / "batch" / view)])


def content(made: Embeddings) -> tuple[str, bytes, bytes, bytes, bytes]:
    """All of a factorization."""
    ids = made.customer_id.tobytes(), made.restaurant_id.tobytes()
    return made.factorization, *ids, made.customer_vectors.tobytes(), made.restaurant_vectors.tobytes()


def test_equal_orders_give_equal_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        settings = Settings(TIFFIN_REPO=tmp_path / name)
        regulars(settings, days=6)
        made.append(content(embed(settings)))
    assert made[0] == made[1]


def test_nothing_from_the_midnight_on_leaks_in(settings: Settings) -> None:
    regulars(settings, days=6)
    first = content(embed(settings))
    placed(settings, (T, 1, 3, 1), (T + 1, 900, 901, 1))
    assert compute(settings, day_of(T), T + DAY, SMALL) == {RESTAURANTS: 0, CUSTOMERS: 0}
    assert content(stored_embeddings(settings, day_of(T), T + DAY)) == first
    placed(settings, (T - 1, 1, 3, 1))
    assert compute(settings, day_of(T), T + DAY, SMALL)[CUSTOMERS] == 40, "the last millisecond before it counts"
    assert content(stored_embeddings(settings, day_of(T), T + DAY))[0] != first[0]


def late_record(settings: Settings, event_id: str, restaurant: int, event_ms: int, append_ms: int) -> None:
    """A record of customer 1 that was appended later than it happened."""
    ids = {"event_id": [event_id], "order_id": [event_id], "restaurant_id": [restaurant], "zone_id": [1]}
    rest = {"customer_id": [1], "placed_at": np.array([event_ms]), "basket_total": [None], "item_count": [None]}
    where = {"event_time": [event_ms], "append_time": [append_ms], "partition": [0], "offset": [0]}
    publish_events(settings, "order_placed", events_table("order_placed", ids | rest | where), last_offset=0)


def test_what_is_appended_later_than_now_does_not_count(settings: Settings) -> None:
    regulars(settings, days=6)
    embed(settings)
    late_record(settings, "late", 3, T - 1, T + 10)
    assert compute(settings, day_of(T), T + 9, SMALL) == {RESTAURANTS: 0, CUSTOMERS: 0}
    assert compute(settings, day_of(T), T + 10, SMALL)[CUSTOMERS] == 40


def test_an_event_counts_once_by_the_record_that_came_first(settings: Settings) -> None:
    placed(settings, (T - DAY, 1, 5, 1), (T - DAY + 1, 2, 6, 1))
    late_record(settings, f"p{T - DAY}-1-5-1", 7, T - 5, T - 4)
    counts = order_counts(settings, from_ms(T - 2 * DAY), from_ms(T), T)
    assert (counts.restaurant_id.tolist(), counts.orders.tolist()) == ([5, 6], [1, 1])


def test_orders_of_nobody_are_counted_and_not_learnt_from(settings: Settings) -> None:
    regulars(settings, days=6)
    first = embed(settings)
    placed(settings, (T - DAY, None, 500, 1))
    known = order_counts(settings, from_ms(T - 6 * DAY), from_ms(T), T)
    assert 500 in known.restaurant_id
    assert known.total == known.of_customers().total + 1
    assert content(factorize(known, SMALL))[1:] == content(first)[1:]


def test_rows_say_what_they_are_as_of_and_which_factorization_they_are_of(settings: Settings) -> None:
    regulars(settings, days=6)
    made = embed(settings)
    found = rows(settings, RESTAURANTS)
    assert found.schema.names == [
        *("restaurant_id", "restaurant_vector", "restaurant_factorization", "event_time", "created")
    ]
    assert found.schema.field("restaurant_vector").type.value_type == pa.float32()
    assert {found.schema.field(name).type for name in ("event_time", "created")} == {pa.timestamp("us", tz="UTC")}
    assert found["restaurant_id"].to_pylist() == sorted(made.restaurant_id.tolist())
    assert set(found["event_time"].to_pylist()) == {from_ms(T)}
    assert set(found["created"].to_pylist()) == {from_ms(T + 1)}
    both = {
        *found["restaurant_factorization"].to_pylist(),
        *rows(settings, CUSTOMERS)["customer_factorization"].to_pylist(),
    }
    assert both == {made.factorization}
    assert np.isfinite(made.customer_vectors).all()
    assert made.customer_vectors.shape == (40, SMALL.factors)


def test_customers_get_higher_products_with_what_they_like(settings: Settings) -> None:
    regulars(settings, days=10)
    made = embed(settings)
    products = made.customer_vectors @ made.restaurant_vectors.T
    theirs = made.customer_id[:, None] % 2 == made.restaurant_id[None, :] % 2
    assert products[theirs].mean() > products[~theirs].mean() + 0.4


def test_what_is_stored_is_written_again_only_if_it_is_another_factorization(settings: Settings) -> None:
    regulars(settings, days=6)
    first = embed(settings)
    assert compute(settings, day_of(T), T + 2, SMALL) == {RESTAURANTS: 0, CUSTOMERS: 0}
    other = replace(SMALL, alpha=9.0)
    assert compute(settings, day_of(T), T + 3, other) == {RESTAURANTS: len(first.restaurant_id), CUSTOMERS: 40}
    assert compute(settings, day_of(T), T + 4, SMALL)[CUSTOMERS] == 40, "the newest of the day is another one"
    assert content(stored_embeddings(settings, None, T + 5)) == content(first)
    assert content(stored_embeddings(settings, None, T + 3)) != content(first)


def test_a_side_that_is_missing_is_written_and_meanwhile_refused(settings: Settings) -> None:
    regulars(settings, days=6)
    embed(settings)
    (file,) = parquet_files(settings.data / "batch" / RESTAURANTS)
    file.unlink()
    with pytest.raises(NoEmbeddings, match="nothing can be compared"):
        stored_embeddings(settings, None, T + 2)
    written = compute(settings, day_of(T), T + 2, SMALL)
    assert (written[CUSTOMERS], written[RESTAURANTS] > 0) == (0, True)
    assert len(stored_embeddings(settings, None, T + 2).restaurant_id) == written[RESTAURANTS]


def test_what_cannot_be_computed_is_refused(settings: Settings) -> None:
    with pytest.raises(NoOrders, match="nothing to recommend from"):
        compute(settings, day_of(T), T)
    with pytest.raises(ValueError, match="not known yet"):
        compute(settings, day_of(T), T - 1)
    placed(settings, (T - DAY, None, 1, 1))
    with pytest.raises(NoEmbeddings, match="names its customer"):
        compute(settings, day_of(T), T)


@pytest.fixture(scope="module")
def applied(valkey: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    """A repository with both views and their service."""
    views = [definitions.restaurant_embedding, definitions.customer_embedding, definitions.recommend]
    objects = [definitions.restaurant, definitions.customer, *views]
    with applied_repo(tmp_path_factory.mktemp("embeddings"), valkey, objects) as made:
        yield made


def test_feast_reads_the_rows_offline_and_materialized_online(applied: Repo, redis_client: Redis) -> None:
    applied.forget_files()
    regulars(applied.settings, days=6)
    before, made = embed(applied.settings, T - DAY), embed(applied.settings)
    asked = pd.DataFrame(
        {
            "customer_id": [3, 3, 3, 999],
            "restaurant_id": made.restaurant_id[[0, 0, 0, 0]],
            "event_timestamp": pd.to_datetime([T - 1, T, T + 8 * DAY, T], unit="ms", utc=True).astype(
                "datetime64[us, UTC]"
            ),
        }
    )
    features = ["customer_embedding:customer_vector", "restaurant_embedding:restaurant_factorization"]
    found = offline(applied, asked, features).sort_values(["customer_id", "event_timestamp"], ignore_index=True)
    old, new, late, nobody = found["customer_vector"]
    assert np.array_equal(old, before.customer_vectors[2])
    assert np.array_equal(new, made.customer_vectors[2])
    assert (late, nobody) == (None, None), "beyond its TTL, and never seen"
    assert found["restaurant_factorization"].tolist()[:2] == [before.factorization, made.factorization]

    with quietly():
        applied.feast.materialize(from_ms(T - DAY), from_ms(T + 1))
        views = [compile_view(applied.feast.get_feature_view(name)) for name in (CUSTOMERS, RESTAURANTS)]
    wanted = [Wanted(view, tuple(sorted(view.features)), view.join_keys) for view in views]
    ids = {"customer_id": [3, 999], "restaurant_id": made.restaurant_id[:1].tolist()}
    customers, restaurants = read(redis_client, ReadPlan(PROJECT, wanted), ids, T + 1).columns
    (name, nobodys), (vector, _) = customers
    assert name == (made.factorization, Status.PRESENT, T)
    assert np.array_equal(np.array(vector.value, np.float32), made.customer_vectors[2])
    assert nobodys.status == Status.NOT_FOUND
    assert np.array_equal(np.array(restaurants[1][0].value, np.float32), made.restaurant_vectors[0])
