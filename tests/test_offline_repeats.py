"""What counts once in history, as online: repeats on a partition, ids given twice, history that is in the log too."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo.stores.duckdb_client import connect as connect_duckdb
from feature_repo.stores.windows_sql import result_sql
from ingestion.event_files import append_history
from ingestion.parity.compare import TOLERANCE
from tests.repo import COURIERS, MINUTE, ORDERS, START, Lab, Repo, at, courier, drain, offline, order

MEMORY = 12 * MINUTE
"""Of ``order_placed``: its longest reach is that of the open orders, ten minutes, and two minutes are added."""


def asked(lab: Lab, ref: str, *instants: int, arrival: bool = False) -> list[Any]:
    """A feature of restaurant 7 or zone 3 at instants (ms)."""
    rows = pd.DataFrame({"restaurant_id": [7] * len(instants), "zone_id": 3})
    rows["event_timestamp"] = [at(instant) for instant in instants]
    return offline(lab.repo, rows, [ref], filter_by_created_timestamp=arrival)[ref.partition(":")[2]].tolist()


def keys_of_two_partitions(lab: Lab) -> tuple[str, str]:
    keys: dict[int, str] = {}
    for number in range(100):
        keys.setdefault(lab.log.publish("dead_letters", [order("x", START, key=number)])[0].partition, str(number))
    return keys[0], keys[1]


def test_an_id_counts_once_a_partition_and_again_in_another_as_online(lab: Lab) -> None:
    one, other = keys_of_two_partitions(lab)
    lab.publish(*(order("a", START, key=key) for key in (one, other, one, other, other)))
    assert {record.partition for record in lab.records(ORDERS)} == {0, 1}
    drain(lab.worker())
    lab.archive()
    assert asked(lab, "by_zone:z_orders_5m", START) == [lab.value("z_orders_5m", 3)] == [2]


@pytest.mark.parametrize(
    ("later_by", "counted"), [(0, 1), (MEMORY - 1, 0), (MEMORY, 0), (MEMORY + 1, 1), (9 * MEMORY, 1)]
)
def test_an_id_given_again_is_a_repeat_within_the_topics_memory_and_then_another_event(
    lab: Lab, later_by: int, counted: int
) -> None:
    """But for the first case the window does not reach the first event, nor does anything else that is asked for."""
    for time in (START - later_by, START):
        lab.publish(order("a", time), at=time)
    lab.archive()
    assert asked(lab, "by_restaurant:r_orders_5m", START) == [counted]


def test_a_repeat_that_says_an_earlier_time_counts_at_no_instant(lab: Lab) -> None:
    """The original happens after the last instant that is asked for."""
    lab.clock.now = START + 30_000
    lab.publish(order("a", START + 30_000))
    lab.clock.now = START + 90 * MINUTE
    lab.publish(order("a", START))
    lab.archive()
    instants = [START, START + 29_999, START + 30_000]
    assert asked(lab, "by_restaurant:r_orders_5m", *instants) == [0, 0, 1]
    assert [asked(lab, "by_restaurant:r_orders_5m", t)[0] for t in instants] == [0, 0, 1], "whatever else is asked for"


def write_history(lab: Lab, topic: str, *events: Mapping[str, Any]) -> None:
    append_history(lab.repo.settings, topic, {name: [e[name] for e in events] for name in events[0]})


def test_an_event_of_history_that_is_in_the_log_too_counts_there_alone(lab: Lab) -> None:
    told = {"event_id": "a", "order_id": "o", "restaurant_id": 7, "zone_id": 3, "customer_id": 1, "item_count": 1}
    alone = {**told, "event_id": "b", "order_id": "p", "basket_total": 100.0}
    instants = {"event_time": START, "placed_at": START}
    write_history(lab, ORDERS, {**told, "basket_total": 10.0, **instants}, {**alone, **instants})
    arrived = START + 2 * MINUTE
    lab.clock.now = arrived
    lab.publish(order("a", START, order_id="o", basket_total=20.0))
    lab.archive()
    moments = [START - 1, START, arrived - 1, arrived, START + 6 * MINUTE - 1, START + 6 * MINUTE]
    ref = "by_restaurant:r_basket_sum"
    assert asked(lab, ref, *moments) == [0, 120, 120, 120, 120, 0]
    assert asked(lab, ref, *moments, arrival=True) == [0, 110, 110, 120, 120, 0], "until then it was history's"
    assert asked(lab, "open_orders:open", *moments) == [0, 2, 2, 2, 2, 2]
    assert asked(lab, "open_orders:open", *moments, arrival=True) == [0, 2, 2, 2, 2, 2]


def test_a_member_of_history_and_of_the_log_is_one(lab: Lab) -> None:
    moved = {"event_id": "a", "courier_id": 1, "zone_id": 3, "status": "busy", "at": START, "event_time": START}
    write_history(lab, COURIERS, moved)
    lab.clock.now = START + MINUTE
    lab.publish(courier("a", START, status="available"), topic=COURIERS)
    lab.archive()
    instants = [START, START + MINUTE - 1, START + MINUTE]
    assert asked(lab, "couriers:available", *instants) == [1, 1, 1]
    assert asked(lab, "couriers:available", *instants, arrival=True) == [0, 0, 1]
    assert asked(lab, "couriers:busy", *instants, arrival=True) == [1, 1, 0]


@pytest.mark.parametrize("shift", [-1, 0, 1])
@pytest.mark.parametrize("later", [-MINUTE, 0, MINUTE])
def test_an_event_of_two_logs_counts_once_wherever_it_lies_in_them(lab: Lab, shift: int, later: int) -> None:
    """The topic was mirrored into another cluster, and both were archived in one folder."""
    lab.clock.now = arrived = START + 2 * MINUTE
    lab.publish(order("a", START), order("b", START))
    lab.archive()
    topic = lab.repo.settings.data / "log" / ORDERS
    for file in topic.glob("date=*/*.parquet"):
        table = pq.read_table(file)
        offsets = pc.add(table["offset"], shift)
        appended = pc.add(table["append_time"], pa.scalar(later * 1000, pa.duration("us")))
        table = table.set_column(table.schema.get_field_index("offset"), "offset", offsets)
        table = table.set_column(table.schema.get_field_index("append_time"), "append_time", appended)
        mirrored = topic / "log=abc" / file.parent.name
        mirrored.mkdir(parents=True)
        pq.write_table(table, mirrored / file.name)
    ref = "by_restaurant:r_orders_5m"
    known = arrived + min(later, 0)
    assert asked(lab, ref, START, arrived) == [2, 2]
    assert asked(lab, ref, known - 1, known, arrived + MINUTE, arrival=True) == [0, 2, 2]


def test_history_and_another_event_of_its_id_long_after_are_two(lab: Lab) -> None:
    told = {"event_id": "a", "order_id": "o", "restaurant_id": 7, "zone_id": 3, "customer_id": 1, "item_count": 1}
    write_history(lab, ORDERS, {**told, "basket_total": 10.0, "event_time": START, "placed_at": START})
    after = START + MEMORY + 1
    lab.publish(order("a", after), at=after)
    lab.archive()
    assert asked(lab, "by_restaurant:r_orders_5m", START, after) == [1, 1]


def exact_std(millionths: Sequence[tuple[int, int]]) -> float:
    """Of (value, how often) pairs."""
    n = sum(often for _, often in millionths)
    mean = Fraction(sum(value * often for value, often in millionths), n)
    variance = sum((value - mean) ** 2 * often for value, often in millionths) / n
    return math.sqrt(variance) / 1e6


GREATEST = 10**15
"""In millionths."""


@pytest.mark.parametrize(
    "millionths",
    [
        [(GREATEST, 10_000_000)],
        [(GREATEST, 5_000_000), (-GREATEST, 5_000_000)],
        [(GREATEST, 40_000_000), (-GREATEST, 40_000_000)],
        [(GREATEST, 9_999_999), (GREATEST - 1, 1)],
        [(-GREATEST, 9_999_999), (1 - GREATEST, 1)],
        [(GREATEST, 5_000_001), (GREATEST - 1, 4_999_999)],
        [(-GREATEST, 3_333_333), (1 - GREATEST, 6_666_667)],
        [(0, 9_999_999), (1, 1)],
        [(7, 1)],
    ],
)
def test_a_standard_deviation_is_right_for_ten_million_events_of_the_greatest_magnitude(
    repo: Repo, millionths: Sequence[tuple[int, int]]
) -> None:
    n = sum(often for _, often in millionths)
    x = sum(value * often for value, often in millionths)
    q = sum(value * value * often for value, often in millionths)
    parts = f"SELECT CAST({n} AS BIGINT) AS n, CAST('{x}' AS HUGEINT) AS x, CAST('{q}' AS HUGEINT) AS q"
    with connect_duckdb(repo.settings) as connection:
        ((found,),) = connection.execute(f"SELECT {result_sql('std')} FROM ({parts})").fetchall()
    assert math.isclose(found, exact_std(millionths), rel_tol=TOLERANCE)


def test_a_standard_deviation_over_many_great_values_does_not_overflow(lab: Lab) -> None:
    count = 30_000
    baskets = np.where(np.arange(count) % 3 == 0, 1e9, 1e9 - 0.5)
    numbers = np.arange(count).astype(str)
    columns = {"event_id": numbers, "order_id": numbers, "basket_total": baskets}
    columns |= {name: np.full(count, value) for name, value in (("restaurant_id", 7), ("zone_id", 3))}
    columns |= {name: np.full(count, START) for name in ("event_time", "placed_at")}
    columns |= {name: np.full(count, 1) for name in ("customer_id", "item_count")}
    append_history(lab.repo.settings, ORDERS, columns)
    (found,) = asked(lab, "by_restaurant:r_basket_std", START)
    assert math.isclose(found, exact_std([(GREATEST, 10_000), (GREATEST - 500_000, 20_000)]), rel_tol=TOLERANCE)
