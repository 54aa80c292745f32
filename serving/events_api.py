"""``POST /v1/events/{topic}``: events into the log, each accepted or refused with field and reason."""

from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from feature_repo.clock import Clock
from ingestion.events import EVENT_TYPES, BadEvent, event_key, parse
from ingestion.log import EventLog, LogUnavailable, Message
from serving.bodies import read_body
from serving.metrics import EVENTS
from serving.problems import Problem, ProblemDetails, problem_response
from serving.schemas import EventOutcome, EventsTaken

MAX_EVENTS = 10_000
_SHOWN = 200
_MANY = msgspec.json.Decoder(list[msgspec.Raw])


def events_router(log: EventLog, clock: Clock, drill: bool = False) -> APIRouter:
    """The route, publishing to `log`. Good events are taken even where bad ones stand beside them.

    In a `drill` records are stamped by `clock`: by the log's own, its readers would take them for another time's.
    """
    router = APIRouter(tags=["events"])

    @router.post(
        "/v1/events/{topic}",
        response_model=EventsTaken,
        responses={
            404: {"model": ProblemDetails, "description": "No such topic"},
            413: {"model": ProblemDetails, "description": "Too many events or bytes at once"},
            422: {"model": ProblemDetails, "description": "Some events were refused; the others are in the log"},
            503: {"model": ProblemDetails, "description": "The log cannot be reached: send again"},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"oneOf": [{"type": "object"}, {"type": "array"}]}}},
            }
        },
    )
    async def push_events(topic: str, request: Request) -> JSONResponse:
        """Append one event, or an array of them, to a topic. Once answered, they are in the log for good.

        Sending an event again changes nothing: it counts once, by its `event_id`.
        """
        if topic not in EVENT_TYPES:
            raise Problem(
                404, "Unknown topic", f"topic {topic!r} is not one of {', '.join(EVENT_TYPES)}: nothing reads it"
            )
        now = clock()
        outcomes, messages = _sorted_out(topic, _split(await read_body(request)), now)
        stamp = now if drill else None
        try:
            places = await run_in_threadpool(log.publish, topic, messages, stamp) if messages else []
        except LogUnavailable as error:
            detail = f"{error}. Send all of it again: what is in the log already counts once"
            raise Problem(503, "Event log unavailable", detail) from None
        accepted = [outcome for outcome in outcomes if outcome.status == "accepted"]
        for outcome, place in zip(accepted, places, strict=True):
            outcome.partition = place.partition
        return _answer(topic, outcomes, len(accepted))

    return router


def _split(body: bytes) -> list[bytes]:
    """The events' own bytes; a body that is no JSON is one event, which will be refused for it."""
    try:
        events = [bytes(raw) for raw in _MANY.decode(body)] if body.lstrip()[:1] == b"[" else [body]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(422, "Invalid request", f"body: not a JSON array ({error}). Nothing was taken") from None
    if len(events) > MAX_EVENTS:
        raise Problem(413, "Too many events", f"{len(events)} events, at most {MAX_EVENTS} at once: nothing was taken")
    return events


def _sorted_out(topic: str, events: Sequence[bytes], now: int) -> tuple[list[EventOutcome], list[Message]]:
    outcomes, messages = [], []
    for index, raw in enumerate(events):
        try:
            event = parse(topic, raw, now)
        except BadEvent as error:
            value = repr(error.value)[:_SHOWN]
            outcomes.append(
                EventOutcome(index=index, status="refused", field=error.field, value=value, reason=error.reason)
            )
        else:
            messages.append(Message(event_key(topic, event.columns), raw))
            outcomes.append(EventOutcome(index=index, status="accepted", event_id=event.event_id))
    return outcomes, messages


def _answer(topic: str, outcomes: Sequence[EventOutcome], accepted: int) -> JSONResponse:
    refused = len(outcomes) - accepted
    EVENTS.labels(topic=topic, outcome="accepted").inc(accepted)
    EVENTS.labels(topic=topic, outcome="refused").inc(refused)
    taken = EventsTaken(topic=topic, accepted=accepted, refused=refused, outcomes=list(outcomes))
    content = taken.model_dump(exclude_none=True)
    if not refused:
        return JSONResponse(content)
    first = next(outcome for outcome in outcomes if outcome.status == "refused")
    detail = f"{first.field} is {first.value}: {first.reason}. {refused} refused, {accepted} accepted"
    errors = [o for o in content["outcomes"] if o["status"] == "refused"]
    return problem_response(422, "Events refused", detail, {**content, "errors": errors})
