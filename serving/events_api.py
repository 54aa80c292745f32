"""``POST /v1/events/{topic}``: events into the log, each accepted or refused with field and reason."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from feature_repo.clock import Clock
from ingestion.events import EVENT_TYPES, BadEvent, event_key, parse
from ingestion.log import EventLog, LogUnavailable, Message
from serving.bodies import JSON_ERRORS, read_body
from serving.metrics import EVENTS
from serving.problems import SHOWN, Problem, ProblemDetails, problem_response
from serving.schemas import EventOutcome, EventsTaken

MAX_EVENTS = 10_000
_MANY = msgspec.json.Decoder(list[msgspec.Raw])
EVENT_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": ProblemDetails, "description": "No such topic"},
    413: {"model": ProblemDetails, "description": "Too many events or bytes at once"},
    422: {"model": ProblemDetails, "description": "Some events were refused; the others are in the log"},
    503: {"model": ProblemDetails, "description": "The log cannot be reached: send again"},
}
"""What a route that takes events answers else, for its documentation."""


class EventIntake:
    """Publishes events to `log`. Good events are taken even where bad ones stand beside them.

    In a `drill` records are stamped by `clock`: by the log's own, its readers would take them for another time's.
    """

    def __init__(self, log: EventLog, clock: Clock, drill: bool = False) -> None:
        self._log, self._clock, self._drill = log, clock, drill

    async def take(self, topic: str, split: Callable[[], Sequence[bytes]]) -> JSONResponse:
        """Take the events that `split` gives; it is called, like the log, in a thread.

        Raises Problem for a topic that there is not, too many events, a log that is down, and what `split` raises.
        """
        if topic not in EVENT_TYPES:
            known = ", ".join(EVENT_TYPES)
            raise Problem(404, "Unknown topic", f"topic {topic!r} is not one of {known}: nothing reads it")
        return await run_in_threadpool(self._take, topic, split)

    def _take(self, topic: str, split: Callable[[], Sequence[bytes]]) -> JSONResponse:
        events, now = split(), self._clock()
        if len(events) > MAX_EVENTS:
            detail = f"{len(events)} events, at most {MAX_EVENTS} at once: nothing was taken"
            raise Problem(413, "Too many events", detail)
        outcomes, messages = _sorted_out(topic, events, now)
        try:
            places = self._log.publish(topic, messages, now if self._drill else None) if messages else []
        except LogUnavailable as error:
            detail = f"{error}. Send all of it again: what is in the log already counts once"
            raise Problem(503, "Event log unavailable", detail) from None
        accepted = [outcome for outcome in outcomes if outcome.status == "accepted"]
        for outcome, place in zip(accepted, places, strict=True):
            outcome.partition = place.partition
        return _answer(topic, outcomes, len(accepted))


def events_router(intake: EventIntake) -> APIRouter:
    """The route, for events as they are."""
    router = APIRouter(tags=["events"])

    @router.post(
        "/v1/events/{topic}",
        response_model=EventsTaken,
        responses=EVENT_PROBLEMS,
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
        body = await read_body(request)
        return await intake.take(topic, lambda: _split(body))

    return router


def _split(body: bytes) -> list[bytes]:
    """The events' own bytes; a body that is no JSON is one event, which will be refused for it."""
    try:
        return [bytes(raw) for raw in _MANY.decode(body)] if body.lstrip()[:1] == b"[" else [body]
    except JSON_ERRORS as error:
        raise Problem(422, "Invalid request", f"body: not a JSON array ({error}). Nothing was taken") from None


def _sorted_out(topic: str, events: Sequence[bytes], now: int) -> tuple[list[EventOutcome], list[Message]]:
    outcomes, messages = [], []
    for index, raw in enumerate(events):
        try:
            event = parse(topic, raw, now)
        except BadEvent as error:
            value = repr(error.value)[:SHOWN]
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
