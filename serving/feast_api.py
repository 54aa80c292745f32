"""The routes of Feast's own feature server, so that its remote online store client works against this one.

Reads go the way of our online store, with its statuses; rows of batch views are written as materializing writes them;
what is pushed are events, and goes into the log. Errors are problem details, as everywhere.
"""

import asyncio
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import structlog
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from feast import FeatureService, FeatureStore, FeatureView
from feast.base_feature_view import BaseFeatureView
from feast.errors import FeastError, FeastObjectNotFoundException
from feast.feature_server_utils import convert_response_to_dict
from feast.online_response import OnlineResponse

from feature_repo.stores.online import TiffinOnlineStore
from feature_repo.stores.online_requests import PLANS_KEPT
from feature_repo.stores.redis_client import STORE_DOWN
from feature_repo.views import BatchView, compile_view, online_versioning
from serving import feast_docs, feast_rows
from serving.bodies import read_body
from serving.events_api import EVENT_PROBLEMS, EventIntake
from serving.feast_bodies import (
    MAX_FEATURES,
    EventsPushed,
    FeaturesAsked,
    RowsSent,
    columns,
    decode,
    events,
    plain,
    refused,
)
from serving.problems import Problem
from serving.schemas import EventsTaken, OnlineFeatures, RowsWritten

REGISTRY_EVERY_S = 30.0
"""How often the registry is read again: so long may it take until what `feast apply` changed is known here."""

_CELLS_IN_LOOP = 1000  # more are read in a thread: other requests would have to wait for them
_TO = ("online", "offline", "online_and_offline")
_BAD_REQUEST = (FeastError, ValueError, TypeError, KeyError, NotImplementedError)
logger = structlog.get_logger(__name__)


def feast_router(store: FeatureStore, online: TiffinOnlineStore, intake: EventIntake) -> APIRouter:
    """The routes, reading and writing by `online`, of what is in the registry of `store`."""
    router = APIRouter(tags=["Feast"])
    reads, writes = FeastReads(store, online), FeastWrites(store, online)

    @router.post(
        "/get-online-features",
        response_model=OnlineFeatures,
        responses=feast_docs.READ_PROBLEMS,
        openapi_extra=feast_docs.READ_BODY,
    )
    async def get_online_features(request: Request) -> Response:
        """Features of up to 10,000 entity rows, by column, each value with its status and the instant it speaks of.

        Entity columns come first. An id that is null or of the wrong type is NOT_FOUND in its own row.
        """
        answer = await reads.answer(decode(await read_body(request), FeaturesAsked))
        return Response(answer, media_type="application/json")

    @router.post("/push", response_model=EventsTaken, responses=EVENT_PROBLEMS, openapi_extra=feast_docs.PUSH_BODY)
    async def push(request: Request) -> JSONResponse:
        """Append events, given by column, to the topic that `push_source_name` names, as `/v1/events/{topic}` does.

        Where some are refused the answer is a 422 that says which and why, and the others are in the log all the same:
        sending all of them again changes nothing, an event counts once by its `event_id`.
        """
        asked = decode(await read_body(request), EventsPushed)
        if asked.to not in _TO:
            raise refused("to", asked.to, f"not one of {', '.join(_TO)}")
        return await intake.take(asked.push_source_name, lambda: events(columns("df", asked.df)))

    @router.post(
        "/write-to-online-store",
        response_model=RowsWritten,
        responses=feast_docs.WRITE_PROBLEMS,
        openapi_extra=feast_docs.WRITE_BODY,
    )
    async def write_to_online_store(request: Request) -> JSONResponse:
        """Write rows of a batch view, all or none. For each entity the greater (event time, created time) wins."""
        body = await read_body(request)
        return JSONResponse(await run_in_threadpool(lambda: writes.write(decode(body, RowsSent))))

    @router.get("/health")
    async def health() -> dict[str, str]:
        """The server answers. What it needs besides: `/ready`."""
        return {"status": "healthy"}

    return router


async def refresh_registry(store: FeatureStore) -> None:
    """Read the registry again and again, in a thread: else Feast would, within a request, when its cache expires."""
    while True:
        await asyncio.sleep(REGISTRY_EVERY_S)
        try:
            await run_in_threadpool(store.refresh_registry)
        except Exception as error:  # whatever the registry's home raises: what was read last is served on
            logger.warning("the registry cannot be read", error=str(error))


class _Known(NamedTuple):
    """A request that was resolved: what Feast is asked for, and the entity columns needed (None: Feast decides)."""

    features: list[str] | FeatureService
    columns: tuple[str, ...] | None
    width: int
    """The number of features."""


