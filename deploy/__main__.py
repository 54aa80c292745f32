"""Commands that run everything together."""

import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

commands = typer.Typer()


@commands.command()
def demo(
    restaurant: Annotated[
        int | None, typer.Option(min=1, help="Which restaurant is asked about; a quiet one by default")
    ] = None,
) -> None:
    """Set everything up, push events, and show a prediction move with a burst of orders; then stop it all."""
    from deploy.demo import demo as run
    from feature_repo.settings import settings

    run(settings(), restaurant)


@commands.command()
def up(
    city: Annotated[bool, typer.Option("--city/--no-city", help="Let the synthetic city live on")] = True,
) -> None:
    """Set everything up and stay: worker, archive, API, monitor and the daily work, restarted if they die, until told
    to stop.
    """
    from rich.console import Console

    from deploy.bootstrap import bootstrap
    from deploy.stack import PROCESSES, running
    from feature_repo.settings import settings
    from ingestion.__main__ import stopping
    from ingestion.push import api_url

    console = Console()
    given = settings()
    bootstrap(given, lambda text: console.print(f"[dim]·[/dim] {text}"))
    stop = stopping()
    lives = city and (given.data / "simulated.json").exists()
    processes = (*PROCESSES, ("monitor",), ("schedule",), *([("simulate", "--live")] if lives else []))
    with running(given, processes) as stack:
        with console.status("starting worker, archive and API"):
            stack.wait_ready()
        url = api_url(given)
        console.print(
            f"The API is at [bold]{url}[/bold] ({url}/docs describes it), what is measured of it at "
            f"http://{given.host}:{given.monitor_port}/metrics; Ctrl-C stops everything"
        )
        while not stop():
            stack.watch()
            time.sleep(0.5)


@commands.command()
def daily() -> None:
    """Do what is due once a day: batch features, online store, predictions made ahead. Repeating it changes nothing."""
    from deploy.daily import Day
    from deploy.daily import daily as run
    from feature_repo.clock import clock_of
    from feature_repo.feast_quietly import open_store
    from feature_repo.settings import settings

    run(Day(open_store(settings()), settings(), clock_of(settings())), typer.echo)


@commands.command()
def schedule(
    cron: Annotated[str, typer.Option(help="Minute, hour, day, month, day of the week; UTC")] = "30 3 * * *",
) -> None:
    """Run `tiffin daily` by a cron line, until told to stop. Where Kubernetes or cron is at hand, let them do it."""
    from deploy.schedule import schedule as run
    from feature_repo.settings import settings
    from ingestion.__main__ import stopping

    run(settings(), cron, stopping(), lambda text: typer.echo(text, err=True))


@commands.command()
def drill(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The order history that was imported")],
    mapping: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Its mapping")],
    start: Annotated[datetime, typer.Option(help="The first instant replayed (UTC)")],
    end: Annotated[datetime, typer.Option(help="... and the first that is not")],
    rate: Annotated[float, typer.Option(min=0.1, max=60, help="How many times as fast as it happened")] = 20.0,
) -> None:
    """Replay recorded history on one clock through log, worker and API, and compare predictions with what came true."""
    import json
    from datetime import UTC

    from deploy.drill import drill as run
    from feature_repo.clock import to_ms

    figures = run(file, mapping, to_ms(start.replace(tzinfo=UTC)), to_ms(end.replace(tzinfo=UTC)), rate)
    typer.echo(json.dumps(figures))


