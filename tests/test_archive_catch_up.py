"""The archive brought up to the log's end, beside another archiver, on each home of the log."""

import pyarrow.parquet as pq
import pytest

from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import parquet_files
from feature_repo.stores.log_homes import homes
from feature_repo.stores.progress import digest
from ingestion.archive import Archiver, catch_up
from ingestion.event_files import log_folder
from ingestion.log import EventLog, LogUnavailable, Message
from tests.conftest import LogHome
from tests.repo import ORDERS, START, FakeClock, order

PARTITIONS = 2
BAD = Message(b"9", b"no event")


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(TIFFIN_REPO=tmp_path_factory.mktemp("repo"))


def archived(settings: Settings) -> list[str]:
    """The ids of what is archived."""
    files = parquet_files(log_folder(settings, ORDERS))
    return sorted(name for file in files for name in pq.read_table(file)["event_id"].to_pylist())


def publish(log: EventLog, first: int, count: int) -> list[str]:
    """Orders of several restaurants, and a record that does not parse behind them."""
    names = [f"e{i:03}" for i in range(first, first + count)]
    log.publish(ORDERS, [order(name, START, i % 7) for i, name in enumerate(names)])
    log.publish(ORDERS, [BAD])
    return names


def test_all_that_is_in_the_log_is_archived_and_then_only_what_is_new(event_log: EventLog, settings: Settings) -> None:
    event_log.create_topics([ORDERS], PARTITIONS)
    catch_up(event_log, settings, FakeClock(), [ORDERS])
    assert archived(settings) == []
    published = publish(event_log, 0, 40)
    catch_up(event_log, settings, FakeClock(), [ORDERS])
    assert archived(settings) == published
    published += publish(event_log, 40, 5)
    catch_up(event_log, settings, FakeClock(), [ORDERS])
    assert archived(settings) == published
    before = parquet_files(log_folder(settings, ORDERS))
    catch_up(event_log, settings, FakeClock(), [ORDERS])
    assert parquet_files(log_folder(settings, ORDERS)) == before


def test_another_archiver_that_has_read_and_not_published_loses_nothing(
    event_log: EventLog, settings: Settings
) -> None:
    event_log.create_topics([ORDERS], PARTITIONS)
    published = publish(event_log, 0, 20)
    other = Archiver(event_log, settings, FakeClock(), [ORDERS])
    read = 0
    while read < len(published) + 1:
        read += other.step()
    published += publish(event_log, 20, 20)
    catch_up(event_log, settings, FakeClock(), [ORDERS])
    assert archived(settings) == published
    other.flush()
    other.catch_up()
    other.close()
    assert archived(settings) == published


def test_a_log_that_is_away_is_said_to_be(log_home: LogHome, settings: Settings) -> None:
    with pytest.raises(LogUnavailable):
        catch_up(log_home.dead, settings, FakeClock(), [ORDERS])


def test_each_log_says_which_files_are_of_it(log_home: LogHome, settings: Settings) -> None:
    """Also a topic's second log, whose files lie in a folder of their own."""
    identities = []
    for first in (0, 10):
        log_home.log.create_topics([ORDERS], PARTITIONS)
        identities.append(log_home.log.topic_identity(ORDERS))
        publish(log_home.log, first, 10)
        catch_up(log_home.log, settings, FakeClock(), [ORDERS])
        log_home.delete_topic(ORDERS)
    found = homes(log_folder(settings, ORDERS))
    assert list(found) == [digest(identity) for identity in identities]
    assert len(set(found.values())) == 2
    for home in found.values():
        assert len(list((log_folder(settings, ORDERS) / home).glob("date=*/*.parquet"))) > 0
