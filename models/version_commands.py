"""``tiffin models``: the versions of the models. A running server takes up what they change, without a restart."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

commands = typer.Typer(no_args_is_help=True)

_Name = Annotated[str, typer.Argument(help="eta_streaming or eta_batch")]
_Version = Annotated[str, typer.Argument(help="A version, or the end of one, as `tiffin models list` shows them")]


@commands.command("list")
def list_versions(name: Annotated[str | None, typer.Argument(help="Only this model")] = None) -> None:
    """Every version with its error when it was trained, which one answers, and which is in the shadow."""
    from rich.console import Console

    from feature_repo.settings import settings
    from models.registry import Registry
    from models.versions import list_table

    Console().print(list_table(Registry(settings().data / "models"), [name] if name else []))


@commands.command()
def promote(name: _Name, version: _Version) -> None:
    """Put a version into use."""
    from feature_repo.clock import clock_of
    from feature_repo.settings import settings
    from models.registry import Registry

    registry = Registry(settings().data / "models")
    chosen = registry.find(name, version)
    registry.promote(name, chosen, clock_of(settings())())
    typer.echo(f"{name}: {chosen} is in use")


@commands.command()
def rollback(name: _Name) -> None:
    """Put the version into use again that was in use before the present one."""
    from feature_repo.clock import clock_of
    from feature_repo.settings import settings
    from models.registry import Registry

    registry = Registry(settings().data / "models")
    present, before = registry.current(name), registry.before(name)
    registry.promote(name, before, clock_of(settings())())
    typer.echo(f"{name}: {before} is in use again, {present} is not")


@commands.command()
def shadow(
    name: _Name,
    version: Annotated[str | None, typer.Argument(help="As in promote")] = None,
    off: Annotated[bool, typer.Option("--off", help="No version any more")] = False,
) -> None:
    """Let a version answer beside the one in use, in the receipts alone."""
    from feature_repo.settings import settings
    from models.registry import Registry

    if (version is None) != off:
        raise typer.BadParameter("a version or --off is needed: which of them is to be in the shadow")
    registry = Registry(settings().data / "models")
    chosen = None if version is None else registry.find(name, version)
    registry.set_shadow(name, chosen)
    typer.echo(f"{name}: {chosen or 'nothing'} is in the shadow")


@commands.command()
def compare(
    name: _Name,
    first: _Version,
    second: _Version,
    since: Annotated[datetime | None, typer.Option(help="Predictions from here (UTC); of 7 days by default")] = None,
) -> None:
    """Two versions side by side: as they were measured, and on the orders that both have answered."""
    from rich.console import Console

    from feature_repo.clock import clock_of, from_ms, to_ms
    from feature_repo.settings import settings
    from models.registry import Registry
    from models.versions import compare as compared
    from models.versions import compare_table

    registry, now = Registry(settings().data / "models"), clock_of(settings())()
    pair = registry.find(name, first), registry.find(name, second)
    begin = from_ms(now) - timedelta(days=7) if since is None else since.replace(tzinfo=UTC)
    found = compared(settings(), name, *pair, to_ms(begin), now + 1)
    Console().print(compare_table(registry, name, *pair, found))
    if not found.orders:
        typer.echo("No delivered order has an answer of both: `tiffin models shadow` lets one answer beside the other.")