@commands.command()
def chaos(
    kills: Annotated[int, typer.Option(min=7, help="How many kills; 200 are the full drill")] = 200,
    seed: Annotated[int | None, typer.Option(help="Of the dice; by chance if left out")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Let the folder stay, with what the processes said")] = False,
) -> None:
    """Kill everything at random under load, and hold what is served and archived against the log.

    Prints one JSON line; exits with 1 if anything was lost, counted twice or served wrongly. Needs a real Kafka, which
    is started here, as is all else: in a temporary folder, on ports of its own.
    """
    import json
    import secrets

    from deploy.chaos.drill import chaos as run
    from deploy.chaos.figures import ZERO

    figures = run(kills, secrets.randbelow(2**31) if seed is None else seed, keep)
    typer.echo(json.dumps(figures))
    if any(figures[name] for name in ZERO):
        raise typer.Exit(1)


@commands.command("batch-kills")
def batch_kills(
    kills: Annotated[int, typer.Option(min=1, help="How many kills on each database; 200 are the full drill")] = 200,
    url: Annotated[
        str | None, typer.Option(help="An empty database of the drill's own; a SQLite and a PostgreSQL by default")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the dice; by chance if left out")] = None,
) -> None:
    """Kill batch jobs at random while readers read, and hold every answer against the one run it must be of.

    Prints one JSON line a database; exits with 1 if any answer was not of one whole run, or of an older one.
    """
    import json
    import secrets
    import tempfile
    from contextlib import ExitStack

    from deploy.batch_kills import drill as run
    from deploy.postgres import running_postgres
    from models.stored import default_url

    chosen = secrets.randbelow(2**31) if seed is None else seed
    violations = 0
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="tiffin-kills-")))
        urls = [url] if url else [default_url(folder), opened.enter_context(running_postgres())]
        for place in urls:
            figures = run(place, kills, chosen, lambda text: typer.echo(text, err=True))
            violations += len(figures.violations)
            line = {"database": place.partition(":")[0], **figures._asdict(), "seconds": round(figures.seconds, 1)}
            shown = {"violations": len(figures.violations), "first": figures.violations[:5], "seed": chosen}
            typer.echo(json.dumps(line | shown))
    if violations:
        raise typer.Exit(1)


@commands.command()
def ladder(
    hold: Annotated[float, typer.Option(min=0.5, help="Seconds that each rung is held for")] = 5.0,
) -> None:
    """Stop, freeze, kill and take away what predictions stand on, under load, and see which rung answers.

    Prints one JSON line; exits with 1 if another rung answers than should, or a request fails. Needs a real Kafka,
    which is started here, as is all else: in a temporary folder, on ports of its own.
    """
    import json
    import sys
    from contextlib import redirect_stdout

    from deploy.ladder import ladder as run

    with redirect_stdout(sys.stderr):  # Feast tells of its work there
        figures = run(typer.echo, hold)
    typer.echo(json.dumps(figures))


@commands.command()
def receipts_drill(
    predictions: Annotated[int, typer.Option(min=100, help="How many; 100,000 are the full drill")] = 100_000,
) -> None:
    """Ask for many predictions, see that each has a receipt or is counted as dropped, and replay every one.

    Prints one JSON line; exits with 1 if a receipt is missing, or anything that was served is not what the log says.
    Starts everything that it needs, as `tiffin ladder` does.
    """
    import json
    import sys
    from contextlib import redirect_stdout

    from deploy.receipts_drill import receipts as run

    with redirect_stdout(sys.stderr):  # Feast tells of its work there
        figures = run(typer.echo, predictions)
    typer.echo(json.dumps(figures))


@commands.command()
def services(
    action: Annotated[Literal["up", "down", "status"], typer.Argument()],
    kafka_port: Annotated[int, typer.Option(min=1, max=65535)] = 9092,
    redis_port: Annotated[int, typer.Option(min=1, max=65535)] = 6379,
) -> None:
    """Start or end a real Kafka and a Valkey over TCP on 127.0.0.1, for development."""
    from deploy.services import control

    raise typer.Exit(control(action, kafka_port, redis_port))


@commands.command()
def feast_suites(
    source: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A source tree of Feast 0.67")],
) -> None:
    """Run Feast's universal test suites with our stores in place of its own, and with its own; count both."""
    from deploy.feast_suites.run import good, report, run

    def say(text: str) -> None:
        typer.echo(text, err=True)

    outcomes = run(source.resolve(), say)
    report(outcomes, say)
    raise typer.Exit(0 if good(outcomes) else 1)
