"""Our stores, but that values beyond their view's TTL are served: shows which tests fail for nothing but that."""

from dataclasses import replace
from typing import Any, Literal

from deploy.feast_suites.creators import OnlineStores
from deploy.feast_suites.ours import AVAILABLE_OFFLINE_STORES
from feature_repo.stores.online import TiffinOnlineStore, TiffinOnlineStoreConfig
from feature_repo.stores.online_requests import Request
from feature_repo.stores.reading import ReadPlan
from feature_repo.stores.values import WIRE
from feature_repo.views import BatchView

__all__ = ["AVAILABLE_OFFLINE_STORES", "AVAILABLE_ONLINE_STORES"]

_TYPE = "deploy.feast_suites.ours_without_ttl.WithoutTtlOnlineStore"


class WithoutTtlOnlineStoreConfig(TiffinOnlineStoreConfig):
    """As ours."""

    type: Literal["deploy.feast_suites.ours_without_ttl.WithoutTtlOnlineStore"] = _TYPE  # type: ignore[assignment]


class WithoutTtlOnlineStore(TiffinOnlineStore):
    """Our online store as it would be if it did not look at TTLs, as Feast's stores do not."""

    def _request(self, *args: Any, **kwargs: Any) -> Request:
        request = super()._request(*args, **kwargs)
        wanted = [
            replace(w, view=replace(w.view, ttl=0)) if isinstance(w.view, BatchView) else w for w in request.plan.wanted
        ]
        return request._replace(plan=ReadPlan(request.plan.project, wanted, form=WIRE))


AVAILABLE_ONLINE_STORES: OnlineStores = {"redis": ({"type": _TYPE}, None)}
