"""Plays a story in a laboratory, and holds what is served against the oracle and against history."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from feature_repo.stores.reading import Feature
from feature_repo.stores.stream_store import StreamStore
from feature_repo.views import StreamView, WindowView
from ingestion.events import DEAD_LETTERS
from ingestion.parity import oracle
from ingestion.parity.compare import Mismatch, agree
from ingestion.parity.crew import Crew
from ingestion.parity.lab import Lab
from ingestion.parity.oracle import Row
from ingestion.parity.story import Action, Check, Leave, Publish, Step, Story, Wait


class Outcome(NamedTuple):
    """How many features of an entity at an instant were held against both, and those that were not the same."""

    checks: int
    mismatches: list[Mismatch]


class _Moment(NamedTuple):
    """What was read at one instant: by view, by feature, by row."""

    instant: int
    columns: list[list[list[Feature]]]


def play(lab: Lab, story: Story) -> Outcome:
    """Play a story from an empty log and an empty store to its end, or to the first check that finds a mismatch."""
    lab.clear()
    lab.log.create_topics([*lab.topics, DEAD_LETTERS], story.partitions)
    player = _Player(lab, story.start)
    checks, mismatches = 0, list[Mismatch]()
    for action in story.actions:
        found = player.act(action)
        checks, mismatches = checks + found.checks, found.mismatches
        if mismatches:
            break
    player.end()
    return Outcome(checks, mismatches)


class _Player:
    def __init__(self, lab: Lab, start: int) -> None:
        self._lab, self._now = lab, start
        store = StreamStore(lab.client, lab.project)
        self._crew = Crew(lab.log, store, lab.views, self._clock)

    def act(self, action: Action) -> Outcome:
        match action:
            case Publish(topic, messages):
                self._lab.log.publish(topic, list(messages), append_ms=self._now)
            case Wait(until):
                self._now = until
            case Step():
                self._crew.step(action)
            case Leave(worker, hands_over):
                self._crew.leave(worker, hands_over)
            case Check():
                return self._check(action)
        return Outcome(0, [])

    def end(self) -> None:
        self._crew.close()

    def _clock(self) -> int:
        return self._now

    def _check(self, check: Check) -> Outcome:
        self._crew.settle()
        moments: list[_Moment] = []
        for instant in check.instants:
            self._now = instant
            self._crew.write_progress()
            behind = 0 if moments else check.behind
            answer = self._lab.online(check.rows, instant - behind)
            moments.append(_Moment(answer.instant, answer.columns))
        self._lab.archive(self._clock)
        rows = [dict(zip(check.rows, ids, strict=True)) for ids in zip(*check.rows.values(), strict=True)]
        asked = [(row, moment.instant) for moment in moments for row in rows]
        history = self._lab.offline([row for row, _ in asked], [instant for _, instant in asked])
        return self._compare(rows, moments, history)

    def _compare(
        self, rows: Sequence[dict[str, Any]], moments: Sequence[_Moment], history: Mapping[str, Sequence[Any]]
    ) -> Outcome:
        checks, mismatches = 0, []
        events = {topic: oracle.once(self._lab.records(topic)) for topic in self._lab.topics}
        for number, view in enumerate(self._lab.views):
            told = [row for topic in view.topics for row in events[topic]]
            about = _by_entity(view, told)
            for at, place, ids in _asked(view, rows, moments):
                instant, columns = moments[at]
                for i, feature in enumerate(view.features):
                    true = oracle.value(view, feature, about(ids), ids, instant)
                    online = columns[number][i][place]
                    past = history[f"{view.name}__{feature}"][at * len(rows) + place]
                    checks += 1
                    if not agree(view, feature, online, true, past):
                        entity = dict(zip(view.join_keys, ids, strict=True))
                        mismatches.append(Mismatch(view.name, feature, entity, instant, online, true, past))
        return Outcome(checks, mismatches)


def _asked(
    view: StreamView, rows: Sequence[dict[str, Any]], moments: Sequence[_Moment]
) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Each entity of a view at each instant, once: the number of the moment and of the row, and the entity's ids."""
    seen = set()
    for at, moment in enumerate(moments):
        for place, row in enumerate(rows):
            ids = tuple(row[key] for key in view.join_keys)
            if (moment.instant, ids) not in seen:
                seen.add((moment.instant, ids))
                yield at, place, ids


def _by_entity(view: StreamView, rows: Sequence[Row]) -> Callable[[tuple[Any, ...]], Sequence[Row]]:
    """The rows that can matter to an entity: of a window its own, of a presence all, since members come and go."""
    if not isinstance(view, WindowView):
        return lambda ids: rows
    own: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        own.setdefault(tuple(row.event.columns[key] for key in view.join_keys), []).append(row)
    return lambda ids: own.get(ids, [])
