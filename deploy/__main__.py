"""Commands that run everything together."""

import time
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def demo(
    restaurant: Annotated[int, typer.Option(min=1, help="Which restaurant is asked about")] = 30,
) -> None:
    """Set everything up, push events, and show a prediction move with a burst of orders; then stop it all."""
    from deploy.demo import demo as run
    from feature_repo.settings import settings

    run(settings(), restaurant)


@commands.command()
def up(
    city: Annotated[bool, typer.Option("--city/--no-city", help="Let the synthetic city live on")] = True,
) -> None:
    """Set everything up and stay: worker, archive and API, restarted if they die, until told to stop."""
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
    with running(given, (*PROCESSES, ("simulate", "--live")) if lives else PROCESSES) as stack:
        stack.wait_ready()
        url = api_url(given)
        console.print(f"The API is at [bold]{url}[/bold] (try {url}/v1/eta/30, {url}/docs); Ctrl-C stops everything")
        while not stop():
            stack.watch()
            time.sleep(0.5)


@commands.command()
def services(
    action: Annotated[str, typer.Argument(help="up, down or status")],
) -> None:
    """Start or end a real Kafka and a Valkey over TCP on 127.0.0.1, for development."""
    from deploy.services import main

    raise typer.Exit(main([action]))
