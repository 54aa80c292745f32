"""``FULL_REPO_CONFIGS_MODULE`` for Feast's own stores: its file (Dask) offline store, local engine and Redis store."""

from deploy.feast_suites.creators import ParquetCreator, feasts_redis, use_for_all


class FeastDask(ParquetCreator):
    """Feast's default offline store and its local compute engine."""

    store = "dask"
    engine = "local"


use_for_all(FeastDask)

AVAILABLE_OFFLINE_STORES = [("local", FeastDask)]
AVAILABLE_ONLINE_STORES = feasts_redis()
