"""Commands for what is made ahead: stored predictions, embeddings and picks, and how good the latter are."""

from datetime import UTC, datetime
from typing import Annotated

import typer

commands = typer.Typer()


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


@commands.command()
def embeddings(
    as_of: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Of orders before this midnight (UTC); the last one")
    ] = None,
    factors: Annotated[int | None, typer.Option(min=1, max=1024, help="Numbers in a vector")] = None,
    regularization: Annotated[float | None, typer.Option(min=0, help="How much vectors are held short")] = None,
    alpha: Annotated[float | None, typer.Option(min=0, help="What an order says; confidence is 1 + alpha * n")] = None,
) -> None:
    """Compute the vectors of customers and restaurants from four weeks of orders, as rows of their batch views.

    What is stored already is not written again. `tiffin materialize` brings the rows online.
    """
    from dataclasses import replace

    from feature_repo.clock import clock_of, from_ms
    from feature_repo.settings import settings
    from models.embeddings import Parameters, compute

    now = clock_of(settings())()
    given = {"factors": factors, "regularization": regularization, "alpha": alpha}
    parameters = replace(Parameters(), **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    day = (as_of or from_ms(now)).date()
    for view, rows in compute(settings(), day, now, parameters).items():
        typer.echo(f"{view}: {rows} rows as of {day}")


@commands.command()
def picks(
    as_of: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="By the vectors of this day; the newest by default")
    ] = None,
) -> None:
    """Pick ten restaurants for every customer, and publish them with what is popular into the SQL tables."""
    from contextlib import closing

    from feature_repo.clock import clock_of, iso
    from feature_repo.progress_bar import bar
    from feature_repo.settings import settings
    from models.batch_predict import TIMEOUT_S
    from models.picks import publish_picks
    from models.stored import open_stored

    clock = clock_of(settings())
    with closing(open_stored(settings(), TIMEOUT_S)) as stored, bar("picking restaurants") as advance:
        done = publish_picks(settings(), stored, clock, advance, as_of.date() if as_of else None)
    typer.echo(
        f"run {done.run.run_id} as of {iso(done.run.as_of_ms)} by {done.run.model} {done.run.model_version}: "
        f"{done.rows} rows, {done.written} of them written now, in {done.seconds:.1f} s "
        f"({done.rows_per_second:,.0f} rows/s)"
    )


@commands.command()
def evaluate_recommendations(
    test_from: Annotated[
        datetime | None, typer.Option(help="Measure on orders from here (UTC); the last fifth of the time by default")
    ] = None,
    until: Annotated[datetime | None, typer.Option(help="... and before here; all there are by default")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose the parameters on the last quarter of the training time")
    ] = False,
) -> None:
    """Measure recommendations on later orders, beside simpler ones: hit rate and recall of ten restaurants."""
    from rich.console import Console

    from feature_repo.clock import clock_of, from_ms
    from feature_repo.progress_bar import bar
    from feature_repo.settings import settings
    from models.embeddings import Parameters
    from models.evaluate_recommendations import evaluate, report
    from models.order_history import order_span

    now = clock_of(settings())()
    first, last = order_span(settings())
    border = _utc(test_from) or from_ms(first + (last - first) * 4 // 5)
    end = _utc(until) or from_ms(last + 1)
    with bar("measuring recommendations") as advance:
        parameters = None if tune else Parameters()
        found = evaluate(settings(), border, end, now, advance, parameters)
    Console().print(report(found))


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
