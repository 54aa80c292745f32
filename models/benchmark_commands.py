"""``tiffin models benchmark``: what makes inference faster, and what it costs."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def benchmark(
    name: Annotated[str | None, typer.Argument(help="eta_streaming or eta_batch; both by default")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The plot, .png or .svg; data/models_benchmark.svg by default")
    ] = None,
    test_from: Annotated[
        datetime | None,
        typer.Option(help="Judge by the orders from here (UTC), as in train; the last fifth by default"),
    ] = None,
) -> None:
    """Show the three levers of inference side by side: options of the runtime, smaller models, hardware.

    Smaller models are trained on the orders before those that all are judged by; nothing is registered.
    """
    from rich.console import Console

    from feature_repo.clock import clock_of, from_ms
    from feature_repo.feast_quietly import open_store
    from feature_repo.progress_bar import bar
    from feature_repo.settings import settings
    from models.benchmark import benchmark as measured
    from models.benchmark_table import check_plot, levers_table, plot
    from models.dataset import build, split
    from models.pipeline import SERVICES, default_split
    from models.registry import open_registry
    from models.scoring import available

    if name is not None and name not in SERVICES:
        raise typer.BadParameter(f"{name!r} is none of our models: {', '.join(SERVICES)}")
    file = settings().data / "models_benchmark.svg" if out is None else out
    check_plot(file)  # before minutes of work
    now, tables = from_ms(clock_of(settings())()), {}
    for service in [name] if name else SERVICES:
        dataset = build(open_store(settings()), settings(), service, now - timedelta(days=3650), now)
        border = default_split(dataset) if test_from is None else test_from.replace(tzinfo=UTC)
        training, test = split(dataset, border)
        with bar(f"smaller models of {service}") as advance:
            lines = measured(open_registry(settings()), training, test, advance)
        tables[service] = lines
        Console().print(levers_table(f"{service}, judged by {len(test):,} later orders", lines))
    plot(tables, file)
    typer.echo(f"{file}\nexecution providers of this onnxruntime: {', '.join(available())}")
