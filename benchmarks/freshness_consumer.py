"""The floor of freshness: a process that polls and decodes every event, and says when the marked ones came.

``python -m benchmarks.freshness_consumer <bootstrap servers> <restaurant> <file>``: a marked event is an order at this
restaurant. A line of the file each: the order's customer, who numbers the marks, and the time in ns since the epoch.
The first line is no mark: it is there when every event from then on will be read.
"""

import sys
import time
from pathlib import Path

import msgspec
from kafka import KafkaConsumer, TopicPartition

from benchmarks.events import TOPICS
from ingestion.events import EVENT_TYPES, OrderPlaced
from ingestion.kafka_log import FETCHING
from ingestion.worker import MAX_RECORDS, POLL_MS, spare_the_collector


def main(servers: str, marked: int, path: Path) -> None:
    """Read what comes from now on, until killed."""
    consumer = KafkaConsumer(
        bootstrap_servers=servers, group_id=None, enable_auto_commit=False, auto_offset_reset="latest", **FETCHING
    )
    consumer.assign([TopicPartition(topic, n) for topic in TOPICS for n in consumer.partitions_for_topic(topic) or ()])
    decoders = {topic: msgspec.json.Decoder(EVENT_TYPES[topic].schema).decode for topic in TOPICS}
    spare_the_collector()
    for where in consumer.assignment():
        consumer.position(where)
    with path.open("a", buffering=1) as file:
        file.write("0 0\n")  # what comes from now on is read
        while True:
            for where, batch in consumer.poll(timeout_ms=POLL_MS, max_records=MAX_RECORDS).items():
                for record in batch:
                    event = decoders[where.topic](record.value)
                    if isinstance(event, OrderPlaced) and event.restaurant_id == marked:
                        file.write(f"{event.customer_id} {time.time_ns()}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
