"""Ways to make a record of an event, good, bad and broken; each says whether what it made must be taken."""

import json
import random
import string
from collections.abc import Callable
from typing import Any

from ingestion.events import EVENT_TYPES, MAX_BYTES

BRACKETS = 100_000
MINUTE = 60_000
MAX_INT = 2**63 - 1
STRANGE_TEXTS = ("ü", "東京", "\u202e\u0645\u0631", "e\u0301", "👩\u200d🍳", "\x00", "a\x00b", "\ufeff", "\\", '"')

Event = dict[str, Any]
Dice = random.Random
Made = tuple[bytes, bool | None]
"""The record, and whether it must be taken; None where either will do, as long as it is counted."""


def _json(event: Any, **options: Any) -> bytes:
    return json.dumps(event, **options).encode("utf-8", "surrogatepass")


def _time_field(topic: str) -> str:
    return EVENT_TYPES[topic].time_field


def _with_token(dice: Dice, event: Event, field: str, token: bytes) -> bytes:
    """The event with `token`, as it is, as a field's value."""
    return _json(event | {field: "TOKEN"}).replace(b'"TOKEN"', token)


# --- good -------------------------------------------------------------------------------------------------------------


def _as_it_is(dice: Dice, event: Event, topic: str) -> Made:
    return _json(event), True


def _shuffled_and_spaced(dice: Dice, event: Event, topic: str) -> Made:
    names = list(event)
    dice.shuffle(names)
    return b" \n\t" + _json({name: event[name] for name in names}, indent=dice.choice([1, "\t"])) + b"\r\n ", True


def _strange_id(dice: Dice, event: Event, topic: str) -> Made:
    text = dice.choice(STRANGE_TEXTS)
    return _json(event | {"event_id": event["event_id"] + text}, ensure_ascii=dice.random() < 0.5), True


def _longest_id(dice: Dice, event: Event, topic: str) -> Made:
    return _json(event | {"event_id": event["event_id"].ljust(256, "ü")}), True


def _number_as_event_id(dice: Dice, event: Event, topic: str) -> Made:
    return _json(event | {"event_id": int(event["event_id"], 16) * dice.choice([1, -1, 10**400])}), True


def _extra_fields(dice: Dice, event: Event, topic: str) -> Made:
    nested: Any = None
    for _ in range(dice.randrange(90)):
        nested = [nested] if dice.random() < 0.5 else {dice.choice(STRANGE_TEXTS): nested}
    return _json(event | {dice.choice(STRANGE_TEXTS): nested, "note": "[" * 1000}), True


def _numbers_nobody_can_hold_in_extra_fields(dice: Dice, event: Event, topic: str) -> Made:
    token = dice.choice([b"1" + b"0" * 400, b"-1" + b"0" * 5000, b"1e999", b"-0.0", b"-0"])
    return _with_token(dice, event, "note", token), True


def _extreme_ids(dice: Dice, event: Event, topic: str) -> Made:
    field = "courier_id" if topic == "courier_status" else "restaurant_id"
    return _json(event | {field: dice.choice([MAX_INT, -MAX_INT - 1, 0, -1])}), True


def _a_time_as_text(dice: Dice, event: Event, topic: str) -> Made:
    text = dice.choice(
        ["2001-02-03T04:05:06Z", "2001-02-03t04:05:06.123456+05:45", "0001-01-01T00:00:00Z", "1969-12-31T23:59:59.999Z"]
    )
    earlier = dict.fromkeys(EVENT_TYPES[topic].moments, text)
    return _json(event | earlier), True


def _the_first_instant_there_is(dice: Dice, event: Event, topic: str) -> Made:
    return _json(event | dict.fromkeys(EVENT_TYPES[topic].moments, -62_135_596_800_000)), True


def _minus_zero(dice: Dice, event: Event, topic: str) -> Made:
    field = "basket_total" if topic == "order_placed" else "note"
    return _with_token(dice, event, field, dice.choice([b"-0.0", b"-0", b"0e0", b"1e-400"])), True


