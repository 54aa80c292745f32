"""The ``tiffin`` command as people and supervisors use it: real processes, their exit codes, and what they leave."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from feast.cli.cli import cli as feast_command
from pydantic import SecretStr

from deploy.servers import free_port
from feature_repo.clock import wall_clock
from feature_repo.settings import Settings
from feature_repo.stores import embedded
from feature_repo.stores.progress import Progress
from feature_repo.stores.redis_client import connect
from feature_repo.stores.stream_store import StreamStore
from ingestion.log import Message
from ingestion.redis_log import RedisLog
from tests.repo import REPO_FOLDER, quietly, wait_for
from tests.serving_stack import applied_folder

BIN = Path(sys.executable).parent
VARIABLES = ("TIFFIN_", "REDIS_URL", "KAFKA_", "PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
PROJECT = "tiffin"
DEADLINE_S = 60.0

HELP = """
import sys, tiffin, typer
names = sorted(typer.main.get_command(tiffin.app).commands)
for name in names:
    sys.argv = ["tiffin", name, "--help"]
    try:
        tiffin.main()
    except SystemExit as ended:
        assert ended.code == 0, name
slow = {"feast", "duckdb", "pandas", "lightgbm", "onnxruntime", "kafka", "redis", "fastapi", "uvicorn", "httpx"}
print("\\n" + str(names) + "\\n" + str(sorted(slow & set(sys.modules))))
"""


STAND = """
import sys, time, tiffin
from pathlib import Path
from feature_repo.stores import embedded
from feature_repo.stores.redis_client import connect
from feature_repo.settings import Settings
data = Path(sys.argv.pop())

@tiffin.app.command()
def stand():
    server = connect(Settings(TIFFIN_REPO=data, REDIS_URL=f"unix://{embedded.ensure(data / 'data')}"))
    print(server.info("server")["process_id"], flush=True)
    time.sleep(60)

sys.argv.append("stand")
tiffin.main()
"""


def environment(**more: str) -> dict[str, str]:
    """The environment, without what would set Tiffin up otherwise."""
    return {k: v for k, v in os.environ.items() if not k.startswith(VARIABLES)} | more


def tiffin(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [str(BIN / "tiffin"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=cwd, env=environment(**variables)
    )


@pytest.fixture
def repo(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A repository folder with definitions applied and models in use, and no data."""
    return shutil.copytree(applied_folder(tmp_path_factory.getbasetemp()), tmp_path / "repo")


