"""From the sending of an event to a prediction that knows it, beside from the sending to a bare consumer's decoding.

While a process sends the town's events to Kafka, orders at one restaurant are sent one after the other, and after each
the API is asked again and again for a prediction there, until its count of orders has risen. The bare consumer reads
the same orders, so both sides are measured on the same events. What asking adds is in our figure: an event is seen when
an answer that counts it has come, so by up to two times what one question takes too late.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import msgspec
import numpy as np
from kafka import KafkaProducer

from benchmarks.events import PLACED
from benchmarks.figures import Bench, Measured, Side
from benchmarks.world import TOWN, World, made
from deploy.processes import Process, ServiceError, wait
from ingestion.partitioner import partition_of

RATE = 5_000
_FEATURE = "restaurant_recent_orders__orders_10m"
_GIVE_UP_S = 10.0
_PAUSE_S = 0.02
_FIRST = 10**12  # customers with such numbers are marks
_READY_S, _WARM_S = 60.0, 5.0


class Marker:
    """Sends marked orders, and asks until each shows."""

    def __init__(self, world: World, port: int, tally: Path) -> None:
        servers = str(world.settings.kafka_bootstrap_servers)
        self.restaurant = int(TOWN.by_popularity[-1])  # nearly nobody else orders there
        self._zone = int(TOWN.zone_of(TOWN.by_popularity[-1:])[0])
        self._producer = KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=0, metrics_enabled=False)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_GIVE_UP_S)
        self._path, self._sent = tally, dict[int, int]()
        self.asked_ms: list[float] = []
        self.unseen = 0

    def close(self) -> None:
        """End the connections."""
        self._producer.close()
        self._http.close()

    def round(self, marks: int) -> tuple[list[float], list[float]]:
        """How long it took, of so many marked orders, until they were predicted with, and until they were consumed: ms.

        Raises ServiceError if one in a hundred is never seen.
        """
        first = len(self._sent)
        seen = {number: at for number in range(first, first + marks) if (at := self._mark(number)) is not None}
        if not wait(lambda: self._consumed().keys() >= set(range(first, first + marks)), _GIVE_UP_S):
            raise ServiceError("the bare consumer has not read all of the marked orders")
        if len(seen) < 0.99 * marks:
            raise ServiceError(f"of {marks} marked orders {marks - len(seen)} were never predicted with")
        self.unseen += marks - len(seen)
        came = self._consumed()
        ours = [(at - self._sent[number]) / 1e6 for number, at in seen.items()]
        return ours, [(came[number] - self._sent[number]) / 1e6 for number in range(first, first + marks)]

    def _mark(self, number: int) -> int | None:
        before = self._count()
        now = time.time_ns()
        order = {
            "event_id": f"mark-{number}",
            "order_id": f"mark-{number}",
            "restaurant_id": self.restaurant,
            "zone_id": self._zone,
            "customer_id": _FIRST + number,
            "placed_at": now // 1_000_000,
            "basket_total": 20.0,
            "item_count": 2,
        }
        key, value = b"%d" % self.restaurant, msgspec.json.encode(order)
        where = partition_of(key, len(self._producer.partitions_for(PLACED)))
        self._sent[number] = time.time_ns()
        self._producer.send(PLACED, value, key, partition=where)
        for _ in self._asking():
            if self._count() > before:
                seen = time.time_ns()
                time.sleep(_PAUSE_S)
                return seen
        return None

    def _asking(self) -> Iterator[None]:
        deadline = time.monotonic() + _GIVE_UP_S
        while time.monotonic() < deadline:
            yield

    def _count(self) -> int:
        began = time.perf_counter()
        answer = self._http.post("/v1/eta", json={"restaurant_id": self.restaurant})
        self.asked_ms.append((time.perf_counter() - began) * 1000)
        if answer.status_code != 200:
            raise ServiceError(f"the API answers {answer.status_code}: {answer.text[:300]}")
        document = answer.json()
        if document["mode"] != "streaming":
            raise ServiceError(f"predictions come in mode {document['mode']}, not streaming")
        return int(document["features"][_FEATURE]["value"])

    def _consumed(self) -> dict[int, int]:
        lines = [line.split() for line in self._path.read_text().splitlines()]
        return {int(line[0]) - _FIRST: int(line[1]) for line in lines if len(line) == 2 and int(line[0]) >= _FIRST}


def run(bench: Bench, marks: int | None = None) -> list[Measured]:
    """The figure; `marks` a round, by `bench` unless they are given. Raises ServiceError."""
    marks = marks or (100 if bench.quick else 400)
    tally = bench.folder / "consumed"
    tally.touch()
    with ExitStack() as ends:
        world = ends.enter_context(made(bench.folder / "world"))
        port = world.server()
        servers = str(world.settings.kafka_bootstrap_servers)
        marker = ends.enter_context(closing(Marker(world, port, tally)))
        for name, words in (
            ("freshness_consumer", [servers, str(marker.restaurant), str(tally)]),
            ("freshness_load", [servers, str(RATE)]),
        ):
            process = Process(name, bench.folder / name, [sys.executable, "-m", f"benchmarks.{name}", *words])
            process.start()
            ends.callback(process.stop)
        if not wait(lambda: tally.stat().st_size > 0, _READY_S):
            raise ServiceError("the bare consumer does not start")
        time.sleep(_WARM_S)
        rounds = [marker.round(marks) for _ in range(bench.rounds)]
    ours, bare = ([_p99(samples[side]) for samples in rounds] for side in (0, 1))
    details = {
        "events_a_second": RATE,
        "marked_orders_a_round": marks,
        "never_seen": marker.unseen,
        "asking_ms": {"median": float(np.median(marker.asked_ms)), "p99": _p99(marker.asked_ms)},
        "ours_median_ms": float(np.median([value for one, _ in rounds for value in one])),
        "bare_median_ms": float(np.median([value for _, one in rounds for value in one])),
        "resolution": "an order counts as seen when an answer with it has come: up to two questions too late",
    }
    return [
        Measured(
            "freshness_p99_vs_bare_kafka",
            Side("sent to seen in a prediction over HTTP, p99", "ms", ours),
            Side("sent to decoded by a bare consumer, p99", "ms", bare),
            details,
        )
    ]


def _p99(samples: list[float]) -> float:
    return float(np.percentile(samples, 99))
