"""``FULL_REPO_CONFIGS_MODULE`` for Feast's own stores: its DuckDB offline store, its local engine, its Redis store."""

from deploy.feast_suites.creators import ParquetCreator, feasts_redis, use_for_all


class FeastDuckDB(ParquetCreator):
    """Feast's DuckDB offline store and its local compute engine."""

    store = "duckdb"
    engine = "local"


use_for_all(FeastDuckDB)

AVAILABLE_OFFLINE_STORES = [("local", FeastDuckDB)]
AVAILABLE_ONLINE_STORES = feasts_redis()
