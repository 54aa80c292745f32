"""Commands of the models: training sets, training and registering."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from models.hindsight.compare import Sources

commands = typer.Typer()


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
) -> None:
    """Train, measure, export, register and take into use the models of both modes."""
    where = dict(_pair(text) for text in only or [])  # a wrong call is told at once

    from rich.console import Console

    from feature_repo.clock import clock_of, from_ms
    from feature_repo.feast_quietly import open_store
    from feature_repo.progress_bar import bar
    from feature_repo.settings import settings
    from models.pipeline import Plan, report, train_all

    now = from_ms(clock_of(settings())())
    plan = Plan(
        *_bounds(since, until, now),
        test_from=_utc(test_from),
        where=where,
        threads=threads,
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
) -> None:
    """Write a training set: a row for each delivered order, with its features 1 ms before it was placed.

    As of arrival a row has only events appended and batch rows created by its instant, so late and corrected ones are
    the difference. Imported and simulated events count as appended when they happened: their stream features are the
    same in both, while batch rows computed afterwards are missing as of arrival.
    """
    where = dict(_pair(text) for text in only or [])

    from feature_repo.clock import clock_of, from_ms
    from feature_repo.feast_quietly import open_store
    from feature_repo.settings import settings
    from models.dataset import build, write

    now = from_ms(clock_of(settings())())
    rows = build(open_store(settings()), settings(), service, *_bounds(since, until, now), where, as_of is AsOf.ARRIVAL)
    columns = write(rows, out)
    typer.echo(f"{out}: {len(rows)} rows, {len(columns)} columns, as of {as_of}")
    typer.echo("\n".join(columns))


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

    known, reach = definitions_of(open_store(settings())), None
    if archive_only:

        def reach(topic: str, home: str) -> Mapping[int, int]:
            return covered(settings(), topic, log_folder(settings(), topic) / home)
    else:
        with closing(open_log(settings())) as log:
            catch_up(log, settings(), clock_of(settings()), list(ARCHIVED))
    return Sources(known, Answers(Registry(settings().data / "models")), reach)


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