# --- bad --------------------------------------------------------------------------------------------------------------


def _field_missing(dice: Dice, event: Event, topic: str) -> Made:
    del event[dice.choice(list(event))]
    return _json(event), False


def _wrong_type(dice: Dice, event: Event, topic: str) -> Made:
    field = dice.choice(list(event))
    wrong: list[Any] = [
        True,
        [],
        {},
        [event[field]],
        {"value": event[field]},
        1.5 if field != "basket_total" else "1.5",
    ]
    return _json(event | {field: dice.choice(wrong)}), False


def _number_as_text(dice: Dice, event: Event, topic: str) -> Made:
    field = dice.choice([name for name in event if name in ("restaurant_id", "zone_id", "courier_id", "item_count")])
    return _json(event | {field: str(dice.randrange(9))}), False


def _null(dice: Dice, event: Event, topic: str) -> Made:
    needed = [name for name in event if name not in ("customer_id", "courier_id", "basket_total", "item_count")]
    return _json(event | {dice.choice(needed): None}), False


def _huge_number(dice: Dice, event: Event, topic: str) -> Made:
    field = dice.choice([name for name in event if name not in ("event_id", "order_id")])
    token = dice.choice([b"1" + b"0" * 400, b"-1" + b"0" * 400, b"1" + b"0" * 5000, b"1e400", b"9223372036854775808"])
    return _with_token(dice, event, field, token), False


def _not_a_number(dice: Dice, event: Event, topic: str) -> Made:
    field = dice.choice([*event, "note"])
    token = dice.choice([b"NaN", b"Infinity", b"-Infinity", b"nan", b"+1", b"01", b".5", b"0x10"])
    return _with_token(dice, event, field, token), False


