"""A laboratory for the user's definitions: a registry, a Valkey and an archive of its own, in a folder that goes again.

Nothing here reads or writes the user's registry, store, log or data.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

import pandas as pd
from feast import FeatureStore
from pydantic import SecretStr

from feature_repo.clock import Clock, from_ms
from feature_repo.feast_quietly import register_elsewhere
from feature_repo.settings import Settings
from feature_repo.stores import embedded
from feature_repo.stores.reading import Answer, ReadPlan, Wanted, read
from feature_repo.stores.redis_client import Redis, connect
from feature_repo.views import StreamView, stream_views
from ingestion.archive import Archiver
from ingestion.log import EventLog, Record, TopicPartition
from ingestion.redis_log import RedisLog

_AT_ONCE = 5000


class Lab:
    """Definitions with an event log, an online store and an archive. `clear` empties all three."""

    def __init__(self, feast: FeatureStore, settings: Settings, client: Redis, views: Sequence[StreamView]) -> None:
        self.feast, self.settings, self.client, self.views = feast, settings, client, tuple(views)
        self.project = feast.project
        self.topics = sorted({topic for view in views for topic in view.topics})
        self.log: EventLog = RedisLog(client, retention_ms=None)
        self._wanted = [Wanted(view, tuple(view.features), view.join_keys) for view in views]
        self._features = [f"{view.name}:{feature}" for view in views for feature in view.features]

    def clear(self) -> None:
        """Forget every event and everything made of them."""
        self.client.flushall()
        rmtree(self.settings.data / "log", ignore_errors=True)

    def records(self, topic: str) -> list[Record]:
        """Everything in a topic."""
        consumer = self.log.consumer([topic], None, _from_the_start)
        found: list[Record] = []
        while batches := consumer.poll(0, _AT_ONCE):
            found += [record for batch in batches.values() for record in batch]
        consumer.close()
        return found

    def archive(self, clock: Clock) -> None:
        """Copy what is in the log and not yet in the archive into it."""
        archiver = Archiver(self.log, self.settings, clock, self.topics)
        while archiver.step(timeout_ms=0):
            pass
        archiver.flush()
        archiver.close()

    def online(self, rows: dict[str, list[Any]], now: int) -> Answer:
        """Every feature of every view, for rows of join keys ({column: an id a row}), by a reader whose clock shows
        `now` (ms); by view, by feature, by row.
        """
        return read(self.client, ReadPlan(self.project, self._wanted), rows, now)

    def offline(self, rows: Sequence[dict[str, Any]], instants: Sequence[int]) -> dict[str, list[Any]]:
        """What Feast's ``get_historical_features`` says of each row at its instant: by ``view__feature``."""
        frame = pd.DataFrame(list(rows))
        frame["event_timestamp"] = pd.Series([from_ms(instant) for instant in instants], dtype="datetime64[us, UTC]")
        job = self.feast.get_historical_features(entity_df=frame, features=self._features, full_feature_names=True)
        found: dict[str, list[Any]] = job.to_arrow().to_pydict()
        return found


@contextmanager
def private_lab(settings: Settings, names: Sequence[str] = ()) -> Iterator[Lab]:
    """A laboratory for the stream views of the repository folder's definitions, all or those of these names.

    Raises ValueError if there are none, or none of a name.
    """
    with tempfile.TemporaryDirectory(prefix="tiffin-parity-") as made:
        folder = Path(made)
        feast = register_elsewhere(settings, folder)
        views = _chosen(stream_views(feast.list_stream_feature_views()), names)
        url = SecretStr(f"unix://{embedded.socket_path(folder / 'data')}")
        private = settings.model_copy(update={"repo": folder, "redis_url": url, "kafka_bootstrap_servers": None})
        with closing(connect(private)) as client:
            server = embedded.start(folder / "data")
            try:
                yield Lab(feast, private, client, views)
            finally:
                embedded.stop(server)


def _chosen(views: Sequence[StreamView], names: Sequence[str]) -> list[StreamView]:
    by_name = {view.name: view for view in views}
    if not by_name:
        raise ValueError("the definitions have no stream view: there is nothing to hold against history")
    for name in names:
        if name not in by_name:
            raise ValueError(f"no stream view is named {name!r}: there are {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(names or by_name)]


def _from_the_start(gained: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    return dict.fromkeys(gained, 0)
