"""The daily work by a cron line, on a machine without a scheduler. The only module that imports APScheduler.

Each time `tiffin daily` runs as a child, so that its memory is given back. Where Kubernetes or cron is at hand, let
them start it instead (`deploy/kubernetes/daily.yaml`).
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

from feature_repo.settings import Settings

CRON = "30 3 * * *"
"""Minute, hour, day of the month, month, day of the week; UTC: midnight's rows are due, and nobody is hungry yet."""

DAILY = (sys.executable, "-m", "tiffin", "daily")
GRACE_SECONDS = 3_600
"""A time that was missed while the machine slept is made up for within so long."""

STOP_SECONDS = 20.0
"""What a child has to end when it is told to; then it is killed, and the next one goes on where it was."""

Say = Callable[[str], None]
_FORM = "expected minute, hour, day of the month, month, day of the week (UTC), like '30 3 * * *' or '0 4 * * mon-fri'"
_log = structlog.get_logger(__name__)


def cron_trigger(line: str) -> CronTrigger:
    """When a cron line is due, in UTC. Raises ValueError naming the line and what is wrong with it."""
    fields = line.split()
    try:
        if len(fields) != 5:
            raise ValueError(f"it has {len(fields)} fields, not 5")
        if any(character.isdigit() for character in fields[4]):
            raise ValueError(f"day of the week {fields[4]!r}: name it, since 0 is Sunday to cron, Monday here")
        if fields[2] != "*" and fields[4] != "*":
            raise ValueError("cron takes either of day of the month and day of the week, this scheduler both: give one")
        trigger = CronTrigger.from_crontab(line, timezone=UTC)
    except ValueError as error:
        raise ValueError(f"cron line {line!r}: {error}; {_FORM}") from None
    if next_time(trigger) is None:
        raise ValueError(f"cron line {line!r}: that never comes; {_FORM}")
    return trigger


def next_time(trigger: CronTrigger) -> datetime | None:
    """When it is due next, UTC; by the machine's own clock, for so do schedulers."""
    due: datetime | None = trigger.get_next_fire_time(None, datetime.now(UTC))
    return due


def schedule(settings: Settings, line: str, stop: Callable[[], bool], say: Say, command: Sequence[str] = DAILY) -> None:
    """Run the daily work whenever the cron line is due, one run at a time, until `stop` says so.

    Then a run under way is told to end, and waited for. Raises ValueError for a bad line.
    """
    trigger = cron_trigger(line)
    child = _Child([*command], os.environ | {"TIFFIN_REPO": str(settings.repo)})
    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.add_job(child.run, trigger, coalesce=True, max_instances=1, misfire_grace_time=GRACE_SECONDS)
    scheduler.start()
    try:
        announced = None
        while not stop():
            if (due := next_time(trigger)) != announced:
                announced = due
                say(f"the daily work runs next at {due:%Y-%m-%d %H:%M} UTC")
            time.sleep(0.2)
    finally:
        child.end()
        scheduler.shutdown(wait=True)


class _Child:
    """The run under way, if there is one."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._command, self._environment = command, environment
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def run(self) -> None:
        """Run the command to its end; one that fails is told of, and tried again at the next time."""
        with self._lock:
            if self._ended:
                return
            # A session of its own: Ctrl-C comes to us alone, and we end it in order.
            self._process = process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
        code = process.wait()
        (_log.error if code else _log.info)("daily_work_ended", exit_code=code)

    def end(self) -> None:
        """Let the run end, killed if it takes too long; from now on none begins."""
        with self._lock:
            self._ended = True
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
