"""What bytes are refused whatever they say: so that worker, archive and server agree, wherever they read them."""

import json
from collections.abc import Callable

import pytest

from ingestion.events import BadEvent, Event, extras, parse
from ingestion.json_form import MAX_DEPTH
from tests.repo import START, order

TOPIC = "order_placed"


def with_note(token: bytes) -> bytes:
    """A good event with `token`, as it is, in a field that nobody knows."""
    return order("e", START).value[:-1] + b', "note": ' + token + b"}"


def nested(depth: int) -> bytes:
    """A good event that is nested so deeply."""
    return with_note(b"[" * (depth - 1) + b"]" * (depth - 1))


def refusal(value: bytes) -> BadEvent:
    with pytest.raises(BadEvent) as refused:
        parse(TOPIC, value, START)
    return refused.value


def deep_in_the_stack(do: Callable[[], Event], frames: int = 600) -> Event:
    return do() if frames == 0 else deep_in_the_stack(do, frames - 1)


def test_an_event_may_be_nested_a_hundred_deep_and_no_deeper() -> None:
    assert parse(TOPIC, nested(MAX_DEPTH), START).event_id == "e"
    error = refusal(nested(MAX_DEPTH + 1))
    assert (error.field, str(MAX_DEPTH) in error.reason) == ("event", True)
    assert isinstance(error.value, str)
    assert error.value.startswith("{")


def test_how_deep_it_may_be_does_not_depend_on_who_reads_it() -> None:
    assert deep_in_the_stack(lambda: parse(TOPIC, nested(MAX_DEPTH), START)) == parse(TOPIC, nested(MAX_DEPTH), START)


@pytest.mark.parametrize(
    "note",
    [
        b'"' + b"[" * 1000 + b'"',
        b'"\\"' + b"{" * 1000 + b'"',
        b"[" + b",".join([b"[]"] * 1000) + b"]",
        b'"\\\\", "more": ' + b"[" * 90 + b'"' + b"]" * 20 + b'"' + b"]" * 90,
    ],
)
def test_only_brackets_that_open_something_within_something_count(note: bytes) -> None:
    assert parse(TOPIC, with_note(note), START).event_id == "e"
    assert json.loads(extras(TOPIC, with_note(note)) or "")


@pytest.mark.parametrize("token", [b'"\xff"', b'{"\xc3": 1}', b'"\xed\xa0\x80"'])
def test_what_is_not_utf8_is_refused_where_nobody_looks_too(token: bytes) -> None:
    assert "not UTF-8" in refusal(with_note(token)).reason
    assert parse(TOPIC, with_note('"ü, 東京"'.encode()), START).event_id == "e"
