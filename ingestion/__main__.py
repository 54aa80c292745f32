"""Commands of ingestion: history in, events in, features out, and the proof that both sides mean the same."""

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command("import")
def import_history(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV or Parquet, one order a row")],
    mapping: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="YAML: your columns as ours")],
    until: Annotated[datetime | None, typer.Option(help="Take events before this instant (UTC) only")] = None,
) -> None:
    """Take your own order history into the event log, saying which rows were refused and why."""
    from feature_repo.clock import to_ms
    from feature_repo.settings import settings
    from ingestion.importer import import_orders

    until_ms = None if until is None else to_ms(until.replace(tzinfo=UTC))
    report = import_orders(settings(), file, mapping, until_ms=until_ms)
    typer.echo(f"{report.source}: {report.rows} rows, {report.kept} kept, {report.rows - report.kept} refused")
    for reason, count in report.refused.most_common():
        typer.echo(f"  refused {count:>7}  {reason}")
    for topic, count in report.written.items():
        typer.echo(f"  written {count:>7}  {topic}")
    if report.already_there:
        typer.echo(f"  {report.already_there} events were there already")
    if report.refused:
        typer.echo(f"  the refused rows are in {report.refused_file}")


@commands.command()
def simulate(
    days: Annotated[int, typer.Option(min=1, max=400, help="How many days of history, up to now")] = 28,
    seed: Annotated[int, typer.Option(help="Which city")] = 7,
    live: Annotated[bool, typer.Option("--live", help="Push the city's events to the API as they happen")] = False,
    url: Annotated[str | None, typer.Option(help="Where the API is; by the settings if left out")] = None,
) -> None:
    """Make a synthetic city's history (200 restaurants, 12 zones, 400 couriers), or push its life as it happens."""
    from feature_repo.clock import clock_of
    from feature_repo.progress_bar import bar
    from feature_repo.settings import settings
    from ingestion import live_city

    now = clock_of(settings())()
    if live:
        live_city.push_live(settings(), seed, url, stopping())
        return
    with bar("simulating the city") as advance:
        counts = live_city.extend_history(settings(), seed, now, timedelta(days=days), advance)
    typer.echo(", ".join(f"{count} {topic}" for topic, count in counts.items()))


@commands.command()
def push(
    topic: Annotated[str, typer.Argument(help="order_placed, order_ready, order_delivered or courier_status")],
    events: Annotated[str, typer.Argument(help="A JSON event or array, a file of either, or - for standard input")],
    url: Annotated[str | None, typer.Option(help="Where the API is; by the settings if left out")] = None,
) -> None:
    """Push events to the API; exits with 1 if any was refused."""
    from feature_repo.settings import settings
    from ingestion.push import push_events

    given = Path(events)
    if events == "-":
        body = sys.stdin.buffer.read()
    elif not events.lstrip().startswith(("{", "[")):
        body = given.read_bytes()
    else:
        body = events.encode()
    answer = push_events(settings(), topic, body, url)
    typer.echo(answer.text)
    if answer.status_code != 200:
        raise typer.Exit(1)


@commands.command()
def worker() -> None:
    """Fold events into the online store until told to stop; run several to share the partitions."""
    from feature_repo.clock import clock_of
    from feature_repo.feast_quietly import open_store
    from feature_repo.settings import settings
    from feature_repo.stores.stream_store import open_stream_store
    from feature_repo.views import stream_views
    from ingestion.archive_reader import ArchivedLog
    from ingestion.log import open_log, ready_log
    from ingestion.worker import Worker, spare_the_collector

    stop = stopping()
    feast = open_store(settings())
    views = stream_views(feast.list_stream_feature_views())
    spare_the_collector()
    log = open_log(settings())
    if not ready_log(log, settings().partitions, stop):
        return
    store = open_stream_store(settings(), feast.project)
    Worker(log, store, views, clock_of(settings()), archive=ArchivedLog(settings())).run(stop)


