"""Commands of the models: training sets, training and registering."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from models.ahead_commands import commands as ahead_commands
from models.benchmark_commands import commands as benchmark_commands
from models.proof_commands import commands as proof_commands
from models.version_commands import commands as version_commands

commands = typer.Typer()
commands.add_typer(ahead_commands)
commands.add_typer(proof_commands)
version_commands.add_typer(benchmark_commands)
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
    left_out = f" ({rows.left_out} orders left out)" if rows.left_out else ""
    typer.echo(f"{out}: {len(rows)} rows, {len(columns)} columns, {meaning}{left_out}")
    typer.echo("\n".join(columns))


@commands.command()
def backtest(
    since: Annotated[datetime, typer.Option(help="Orders placed from here (UTC)")],
    until: Annotated[datetime | None, typer.Option(help="... and before here; now by default")] = None,
    only: Annotated[list[str] | None, typer.Option(help="As in train")] = None,
) -> None:
    """Measure what each rung of the ladder would have promised for orders of the past, by the models in use."""
    where = dict(_pair(text) for text in only or [])

    from rich.console import Console

    from feature_repo.clock import clock_of, from_ms
    from feature_repo.feast_quietly import open_store
    from feature_repo.settings import settings
    from models.backtest import backtest, backtest_table

    bounds = _bounds(since, until, from_ms(clock_of(settings())()))
    Console().print(backtest_table(backtest(open_store(settings()), settings(), *bounds, where)))


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
