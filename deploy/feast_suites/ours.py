"""``FULL_REPO_CONFIGS_MODULE`` for our stores. Their server is ``REDIS_URL``."""

from deploy.feast_suites.creators import OnlineStores, ParquetCreator, use_for_all


class Tiffin(ParquetCreator):
    """Our offline store and our compute engine."""

    store = "feature_repo.stores.offline.TiffinOfflineStore"
    engine = "feature_repo.stores.engine.TiffinComputeEngine"
    ours = True


use_for_all(Tiffin)

AVAILABLE_OFFLINE_STORES = [("local", Tiffin)]
# By the name "redis", so that what the suites ask of Redis stores alone is asked of ours too.
AVAILABLE_ONLINE_STORES: OnlineStores = {"redis": ({"type": "feature_repo.stores.online.TiffinOnlineStore"}, None)}
