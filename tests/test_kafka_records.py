"""Records out of Kafka's bytes: the same as the client's own reading of them."""

import random

import pytest
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from ingestion.kafka_records import plain_records
from ingestion.log import Record

NONE, GZIP = 0, 1


def batch_of(records: list[tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]], codec: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 24)
    for offset, (time, key, value, headers) in enumerate(records):
        builder.append(offset, time, key, value, headers)
    return bytes(builder.build())


@pytest.mark.parametrize("codec", [NONE, GZIP])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 300])
def test_records_are_what_the_client_reads(codec: int, count: int) -> None:
    dice = random.Random(3)
    sizes = [0, 1, 62, 63, 64, 65, 127, 128, 8191, 8192, 20_000]
    records = [
        (
            1_772_000_000_000 + dice.randrange(-100_000, 10**7),
            dice.choice([None, b"", b"42", dice.randbytes(dice.choice(sizes))]),
            dice.choice([None, dice.randbytes(dice.choice(sizes))]),
            [("h", b"x" * dice.choice(sizes))] * dice.randrange(3),
        )
        for _ in range(count)
    ]
    data = batch_of(records, codec)
    expected = [Record("t", 5, r.offset, r.timestamp, r.key, r.value or b"") for r in DefaultRecordBatch(data)]
    assert len(expected) == count
    assert list(plain_records(DefaultRecordBatch(data), "t", 5)) == expected


@pytest.mark.parametrize("count", [1, 2, 31, 32, 100])
def test_a_batch_that_ends_within_a_record_is_refused(count: int) -> None:
    batch = DefaultRecordBatch(batch_of([(1, b"k", b"value", [])] * count, NONE)[:-3])
    with pytest.raises(ValueError, match=r"ends within a record|longer than it says|too many"):
        list(plain_records(batch, "t", 0))


@pytest.mark.parametrize("count", [1, 31, 32, 100])
def test_a_record_that_is_longer_than_it_says_is_refused(count: int) -> None:
    data = bytearray(batch_of([(1, b"k", b"value", [])] * count, NONE))
    data[61] -= 2  # its length, in zigzag form
    with pytest.raises(ValueError, match="longer than it says"):
        list(plain_records(DefaultRecordBatch(bytes(data)), "t", 0))
