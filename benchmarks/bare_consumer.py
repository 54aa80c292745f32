"""The floor of ingestion: a process that polls Kafka and decodes, and nothing else.

``python -m benchmarks.bare_consumer <bootstrap servers> <file>``: every record of the topics of events, from their
beginnings, by `kafka-python` with the worker's own settings, decoded by msgspec into the schemas of the events. It
says in the file how many records and bytes there were (two numbers of 8 bytes), and when the last of them came.
"""

import mmap
import struct
import sys
from pathlib import Path

import msgspec
from kafka import KafkaConsumer, TopicPartition

from benchmarks.events import TOPICS
from ingestion.events import EVENT_TYPES
from ingestion.kafka_log import FETCHING
from ingestion.worker import MAX_RECORDS, POLL_MS, spare_the_collector

TALLY = struct.Struct("<QQ")


def tally(path: Path) -> tuple[int, int]:
    """How many records and bytes the consumer that writes to this file has decoded."""
    records, size = TALLY.unpack(path.read_bytes())
    return records, size


def main(servers: str, path: Path) -> None:
    """Read until killed."""
    consumer = KafkaConsumer(
        bootstrap_servers=servers, group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", **FETCHING
    )
    consumer.assign([TopicPartition(topic, n) for topic in TOPICS for n in consumer.partitions_for_topic(topic) or ()])
    decoders = {topic: msgspec.json.Decoder(EVENT_TYPES[topic].schema).decode for topic in TOPICS}
    path.write_bytes(TALLY.pack(0, 0))
    spare_the_collector()
    records = size = 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), TALLY.size) as shared:
        while True:
            for where, batch in consumer.poll(timeout_ms=POLL_MS, max_records=MAX_RECORDS).items():
                decode = decoders[where.topic]
                for record in batch:
                    value = record.value
                    decode(value)
                    size += len(value)
                records += len(batch)
            TALLY.pack_into(shared, 0, records, size)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
