"""Random events of any topic, from the schemas in `ingestion.events` alone: by kind of column, at the edges of each.

All that is random comes from a `random.Random`, and a draw of 0 gives the plainest: a driver that makes draws smaller
makes events plainer.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec
from msgspec import inspect

from feature_repo.windows import MAX_AHEAD_MS, MAX_MAGNITUDE
from ingestion.events import EVENT_TYPES, column_kinds, event_key
from ingestion.log import Message

POOL = 6
"""Different ids, or texts, that a column holds in one story."""

_IDS = (1, 2, 3, 0, -9, 2**31, -1, 2**63 - 1, -(2**63), 10**15, 77)
_TEXTS = ("a", "b", "7", "-3", "a:b", "é", "e\u0301", "𝔘 ☃", "a\x1fb", "x" * 256, " ", "o'Hara\\", '"', "ÿ\x00ÿ", "0")
_INTEGERS = (2, None, 0, 1, -1, 9, 10**9, -(10**9), 123_456_789)
_DECIMALS = (10.5, None, 0.0, -0.0, 0.1, 0.2, -0.3, 1e9, -1e9, 5e-7, 1.0000005, -2.5e-6, 7, 123_456_789.123_456)
_EARLIER_MS = (420_000, 0, 1, 59_999, 60_000, 1_234_567, 86_400_000)
_GARBAGE = (b"", b"{", b"null", b"[1]", b"\xff\xfe", b'{"event_id": "x"}', b'{"event_id": NaN}')

_SKEWED = [i for i in range(POOL) for _ in range(POOL - i)]  # the first of a pool come often, the last seldom
_ELSEWHERE = b"elsewhere"
_CHANGED = 1000

Event = dict[str, Any]


class EventMaker:
    """Makes the events of one story about `topics`."""

    def __init__(self, topics: Sequence[str], dice: Random) -> None:
        self._dice, self._made = dice, 0
        self._fields = {topic: inspect.type_info(EVENT_TYPES[topic].schema).fields for topic in topics}  # type: ignore[attr-defined]  # of a Struct
        self._kinds = {topic: column_kinds(topic) for topic in topics}
        ids, texts = dice.randrange(len(_IDS)), dice.randrange(len(_TEXTS))
        pools = {"id": _turned(_IDS, ids)[:POOL], "text": _turned(_TEXTS, texts)[:POOL]}
        self.pools: dict[str, tuple[Any, ...]] = {
            name: EVENT_TYPES[topic].choices.get(name, pools[kind])
            for topic in topics
            for name, kind in self._kinds[topic].items()
            if kind in pools
        }
        """Of each column that names something: what it may hold, in all topics. The first of them come most often."""

    def event(self, topic: str, own: int) -> Event:
        """An event of `topic` that is stamped `own`."""
        about = self._skewed()
        event = {field.name: self._value(topic, field, own, about) for field in self._fields[topic]}
        return event | self._of_its_own(topic, own)

    def alike(self, topic: str, event: Event, own: int) -> Event:
        """Another event about the same, with numbers of its own."""
        numbers = (field for field in self._fields[topic] if self._kinds[topic][field.name] == "number")
        return event | {field.name: self._number(field) for field in numbers} | self._of_its_own(topic, own)

    def flood(self, topic: str, event: Event, keep: Sequence[str], count: int) -> list[Event]:
        """So many events at once, equal in the columns `keep`, each with other values in the others."""
        kind = EVENT_TYPES[topic]
        free = [f for f in self._fields[topic] if f.name not in (*keep, *kind.choices, kind.time_field)]
        own = event[kind.time_field]
        return [
            event | {f.name: _changed(f, event[f.name], i) for f in free} | self._of_its_own(topic, own)
            for i in range(count)
        ]

    def message(self, topic: str, event: Event) -> Message:
        """The message of an event; now and then with a key that is not its entity's, so it lies elsewhere."""
        key = _ELSEWHERE if self._dice.randrange(16) == 15 else event_key(topic, event)
        return Message(key, msgspec.json.encode(event))

    def bad(self, topic: str, own: int, now: int) -> Message:
        """A record that cannot be taken: no event, one with a wrong or a missing field, or one from too far ahead."""
        event = self.event(topic, own)
        key, field = event_key(topic, event), self._dice.choice(self._fields[topic]).name
        match self._dice.randrange(4):
            case 0:
                event[EVENT_TYPES[topic].time_field] = now + MAX_AHEAD_MS + 1
            case 1:
                return Message(key, self._dice.choice(_GARBAGE))
            case 2:
                event[field] = {"no": "value"}
            case _:
                del event[field]
        return Message(key, msgspec.json.encode(event))

    def _of_its_own(self, topic: str, own: int) -> Event:
        self._made += 1
        name: str | int = self._made if self._made % 5 == 0 else f"é{self._made}"
        return {"event_id": name, EVENT_TYPES[topic].time_field: own}

    def _skewed(self) -> int:
        return _SKEWED[self._dice.randrange(len(_SKEWED))]

    def _value(self, topic: str, field: inspect.Field, own: int, about: int) -> Any:
        """A value of a field; ids are those at `about` in their pools, so that entities of two keys meet, or others."""
        kind, dice = self._kinds[topic][field.name], self._dice
        if kind == "instant":
            return own - dice.choice(_EARLIER_MS) if field.name != EVENT_TYPES[topic].time_field else own
        if field.name == "event_id":
            return None
        if kind == "number":
            return self._number(field)
        if _allows(field, None) and dice.randrange(6) == 5:
            return None
        pool = self.pools[field.name]
        value = pool[(about if dice.randrange(3) < 2 else self._skewed()) % len(pool)]
        if kind == "text" and str(value).lstrip("-").isdecimal() and _allows(field, int(value)) and dice.randrange(2):
            return int(value)  # the same id: names may come as whole numbers
        return value

    def _number(self, field: inspect.Field) -> Any:
        menu = [value for value in (_DECIMALS if _allows(field, 0.5) else _INTEGERS) if _allows(field, value)]
        drawn = self._dice.randrange(len(menu) + 6)
        if drawn < len(menu):
            return menu[drawn]
        scale = 10.0 ** (2 * (drawn - len(menu)) - 1)
        value = self._dice.random() * min(scale, MAX_MAGNITUDE)
        if self._dice.randrange(2) and _allows(field, -value):
            value = -value
        return value if _allows(field, 0.5) else int(value)


def _allows(field: inspect.Field, value: float | int | str | None) -> bool:
    """Whether a schema's field may hold a value."""
    kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
    return any(_fits(kind, value) for kind in kinds)


def _fits(kind: inspect.Type, value: float | int | str | None) -> bool:
    if value is None or isinstance(value, str):
        return isinstance(kind, inspect.NoneType if value is None else inspect.StrType)
    if not isinstance(kind, inspect.FloatType) and not (isinstance(kind, inspect.IntType) and isinstance(value, int)):
        return False
    bounds = (kind.ge, kind.gt, kind.le, kind.lt)
    least, above, most, below = (value if bound is None else bound for bound in bounds)
    return (
        least <= value <= most
        and (kind.gt is None or value > above)
        and (kind.lt is None or value < below)
        and abs(value) <= 2**63
    )


def _turned(menu: Sequence[Any], by: int) -> tuple[Any, ...]:
    return (*menu[by:], *menu[:by])


def _changed(field: inspect.Field, value: Any, number: int) -> Any:
    """Another value for each number, of the kind that the field holds."""
    if _allows(field, "x"):
        return f"{number}"
    return number + _CHANGED if _allows(field, number + _CHANGED) else value