@commands.command()
def backfill(
    views: Annotated[list[str] | None, typer.Argument(help="Stream views; all that changed by default")] = None,
) -> None:
    """Serve stream views as they are defined by now: fold them up to the present, then change over at once.

    Until then, and if it is stopped, everything is served as before. Views that are no longer defined are dropped.
    """
    from feature_repo.clock import clock_of
    from feature_repo.feast_quietly import open_store
    from feature_repo.progress_bar import bar
    from feature_repo.settings import settings
    from feature_repo.stores.redis_client import connect
    from feature_repo.stores.stream_store import open_stream_store
    from feature_repo.views import stream_views
    from ingestion import backfill as work
    from ingestion.archive_reader import ArchivedLog
    from ingestion.log import open_log

    stop = stopping()
    feast = open_store(settings())
    store, clock = open_stream_store(settings(), feast.project), clock_of(settings())
    before = store.served()
    change = work.plan_change(before, stream_views(feast.list_stream_feature_views()), views or ())
    if not change.changed and not change.gone:
        typer.echo("everything is served as it is defined")
        return
    with bar("folding") as advance:
        done = work.backfill(
            open_log(settings()), store, ArchivedLog(settings()), clock, change, stop, lambda share: advance(share, 1.0)
        )
        if not done:
            raise typer.Exit(130)
    typer.echo(f"served from now on as defined: {', '.join(change.changed) or 'nothing new'}")
    removed = work.sweep(connect(settings()), store, change, before)
    if change.gone:
        typer.echo(f"served no longer: {', '.join(change.gone)}")
    typer.echo(f"removed {removed} fields and keys of what they replaced")


@commands.command()
def archive(
    every: Annotated[float, typer.Option(min=1, help="Publish a file at the latest after so many seconds")] = 300.0,
) -> None:
    """Copy the event log to Parquet until told to stop."""
    from feature_repo.clock import clock_of
    from feature_repo.settings import settings
    from ingestion.archive import Archiver
    from ingestion.events import ARCHIVED
    from ingestion.log import open_log, ready_log

    stop = stopping()
    log = open_log(settings())
    if not ready_log(log, settings().partitions, stop):
        return
    Archiver(log, settings(), clock_of(settings()), list(ARCHIVED), max_seconds=every).run(stop)


@commands.command("batch-features")
def batch_features(
    start: Annotated[datetime | None, typer.Option(help="First day; the day after history begins by default")] = None,
    end: Annotated[
        datetime | None, typer.Option(help="Last day; 28 days after history ends, or today, by default")
    ] = None,
) -> None:
    """Compute the daily batch features from the event log; days that did not change are not written again."""
    from feature_repo.clock import clock_of
    from feature_repo.settings import settings
    from ingestion.batch_features import compute

    now = clock_of(settings())()
    counts = compute(settings(), start.date() if start else None, end.date() if end else None, now)
    typer.echo(", ".join(f"{count} rows of {view}" for view, count in counts.items()))


@commands.command()
def parity(
    views: Annotated[str | None, typer.Option(help="Stream views, by commas; all by default")] = None,
    checks: Annotated[int, typer.Option(min=1, help="How many features of an entity at an instant to hold")] = 20_000,
    seed: Annotated[int | None, typer.Option(help="Which stories; others each time by default")] = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="How many stories at a time")] = 1,
    story: Annotated[int | None, typer.Option(min=0, help="Play this story of the seed again, and show it")] = None,
) -> None:
    """Hold online features against history and an oracle, on random logs; exits with 1 if any is not the same.

    The definitions of the repository folder are taken as they stand there. Log, store and archive are made for the run
    and go with it; what you have is not touched.
    """
    import json
    from random import SystemRandom

    from feature_repo.progress_bar import bar
    from feature_repo.settings import settings
    from ingestion.parity.run import run, silence

    os.environ["TIFFIN_DUCKDB_THREADS"] = "1"  # a story's history is small: threads would only wait for each other
    silence()
    names = [name.strip() for name in views.split(",")] if views else []
    chosen = SystemRandom().randrange(2**31) if seed is None else seed
    if story is not None:
        from ingestion.parity.telling import again

        report, shown = again(settings(), names, chosen, story)
        if shown is not None:
            typer.echo(f"{shown.mismatches[0]}\n{shown.story}", err=True)
    else:
        with bar("online = offline") as advance:
            report = run(settings(), names, chosen, checks, processes, advance)
        if report.failed is not None:
            only = f" --views {','.join(names)}" if names else ""
            repeat = f"tiffin --repo {settings().repo} parity{only} --seed {chosen} --story {report.failed.number}"
            typer.echo(f"{report.failed.mismatches[0]}\nto see that story: {repeat}", err=True)
    line = {"checks": report.checks, "mismatches": report.mismatches, "stories": report.stories}
    typer.echo(json.dumps(line | {"seconds": round(report.seconds, 1), "seed": chosen}))
    if report.mismatches:
        raise typer.Exit(1)


def stopping() -> Callable[[], bool]:
    """Whether SIGTERM or SIGINT has come; from now on they do nothing else."""
    import signal
    import threading

    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    return told.is_set
