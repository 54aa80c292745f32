"""Producers of a town, as a process: each event goes to Kafka at the very time that it says it happened.

``python -m benchmarks.freshness_load <bootstrap servers> <events a second>``, until it is killed.
"""

import sys
import time

from kafka import KafkaProducer

from benchmarks.events import Town, made_up
from feature_repo.clock import wall_clock
from ingestion.partitioner import partition_of
from ingestion.worker import spare_the_collector

_AHEAD_MS = 1_000
_TICK_S = 0.002


def main(servers: str, rate: int) -> None:
    """Send for ever."""
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=0, metrics_enabled=False)
    town, part, start = Town(), 10**6, wall_clock() + _AHEAD_MS
    spare_the_collector()
    while True:
        events = list(made_up(town, rate * _AHEAD_MS // 1000, start, start + _AHEAD_MS - 1, part))
        for made in events:
            while wall_clock() < made.time:
                time.sleep(_TICK_S)
            count = len(producer.partitions_for(made.topic))
            where = partition_of(made.message.key, count)
            producer.send(made.topic, made.message.value, made.message.key, partition=where)
        part, start = part + 1, start + _AHEAD_MS


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
