"""Commands of the models: training sets, training and registering, predictions made ahead."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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
    from models.run_history import history_lines
    from models.stored import KINDS, open_stored

    stored = open_stored(settings())
    for kind in KINDS:
        typer.echo("\n".join(history_lines(kind, stored.history(kind), stored.current(kind))))
    stored.close()


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
