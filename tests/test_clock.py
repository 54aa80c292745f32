"""Clocks: the machine's and a drill's, and instants as text and numbers, without losing a millisecond."""

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.clock import clock_of, drill_clock, from_ms, iso, to_ms, wall_clock
from feature_repo.settings import Settings

START = to_ms(datetime(2026, 3, 1, 12, tzinfo=UTC))
LEAST, GREATEST = to_ms(datetime.min.replace(tzinfo=UTC)), to_ms(datetime.max.replace(tzinfo=UTC))


def drill(start: str | None, origin: float | None, rate: float = 1.0) -> Settings:
    return Settings(TIFFIN_CLOCK_START=start, TIFFIN_CLOCK_ORIGIN=origin, TIFFIN_CLOCK_RATE=rate)


@given(st.integers(LEAST, GREATEST))
def test_every_millisecond_survives_being_a_datetime_and_a_text(ms: int) -> None:
    assert to_ms(from_ms(ms)) == ms
    assert to_ms(datetime.fromisoformat(iso(ms))) == ms


@given(st.datetimes(timezones=st.just(UTC)))
def test_an_instant_between_milliseconds_is_rounded_down(moment: datetime) -> None:
    assert timedelta(0) <= moment - from_ms(to_ms(moment)) < timedelta(milliseconds=1)


def test_offsets_name_the_same_instant() -> None:
    there = timezone(timedelta(hours=5, minutes=30))
    assert to_ms(datetime(2026, 3, 1, 17, 30, tzinfo=there)) == START
    assert to_ms(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1


def test_a_naive_datetime_is_no_instant() -> None:
    with pytest.raises(TypeError):
        to_ms(datetime(2026, 3, 1))  # noqa: DTZ001  # what is tested


def test_the_wall_clock_is_the_machines() -> None:
    before = time.time_ns() // 1_000_000
    assert before <= wall_clock() <= time.time_ns() // 1_000_000


@pytest.mark.parametrize(("rate", "expected"), [(1.0, 2_500), (60.0, 150_000), (0.5, 1_250)])
def test_a_drills_clock_runs_from_its_start_at_its_rate(rate: float, expected: int) -> None:
    shown = 1000.0
    clock = drill_clock(START, 1000.0, rate, lambda: shown)
    assert clock() == START
    shown = 1002.5
    assert clock() == START + expected
    shown = 997.5
    assert clock() == START - expected, "before the origin it shows what was before the start"


def test_processes_with_the_same_settings_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = drill("2026-03-01T13:00:00+01:00", time.time() - 10, 100.0)
    one, other = clock_of(settings), clock_of(settings)
    first, second, third = one(), other(), one()
    assert first <= second <= third
    assert first >= START + 10 * 100 * 1000 - 1


def test_without_a_drill_the_clock_is_the_machines() -> None:
    assert clock_of(drill(None, None)) is wall_clock
    assert clock_of(drill("", 5.0)) is wall_clock, "an empty variable is an unset one"


def test_a_drill_that_others_could_not_join_is_refused() -> None:
    with pytest.raises(ValueError, match="TIFFIN_CLOCK_ORIGIN"):
        clock_of(drill("2026-03-01T12:00:00Z", None))
    with pytest.raises(ValueError, match="has no offset"):
        clock_of(drill("2026-03-01T12:00:00", 0.0))
    with pytest.raises(ValueError, match="someday"):
        clock_of(drill("someday", 0.0))


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_clock_that_stands_or_runs_backwards_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="TIFFIN_CLOCK_RATE"):
        drill("2026-03-01T12:00:00Z", 0.0, rate)
