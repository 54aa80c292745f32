"""``/live``, ``/ready``, ``/metrics``: whether the process runs, and what it stands on; and what it counted."""

from collections.abc import Sequence

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from feature_repo.clock import Clock
from feature_repo.stores.redis_client import STORE_DOWN, AsyncRedis
from feature_repo.stores.stream_lag import TopicLag, stream_lags
from feature_repo.views import StreamView
from serving.metrics import REGISTRY, LagCollector
from serving.modes import LADDER, Mode
from serving.predictor import Predictor

Check = dict[str, object]


def health_router(
    client: AsyncRedis,
    project: str,
    streams: Sequence[StreamView],
    topics: Sequence[str],
    predictor: Predictor,
    lags: LagCollector,
    clock: Clock,
) -> APIRouter:
    """The routes. `lags` is what the metrics say of the streams."""
    router = APIRouter(tags=["health"])
    allowed = {topic: min(view.max_lag for view in streams if topic in view.topics) / 1000 for topic in topics}

    @router.get("/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    async def look() -> Check:
        """See how far the streams are, and whether the online store answers."""
        try:
            lags.lags = await stream_lags(client, project, streams, clock())
        except STORE_DOWN as error:
            lags.lags = []
            return {"ok": False, "reason": f"cannot be reached: {error}"}
        return {"ok": True}

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        await look()
        models = (predictor.model(mode) for mode in LADDER)
        lags.models = [(m.manifest.name, m.manifest.version) for m in models if not isinstance(m, str)]
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    @router.get("/ready")
    async def ready() -> JSONResponse:
        """200 if predictions can be made in the best mode, else 503; every check by name."""
        checks: dict[str, Check] = {"registry": {"ok": True, "stream_views": len(streams)}}
        checks["online_store"] = await look()
        checks |= {f"stream:{lag.topic}": _lag(lag, allowed[lag.topic]) for lag in lags.lags}
        checks |= {f"model:{mode}": _model(predictor, mode) for mode in LADDER}
        good = all(check["ok"] for check in checks.values())
        return JSONResponse({"status": "ready" if good else "not ready", "checks": checks}, 200 if good else 503)

    return router


def _lag(lag: TopicLag, allowed: float) -> Check:
    if lag.seconds is None:
        return {"ok": False, "reason": "no worker has folded every partition yet", "allowed_seconds": allowed}
    if lag.not_folded:
        reason = f"no worker folds {', '.join(lag.not_folded)} as defined here: restart what was started before"
        return {"ok": False, "reason": reason}
    return {"ok": lag.seconds <= allowed, "lag_seconds": lag.seconds, "allowed_seconds": allowed}


def _model(predictor: Predictor, mode: Mode) -> Check:
    model = predictor.model(mode)
    if isinstance(model, str):
        return {"ok": False, "reason": model}
    check: Check = {"ok": True, "name": model.manifest.name, "version": model.manifest.version}
    refused = predictor.refused(mode)  # it answers all the same, by the model before
    return check if refused is None else check | {"newer_model_refused": refused}
