"""Materialization: the newest of a million rows to 100,000 keys, beside Feast's Redis store and local engine.

Each run is a process of its own that does nothing else: its peak memory is what the kernel says of it. What is timed is
the call to `materialize` alone, for Feast too; both write to a real Valkey, emptied before each run, whose append-only
file is off. Our writes are atomic and the newest wins; Feast compares in Python.
"""

import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.figures import Bench, Measured, Side
from benchmarks.offline_projects import DAYS, FIRST, OURS, batch_view, feature_store, restaurant, write_rows
from feature_repo.settings import Settings
from feature_repo.stores import embedded
from feature_repo.stores.redis_client import Redis, connect

VIEW = "prep"
KINDS = ("ours", "feast_dask", "feast_duckdb")


def run(bench: Bench) -> list[Measured]:
    """Keys a second and peak memory; details have both of Feast's offline stores, of which the faster one counts."""
    return measure(bench, 1_000_000, 100_000, rounds=2 if bench.quick else 5)


def measure(bench: Bench, rows: int, keys: int, rounds: int) -> list[Measured]:
    """Run both sides in turn. Raises ValueError if a key is missing or the two stored different values."""
    write_rows(bench.folder, VIEW, rows, seed=3, ids=keys)
    kinds = [kind for kind in KINDS if kind != "feast_duckdb" or find_spec("ibis")]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    answers: dict[str, dict[bytes, dict[bytes, bytes]]] = {}
    with server(bench.folder / "off") as (data, client):
        for number in range(rounds):
            for kind in sorted(kinds, reverse=bool(number % 2)):
                client.flushall()
                found[kind].append(_child(bench.folder, kind, data))
                if number == 0:
                    answers[kind] = stored(client)
    ours = answers.pop("ours")
    for kind, theirs in answers.items():
        if ours != theirs or not ours:
            raise ValueError(f"materialize: ours stored {len(ours)} keys, {kind} {len(theirs)}, or other values")
    with server(bench.folder / "on", appendonly="yes") as (data, _):
        durable = _child(bench.folder, "ours", data)
    fastest = min(answers, key=lambda kind: statistics.median(run["seconds"] for run in found[kind]))
    leanest = min(answers, key=lambda kind: statistics.median(run["peak_mb"] for run in found[kind]))

    def side(kind: str, figure: str, unit: str) -> Side:
        runs = found[kind]
        return Side(kind, unit, [len(ours) / run["seconds"] if figure == "keys" else run[figure] for run in runs])

    details: dict[str, Any] = {
        "rows": rows,
        "keys": len(ours),
        "features": 4,
        "append_only_file": "off on both sides",
        "ours_with_append_only_file_on_keys_a_second": len(ours) / durable["seconds"],
        "medians": {
            kind: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            for kind, runs in found.items()
        },
    }
    return [
        Measured("materialize_keys_vs_feast", side("ours", "keys", "keys/s"), side(fastest, "keys", "keys/s"), details),
        Measured("materialize_memory_vs_feast", side("ours", "peak_mb", "MB"), side(leanest, "peak_mb", "MB"), details),
    ]


def stored(client: Redis) -> dict[bytes, dict[bytes, bytes]]:
    """What lies in the store in Feast's own layout: all but the version field, which Feast has not; null is empty."""
    keys: Sequence[Any] = list(client.scan_iter(count=10_000))
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.hgetall(key)
    return {
        key: {field: value for field, value in fields.items() if not field.startswith(b"_vs:")}
        for key, fields in zip(keys, pipe.execute(), strict=True)
    }


@contextmanager
def server(data: Path, appendonly: str = "no") -> Iterator[tuple[Path, Redis]]:
    """A Valkey of its own, and a client of it."""
    child = embedded.start(data)
    try:
        url = f"unix://{embedded.socket_path(data)}"
        client = connect(Settings.model_validate({"REDIS_URL": url}), timeout_s=60)
        client.config_set("appendonly", appendonly)
        yield data, client
        client.close()
    finally:
        embedded.stop(child)


def _child(folder: Path, kind: str, data: Path) -> dict[str, float]:
    socket = embedded.socket_path(data)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.materialize", str(folder), kind, str(socket)],
        env=os.environ | {"REDIS_URL": f"unix://{socket}"},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"materialize: the run of {kind} failed: {done.stderr.decode(errors='replace')[-2000:]}")
    found: dict[str, float] = msgspec.json.decode(done.stdout.splitlines()[-1])
    return found


def _materialize(folder: Path, kind: str, socket: str) -> dict[str, float]:
    """In the child: apply the definitions, then materialize all of the time that there is."""
    redis = {"type": "redis", "connection_string": f"localhost:0,unix_socket_path={socket}"}
    feast = {"online_store": redis, "offline_store": {"type": kind.removeprefix("feast_")}, "batch_engine": "local"}
    entity = restaurant()
    store = feature_store(folder, kind, [entity, batch_view(folder, VIEW, entity)], OURS if kind == "ours" else feast)
    peak_before = _peak_mb()
    began, cpu = time.perf_counter(), time.process_time()
    store.materialize(FIRST - timedelta(days=1), FIRST + timedelta(days=DAYS + 1))
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": _peak_mb(),
        "peak_mb_before": peak_before,
    }


def _peak_mb() -> float:
    """Of this process since it began; ``ru_maxrss`` would tell of the process that started it, if that is greater."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    figures = _materialize(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    sys.stdout.write("\n" + msgspec.json.encode(figures).decode() + "\n")
