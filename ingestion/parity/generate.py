"""Random stories about any stream views: what is published, when, and who reads, dies and comes back meanwhile.

A story is told from whole numbers: each is the seed of all that is random in what happens next, and its size bounds how
much that is. So one generator has two drivers: `numbers_of` draws the numbers from a seed, and in tests Hypothesis
draws them, which makes stories shorter by leaving numbers out (a 0 is nothing) and batches smaller by lowering them.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from random import Random
from typing import NamedTuple

from feast.value_type import ValueType

from feature_repo.clock import to_ms
from feature_repo.views import StreamView, WindowView
from feature_repo.windows import DISTINCT_BOUND, MAX_AHEAD_MS, floor_hop
from ingestion.log import Message
from ingestion.parity.event_maker import POOL, EventMaker
from ingestion.parity.story import Action, Check, Interruption, Leave, Publish, Step, Story, Wait

NUMBERS = 2**32
"""Numbers that stories are told from lie below."""

_NOON, _NEAR_MIDNIGHT = datetime(2026, 3, 1, 12, tzinfo=UTC), datetime(2026, 2, 28, 23, 58, 59, tzinfo=UTC)
_STARTS = (to_ms(_NOON), to_ms(_NEAR_MIDNIGHT))
_BEFORE_1970 = -1
_BY_A_MS = (0, -1, 1)
_CALLS = (8, 20, 80)  # of the store: at one below which of these a step is interrupted
_MOST_BEHIND_MS = 3000
_FLOOD = DISTINCT_BOUND + 100
_EVERYTHING = 5000
_SHORTEST, _LONGEST = 30, 120  # numbers that a seed stands for
_INSTANTS = 8
_ROWS = POOL - 1
_KINDS = (
    *("events",) * 14,
    *("again",) * 3,
    "bad",
    *("wait",) * 4,
    *("step",) * 3,
    *("interrupted",) * 5,
    *("race",) * 2,
    *("leave",) * 2,
    "check",
)


class _Beat(NamedTuple):
    """By what a view measures time, in ms: a window and its hop; or a TTL, and 1 for it moves without hops."""

    hop: int
    window: int

    def edge(self, time: int) -> int:
        return floor_hop(time, self.hop)

    def left(self, time: int) -> int:
        """The first instant at which an event of `time` counts no longer."""
        return self.edge(time) + self.window + self.hop


def numbers_of(seed: str) -> list[int]:
    """The numbers that a seed stands for."""
    dice = Random(seed)  # noqa: S311  # dice, not secrets
    return [dice.randrange(NUMBERS) for _ in range(dice.randrange(_SHORTEST, _LONGEST))]


def random_story(views: Sequence[StreamView], numbers: Sequence[int]) -> Story:
    """A story about the topics that `views` are folded from: the first number opens it, the others go on."""
    teller = _Teller(views, numbers[0] if numbers else 0)
    actions = [action for number in numbers[1:] if number for action in teller.actions(number)]
    return Story(teller.start, teller.partitions, (*actions, teller.last_check()))


class _Teller:
    def __init__(self, views: Sequence[StreamView], opening: int) -> None:
        self._topics = sorted({topic for view in views for topic in view.topics})
        self._keys = {t: sorted({k for v in views if t in v.topics for k in v.join_keys}) for t in self._topics}
        kinds = {kind for view in views for kind in zip(view.join_keys, view.key_types, strict=True)}
        self._narrow = {key for key, kind in kinds if kind == ValueType.INT32}
        self._beats = {t: _beats([v for v in views if t in v.topics]) for t in self._topics}
        self._all_beats = _beats(views)
        self._dice, self._most = Random(opening), 1  # noqa: S311  # dice, not secrets
        self._maker = EventMaker(self._topics, self._dice)
        self.start = self._now = self._own = _STARTS[opening % 2]
        self.partitions = 1 + opening % 4
        self._floods = opening % 16 == 15
        self._told: list[Publish] = []
        self._acts: dict[str, Callable[[], list[Action]]] = {
            "events": lambda: [self._some()],
            "again": lambda: [self._again()],
            "bad": lambda: [self._bad()],
            "wait": lambda: [self._wait()],
            "step": lambda: [self._step(None)],
            "interrupted": lambda: [self._step(self._interruption())],
            "race": self._race,
            "leave": lambda: [Leave(self._worker(), bool(self._dice.randrange(2)))],
            "check": lambda: [self._check(until=self._now + 2 * self._all_beats[0].window)],
        }

    def actions(self, number: int) -> list[Action]:
        """What happens next, by a number. The larger it is, the more."""
        self._dice.seed(number)
        self._most = 1 + number.bit_length() // 2
        return self._acts[_KINDS[number % len(_KINDS)]]()

    def last_check(self) -> Check:
        """The end of the story: until everything has slid out of sight."""
        self._dice.seed(len(self._told))
        self._most = _INSTANTS
        return self._check(until=self._now + 2 * self._all_beats[-1].window)

    def _some(self) -> Publish:
        return self._flood() if self._floods else self._batch()

    def _batch(self) -> Publish:
        """Some events: of the same ids or others, of one instant or several, and now and then one twice."""
        dice, topic = self._dice, self._topic()
        own = self._stamp(topic)
        event = self._maker.event(topic, own)
        messages = [self._maker.message(topic, event)]
        for _ in range(dice.randrange(self._most)):
            own = self._stamp(topic) if dice.randrange(2) else own
            event = self._maker.event(topic, own) if dice.randrange(2) else self._maker.alike(topic, event, own)
            messages += [self._maker.message(topic, event)] * (2 if dice.randrange(12) == 11 else 1)
        return self._publish(topic, messages)

    def _flood(self) -> Publish:
        """More different values of one entity than `count_distinct` tells apart."""
        self._floods, topic = False, self._topic()
        event = self._maker.event(topic, self._stamp(topic))
        flood = self._maker.flood(topic, event, self._keys[topic], _FLOOD)
        key = self._maker.message(topic, event).key
        return self._publish(topic, [self._maker.message(topic, each)._replace(key=key) for each in flood])

    def _again(self) -> Publish:
        """A batch once more, or one message of it: also one that came too early the first time."""
        if not self._told:
            return self._some()
        told = self._told[-1 - self._dice.randrange(len(self._told))]
        whole = self._dice.randrange(2)
        return self._publish(told.topic, list(told.messages) if whole else [self._dice.choice(told.messages)])

    def _bad(self) -> Publish:
        topic = self._topic()
        return self._publish(topic, [self._maker.bad(topic, self._stamp(topic), self._now)])

    def _publish(self, topic: str, messages: list[Message]) -> Publish:
        self._told.append(Publish(topic, tuple(messages)))
        return self._told[-1]

    def _stamp(self, topic: str) -> int:
        """An event's own time: about now, on an edge, late, too late, early, or as early as is let through."""
        dice, now = self._dice, self._now
        beat = dice.choice(self._beats[topic])
        match dice.randrange(9):
            case 2:
                own = now - dice.randrange(2 * max(beat.hop, 1000))
            case 3:
                own = beat.edge(now) - beat.hop * dice.randrange(4) + dice.choice(_BY_A_MS)
            case 4:
                own = beat.edge(now) - beat.window + beat.hop * dice.choice(_BY_A_MS) + dice.choice(_BY_A_MS)
            case 5:
                own = self._own
            case 6:
                own = now - dice.randrange(2 * (beat.window + beat.hop))
            case 7:
                own = now + dice.randrange(MAX_AHEAD_MS + 1)
            case 8:
                own = dice.choice((now + MAX_AHEAD_MS, now - 3 * beat.window, _BEFORE_1970))
            case _:
                own = now
        self._own = own
        return own

    def _wait(self) -> Wait:
        dice, beat = self._dice, self._beat()
        match dice.randrange(6):
            case 0:
                self._now += dice.randrange(1000)
            case 1:
                self._now += beat.hop
            case 2 | 3:
                self._now = max(self._now, beat.edge(self._now) + beat.hop + dice.choice(_BY_A_MS))
            case 4:
                self._now += dice.randrange(beat.window)
            case 5:
                self._now += beat.window + dice.randrange(beat.window)
        return Wait(self._now)

    def _step(self, interruption: Interruption | None) -> Step:
        return Step(self._worker(), self._dice.choice((1, 2, 4, 8, _EVERYTHING)), interruption)

    def _interruption(self) -> Interruption:
        dice = self._dice
        what = dice.choice(("rival", "fails", "dies"))
        return Interruption(dice.randrange(dice.choice(_CALLS)), what, bool(dice.randrange(2)))

    def _race(self) -> list[Action]:
        """A worker that holds what it needs is about to fold one event, while the other folds it and those after it."""
        topic = self._topic()
        event = self._maker.event(topic, self._stamp(topic))
        first = self._maker.message(topic, event)
        others = [self._maker.alike(topic, event, self._own) for _ in range(3)]
        meanwhile = Interruption(self._dice.randrange(_CALLS[0]), "rival", after=False)
        return [
            self._publish(topic, [first]),
            Step(0, _EVERYTHING),
            self._publish(topic, [self._maker.message(topic, each)._replace(key=first.key) for each in others]),
            Step(0, 1, meanwhile),
        ]

    def _check(self, until: int) -> Check:
        dice, now = self._dice, self._now
        instants = {now, *(self._instant() for _ in range(min(self._most, _INSTANTS)))}
        kept = sorted(instant for instant in instants if now <= instant <= until)
        behind = dice.randrange(_MOST_BEHIND_MS) if dice.randrange(4) == 3 else 0
        self._now = kept[-1]
        return Check(tuple(kept), self._rows(), behind)

    def _instant(self) -> int:
        dice, beat = self._dice, self._beat()
        match dice.randrange(5):
            case 0:
                return self._now + dice.randrange(max(beat.hop, 1000))
            case 1 | 2:
                return beat.edge(self._now) + beat.hop * (1 + dice.randrange(3)) + dice.choice(_BY_A_MS)
            case 3:
                return self._now + dice.randrange(beat.window)
        return beat.left(min(self._own, self._now)) + dice.choice(_BY_A_MS)

    def _rows(self) -> dict[str, list[int | str]]:
        """Ids that events are about; of several columns those that often come together."""
        dice, rows = self._dice, dict[str, list[int | str]]()
        common = dice.randrange(POOL)
        for key in sorted({key for keys in self._keys.values() for key in keys}):
            pool = [i for i in self._maker.pools[key] if key not in self._narrow or -(2**31) <= i < 2**31]
            first = common if dice.randrange(3) < 2 else dice.randrange(len(pool))
            rows[key] = [pool[(first + i) % len(pool)] for i in range(_ROWS)]
        return rows

    def _topic(self) -> str:
        return self._dice.choice(self._topics)

    def _beat(self) -> _Beat:
        """Short ones more often: long ones carry everything out of the windows."""
        below = 1 + self._dice.randrange(1 + self._dice.randrange(len(self._all_beats)))
        return self._all_beats[self._dice.randrange(below)]

    def _worker(self) -> int:
        return self._dice.choice((0, 0, 1))


def _beats(views: Sequence[StreamView]) -> list[_Beat]:
    """The beats of some views, the shortest first."""
    found: set[_Beat] = set()
    for view in views:
        if isinstance(view, WindowView):
            found |= {_Beat(view.layout.hop, aggregate.window) for aggregate in view.aggregates}
        else:
            found.add(_Beat(1, view.ttl))
    return sorted(found, key=lambda beat: (beat.window, beat.hop))
