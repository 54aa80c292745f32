"""Pushing events to the API over HTTP; the only module that imports the HTTP client."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from feature_repo.settings import Settings

CHUNK = 1000
ASKED_AT_ONCE = 500
_ASKED_OF = ("order_id", "restaurant_id", "zone_id", "customer_id")
_TIMEOUT_S = 30.0


class ApiError(RuntimeError):
    """The API did not answer, or refused what it should take."""


def api_url(settings: Settings, url: str | None = None) -> str:
    """Where the API is."""
    return (url or f"http://{settings.host}:{settings.port}").rstrip("/")


def push_events(settings: Settings, topic: str, body: bytes, url: str | None = None) -> httpx.Response:
    """One request with the events in `body`. Raises ApiError if nobody answers."""
    base = api_url(settings, url)
    try:
        return httpx.post(f"{base}/v1/events/{topic}", content=body, timeout=_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise ApiError(f"no answer from {base} ({error}): the events were not taken, start the API first") from None


def push_all(settings: Settings, events: Iterable[tuple[str, dict[str, Any]]], url: str | None = None) -> int:
    """Push (topic, event) pairs, in chunks by topic that keep each topic's order; how many. Raises ApiError."""
    by_topic: dict[str, list[dict[str, Any]]] = {}
    pushed = 0
    for topic, event in events:
        waiting = by_topic.setdefault(topic, [])
        waiting.append(event)
        if len(waiting) >= CHUNK:
            pushed += _push_chunk(settings, topic, waiting, url)
            by_topic[topic] = []
    return pushed + sum(_push_chunk(settings, topic, rest, url) for topic, rest in by_topic.items() if rest)


def get_json(settings: Settings, path: str, url: str | None = None) -> tuple[int, Any]:
    """(status, document) of a GET. Raises ApiError if nobody answers."""
    base = api_url(settings, url)
    try:
        answer = httpx.get(base + path, timeout=_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise ApiError(f"no answer from {base}{path} ({error})") from None
    return answer.status_code, answer.json()


def post_json(settings: Settings, path: str, document: object, url: str | None = None) -> tuple[int, Any]:
    """(status, document) of a POST. Raises ApiError if nobody answers."""
    base = api_url(settings, url)
    try:
        answer = httpx.post(base + path, content=msgspec.json.encode(document), timeout=_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise ApiError(f"no answer from {base}{path} ({error})") from None
    return answer.status_code, answer.json()


def ask_etas(settings: Settings, orders: Sequence[Mapping[str, Any]], url: str | None = None) -> int:
    """Ask when these orders (``order_placed`` events that are about to be pushed) will arrive; how many were answered.

    Each answer is kept with the order's id, and held against its delivery later on. Raises ApiError if nobody answers.
    """
    answered = 0
    for first in range(0, len(orders), ASKED_AT_ONCE):
        asked = [{name: order[name] for name in _ASKED_OF} for order in orders[first : first + ASKED_AT_ONCE]]
        status, document = post_json(settings, "/v1/eta/batch", {"orders": asked}, url)
        if status != 200:
            raise ApiError(f"/v1/eta/batch: {status} {str(document)[:300]}")
        answered += sum(outcome["eta"] is not None for outcome in document["outcomes"])
    return answered


def wait_until(check: Callable[[], str | None], seconds: float) -> None:
    """Ask `check` until it gives None; what it gives else is the reason to wait. Raises ApiError after `seconds`."""
    deadline = time.monotonic() + seconds
    while (reason := check()) is not None:
        if time.monotonic() > deadline:
            raise ApiError(f"after {seconds:.0f} s: {reason}")
        time.sleep(0.2)


def _push_chunk(settings: Settings, topic: str, events: Sequence[dict[str, Any]], url: str | None) -> int:
    answer = push_events(settings, topic, msgspec.json.encode(events), url)
    if answer.status_code != 200:
        raise ApiError(f"{topic}: {answer.status_code} {answer.text[:300]}")
    return len(events)
