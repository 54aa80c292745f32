"""Commands of the models: training sets, training and registering, predictions made ahead."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.version_commands import commands as version_commands

if TYPE_CHECKING:
    from models.hindsight.compare import Sources

commands = typer.Typer()
commands.add_typer(version_commands, name="models", help="The versions of the models: which answers, which might.")

_FROM = "history: features as of each order; receipts: as they were served, of orders that were predicted for"


class Origin(StrEnum):
    """What a training set is made from."""

    HISTORY = "history"
    RECEIPTS = "receipts"


@commands.command()
def train(
    since: Annotated[
        datetime | None, typer.Option(help="Orders placed from here (UTC); all history by default")
    ] = None,
    until: Annotated[datetime | None, typer.Option(help="... and before here; now by default")] = None,
    test_from: Annotated[
        datetime | None, typer.Option(help="Measure on the orders from here; the last fifth of the time by default")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="name=text: orders whose extra field holds the text, e.g. is_asap=true")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="0: one a core")] = 1,
    source: Annotated[Origin, typer.Option("--from", help=_FROM)] = Origin.HISTORY,
) -> None:
    """Train, measure, export, register and take into use the models of both modes.

    Trained on receipts they are shown beside those that history would have given, measured on the same orders.
    """
    where = dict(_pair(text) for text in only or [])  # a wrong call is told at once

    from rich.console import Console

    from feature_repo.clock import clock_of, from_ms
    from feature_repo.feast_quietly import open_store
    from feature_repo.progress_bar import bar
    from feature_repo.settings import settings
    from models.pipeline import Plan, Source, report, train_all

    now = from_ms(clock_of(settings())())
    plan = Plan(
        *_bounds(since, until, now),
        test_from=_utc(test_from),
        where=where,
        threads=threads,
        source=Source(source),
    )
    with bar("training the models") as advance:
        results = train_all(open_store(settings()), settings(), plan, advance)
    Console().print(report(results))


class AsOf(StrEnum):
    """The two views of time."""

    EVENT = "event"
    ARRIVAL = "arrival"


@commands.command()
def dataset(
    out: Annotated[Path, typer.Option(help="The Parquet file to write; replaced if it is there")],
    service: Annotated[str, typer.Option(help="The feature service whose features are columns")] = "eta_streaming",
    since: Annotated[
        datetime | None, typer.Option(help="Orders placed from here (UTC); all history by default")
    ] = None,
    until: Annotated[datetime | None, typer.Option(help="... and before here; now by default")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="name=text: orders whose extra field holds the text, e.g. is_asap=true")
    ] = None,
    as_of: Annotated[
        AsOf, typer.Option(help="event: what is known now of each instant; arrival: what was known at that instant")
    ] = AsOf.EVENT,
    source: Annotated[Origin, typer.Option("--from", help=_FROM)] = Origin.HISTORY,
) -> None:
    """Write a training set: a row for each delivered order, with its features 1 ms before it was placed.

    As of arrival a row has only events appended and batch rows created by its instant, so late and corrected ones are
    the difference. Imported and simulated events count as appended when they happened: their stream features are the
    same in both, while batch rows computed afterwards are missing as of arrival.
    """
    where = dict(_pair(text) for text in only or [])
    if source is Origin.RECEIPTS and (where or as_of is not AsOf.EVENT):
        raise typer.BadParameter("--from receipts takes neither --only nor --as-of: a receipt is what it is")

    from feature_repo.clock import clock_of, from_ms
    from feature_repo.feast_quietly import open_store
    from feature_repo.settings import settings
    from models.dataset import build, write
    from models.receipt_dataset import build_from_receipts

    bounds = _bounds(since, until, from_ms(clock_of(settings())()))
    store = open_store(settings())
    if source is Origin.RECEIPTS:
        rows, meaning = build_from_receipts(store, settings(), service, *bounds), "as served"
    else:
        rows = build(store, settings(), service, *bounds, where, as_of is AsOf.ARRIVAL)
        meaning = f"as of {as_of}"
    columns = write(rows, out)
    typer.echo(f"{out}: {len(rows)} rows, {len(columns)} columns, {meaning}, {rows.left_out} left out")
    typer.echo("\n".join(columns))


@commands.command()
def quality(
    since: Annotated[datetime | None, typer.Option(help="Predictions from here (UTC); of a day by default")] = None,
    until: Annotated[datetime | None, typer.Option(help="... and before here; now by default")] = None,
) -> None:
    """How good the predictions were that have come true by now, by zone and mode, and how far features have drifted."""
    from rich.console import Console

    from feature_repo.clock import clock_of, from_ms, to_ms
    from feature_repo.settings import settings
    from models.quality import drift, drift_table, quality_table
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
    moved = drift(settings(), in_use(Registry(settings().data / "models")), *span)
    if moved:
        Console().print(drift_table(moved))


@commands.command("batch-predict")
def batch_predict(
    as_of: Annotated[
        datetime | None,
        typer.Option(help="By what is known of this instant (UTC, floored to the hour); now by default"),
    ] = None,
) -> None:
    """Predict every restaurant's delivery time for each hour of the coming day, and publish that as one run.

    A run that was cut off goes on where it was; one that is published already changes nothing.
    """
    from feature_repo.clock import clock_of, iso, to_ms
    from feature_repo.feast_quietly import open_store
    from feature_repo.progress_bar import bar
    from feature_repo.settings import settings
    from models.batch_predict import TIMEOUT_S, predict_etas
    from models.stored import open_stored

    moment = _utc(as_of)
    as_of_ms = None if moment is None else to_ms(moment)
    stored = open_stored(settings(), TIMEOUT_S)
    with bar("predicting ahead") as advance:
        done = predict_etas(open_store(settings()), settings(), stored, clock_of(settings()), advance, as_of_ms)
    stored.close()
    typer.echo(
        f"run {done.run.run_id} as of {iso(done.run.as_of_ms)} by {done.run.model} {done.run.model_version}: "
        f"{done.rows} rows, {done.written} of them written now, in {done.seconds:.1f} s "
        f"({done.rows_per_second:,.0f} rows/s)"
    )


@commands.command()
def runs() -> None:
    """Show the runs of predictions made ahead, the last begun first; what readers see is marked by *."""
    from feature_repo.settings import settings
    from models.batch_predict import history_lines
    from models.stored import KINDS, open_stored

    stored = open_stored(settings())
    for kind in KINDS:
        typer.echo("\n".join(history_lines(kind, stored.history(kind), stored.current(kind))))
    stored.close()


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
    from models.hindsight.replay import made_at, replay, shown

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
    from models.registry import Registry
    from models.stored import open_stored

    known, reach = definitions_of(open_store(settings())), None
    if archive_only:

        def reach(topic: str, home: str) -> Mapping[int, int]:
            return covered(settings(), topic, log_folder(settings(), topic) / home)
    else:
        with closing(open_log(settings())) as log:
            catch_up(log, settings(), clock_of(settings()), list(ARCHIVED))
    stored = open_stored(settings())
    return Sources(known, Answers(Registry(settings().data / "models"), stored.eta_of_run), reach)


def _bounds(since: datetime | None, until: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    """The range of orders asked for; all history up to now by default."""
    return _utc(since) or now - timedelta(days=3650), _utc(until) or now


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--only {text!r} is not name=text")
    return name, value
