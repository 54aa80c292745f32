"""Feast's registry in a file that is replaced in one step.

Feast's own writes the file in place, and so does each materialization, twice a view. Whoever looks in between finds an
empty registry: no view exists.
"""

import uuid
from datetime import UTC, datetime
from typing import Any

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry

from feature_repo.stores.durable import sync_folder, write_synced


class AtomicFileRegistryStore(FileRegistryStore):
    """Named as ``registry_store_type``. Readers find the file as it was before a write, or as it is after it."""

    def _write_registry(self, registry_proto: Registry) -> Any:
        registry_proto.version_id = str(uuid.uuid4())
        registry_proto.last_updated.FromDatetime(datetime.now(UTC))
        folder = self._filepath.parent
        folder.mkdir(parents=True, exist_ok=True)
        hidden = folder / f".{self._filepath.name}-{uuid.uuid4().hex}.tmp"
        try:
            write_synced(hidden, registry_proto.SerializeToString())
            hidden.replace(self._filepath)
        finally:
            hidden.unlink(missing_ok=True)
        sync_folder(folder)
