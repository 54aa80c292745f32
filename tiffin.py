"""The ``tiffin`` command: the commands of every room under one name.

Help is quick because rooms import what a command needs only when it runs (Feast alone takes seconds).
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer

from deploy.__main__ import commands as deploy_commands
from feature_repo.__main__ import commands as feature_commands
from ingestion.__main__ import commands as ingestion_commands
from models.__main__ import commands as model_commands
from serving.__main__ import commands as serving_commands

app = typer.Typer(
    help="A feature store with online and offline serving for delivery predictions, built on Feast.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for room in (feature_commands, ingestion_commands, model_commands, serving_commands, deploy_commands):
    app.add_typer(room)


@app.callback()
def _options(
    repo: Annotated[
        Path | None,
        typer.Option(
            help="Folder with feature_store.yaml and definitions.py [env: TIFFIN_REPO; default: feature_repo]"
        ),
    ] = None,
) -> None:
    if repo is not None:
        if not (repo / "feature_store.yaml").is_file():
            raise typer.BadParameter(f"{repo} has no feature_store.yaml: there are no definitions to work with")
        os.environ["TIFFIN_REPO"] = str(repo.resolve())  # also for the processes that a command starts


def main() -> None:
    """Run a command; what goes wrong is said in one line, with exit code 1 (2 for a wrong call)."""
    # Unwind, as for Ctrl-C: an embedded server and children that this process has started end with it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("TIFFIN_DEBUG"):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"tiffin: {reason} (TIFFIN_DEBUG=1 shows where)\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
