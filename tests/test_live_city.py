"""The simulated city in time: its history is written once, and its life is pushed as it happens."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from feature_repo.clock import to_ms
from feature_repo.settings import Settings
from ingestion import live_city
from ingestion.city import City
from ingestion.live_city import WARM_UP_MS, extend_history, push_live
from ingestion.simulator import live

SEED = 7
NOON = to_ms(datetime(2026, 3, 3, 12, tzinfo=UTC))
HOUR_MS = 3_600_000
HALF_DAY = timedelta(hours=12)


def silent(done: float, total: float) -> None:
    """Progress that nobody watches."""


def extend(settings: Settings, now: int, seed: int = SEED, length: timedelta = HALF_DAY) -> dict[str, int]:
    return extend_history(settings, seed, now, length, silent)


def event_ids(settings: Settings, topic: str = "order_placed") -> list[str]:
    rows = duckdb.sql(f"SELECT event_id FROM '{settings.data}/log/{topic}/**/*.parquet' ORDER BY event_time, event_id")
    return [row[0] for row in rows.fetchall()]


def lived(since: int, until: int, topic: str = "order_placed") -> set[str]:
    """The ids of what the city does between two instants."""
    return {str(event["event_id"]) for name, event in live(City.build(SEED), since, until) if name == topic}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "data").mkdir()
    return Settings(TIFFIN_REPO=tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Half a day of the city, up to noon; not to be changed."""
    repo = tmp_path_factory.mktemp("city")
    (repo / "data").mkdir()
    settings = Settings(TIFFIN_REPO=repo)
    extend(settings, NOON)
    return settings


def test_the_history_is_what_the_city_lived(written: Settings) -> None:
    ids = event_ids(written)
    assert len(ids) == len(set(ids)) > 100
    assert set(ids) == lived(NOON - 12 * HOUR_MS, NOON)


def test_a_second_call_writes_only_what_is_missing(settings: Settings) -> None:
    first = extend(settings, NOON - 2 * HOUR_MS)
    before = event_ids(settings)
    files = set(settings.data.glob("log/**/*.parquet"))
    assert sum(extend(settings, NOON - 2 * HOUR_MS).values()) == 0
    assert set(settings.data.glob("log/**/*.parquet")) == files
    second = extend(settings, NOON)
    after = event_ids(settings)
    assert len(after) == len(set(after)) == first["order_placed"] + second["order_placed"]
    assert set(after) - set(before) == lived(NOON - 2 * HOUR_MS, NOON)


def test_a_clock_that_was_set_back_writes_nothing_twice(settings: Settings) -> None:
    extend(settings, NOON)
    before = event_ids(settings)
    extend(settings, NOON - HOUR_MS)
    extend(settings, NOON)
    assert event_ids(settings) == before


def test_another_citys_history_is_not_mixed_in(written: Settings) -> None:
    before = event_ids(written)
    with pytest.raises(ValueError, match=r"history of city 7, not 8: use another --repo"):
        extend(written, NOON + HOUR_MS, seed=8)
    assert event_ids(written) == before


def test_a_users_own_history_is_not_mixed_in(settings: Settings) -> None:
    (settings.data / "log" / "order_placed").mkdir(parents=True)
    with pytest.raises(ValueError, match="not simulated: use another --repo"):
        extend(settings, NOON)
    assert list(settings.data.glob("**/*.parquet")) == []
    assert not (settings.data / "simulated.json").exists()


def test_progress_adds_up_to_the_whole(settings: Settings) -> None:
    said: list[tuple[float, float]] = []
    extend_history(settings, SEED, NOON, timedelta(hours=6), lambda done, total: said.append((done, total)))
    assert {total for _, total in said} == {0.25}
    assert [done for done, _ in said] == sorted(done for done, _ in said)
    assert said[-1][0] == pytest.approx(0.25)


def test_living_on_pushes_the_last_hours_and_then_each_event_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, pushed, asked = NOON, [], []

    def push_all(settings: Settings, events: Any, url: str | None) -> int:
        pushed.append([event["event_id"] for topic, event in events if topic == "order_placed"])
        return 0

    def ask_etas(settings: Settings, orders: Any, url: str | None) -> int:
        asked.append([order["event_id"] for order in orders])
        return 0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += 60_000

    monkeypatch.setattr(live_city, "push_all", push_all)
    monkeypatch.setattr(live_city, "ask_etas", ask_etas)
    monkeypatch.setattr(live_city, "clock_of", lambda settings: lambda: now)
    monkeypatch.setattr("ingestion.live_city.time.sleep", sleep)
    push_live(settings, SEED, None, lambda: now >= NOON + 5 * 60_000)
    first, *later = pushed
    assert set(first) == lived(NOON - WARM_UP_MS, NOON)
    assert len(later) == 4
    assert asked == later, "who orders now asks first; who ordered hours ago does not"
    ids = [one for batch in pushed for one in batch]
    assert len(ids) == len(set(ids))
    assert set(ids) == lived(NOON - WARM_UP_MS, NOON + 4 * 60_000)
