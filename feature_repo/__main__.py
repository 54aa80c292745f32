"""Commands of the feature repository: register definitions, bring batch features online."""

from datetime import datetime, timedelta
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def apply() -> None:
    """Register the definitions with Feast (the same as `feast apply` in the repository folder)."""
    from feature_repo.feast_quietly import apply_definitions
    from feature_repo.settings import settings

    apply_definitions(settings())


@commands.command()
def materialize(
    views: Annotated[list[str] | None, typer.Argument(help="Views to materialize; all batch views by default")] = None,
    end: Annotated[datetime | None, typer.Option(help="Up to this instant (UTC); now by default")] = None,
) -> None:
    """Write the newest batch row of each entity to the online store.

    Rows as old as a view's TTL are looked at, so none that was written late is missed. Repeating it changes nothing.
    """
    from datetime import UTC

    from feature_repo.clock import clock_of, from_ms
    from feature_repo.feast_quietly import open_store
    from feature_repo.settings import settings

    until = end.replace(tzinfo=UTC) if end else from_ms(clock_of(settings())())
    open_store(settings()).materialize(until - timedelta(days=1), until, feature_views=views)
