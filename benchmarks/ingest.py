"""Events a second of a worker, Kafka to Redis, beside a bare consumer and beside Feast's `push`.

Worker and bare consumer run for the whole time, each a process of its own, and are stopped (SIGSTOP) but while they are
measured: events are published while both stand still, then one of them goes on, from the signal to the moment when
the progress of every view has reached the end of the log, or when the last record was decoded. So neither start-up nor
producers are measured, both work on the same backlog, and both are warm. Before, the worker has folded half an hour
of events in which no restaurant is left out, so that fields hold as many tiles as they ever do.
"""

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.bare_consumer import tally
from benchmarks.events import Town, made_up
from benchmarks.feast_push import FeastPush, in_batches
from benchmarks.figures import Bench, Measured, Side
from benchmarks.stream_answers import Expected, WrongAnswer
from benchmarks.stream_system import PARTITIONS, StreamSystem, running, seconds_until, stream_system, wait_for
from deploy.processes import Process
from feature_repo.clock import wall_clock
from ingestion.worker import MAX_RECORDS, POLL_MS

RATE = 5_000
"""Events a second of the town: a backlog of so many events is so many seconds old."""
PUSH_ROWS = 1_000
_HISTORY_MS = 31 * 60_000
_WORKER, _CONSUMER, _SECOND = "worker", "bare", "worker-2"


class Race:
    """A worker (or several) and a bare consumer at the same log, one of them going at a time."""

    def __init__(self, system: StreamSystem, town: Town, events: int) -> None:
        self._system, self._town, self._events = system, town, events
        self._tally = system.home / "tally"
        command = [sys.executable, "-m", "benchmarks.bare_consumer", system.kafka.bootstrap_servers, str(self._tally)]
        self.bare = Process(_CONSUMER, system.home / _CONSUMER, command)
        self.workers = [system.worker(_WORKER)]
        self._unread = {_WORKER: 0, _CONSUMER: 0}
        self._parts = 0
        self._ends = system.ends()
        self._expected = Expected()
        self.published = self.bytes = 0

    def warm_up(self, history: int) -> None:
        """Half an hour of events, folded and consumed before anything is measured."""
        self._publish(history, _HISTORY_MS, everywhere=True)
        self.finish()

    def finish(self) -> None:
        """Let both read all there is, then stop them."""
        for process in (*self.workers, self.bare):
            process.resume()
        wait_for(self._system.folded(self._ends), "the worker to fold what was published")
        wait_for(self._all_decoded, "the bare consumer to read what was published")
        self._unread = dict.fromkeys(self._unread, 0)
        self.pause()

    def check(self) -> int:
        """Hold what both made of the log against what was published: how many windows were. Raises WrongAnswer."""
        said = tally(self._tally)
        if said != (self.published, self.bytes):
            raise WrongAnswer(f"{self.published} records of {self.bytes} bytes were published, {said} consumed")
        return self._expected.compare(self._system)

    def pause(self) -> None:
        """Stop all of them."""
        for process in (*self.workers, self.bare):
            process.pause()

    def fold(self) -> float:
        """Events a second of the workers over a backlog."""
        return self._measure(_WORKER, self.workers)

    def consume(self) -> float:
        """Events a second of the bare consumer over the same backlog."""
        return self._measure(_CONSUMER, [self.bare])

    def _measure(self, name: str, processes: Sequence[Process]) -> float:
        if self._unread[name] == 0:
            self._publish(self._events, self._events * 1000 // RATE)
        for process in processes:
            process.resume()
        done = self._system.folded(self._ends) if name == _WORKER else self._all_decoded
        seconds = seconds_until(done, f"{name} to reach the end of the log")
        for process in processes:
            process.pause()
        read, self._unread[name] = self._unread[name], 0
        return read / seconds

    def _publish(self, count: int, span_ms: int, everywhere: bool = False) -> None:
        now = wall_clock()
        events = list(made_up(self._town, count, now - span_ms, now, self._parts, everywhere))
        self._parts += 1
        self.published += len(events)
        self.bytes += sum(len(made.message.value) for made in events)
        self._expected.add(events)
        self._ends = self._system.publish(events)
        self._unread = {name: unread + len(events) for name, unread in self._unread.items()}

    def _all_decoded(self) -> bool:
        return self._tally.exists() and tally(self._tally)[0] >= self.published


def run(
    bench: Bench, history: int | None = None, events: int | None = None, pushes: int | None = None
) -> list[Measured]:
    """The figures of ingestion. Sizes are by `bench` unless they are given. Raises ServiceError, WrongAnswer."""
    history = history or (200_000 if bench.quick else 1_000_000)
    events = events or (100_000 if bench.quick else 400_000)
    pushes = pushes or (50 if bench.quick else 200)
    town = Town()
    with stream_system(bench.folder / "stream") as system:
        race = Race(system, town, events)
        with running(race.bare, *race.workers):
            race.warm_up(history)
            feast = FeastPush(bench.folder / "feast", system.valkey.port, 1)
            now = wall_clock()
            rows = feast.rows(list(made_up(town, 10 * PUSH_ROWS, now - 2_000, now, part=10**6)))
            one, many = rows[:pushes], in_batches(rows, PUSH_ROWS)
            samples = bench.interleaved(
                worker=race.fold, bare=race.consume, push=lambda: feast.push(one), batches=lambda: feast.push(many)
            )
            race.finish()
            checked = race.check()
            feast.check(many)
            second = system.worker(_SECOND)
            with running(second):
                race.workers.append(second)
                race.warm_up(events // 2)
                two = [race.fold() for _ in range(bench.rounds)]
                race.finish()
                race.check()
    details: dict[str, Any] = {
        "events_a_round": events,
        "events_folded_before": history,
        "partitions_a_topic": PARTITIONS,
        "restaurants": town.restaurants,
        "views": len(system.views),
        "batch_age": f"records are polled for {POLL_MS} ms at most, {MAX_RECORDS} at a time, and folded at once",
        "append_only_file": "on, fsync every second",
        "tallies_compared_with_the_events_published": checked,
    }
    over = Side("one worker, Kafka to Redis", "events/s", samples["worker"])
    bare = Side("kafka-python poll() and msgspec", "events/s", samples["bare"])
    push = Side("Feast store.push, one event at a time", "events/s", samples["push"])
    batches = Side(f"Feast store.push of {PUSH_ROWS} events of a topic", "events/s", samples["batches"])
    doubled = Side("two workers", "events/s", two)
    return [
        Measured("ingest_events_vs_bare_consumer", over, bare, details),
        Measured("ingest_vs_feast_push", over, push, details | {"events_pushed_a_round": pushes}),
        Measured(
            "ingest_vs_feast_push_batched", over, batches, details | {"events_pushed_a_round": len(many) * PUSH_ROWS}
        ),
        Measured("scaleout_2_workers", doubled, over, details | {"interleaved": False}),
    ]
