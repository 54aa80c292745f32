"""Ten thousand payloads that a producer might send, good, bad and neither, the same for the same seed and instant."""

import random
from typing import NamedTuple

from ingestion.events import EVENT_TYPES, event_key
from tests.event_fuzz_kinds import BAD, BROKEN, ENDLESS, GOOD, MAX_INT, MINUTE, Dice, Event

HUGE = 5_000_000
"""Characters of the longest texts."""
HUGE_EVERY = 500
"""So many payloads hold one of those, or brackets without end."""
RESTAURANTS, ZONES, COURIERS = 40, 6, 60


class Payload(NamedTuple):
    """A record to be: `good` says whether it must be taken; None where either will do, as long as it is counted."""

    topic: str
    key: bytes
    value: bytes
    good: bool | None


def payloads(count: int, now: int, seed: int = 20260301, longest: int = HUGE) -> list[Payload]:
    """`count` payloads over all topics, for records appended at `now` (ms) or a little later."""
    dice = random.Random(seed)
    topics = tuple(EVENT_TYPES)
    return [_payload(dice, topics[i % len(topics)], i, now, longest) for i in range(count)]


def event_of(dice: Dice, topic: str, now: int) -> Event:
    """A good event of a topic, of the last ten minutes, or stamped up to a minute ahead."""
    at = now + MINUTE - dice.randrange(11 * MINUTE)
    common: Event = {"event_id": f"{dice.getrandbits(64):016x}"}
    order = {"order_id": f"o{dice.getrandbits(64):016x}", "restaurant_id": dice.randrange(RESTAURANTS)}
    before = at - dice.randrange(60 * MINUTE)
    where = {"zone_id": dice.randrange(ZONES)}
    if topic == "order_placed":
        more: Event = {"customer_id": dice.choice([None, 1, MAX_INT]), "placed_at": at}
        more |= {"basket_total": dice.choice([None, 0, 12.5, 1e9]), "item_count": dice.choice([None, 0, 3])}
        return common | order | where | more
    if topic == "order_ready":
        return common | order | {"placed_at": before, "ready_at": at}
    if topic == "order_delivered":
        return common | order | where | {"courier_id": None, "placed_at": before, "delivered_at": at}
    who = {"courier_id": dice.randrange(COURIERS), "status": dice.choice(["available", "busy", "offline"]), "at": at}
    return common | where | who


def _payload(dice: Dice, topic: str, number: int, now: int, longest: int) -> Payload:
    event = event_of(dice, topic, now)
    key = event_key(topic, event)
    if number % HUGE_EVERY == number // HUGE_EVERY % len(EVENT_TYPES):  # of each topic
        return Payload(topic, key, *dice.choice(ENDLESS)(dice, event, longest))
    kinds = dice.choices((GOOD, BAD, BROKEN), weights=(5, 3, 2))[0]
    return Payload(topic, key, *dice.choice(kinds)(dice, event, topic))