def _impossible_date(dice: Dice, event: Event, topic: str) -> Made:
    text = dice.choice(
        ["0000-01-01T00:00:00Z", "99999-01-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-03-01T12:00:00", "today", ""]
    )
    beyond = dice.choice(["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
    moment: Any = dice.choice([text, beyond, -(10**18), 10**18, 253_402_300_800_000])
    return _json(event | {_time_field(topic): moment}), False


def _far_ahead(dice: Dice, event: Event, topic: str) -> Made:
    ahead: Any = dice.choice([event[_time_field(topic)] + 10**10, 253_402_300_799_999, "9999-12-31T23:59:59Z"])
    return _json(event | {_time_field(topic): ahead}), False


def _impossible(dice: Dice, event: Event, topic: str) -> Made:
    if topic in ("order_ready", "order_delivered"):
        return _json(event | {"placed_at": event[_time_field(topic)] + 1}), False
    if topic == "courier_status":
        return _json(event | {"status": dice.choice(["Available", "", "\x00", "lost"])}), False
    return _json(event | {"basket_total": dice.choice([-0.01, 1e10, 1e308])}), False


def _bad_id(dice: Dice, event: Event, topic: str) -> Made:
    return _json(event | {"event_id": dice.choice(["", "x" * 257, "ü" * 5000])}), False


def _no_object(dice: Dice, event: Event, topic: str) -> Made:
    whole: Any = dice.choice([[event], [], [event, event], "text", 7, None, True, {}, {"event": event}, "", -0.0])
    return _json(whole), False


# --- broken -----------------------------------------------------------------------------------------------------------


def _truncated(dice: Dice, event: Event, topic: str) -> Made:
    data = _json(event)
    return data[: dice.randrange(len(data))], False


def _flipped(dice: Dice, event: Event, topic: str) -> Made:
    data = bytearray(_json(event | {"note": "ü"}, ensure_ascii=False))
    for _ in range(dice.randint(1, 3)):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data), None


def _invalid_utf8(dice: Dice, event: Event, topic: str) -> Made:
    bad = dice.choice([b'"\xff"', b'"\xc3"', b'"\xed\xa0\x80"', b'"\xf5\x80\x80\x80"', b'"\xc0\xaf"', b'{"\xfe": 1}'])
    return _with_token(dice, event, dice.choice(["event_id", "note", "status"]), bad), False


def _half_a_surrogate_pair(dice: Dice, event: Event, topic: str) -> Made:
    token = dice.choice([b'"\\ud800"', b'"x\\udc00y"', b'"\\ud83d\\u0041"', b'{"\\ud800": 1}'])
    return _with_token(dice, event, dice.choice(["event_id", "note"]), token), False


def _raw_control_characters(dice: Dice, event: Event, topic: str) -> Made:
    return _with_token(dice, event, "event_id", b'"a' + dice.choice([b"\x00", b"\n", b"\x1f"]) + b'b"'), False


def _field_twice(dice: Dice, event: Event, topic: str) -> Made:
    field = dice.choice(list(event))
    twice = b'{"%s": %s, ' % (field.encode(), _json(dice.choice([event[field], None, 7, "x"])))
    return twice + _json(event)[1:], None


def _more_behind_it(dice: Dice, event: Event, topic: str) -> Made:
    return _json(event) + dice.choice([b",", b"}", _json(event), b"\x00", b"null", b"//"]), False


def _nothing(dice: Dice, event: Event, topic: str) -> Made:
    return dice.choice([b"", b" ", b"\x00", b"\n\n", b"\xef\xbb\xbf" + _json(event)]), False


def _noise(dice: Dice, event: Event, topic: str) -> Made:
    return dice.randbytes(dice.randrange(1, 300)), None


def _letters(dice: Dice, event: Event, topic: str) -> Made:
    return "".join(dice.choices(string.printable, k=dice.randrange(1, 300))).encode(), None


# --- without end ------------------------------------------------------------------------------------------------------


def _endless_text(dice: Dice, event: Event, longest: int) -> Made:
    name, text = dice.choice([("note", "x" * longest), ("event_id", "ü" * (longest // 6)), ("x" * longest, "")])
    return _json(event | {name: text}), False


def _endless_list(dice: Dice, event: Event, longest: int) -> Made:
    return b'{"note": [' + b"0," * (longest // 2) + b"0], " + _json(event)[1:], False


def _brackets(dice: Dice, event: Event, longest: int) -> Made:
    left, right = dice.choice([(b"[", b"]"), (b'{"a":', b"}")])
    many = min(BRACKETS, longest // len(left + right) - 1000)
    nested = left * many + dice.choice([b"", b"1" + right * many])
    return dice.choice([nested, _with_token(dice, event, "note", nested)]), False


def _as_long_as_is_allowed(dice: Dice, event: Event, longest: int) -> Made:
    data = _json(event | {"note": ""})
    return data.replace(b'"note": ""', b'"note": "%s"' % (b"x" * (MAX_BYTES - len(data)))), True


GOOD: tuple[Callable[[Dice, Event, str], Made], ...] = (
    *[_as_it_is] * 6,
    _shuffled_and_spaced,
    _strange_id,
    _longest_id,
    _number_as_event_id,
    _extra_fields,
    _numbers_nobody_can_hold_in_extra_fields,
    _extreme_ids,
    _a_time_as_text,
    _the_first_instant_there_is,
    _minus_zero,
)
BAD = (
    _field_missing,
    _wrong_type,
    _number_as_text,
    _null,
    _huge_number,
    _not_a_number,
    _impossible_date,
    _far_ahead,
    _impossible,
    _bad_id,
    _no_object,
)
BROKEN = (
    _truncated,
    _flipped,
    _invalid_utf8,
    _half_a_surrogate_pair,
    _raw_control_characters,
    _field_twice,
    _more_behind_it,
    _nothing,
    _noise,
    _letters,
)
ENDLESS = (_endless_text, _endless_list, _brackets, _brackets, _as_long_as_is_allowed)