def failed(done: subprocess.CompletedProcess[str]) -> str:
    """The one line in which a failing command says on stderr what is wrong."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    *bar, line = done.stderr.splitlines()
    assert line.startswith("tiffin: ")
    assert len(bar) <= 1, "a progress bar's last state may stand before it"
    assert "Traceback" not in done.stderr
    return line


def test_help_of_every_command_comes_without_loading_what_is_slow() -> None:
    assert tiffin("--help").returncode == 0
    done = subprocess.run(
        [sys.executable, "-c", HELP], capture_output=True, text=True, timeout=DEADLINE_S, env=environment(), check=True
    )
    commands, slow = done.stdout.splitlines()[-2:]
    assert {"apply", "dataset", "demo", "import", "materialize", "push", "serve", "train", "up", "worker"} <= set(
        json.loads(commands.replace("'", '"'))
    )
    assert slow == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("push",),
        ("serve", "--port", "70000"),
        ("materialize", "--end", "someday"),
        ("simulate", "--days", "0"),
        ("import", "/no/such/file.csv", "/no/such/mapping.yaml"),
        ("services", "sideways"),
        ("train", "--only", "is_asap"),
        ("dataset",),
        ("dataset", "--out", "set.parquet", "--as-of", "sometimes"),
        ("--repo", "/no/such/folder", "apply"),
        ("--repo", str(Path(__file__).parent), "apply"),
    ],
)
def test_a_wrong_call_exits_2_and_says_what_was_wrong(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = tiffin(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Error" in done.stderr or "error" in done.stderr


def test_a_folder_without_definitions_is_named(tmp_path: Path) -> None:
    done = tiffin("--repo", tmp_path, "apply", COLUMNS="400")
    assert done.returncode == 2
    assert f"{tmp_path} has no feature_store.yaml" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_pushing_where_no_api_is_fails_in_one_line(repo: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert f"no answer from {nowhere}" in failed(tiffin("--repo", repo, "push", "order_placed", "{}", "--url", nowhere))
    assert "no-such-file.json" in failed(tiffin("--repo", repo, "push", "order_placed", "no-such-file.json"))


def import_orders(repo: Path, count: int, delivered_at: str) -> subprocess.CompletedProcess[str]:
    """Import orders of one restaurant, a minute apart, by a mapping that finds when they came in a column so named."""
    orders, mapping = repo / "orders.csv", repo / "mapping.yaml"
    lines = (f"{i},7,3,2026-01-01T12:0{i}:00Z,2026-01-01T12:30:00Z" for i in range(count))
    orders.write_text("\n".join(["id,shop,area,ordered,arrived", *lines]))
    fields = {"order_id": "id", "restaurant_id": "shop", "zone_id": "area", "placed_at": "ordered"}
    mapping.write_text(json.dumps({"source": "tests", "fields": {**fields, "delivered_at": delivered_at}}))
    return tiffin("--repo", repo, "import", orders, mapping)


def test_importing_by_a_mapping_that_names_a_missing_column_fails_in_one_line(repo: Path) -> None:
    assert "no column delivered" in failed(import_orders(repo, 1, "delivered"))
    assert not (repo / "data" / "log").exists()
    done = import_orders(repo, 1, "arrived")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 rows, 1 kept, 0 refused" in done.stdout


def test_training_without_history_fails_in_one_line(repo: Path) -> None:
    assert "train" in failed(tiffin("--repo", repo, "train"))


def test_a_training_set_of_imported_orders_is_written_and_described(repo: Path, tmp_path: Path) -> None:
    assert import_orders(repo, 3, "arrived").returncode == 0
    out = tmp_path / "set.parquet"
    done = tiffin("--repo", repo, "dataset", "--out", out, "--since", "2026-01-01T12:01:00", "--as-of", "arrival")
    assert (done.returncode, done.stderr) == (0, "")
    told, table = done.stdout.splitlines(), pq.read_table(out)
    assert told == [f"{out}: 2 rows, {len(told) - 1} columns, as of arrival", *table.column_names]
    assert table["restaurant_recent_orders__orders_10m"].to_pylist() == [1, 2]


def test_a_failure_shows_where_if_asked_to(repo: Path) -> None:
    done = tiffin("--repo", repo, "push", "order_placed", "no-such-file.json", TIFFIN_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_apply_registers_the_definitions_for_feasts_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("definitions.py", "feature_store.yaml", ".feastignore"):
        shutil.copy(REPO_FOLDER / name, tmp_path)
    done = tiffin("--repo", tmp_path, "apply")
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.chdir(tmp_path)
    batch = {"restaurant_profile", "restaurant_prep_stats", "restaurant_embedding", "customer_embedding"}
    streams = {"restaurant_recent_orders", "restaurant_recent_prep", "zone_recent_orders", "zone_couriers"}
    for kind, views in (("feature-views", batch), ("stream-feature-views", streams)):  # Feast keeps them apart
        with quietly():
            listed = CliRunner().invoke(feast_command, [kind, "list"])
        assert listed.exit_code == 0, listed.output
        assert views <= {line.split()[0] for line in listed.output.splitlines() if line.strip()}


@contextmanager
def process(repo: Path, *arguments: str, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A command that runs until it is told to stop; ended at the latest with the block."""
    with (repo / f"{arguments[0]}.log").open("wb") as log:
        command = [str(BIN / "tiffin"), "--repo", str(repo), *arguments]
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment(**variables))
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def embedded_settings(repo: Path) -> Settings:
    """Settings by which a test looks into a folder's embedded server without starting it."""
    return Settings(
        TIFFIN_REPO=repo,
        REDIS_URL=SecretStr(f"unix://{embedded.socket_path(repo / 'data')}"),
        KAFKA_BOOTSTRAP_SERVERS=None,
    )


def server_pid(repo: Path) -> int:
    """The process of the folder's embedded server, which must run."""
    client = connect(embedded_settings(repo))
    about: Any = client.info("server")
    pid = int(about["process_id"])
    client.close()
    return pid


