"""Predictions over HTTP, beside Feast's own server, beside Feast's SDK, and beside a route that does nothing."""

import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median, quantiles

import httpx

from benchmarks.events import Town
from benchmarks.feast_side import SERVICE, FeastSide, OtherValues, feast_side
from benchmarks.figures import Bench, Measured, Side
from benchmarks.load import Load, request
from benchmarks.world import TOWN, made
from deploy.processes import Process, wait
from deploy.servers import free_port
from feature_repo.views import BatchView
from serving.modes import Mode

CONNECTIONS = 16
BATCH = 100
_REQUESTS = 20_000
_MODE = f'"mode":"{Mode.STREAMING}"'.encode()
_PRESENT = b'"status":"PRESENT"'
_DRAIN_S = 120.0
_JSON = {"content-type": "application/json"}


class NotAsMeant(RuntimeError):
    """An answer that would flatter the figure."""


def run(bench: Bench, town: Town = TOWN, kafka: bool = True) -> list[Measured]:
    """The four figures, all sides by turns in one run."""
    ids = random.Random(3).sample(range(1, town.restaurants + 1), town.restaurants)
    with (
        made(bench.folder / "world", town, kafka=kafka) as world,
        feast_side(world, bench.folder / "feast", ids) as plain,
    ):
        ours = world.server()
        with plain.serving() as feast, _echo(bench) as echo:
            _same_values(ours, feast, plain, ids[:50])
            found = _rates(bench, plain, ids, ours, feast, echo)
            found.append(_batches(bench, plain, ids, ours))
            receipts = _receipts(ours)
    return [Measured(m.name, m.over, m.under, {**m.details, "receipts": receipts}) for m in found]


def _rates(bench: Bench, plain: FeastSide, ids: Sequence[int], ours: int, feast: int, echo: int) -> list[Measured]:
    seconds, features = bench.seconds, len(plain.names)
    asked = [ids[i % len(ids)] for i in range(_REQUESTS)]
    of_ours = [request("/v1/eta", json.dumps({"restaurant_id": i}).encode()) for i in asked]
    of_echo = [request("/echo", json.dumps({"restaurant_id": i}).encode()) for i in asked]
    of_feast = [request("/get-online-features", _feast_body(plain, i)) for i in asked[:2000]]

    def check(body: bytes) -> None:
        if _MODE not in body or body.count(_PRESENT) != features:
            raise NotAsMeant(f"not an answer by {features} present features: {body[:3000].decode()}")

    us, them, floor = (
        Load(port, some, CONNECTIONS) for port, some in ((ours, of_ours), (feast, of_feast), (echo, of_echo))
    )
    for load in (us, them, floor):
        load.closed_loop(1.0)
    rates = bench.interleaved(
        echo=lambda: floor.closed_loop(seconds),
        feast=lambda: them.closed_loop(seconds),
        ours=lambda: us.closed_loop(seconds, check),
    )
    rate = median(rates["echo"]) / 2
    p99 = bench.interleaved(
        echo=lambda: _p99(floor.open_loop(rate, seconds)), ours=lambda: _p99(us.open_loop(rate, seconds))
    )
    rps, conditions = "requests/s", {"connections": CONNECTIONS, "restaurants": len(ids), "features": features}
    tiffin = Side("POST /v1/eta: features, model, receipt", rps, rates["ours"])
    return [
        Measured(
            "predict_rps_vs_feast_serve",
            tiffin,
            Side("`feast serve`: the features alone", rps, rates["feast"]),
            conditions,
        ),
        Measured("predict_rps_vs_bare_fastapi", tiffin, Side("a FastAPI echo", rps, rates["echo"]), conditions),
        Measured(
            "predict_p99_vs_bare_fastapi",
            Side("POST /v1/eta", "ms", p99["ours"]),
            Side("a FastAPI echo", "ms", p99["echo"]),
            conditions | {"requests_a_second": round(rate)},
        ),
    ]


