"""The demonstration: a prediction before and after a burst of orders, asked for with nothing but a restaurant's id."""

from collections import Counter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from deploy.bootstrap import CITY_SEED, bootstrap
from deploy.stack import running
from feature_repo.clock import clock_of
from feature_repo.settings import Settings
from ingestion.city import City
from ingestion.live_city import WARM_UP_MS, check_same_city
from ingestion.push import get_json, push_all, wait_until
from ingestion.simulator import burst, live

BURST = 12
ORDERS = "restaurant_recent_orders__orders_10m"
_FOLDED_SECONDS = 30.0
_WITHOUT_VALUE = {"NULL_VALUE": "(empty)", "NOT_FOUND": "(unknown)", "OUTSIDE_MAX_AGE": "(stale)"}
_SHOWN = (Column("before", min_width=9), Column("after", min_width=9))


class DemoError(RuntimeError):
    """The demonstration did not show what it should."""


def demo(settings: Settings, restaurant: int | None = None) -> None:
    """Set up, start, push, ask, stop; about a `restaurant`, or one where nothing is going on right now.

    Raises DemoError if the answers do not move as they should.
    """
    console = Console()
    check_same_city(settings, CITY_SEED)
    bootstrap(settings, lambda text: console.print(f"[dim]·[/dim] {text}"))
    city, clock = City.build(CITY_SEED), clock_of(settings)
    with running(settings) as stack:
        with console.status("starting worker, archive and API"):
            stack.wait_ready()
        now = clock()
        pushed = push_all(settings, live(city, now - WARM_UP_MS, now))
        console.print(f"[dim]·[/dim] pushed {pushed} events of the last hours over HTTP")
        if restaurant is None:
            restaurant = _quiet_one(settings, city, now)
        last = _count_in(city, restaurant, now)
        before = _ask_until(settings, restaurant, last)
        pushed = push_all(settings, burst(city, restaurant, BURST, clock(), prep_minutes=25.0))
        console.print(f"[dim]·[/dim] pushed a burst of {pushed} events at restaurant {restaurant}")
        after = _ask_until(settings, restaurant, before["features"][ORDERS]["value"] + BURST)
    console.print(_table(before, after))
    moved = after["eta_minutes"] - before["eta_minutes"]
    console.print(f"The ETA moved by {moved:+.1f} minutes: {before['eta_minutes']:.1f} → {after['eta_minutes']:.1f}")
    if before["mode"] != "streaming" or after["mode"] != "streaming" or moved <= 0:
        raise DemoError(f"expected streaming answers that rise with the burst, got {before['mode']}, {after['mode']}")


def _quiet_one(settings: Settings, city: City, now: int) -> int:
    """A popular restaurant without recent orders, neither of the city's nor of an earlier demonstration's burst."""
    recent = Counter(
        event["restaurant_id"] for topic, event in live(city, now - 40 * 60_000, now) if topic == "order_placed"
    )
    quiet = sorted(city.restaurants, key=lambda r: (recent[r.restaurant_id], -r.demand))
    for restaurant in quiet:
        _, answer = get_json(settings, f"/v1/eta/{restaurant.restaurant_id}")
        if answer["features"][ORDERS]["value"] == 0:
            return restaurant.restaurant_id
    return quiet[0].restaurant_id


def _count_in(city: City, restaurant: int, now: int) -> int:
    """How many of the restaurant's orders of the last 9 minutes were pushed: they must all be folded."""
    recent = live(city, now - 9 * 60_000, now)
    return sum(topic == "order_placed" and event["restaurant_id"] == restaurant for topic, event in recent)


def _ask_until(settings: Settings, restaurant: int, orders: int) -> Any:
    """The answer, once at least so many orders are counted in it."""
    answer: Any = None

    def check() -> str | None:
        nonlocal answer
        status, answer = get_json(settings, f"/v1/eta/{restaurant}")
        if status != 200:
            return f"{status}: {answer.get('detail')}"
        seen = answer["features"][ORDERS]["value"]
        return None if seen is not None and seen >= orders else f"{ORDERS} is {seen}, {orders} are expected"

    wait_until(check, _FOLDED_SECONDS)
    return answer


def _table(before: Any, after: Any) -> Table:
    title = f"GET /v1/eta/{before['restaurant_id']}, before and after the burst"
    table = Table(Column(no_wrap=True), *_SHOWN, title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("eta_minutes", "eta_minutes_p90", "mode"):
        table.add_row(name, str(before[name]), str(after[name]), style="bold" if name == "eta_minutes" else "")
    table.add_section()
    for name, feature in before["features"].items():
        shown = [_shown(feature), _shown(after["features"][name])]
        table.add_row(name, *shown, style="yellow" if feature["value"] != after["features"][name]["value"] else "")
    return table


def _shown(feature: Any) -> str:
    value = feature["value"]
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return text if feature["status"] == "PRESENT" else _WITHOUT_VALUE[feature["status"]]
