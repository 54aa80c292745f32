"""The same feature values in Feast's own layout, for its SDK and its server: what a user of plain Feast would have."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pandas as pd
import yaml
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource
from feast.types import from_value_type

from benchmarks.world import World
from deploy.processes import Process, wait
from deploy.servers import ValkeyServer, free_port
from feature_repo.clock import wall_clock
from feature_repo.stores.reading import ReadPlan, Status, Wanted, read
from feature_repo.stores.redis_client import connect
from feature_repo.views import View, views_of_service

SERVICE = "eta_streaming"
_READY_S = 60.0


class OtherValues(RuntimeError):
    """The two sides do not hold the same: figures of one over the other would mean nothing."""


class FeastSide:
    """A Feast repository of plain feature views with the values that our store serves, on a Valkey of its own."""

    def __init__(self, folder: Path, valkey: ValkeyServer, world: World, ids: Sequence[int]) -> None:
        self.folder, self.valkey = folder, valkey
        folder.mkdir(parents=True)
        described = {
            "project": "plain",
            "provider": "local",
            "registry": {"path": "registry.db", "cache_ttl_seconds": 0},
            "online_store": {"type": "redis", "connection_string": f"127.0.0.1:{valkey.port}"},
            "offline_store": {"type": "file"},
            "entity_key_serialization_version": 3,
        }
        (folder / "feature_store.yaml").write_text(yaml.safe_dump(described))
        self.store = FeatureStore(repo_path=str(folder))
        self.views = views_of_service(world.store, world.store.get_feature_service(SERVICE))
        self._apply()
        self.zones = self._write(world, ids)

    @property
    def names(self) -> list[str]:
        """The features, as Feast is asked for them."""
        return [f"{view.name}:{feature}" for view, features in self.views for feature in features]

    def _apply(self) -> None:
        """The views as plain ones; what they are computed from is nothing that an online read looks at."""
        empty = self.folder / "rows.parquet"
        pd.DataFrame({"event_time": pd.Series(dtype="datetime64[us, UTC]")}).to_parquet(empty)
        entities = {key: Entity(name=key, join_keys=[key]) for view, _ in self.views for key in view.join_keys}
        made = [
            FeatureView(
                name=view.name,
                entities=[entities[key] for key in view.join_keys],
                schema=[
                    Field(name=name, dtype=from_value_type(kind))
                    for name, kind in [
                        *zip(view.join_keys, view.key_types, strict=True),
                        *((feature, view.features[feature]) for feature in features),
                    ]
                ],
                source=FileSource(name=f"{view.name}_rows", path=str(empty), timestamp_field="event_time"),
            )
            for view, features in self.views
        ]
        self.store.apply([*entities.values(), *made, FeatureService(name=SERVICE, features=[*made])])

    def _write(self, world: World, ids: Sequence[int]) -> dict[int, int]:
        """Write what our store serves of each restaurant and of its zone; the zones, by restaurant."""
        client, now = connect(world.settings), datetime.now(UTC)
        zones: dict[int, int] = {}
        try:
            for view, features in sorted(self.views, key=lambda each: each[0].join_keys):  # restaurants, then zones
                keys = list(ids) if view.join_keys == ("restaurant_id",) else sorted(set(zones.values()))
                (name,) = view.join_keys
                frame = _served(world, view, features, keys)
                if "zone_id" in features:
                    zones.update(zip(keys, frame["zone_id"].tolist(), strict=True))
                self.store.write_to_online_store(view.name, frame.assign(**{name: keys}, event_time=now))
        finally:
            client.close()
        return zones

    @contextmanager
    def serving(self) -> Iterator[int]:
        """The port of `feast serve`: one worker that is not recycled, no access log, the registry left alone."""
        port = free_port()
        command = [str(Path(sys.executable).parent / "feast"), "-c", str(self.folder), "serve", "--port", str(port)]
        command += ["--workers", "1", "--max-requests", "0", "--no-access-log", "--registry_ttl_sec", "86400"]
        process = Process("feast", self.folder / "serve", command)
        process.start()

        def answers() -> bool:
            assert process.pid() is not None, process.log.read_text()
            try:
                return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
            except httpx.TransportError:
                return False

        try:
            assert wait(answers, _READY_S), f"Feast's server did not start: see {process.log}"
            yield port
        finally:
            process.stop()


@contextmanager
def feast_side(world: World, folder: Path, ids: Sequence[int]) -> Iterator[FeastSide]:
    """The Feast side of a world, for these restaurants."""
    valkey = ValkeyServer(folder / "valkey", free_port())
    valkey.start()
    try:
        yield FeastSide(folder / "repo", valkey, world, ids)
    finally:
        valkey.stop()


def _served(world: World, view: View, features: Sequence[str], keys: Sequence[int]) -> pd.DataFrame:
    client = connect(world.settings)
    try:
        plan = ReadPlan(world.store.project, [Wanted(view, tuple(features), view.join_keys)])
        (columns,) = read(client, plan, {view.join_keys[0]: keys}, wall_clock()).columns
    finally:
        client.close()
    for name, column in zip(features, columns, strict=True):
        if lacking := [key for key, one in zip(keys, column, strict=True) if one.status != Status.PRESENT]:
            raise OtherValues(f"{view.name}__{name} of {view.join_keys[0]} {lacking[0]} is not PRESENT")
    return pd.DataFrame({n: [one.value for one in column] for n, column in zip(features, columns, strict=True)})
