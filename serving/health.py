"""``/live``, ``/ready``, ``/metrics``: whether the process runs, and what it stands on; and what it counted."""

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from feature_repo.clock import Clock
from feature_repo.stores.redis_client import STORE_DOWN, AsyncRedis
from feature_repo.stores.stream_lag import ViewLag, stream_lag
from feature_repo.views import StreamView
from serving.breaker import Patience, Unavailable
from serving.metrics import REGISTRY, LagCollector
from serving.modes import Mode
from serving.predictor import Predictor
from serving.stored_reader import StoredReader

Check = dict[str, object]
_STORED_S = 1.0


class Readiness(BaseModel):
    """Whether predictions can be made in the best mode, and each check by name."""

    status: Literal["ready", "not ready"]
    checks: dict[str, dict[str, Any]] = Field(description="`ok` of each, and what there is to say of it")


_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": Readiness, "description": "Some check is not ok"}}


def health_router(
    client: AsyncRedis,
    project: str,
    streams: Sequence[StreamView],
    predictor: Predictor,
    stored: StoredReader,
    lags: LagCollector,
    clock: Clock,
) -> APIRouter:
    """The routes. `lags` is what the metrics say of the streams."""
    router = APIRouter(tags=["health"])

    @router.get("/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    async def look() -> tuple[Check, list[str]]:
        """See how far the streams are, whether the online store answers, and which views are not served as defined."""
        try:
            lags.lags, outdated = await stream_lag(client, project, streams, clock())
        except STORE_DOWN as error:
            lags.lags = []
            return {"ok": False, "reason": f"cannot be reached: {error}"}, []
        return {"ok": True}, outdated

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        await look()
        models = (predictor.model(mode) for mode in predictor.modes)
        lags.models = [(m.manifest.name, m.manifest.version) for m in models if not isinstance(m, str)]
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    @router.get("/ready", response_model=Readiness, responses=_NOT_READY)
    async def ready() -> JSONResponse:
        """200 if predictions can be made in the best mode, else 503; every check by name."""
        reached, outdated = await look()
        registry: Check = {"ok": True, "stream_views": len(streams)}
        if outdated:  # what is served goes on as it was
            registry |= {"not_served_as_defined": outdated, "hint": f"tiffin backfill {' '.join(outdated)}"}
        checks = {"registry": registry, "online_store": reached}
        if reached["ok"]:
            by_name = {lag.view: lag for lag in lags.lags}
            checks |= {f"stream:{view.name}": _lag(by_name.get(view.name), view) for view in streams}
        checks |= {f"model:{mode}": _model(predictor, mode) for mode in predictor.modes}
        good = all(check["ok"] for check in checks.values())
        checks["stored"] = await _stored(stored, clock())  # the net below, not what predictions are made of
        return JSONResponse({"status": "ready" if good else "not ready", "checks": checks}, 200 if good else 503)

    return router


def _lag(lag: ViewLag | None, view: StreamView) -> Check:
    allowed = view.max_lag / 1000
    if lag is None:
        return {"ok": False, "reason": f"it is not served: start a worker, or `tiffin backfill {view.name}`"}
    if lag.seconds is None:
        return {"ok": False, "reason": "no worker has folded every partition yet", "allowed_seconds": allowed}
    check: Check = {"ok": lag.covered, "lag_seconds": lag.seconds, "allowed_seconds": allowed}
    if lag.seconds > allowed:
        return check | {"ok": False}
    return check if lag.covered else check | {"reason": "its windows reach back to events that are not folded"}


async def _stored(stored: StoredReader, now: int) -> Check:
    try:
        run = await stored.run(now, Patience(_STORED_S))
    except Unavailable as error:
        return {"ok": False, "reason": str(error), "needed": False}
    check: Check = {"ok": True, "needed": False, "run_id": run.run_id}
    return check | {"age_seconds": (now - run.as_of_ms) / 1000}


def _model(predictor: Predictor, mode: Mode) -> Check:
    model = predictor.model(mode)
    if isinstance(model, str):
        return {"ok": False, "reason": model}
    check: Check = {"ok": True, "name": model.manifest.name, "version": model.manifest.version}
    refused = predictor.refused(mode)  # it answers all the same, by the model before
    return check if refused is None else check | {"newer_model_refused": refused}
