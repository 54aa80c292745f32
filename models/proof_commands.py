"""Commands that hold predictions against the log and against what came true."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from models.hindsight.compare import Sources

commands = typer.Typer()

ArchiveOnly = Annotated[
    bool, typer.Option("--archive-only", help="Take the archive as it is, without what the log has beyond it")
]


@commands.command()
def replay(
    prediction_id: Annotated[str, typer.Argument(help="The prediction_id of an answer")],
    archive_only: ArchiveOnly = False,
) -> None:
    """Compute a prediction again from the log, and say of each feature whether it is the same, or why not.

    Exits with 1 if anything cannot be explained.
    """
    from rich.console import Console

    from feature_repo.settings import settings
    from models.hindsight.replay import replay, shown
    from models.prediction_ids import made_at

    made_at(prediction_id)  # a wrong call is told at once
    found = replay(settings(), _sources(archive_only), prediction_id)
    Console().print(shown(found))
    if not found.explained:
        raise typer.Exit(1)


@commands.command()
def audit(
    since: Annotated[datetime, typer.Option(help="Predictions from here (UTC)")],
    until: Annotated[datetime | None, typer.Option(help="... and before here; up to now by default")] = None,
    sample: Annotated[float, typer.Option(min=0.0001, max=1.0, help="This share of the restaurants")] = 0.1,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="The mismatch ratio that is let pass")] = 0.0,
    seed: Annotated[int, typer.Option(help="Which restaurants")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of tables")] = False,
    archive_only: ArchiveOnly = False,
) -> None:
    """Compute many predictions again, and count why features are not what is known now; exits with 1 if too many are
    not what the log says.
    """
    from rich.console import Console

    from feature_repo.clock import clock_of, to_ms
    from feature_repo.progress_bar import bar
    from feature_repo.settings import settings
    from models.hindsight.audit import ParityBroken, audit, shown, write_metrics

    now = clock_of(settings())()
    begin, end = to_ms(since.replace(tzinfo=UTC)), now if until is None else to_ms(until.replace(tzinfo=UTC))
    sources = _sources(archive_only)
    with bar("computing predictions again") as advance:
        report = audit(settings(), sources, begin, end, sample, seed, advance=advance)
    write_metrics(report, settings().data / "metrics" / "parity.prom", now)
    if as_json:
        typer.echo(report.to_json())
    else:
        Console().print(shown(report))
        typer.echo(f"mismatch ratio {report.ratio:.6g} of {report.compared} features compared")
        for bug in report.bugs:
            said = f"served {bug.served!r}, by its reading {bug.then!r}: {bug.reason}"
            typer.echo(f"bug: {bug.prediction_id} {bug.feature}: {said}")
        if report.unreadable:
            typer.echo(f"{report.unreadable} predictions have no receipt that can be read")
    if report.unreadable or (report.receipts and not report.compared):
        raise ParityBroken(
            f"of {report.receipts + report.unreadable} predictions {report.unreadable} have no receipt that can be "
            f"read, and {report.compared} features could be compared: that proves nothing"
        )
    if report.ratio > threshold:
        raise ParityBroken(f"mismatch ratio {report.ratio:.6g} of {report.compared} features is above {threshold}")


def _sources(archive_only: bool) -> "Sources":
    """What predictions are held against, with the archive brought up to the log's end."""
    from contextlib import closing

    from feature_repo.clock import clock_of
    from feature_repo.feast_quietly import open_store
    from feature_repo.settings import settings
    from feature_repo.stores.hindsight import definitions_of
    from ingestion.archive import catch_up
    from ingestion.event_files import covered, log_folder
    from ingestion.events import ARCHIVED
    from ingestion.log import open_log
    from models.hindsight.answers import Answers
    from models.hindsight.compare import Sources
    from models.registry import open_registry
    from models.stored import open_stored

    known, reach = definitions_of(open_store(settings())), None
    if archive_only:

        def reach(topic: str, home: str) -> Mapping[int, int]:
            return covered(settings(), topic, log_folder(settings(), topic) / home)
    else:
        with closing(open_log(settings())) as log:
            catch_up(log, settings(), clock_of(settings()), list(ARCHIVED))
    stored = open_stored(settings())
    return Sources(known, Answers(open_registry(settings()), stored.eta_of_run), reach)


@commands.command()
def quality(
    since: Annotated[datetime | None, typer.Option(help="Predictions from here (UTC); of a day by default")] = None,
    until: Annotated[datetime | None, typer.Option(help="... and before here; now by default")] = None,
) -> None:
    """How good the predictions were that have come true by now, by zone and mode, and how far features have drifted."""
    from rich.console import Console

    from feature_repo.clock import clock_of, from_ms, to_ms
    from feature_repo.settings import settings
    from models.quality import drift, drift_tables, quality_table
    from models.quality import quality as measured
    from models.registry import Registry
    from models.versions import in_use

    now = from_ms(clock_of(settings())())
    end = _utc(until) or now
    span = to_ms(_utc(since) or end - timedelta(days=1)), to_ms(end)
    found = measured(settings(), *span)
    if not found:
        typer.echo("No prediction of that time is archived.")
        return
    Console().print(quality_table(found, *span))
    for table in drift_tables(drift(settings(), in_use(Registry(settings().data / "models")), *span)):
        Console().print(table)


@commands.command()
def monitor(
    every: Annotated[float, typer.Option(min=1, help="Seconds between two rounds")] = 60.0,
    hours: Annotated[float, typer.Option(min=0.1, help="Quality and drift are of the last so many hours")] = 24.0,
    sample: Annotated[float, typer.Option(min=0.0001, max=1.0, help="Of restaurants to replay")] = 0.1,
    host: Annotated[str | None, typer.Option(help="Address to bind to [env: TIFFIN_HOST; default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="[env: TIFFIN_MONITOR_PORT; default: 8089]")
    ] = None,
) -> None:
    """Measure quality, drift and parity again and again, and show them at /metrics, until told to stop.

    It reads the archive alone: what is not archived yet comes into the next round.
    """
    import time
    from functools import partial

    from prometheus_client import CollectorRegistry, start_http_server

    from feature_repo.clock import clock_of
    from feature_repo.settings import settings
    from models.monitor import Monitor

    watching, clock = Monitor(settings(), partial(_sources, archive_only=True), sample), clock_of(settings())
    registry = CollectorRegistry()
    registry.register(watching)
    given = settings()
    address = host or given.host
    server, _ = start_http_server(given.monitor_port if port is None else port, address, registry)
    typer.echo(f"metrics are at http://{address}:{server.server_port}/metrics")
    while True:
        watching.look(clock(), hours)
        time.sleep(every)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
