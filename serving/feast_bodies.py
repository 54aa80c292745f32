"""What Feast's clients send: bodies, and the columns within them, checked."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from serving.bodies import JSON_ERRORS
from serving.problems import SHOWN, Problem

MAX_ROWS = 10_000
MAX_FEATURES = 1_000
Columns = Mapping[str, Sequence[msgspec.Raw]]
"""Columns of equal length, each value as it was written."""

Body = TypeVar("Body", bound=msgspec.Struct)


class FeaturesAsked(msgspec.Struct):
    """``POST /get-online-features``. A service that is named goes before `features`, as in Feast."""

    entities: dict[str, msgspec.Raw]
    feature_service: str | None = None
    features: list[str] | None = None
    full_feature_names: bool = False
    include_feature_view_version_metadata: bool = False


class EventsPushed(msgspec.Struct):
    """``POST /push``. The log is where features and history both come from: any `to` puts events there."""

    push_source_name: str
    df: dict[str, msgspec.Raw]
    to: str = "online"


class RowsSent(msgspec.Struct):
    """``POST /write-to-online-store``."""

    feature_view_name: str
    df: dict[str, msgspec.Raw]
    allow_registry_cache: bool = True


def refused(field: str, value: object, reason: str, status: int = 422) -> Problem:
    """A problem with one field of a request."""
    shown = value if isinstance(value, str) else ascii(value)
    error = {"field": field, "value": shown[:SHOWN], "reason": reason}
    detail = f"{field} is {error['value']}: {reason}. Nothing was read or stored"
    return Problem(status, "Invalid request", detail, errors=[error])


def decode(body: bytes, kind: type[Body]) -> Body:
    """The body. Raises Problem, naming the field that is missing or of another type. Unknown fields are let through."""
    try:
        if not body.isascii():
            body.decode()  # the decoder looks at the UTF-8 of what it keeps alone
        return msgspec.json.decode(body, type=kind)
    except JSON_ERRORS as error:
        reason, _, path = str(error).partition(" - at `$.")
        if "missing required field" in reason:
            raise refused(reason.rsplit("`", 2)[1], "missing", "the request means nothing without it") from None
        field = path.rstrip("`")
        raise refused(field or "body", _value(body, field), reason) from None


def columns(place: str, given: Mapping[str, msgspec.Raw]) -> dict[str, list[msgspec.Raw]]:
    """The columns in `given`, a field of the body called `place`.

    Raises Problem for what is no list, for lists of unequal length, and for more than `MAX_ROWS` rows.
    """
    found: dict[str, list[msgspec.Raw]] = {}
    for name, raw in given.items():
        try:
            found[name] = msgspec.json.decode(raw, type=list[msgspec.Raw])
        except JSON_ERRORS as error:
            raise refused(f"{place}.{name}", _shown(bytes(raw)), str(error)) from None
    if not found:
        raise refused(place, "{}", "no columns: there are no rows in it")
    first, rows = next((name, len(values)) for name, values in found.items())
    for name, values in found.items():
        if len(values) != rows:
            raise refused(f"{place}.{name}", f"{len(values)} rows", f"{place}.{first} has {rows}")
    if rows > MAX_ROWS:
        raise Problem(413, "Too many rows", f"{rows} rows, at most {MAX_ROWS} at once: nothing was read or stored")
    return found


def plain(raw: msgspec.Raw) -> Any:
    """The value of a cell; of JSON that nothing can hold (a number of 5,000 digits) its bytes, which nothing takes."""
    try:
        return msgspec.json.decode(raw)
    except JSON_ERRORS:
        return bytes(raw)


def events(given: Columns) -> list[bytes]:
    """The rows of `given` as events: JSON objects with the columns' names, every value as it was written."""
    heads = [msgspec.json.encode(name) + b":" for name in given]
    return [
        b"{" + b",".join(head + bytes(cell) for head, cell in zip(heads, row, strict=True)) + b"}"
        for row in zip(*given.values(), strict=True)
    ]


def _value(body: bytes, field: str) -> str:
    """What stands in the body's field of that name; the body where there is none."""
    name = field.partition("[")[0].partition(".")[0]
    try:
        found = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except JSON_ERRORS:  # something else is wrong too, further on
        found = {}
    return _shown(bytes(found.get(name, body)))


def _shown(data: bytes) -> str:
    return data[:SHOWN].decode("utf-8", "replace")