class FeastReads:
    """Answers ``/get-online-features``."""

    def __init__(self, store: FeatureStore, online: TiffinOnlineStore) -> None:
        self._store, self._online = store, online
        self._known: dict[tuple[object, ...], _Known] = {}
        self._registry_of: object = None

    async def answer(self, asked: FeaturesAsked) -> bytes:
        """The document that Feast's server would give, as JSON. Raises Problem."""
        given = columns("entities", asked.entities)
        known = await self._resolved(asked)
        needed = given if known.columns is None else known.columns
        for name in needed:
            if name not in given:
                raise refused(f"entities.{name}", "missing", "these features cannot be looked up without it")
        rows = {name: [plain(raw) for raw in given[name]] for name in needed}
        options = (asked.full_feature_names, asked.include_feature_view_version_metadata)
        request = (self._store.config, known.features, rows, self._store.registry, self._store.project, *options)
        try:
            if known.columns is None:
                return await run_in_threadpool(self._transformed, *request)
            if len(next(iter(rows.values()))) * known.width > _CELLS_IN_LOOP:
                return await run_in_threadpool(self._read, *request)
            return _document(await self._online.get_online_features_async(*request))
        except STORE_DOWN as error:
            raise _down(error) from None

    def _read(self, *request: Any) -> bytes:
        return _document(self._online.get_online_features(*request))

    def _transformed(self, *request: Any) -> bytes:
        """Feast's own read, which alone knows transformations on demand; a row that it cannot do fails all of them."""
        try:
            return self._read(*request)
        except _BAD_REQUEST as error:
            raise _unknown(error) from None

    async def _resolved(self, asked: FeaturesAsked) -> _Known:
        current = getattr(self._store.registry, "cached_registry_proto_created", None)
        if current != self._registry_of:
            self._known.clear()
            self._registry_of = current
        key = (asked.feature_service or tuple(asked.features or ()), asked.full_feature_names)
        known = self._known.get(key)
        if known is None:
            known = await run_in_threadpool(self._resolve, asked)
            if len(self._known) >= PLANS_KEPT:
                self._known.clear()
            self._known[key] = known
        return known

    def _resolve(self, asked: FeaturesAsked) -> _Known:
        features: list[str] | FeatureService
        try:
            if asked.feature_service:
                features = self._store.get_feature_service(asked.feature_service, allow_cache=True)
                width = sum(len(projection.features) for projection in features.feature_view_projections)
            else:
                features = _references(asked.features or [])
                width = len(features)
            full = asked.full_feature_names
            needed = self._online.prepare(self._store.config, self._store.registry, features, full)
        except _BAD_REQUEST as error:
            raise _unknown(error) from None
        return _Known(features, needed, width)


class FeastWrites:
    """Does ``/write-to-online-store``; blocks."""

    def __init__(self, store: FeatureStore, online: TiffinOnlineStore) -> None:
        self._store, self._online = store, online

    def write(self, sent: RowsSent) -> dict[str, object]:
        """Write the rows, and say how many replaced what was stored.

        Raises Problem; then nothing was written, or, if the store fell down meanwhile, some: sending again is harmless.
        """
        table, view = self._view(sent)
        rows = feast_rows.batch_rows(table, view, self._store.project, columns("df", sent.df))
        try:
            written = self._online.write(self._store.config, view, rows)
        except STORE_DOWN as error:
            raise _down(error) from None
        return {"feature_view_name": view.name, "rows": len(rows), "written": written}

    def _view(self, sent: RowsSent) -> tuple[FeatureView, BatchView]:
        name = sent.feature_view_name
        table = self._defined(name, sent.allow_registry_cache)
        if not isinstance(table, FeatureView):
            reason = "not a batch view: its values are computed when they are asked for"
            raise refused("feature_view_name", name, reason)
        view = compile_view(table, online_versioning(self._store.config))
        if isinstance(view, BatchView):
            return table, view
        reason = f"a stream view: its values are computed from events. Push those to /v1/events/{view.topics[0]}"
        raise refused("feature_view_name", name, reason)

    def _defined(self, name: str, cached: bool) -> BaseFeatureView:
        """The view from the registry as it was last read, or, unless `cached` has to do, as it is now.

        Feast's client never lets it do: read anew at each write, the registry would have every read resolved again.
        """
        registry, project = self._store.registry, self._store.project
        try:
            with suppress(FeastObjectNotFoundException):
                return registry.get_any_feature_view(name, project, allow_cache=True)
            return registry.get_any_feature_view(name, project, allow_cache=cached)
        except _BAD_REQUEST as error:
            raise _unknown(error) from None


def _document(found: OnlineResponse) -> bytes:
    return msgspec.json.encode(convert_response_to_dict(found.proto))


def _references(features: list[str]) -> list[str]:
    if not features:
        raise refused("features", "[]", "neither features nor a feature_service are named: nothing was asked")
    if len(features) > MAX_FEATURES:
        raise Problem(413, "Too many features", f"{len(features)} features, at most {MAX_FEATURES}: nothing was read")
    for i, reference in enumerate(features):
        if ":" not in reference:
            raise refused(f"features[{i}]", reference, "not of the form view:feature")
    return features


def _unknown(error: Exception) -> Problem:
    """What Feast says of views, features and services that it does not find, or cannot serve."""
    missing = isinstance(error, FeastObjectNotFoundException | KeyError)
    said = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    title = "Unknown feature" if missing else "Invalid request"
    return Problem(404 if missing else 422, title, f"{said}. Nothing was read or stored")


def _down(error: Exception) -> Problem:
    return Problem(503, "Online store unavailable", f"The online store cannot be reached ({error}): try again soon")
