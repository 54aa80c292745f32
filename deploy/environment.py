"""Settings for this process and for those that it starts, for as long as a block lasts."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from feature_repo.settings import Settings, settings


@contextmanager
def settings_named(variables: Mapping[str, str]) -> Iterator[Settings]:
    """The settings with these environment variables; afterwards the variables are what they were."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    settings.cache_clear()
    try:
        yield settings()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        settings.cache_clear()