def _batches(bench: Bench, plain: FeastSide, ids: Sequence[int], port: int) -> Measured:
    dice = random.Random(5)
    service = plain.store.get_feature_service(SERVICE)
    times = 5 if bench.tiny else 20 if bench.quick else 60
    drawn = [dice.sample(list(ids), BATCH) for _ in range(times)]
    bodies = [
        request("/v1/eta/batch", json.dumps({"orders": [{"restaurant_id": i} for i in some]}).encode())
        for some in drawn
    ]
    rows = [[{"restaurant_id": i, "zone_id": plain.zones[i]} for i in some] for some in drawn]

    load = Load(port, bodies, 1)

    def ours() -> float:
        return 1000 / load.closed_loop(times / 50)

    def feast() -> float:
        return 1000 * _each(rows, lambda some: plain.store.get_online_features(features=service, entity_rows=some))

    ours(), feast()
    found = bench.interleaved(feast=feast, ours=ours)
    return Measured(
        "batch100_latency_vs_feast_sdk",
        Side("Feast's SDK in process: features of 100 rows", "ms", found["feast"]),
        Side("POST /v1/eta/batch of 100 orders, model included", "ms", found["ours"]),
    )


def _each(some: Sequence[list[dict[str, int]]], call: Callable[[list[dict[str, int]]], object]) -> float:
    """The median seconds of a call."""
    took = []
    for one in some:
        began = time.perf_counter()
        call(one)
        took.append(time.perf_counter() - began)
    return median(took)


def _same_values(ours: int, feast: int, plain: FeastSide, ids: Sequence[int]) -> None:
    """Both sides hold the same; windows have moved on since the values were taken, so of those the type alone."""
    moving = {
        f"{view.name}__{name}" for view, names in plain.views if not isinstance(view, BatchView) for name in names
    }
    for restaurant in ids:
        answer = httpx.post(f"http://127.0.0.1:{ours}/v1/eta", json={"restaurant_id": restaurant}).json()
        body = _feast_body(plain, restaurant)
        told = httpx.post(f"http://127.0.0.1:{feast}/get-online-features", content=body, headers=_JSON).json()
        columns = zip(told["metadata"]["feature_names"], told["results"], strict=True)
        values = {name: result["values"][0] for name, result in columns}
        for name, served in answer["features"].items():
            one, other = served["value"], values[name]
            if one != other and not (name in moving and type(one) is type(other)):
                raise OtherValues(f"restaurant {restaurant}: {name} is {one} here and {other} there")


def _feast_body(plain: FeastSide, restaurant: int) -> bytes:
    entities = {"restaurant_id": [restaurant], "zone_id": [plain.zones[restaurant]]}
    return json.dumps({"features": plain.names, "entities": entities, "full_feature_names": True}).encode()


def _receipts(port: int) -> dict[str, float]:
    """How many receipts were logged, once none waits any more; none may have been dropped."""

    def counts() -> dict[str, float]:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
        named = r"^tiffin_(receipts_waiting|receipts_total\{outcome=\"(?:logged|dropped)\"\}) (\S+)$"
        return {name: float(value) for name, value in re.findall(named, text, re.MULTILINE)}

    if not wait(lambda: counts()["receipts_waiting"] == 0, _DRAIN_S):
        raise NotAsMeant(f"receipts still wait after {_DRAIN_S:.0f} s: {counts()}")
    found = counts()
    if found.get('receipts_total{outcome="dropped"}'):
        raise NotAsMeant(f"receipts were dropped: {found}")
    return found


def _p99(seconds: Sequence[float]) -> float:
    return 1000 * quantiles(seconds, n=100)[98]


@contextmanager
def _echo(bench: Bench) -> Iterator[int]:
    port = free_port()
    process = Process("echo", bench.folder / "echo", [sys.executable, "-m", "benchmarks.echo", str(port)])
    process.start()

    def answers() -> bool:
        try:
            return httpx.post(f"http://127.0.0.1:{port}/echo", json={"restaurant_id": 1}).status_code == 200
        except httpx.TransportError:
            return False

    try:
        assert wait(answers, 30.0), process.log.read_text()
        yield port
    finally:
        process.stop()
