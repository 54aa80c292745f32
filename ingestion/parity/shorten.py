"""Makes a story that goes wrong as short as it can be made in a bounded number of tries."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ingestion.log import Message
from ingestion.parity.lab import Lab
from ingestion.parity.player import Outcome, play
from ingestion.parity.story import Check, Publish, Story

_TRIES = 150

Part = TypeVar("Part")


def shortened(lab: Lab, story: Story) -> tuple[Story, Outcome]:
    """A story without the actions, messages and instants that it goes wrong without, and what comes of it."""
    return _Shortener(lab).shorten(story)


class _Shortener:
    def __init__(self, lab: Lab) -> None:
        self._lab, self._left = lab, _TRIES

    def shorten(self, story: Story) -> tuple[Story, Outcome]:
        story = replace(story, actions=self._least(story.actions, lambda kept: replace(story, actions=kept)))
        for place, action in enumerate(story.actions):
            if isinstance(action, Publish):
                story = self._least_batch(story, place, action)
            elif isinstance(action, Check):
                story = self._least_check(story, place, action)
        return story, play(self._lab, story)

    def _least_batch(self, story: Story, place: int, batch: Publish) -> Story:
        def having(kept: tuple[Message, ...]) -> Story:
            return _with(story, place, replace(batch, messages=kept))

        return having(self._least(batch.messages, having))

    def _least_check(self, story: Story, place: int, check: Check) -> Story:
        def having(kept: tuple[int, ...]) -> Story:
            return _with(story, place, replace(check, instants=kept))

        return having(self._least(check.instants, having))

    def _least(self, parts: tuple[Part, ...], having: Callable[[tuple[Part, ...]], Story]) -> tuple[Part, ...]:
        """Leaves parts out by halves, then quarters, and so on, as long as the story with the others goes wrong."""
        kept, size = parts, len(parts) // 2
        while size >= 1:
            start = 0
            while start < len(kept):
                without = kept[:start] + kept[start + size :]
                if without and self._goes_wrong(having(without)):
                    kept = without
                else:
                    start += size
            size //= 2
        return kept

    def _goes_wrong(self, story: Story) -> bool:
        """Whether it does; no, when there were tries enough."""
        self._left -= 1
        return self._left >= 0 and bool(play(self._lab, story).mismatches)


def _with(story: Story, place: int, action: Publish | Check) -> Story:
    return replace(story, actions=(*story.actions[:place], action, *story.actions[place + 1 :]))