def ended(child: "subprocess.Popen[bytes]", server: int, repo: Path) -> Mapping[str, object]:
    """End a command by SIGTERM: its exit code, and whether it left the embedded server behind."""
    child.send_signal(signal.SIGTERM)
    code = child.wait(DEADLINE_S)
    left = Path(f"/proc/{server}").exists()
    if left:
        os.kill(server, signal.SIGTERM)
    return {"code": code, "left a server": left, "said": "Traceback" in next(repo.glob("*.log")).read_text()}


CLEAN = {"code": 0, "left a server": False, "said": False}


def test_a_worker_that_is_told_to_stop_stores_its_progress_and_leaves_no_server(repo: Path) -> None:
    settings, data = embedded_settings(repo), repo / "data"
    with process(repo, "worker", TIFFIN_PARTITIONS="1") as child:
        wait_for(lambda: embedded.answers(embedded.socket_path(data)) or child.poll() is not None, "the server")
        server = server_pid(repo)
        client = connect(settings)
        store, log = StreamStore(client, PROJECT), RedisLog(client)

        def progress() -> Progress | None:
            views = [view for view in store.served().views.values() if "courier_status" in view.topics]
            return store.progress("courier_status", 0, views[0].tiles_hash) if views else None

        wait_for(lambda: progress() is not None or child.poll() is not None, "the worker to have begun")
        event = {"event_id": "e", "courier_id": 1, "zone_id": 1, "status": "busy", "at": wall_clock()}
        log.publish("courier_status", [Message(b"1", json.dumps(event).encode())])
        (end,) = (log.offset_at(where, 2**52) for where in log.begins("courier_status"))
        wait_for(lambda: bool(client.keys("*presence*")), "the event to be folded")
        client.close()
        assert ended(child, server, repo) == CLEAN
    again = embedded.start(data)
    try:
        stored = progress()
        assert stored is not None
        assert stored.offset == end
    finally:
        client.close()
        embedded.stop(again)


ORDERS_30M = '        Aggregation(column="order_id", function="count", time_window=30 * MINUTE, name="orders_30m"),\n'


def test_one_line_more_is_applied_backfilled_and_served_while_the_worker_goes_on(repo: Path) -> None:
    def backfill() -> subprocess.CompletedProcess[str]:
        return tiffin("--repo", repo, "backfill", REDIS_URL=url)

    url = f"unix://{embedded.socket_path(repo / 'data')}"
    with process(repo, "worker", TIFFIN_PARTITIONS="1") as child:
        wait_for(
            lambda: embedded.answers(embedded.socket_path(repo / "data")) or child.poll() is not None, "the server"
        )
        client = connect(embedded_settings(repo))
        store = StreamStore(client, PROJECT)
        wait_for(lambda: bool(store.served_digest()) or child.poll() is not None, "the worker to have begun")
        server = server_pid(repo)
        assert (done := backfill()).stdout == "everything is served as it is defined\n", done.stderr
        definitions = repo / "definitions.py"
        assert ORDERS_30M in definitions.read_text()
        definitions.write_text(definitions.read_text().replace(ORDERS_30M, ORDERS_30M + ORDERS_30M.replace("30", "60")))
        tiffin("--repo", repo, "apply")
        assert "orders_60m" not in store.served().views["restaurant_recent_orders"].features
        done = backfill()
        assert "served from now on as defined: restaurant_recent_orders\n" in done.stdout, done.stderr
        view = store.served().views["restaurant_recent_orders"]
        assert "orders_60m" in view.features

        def offset() -> int:
            found = store.progress("order_placed", 0, view.tiles_hash)
            return found.complete_until if found else 0

        taken_over = offset()
        wait_for(lambda: offset() > taken_over or child.poll() is not None, "the worker to fold what is served now")
        client.close()
        assert ended(child, server, repo) == CLEAN


def test_a_server_that_is_told_to_stop_ends_cleanly_and_leaves_no_server(repo: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/live").status_code == 200
        except httpx.TransportError:
            return False

    with process(repo, "serve", "--port", str(port)) as child:
        wait_for(lambda: answers() or child.poll() is not None, "the API")
        assert httpx.get(f"{url}/ready").status_code == 503
        assert ended(child, server_pid(repo), repo) == CLEAN


def test_any_command_that_is_told_to_stop_ends_the_server_that_it_started(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", STAND, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert child.stdout is not None
    with child.stdout:
        server = int(child.stdout.readline())
    child.send_signal(signal.SIGTERM)
    assert child.wait(DEADLINE_S) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{server}").exists()
