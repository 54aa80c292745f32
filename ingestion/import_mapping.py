"""How somebody's columns become our fields: the mapping file of an import, and the reading of one row by it."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

import msgspec
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from feature_repo.clock import to_ms
from ingestion.events import EVENT_TYPES, MINUTE_MS

SHORT_NAMES = {"order_placed": "placed", "order_ready": "ready", "order_delivered": "delivered"}
"""The topics that an order makes events of, and what they are called in event ids."""

_TIMES = ("placed_at", "ready_at", "delivered_at")
_WHOLE = ("restaurant_id", "zone_id", "customer_id", "courier_id", "item_count")
_REQUIRED = ("order_id", "restaurant_id", "zone_id", "placed_at", "delivered_at")

Row = dict[str, Any]


class Constant(BaseModel):
    """A field that is the same in every row."""

    model_config = ConfigDict(extra="forbid")
    constant: int | float | str | None


class Couriers(BaseModel):
    """How couriers' states are derived: busy from a column (or when the order is placed) until it is delivered."""

    model_config = ConfigDict(extra="forbid")
    busy_from: str | None = None
    idle_minutes: float = Field(default=60, gt=0)


class Mapping(BaseModel):
    """The mapping file. `fields` says for each of our fields their column, or a constant."""

    model_config = ConfigDict(extra="forbid")
    source: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    fields: dict[str, str | Constant]
    timezone: str = "UTC"
    timezones: dict[str, str] = {}
    ids: dict[str, Literal["dense"]] = {}
    where: dict[str, dict[str, Any]] = {}
    max_minutes: float = Field(default=360, gt=0)
    keep: list[str] = []
    couriers: Couriers | None = None

    @field_validator("fields")
    @classmethod
    def _known(cls, fields: dict[str, str | Constant]) -> dict[str, str | Constant]:
        known = {name for topic in SHORT_NAMES for name in EVENT_TYPES[topic].schema.__struct_fields__} - {"event_id"}
        for name in fields:
            if name not in known:
                raise ValueError(f"{name} is not one of {', '.join(sorted(known))}: no event has it")
        for name in _REQUIRED:
            if name not in fields:
                raise ValueError(f"{name} is not mapped: no event could be made without it")
        return fields

    @field_validator("where")
    @classmethod
    def _topics(cls, where: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for topic in where:
            if topic not in SHORT_NAMES:
                raise ValueError(f"{topic} is not one of {', '.join(SHORT_NAMES)}: no event would be left out")
        return where

    @field_validator("ids")
    @classmethod
    def _dense(cls, ids: dict[str, Literal["dense"]]) -> dict[str, Literal["dense"]]:
        for name in ids:
            if name not in _WHOLE[:4]:
                raise ValueError(f"{name} is not one of {', '.join(_WHOLE[:4])}: it holds no number of ours")
        return ids

    @field_validator("timezone", "timezones")
    @classmethod
    def _zones(cls, named: Any) -> Any:
        for zone in [named] if isinstance(named, str) else named.values():
            if zone not in available_timezones():
                raise ValueError(f"{zone!r} is no time zone that this machine knows: times would be guesses")
        return named

    @model_validator(mode="after")
    def _couriers_named(self) -> Self:
        if self.couriers and "courier_id" not in self.fields:
            raise ValueError("couriers are to be derived, but fields has no courier_id: nobody would be busy")
        return self

    def zone_of(self, name: str) -> ZoneInfo:
        """The time zone of naive times in our field `name` (or the column `busy_from`)."""
        return ZoneInfo(self.timezones.get(name, self.timezone))

    def columns(self) -> set[str]:
        """Their columns that the mapping names."""
        named = {column for column in self.fields.values() if isinstance(column, str)}
        named |= {*self.keep, *(column for wanted in self.where.values() for column in wanted)}
        return named | ({self.couriers.busy_from} if self.couriers and self.couriers.busy_from else set())


class Refused(ValueError):
    """A row that cannot be right; the message is its reason, the same for every row of its kind."""


def read_mapping(path: Path) -> Mapping:
    """The mapping in a YAML file. Raises ValueError naming the field, its value and what is wrong with it."""
    try:
        return Mapping.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name}: {error}: the import would be a guess") from None


def order_of(mapping: Mapping, row: Row, dense: dict[str, dict[str, int]], seen: set[str]) -> Row:
    """Our fields of one row: instants in ms, ids whole. Raises Refused."""
    order: Row = {}
    for name, where in mapping.fields.items():
        raw = where.constant if isinstance(where, Constant) else row[where]
        if raw is None or raw == "" or (isinstance(raw, float) and math.isnan(raw)):
            order[name] = None
        elif name in dense:
            order[name] = dense[name][str(raw)]
        else:
            order[name] = _value(mapping, name, raw)
    for name in _REQUIRED:
        if order[name] is None:
            raise Refused(f"{name} is missing")
    if str(order["order_id"]) in seen:
        raise Refused("order_id is a repeat of an earlier row's")
    for later in ("ready_at", "delivered_at"):
        if order.get(later) is not None and order[later] < order["placed_at"]:
            raise Refused(f"{later} is before placed_at")
    if wanted(mapping, "order_delivered", row):
        minutes = (order["delivered_at"] - order["placed_at"]) / MINUTE_MS
        if minutes == 0:
            raise Refused("delivery took no time")
        if minutes > mapping.max_minutes:
            raise Refused(f"delivery took longer than max_minutes ({mapping.max_minutes:g})")
    return order


def _value(mapping: Mapping, name: str, raw: Any) -> Any:
    try:
        if name in _TIMES:
            return instant(raw, mapping.zone_of(name))
        if name in _WHOLE:
            number = int(raw)
            if not isinstance(raw, str) and number != raw:
                raise Refused(f"{name} is no whole number")
            if not -(2**63) <= number < 2**63:
                raise Refused(f"{name} does not fit 64 bits")
            return number
        return float(raw) if name == "basket_total" else str(raw)
    except (ValueError, TypeError, OverflowError) as error:
        raise error if isinstance(error, Refused) else Refused(f"{name} cannot be read") from None


def instant(raw: Any, zone: ZoneInfo) -> int:
    """Milliseconds of an instant: a datetime, ISO text, or a number of epoch milliseconds. Naive ones are of `zone`."""
    if isinstance(raw, int):
        return raw
    if isinstance(raw, str) and raw.isdecimal() and len(raw) > 10:  # shorter ones may be dates, like 20260131
        return int(raw)
    moment = datetime.fromisoformat(raw) if isinstance(raw, str) else raw
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    return to_ms(moment.astimezone(UTC))


def wanted(mapping: Mapping, topic: str, row: Row) -> bool:
    """Whether the mapping wants the event `topic` of this row. Compared as text, which is all that a CSV has."""
    return all(str(row[c]).lower() == str(value).lower() for c, value in mapping.where.get(topic, {}).items())


def kept_value(raw: Any) -> Any:
    """A column that is carried along: numbers and truths of a CSV's text as such, anything else as text."""
    if raw is None or isinstance(raw, bool | int | float):
        return raw
    try:
        decoded = msgspec.json.decode(str(raw))
    except msgspec.DecodeError:
        return str(raw)
    return decoded if isinstance(decoded, bool | int | float) else str(raw)
