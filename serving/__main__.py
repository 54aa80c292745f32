"""Commands of serving: the HTTP server."""

from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind to [env: TIFFIN_HOST; default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="[env: TIFFIN_PORT; default: 8088]")] = None,
) -> None:
    """Answer predictions and take events over HTTP until told to stop."""
    import gc
    import signal
    import sys

    import prometheus_client  # noqa: F401  # before Feast, which would have its values in files, slower to count
    import uvicorn

    from feature_repo.settings import settings
    from serving.app import create_app

    given = settings()
    # uvicorn answers what is under way and then raises the signal again: that is a good end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    app = create_app(given)
    # Feast alone is a million objects: looking through all of them again and again, as Python's collector does, would
    # stop every request for some hundred milliseconds now and then. They stay as long as the server does.
    gc.collect()
    gc.freeze()
    # A request leaves nothing behind that only the collector finds; what lives is what is under way, by the thousand.
    gc.set_threshold(50_000, 20, 50)
    # Events come in by other threads: the one that answers must not wait 5 ms for them at every turn.
    sys.setswitchinterval(0.0005)
    uvicorn.run(
        app,
        host=host or given.host,
        port=given.port if port is None else port,
        access_log=False,
        proxy_headers=False,  # nobody asks who asks
        log_level="warning",
    )
