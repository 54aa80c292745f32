"""Predictions made ahead, in SQL tables: SQLite by default, PostgreSQL by URL. The only module that imports SQLAlchemy.

A *run* computes every row of a kind. Its rows carry its id, and readers see the rows of the run that is published for
the kind: one row of one table, changed in one transaction, and read together with the run's rows in one statement. So
they see the old run or the new one, never half of one, whenever a writer dies. A run is written chunk by chunk, each in
a transaction of its own, so one that was cut off goes on where it was. Instants are ms since the epoch, UTC.
"""

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from feature_repo.clock import iso
from feature_repo.settings import Settings

KEPT_RUNS = 3
"""Of each kind, so many published runs are kept with their rows; of older ones their line of history alone."""

MAX_RESTAURANTS = 5_000
"""What one read may ask for: it is one statement, so that its answer is of one run."""

_POOL = 4
_LARGEST_ID = 2**63
_MAKING = 8_467_235_011  # the advisory lock under which tables are made; any number that nobody else uses
_WRITES = {"writes": True}


def _ranked(name: str, whose: sa.Column[Any], **options: Any) -> sa.Table:
    """A table of restaurants by rank (0 is the best)."""
    return sa.Table(
        name,
        _meta,
        sa.Column("run_id", sa.String(64), primary_key=True),
        whose,
        sa.Column("rank", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("chunk", sa.Integer, nullable=False),
        sa.Column("restaurant_id", sa.BigInteger, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        **options,
    )


_meta = sa.MetaData()
_runs = sa.Table(
    "tiffin_runs",
    _meta,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("as_of_ms", sa.BigInteger, nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("model_version", sa.String(128), nullable=False),
    sa.Column("input_from_ms", sa.BigInteger, nullable=False),
    sa.Column("input_until_ms", sa.BigInteger, nullable=False),
    sa.Column("started_ms", sa.BigInteger, nullable=False),
    sa.Column("published_ms", sa.BigInteger),
    sa.Column("rows", sa.BigInteger),
)
_chunks = sa.Table(
    "tiffin_run_chunks",
    _meta,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("chunk", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
)
_published = sa.Table(
    "tiffin_published",
    _meta,
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("run_id", sa.String(64)),  # null until one is: the row is what publishers lock
)
_etas = sa.Table(
    "tiffin_etas",
    _meta,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("restaurant_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hour", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("chunk", sa.Integer, nullable=False),
    sa.Column("eta_minutes", sa.Double, nullable=False),
    sa.Column("eta_minutes_p90", sa.Double, nullable=False),
    sqlite_with_rowid=False,
)
_picks = _ranked(
    "tiffin_picks",
    sa.Column("customer_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)
_popular = _ranked("tiffin_popular", sa.Column("zone", sa.String(20), primary_key=True), sqlite_with_rowid=False)

ETA, PICKS = "eta", "picks"
"""The kinds of runs."""

TABLES: Mapping[str, Mapping[str, sa.Table]] = {
    ETA: {"etas": _etas},
    PICKS: {"picks": _picks, "popular": _popular},
}
"""Of each kind its tables. Columns that `write` is given: `etas` restaurant_id, hour (0 to 23, UTC), eta_minutes,
eta_minutes_p90; `picks` customer_id, rank (0 is the best), restaurant_id, score; `popular` zone_id (None: overall),
rank, restaurant_id, score."""

KINDS = tuple(TABLES)


class StoredUnreachable(RuntimeError):
    """The SQL tables cannot be read or written; says where and why, in one line, without the URL's password."""


class RunRefused(RuntimeError):
    """A run that must not be published: a newer one is, or part of it is missing."""


class Run(NamedTuple):
    """A run: of which kind and instant, by which model, from input of which range.

    Runs of equal ids have equal rows, by whoever makes the id. `published_ms` and `rows` are None until it was
    published; `published_ms` is the last time that it was.
    """

    run_id: str
    kind: str
    as_of_ms: int
    model: str
    model_version: str
    input_from_ms: int
    input_until_ms: int
    started_ms: int
    published_ms: int | None = None
    rows: int | None = None


class StoredPicks(NamedTuple):
    """Restaurants, the best first, with their scores; and the run that they are of."""

    restaurants: list[int]
    scores: list[float]
    run: Run


def open_stored(settings: Settings, timeout_s: float = 5.0) -> "StoredPredictions":
    """The stored predictions that the settings name; connects nowhere yet.

    Raises ValueError for a URL that is neither SQLite's nor PostgreSQL's.
    """
    given = settings.predictions_url
    return StoredPredictions(given.get_secret_value() if given else default_url(settings.data), timeout_s)


def default_url(data: Path) -> str:
    """The database of a data folder: a SQLite file."""
    return sa.URL.create("sqlite", database=str(data / "predictions.db")).render_as_string()


class StoredPredictions:
    """The tables of one database. Safe to share between threads, not across a fork; connects at the first call.

    Connecting, and every statement, takes `timeout_s` at most. Every method raises StoredUnreachable. Tables are made
    by the first write; before that, reading finds no run.
    """

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        self._engine = _engine(_parsed(url), timeout_s)
        database = self._engine.url.database
        self._file = Path(database) if self._is_sqlite and database else None
        self._made, self._timeout_s = False, timeout_s

    def close(self) -> None:
        """End the connections."""
        self._engine.dispose()

    def begin(self, run: Run) -> frozenset[int]:
        """Begin a run, or go on with it: the chunks of it that are written already.

        Raises RunRefused if a run of a later `as_of_ms` is published: this one could not be.
        """
        with self._writing() as connection:
            connection.execute(self._new(_runs, run._asdict() | {"published_ms": None, "rows": None}))
            connection.execute(self._new(_published, {"kind": run.kind, "run_id": None}))
            _refuse_older(run, _current(connection, run.kind))
            chunks = connection.execute(sa.select(_chunks.c.chunk).where(_chunks.c.run_id == run.run_id))
            return frozenset(chunk for (chunk,) in chunks)

    def write(self, run: Run, chunk: int, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write one chunk of a run, rows by table (see TABLES), whole or not at all, instead of what was there of it.

        Raises ValueError for a table that is not of the run's kind, RunRefused for a run that was not begun.
        """
        tables = TABLES[run.kind]
        if unknown := rows.keys() - tables.keys():
            raise ValueError(f"table {unknown.pop()!r}: a run of {run.kind} has {', '.join(tables)}")
        with self._writing() as connection:
            # Two jobs of the same run write the same, one after the other.
            known = sa.select(_runs.c.run_id).where(_runs.c.run_id == run.run_id).with_for_update()
            if connection.execute(known).first() is None:
                raise RunRefused(f"run {run.run_id} of {run.kind} was not begun: its rows would be nobody's")
            gone = connection.execute(
                _chunks.delete().where(_chunks.c.run_id == run.run_id, _chunks.c.chunk == chunk)
            ).rowcount
            for name, table in tables.items():
                if gone:
                    connection.execute(table.delete().where(table.c.run_id == run.run_id, table.c.chunk == chunk))
                if rows.get(name):
                    connection.execute(table.insert(), [_stored(row, run.run_id, chunk) for row in rows[name]])
            total = sum(len(part) for part in rows.values())
            connection.execute(_chunks.insert().values(run_id=run.run_id, chunk=chunk, rows=total))

    def publish(self, run: Run, now_ms: int, chunks: int | None = None) -> int:
        """Show a run to readers, in one step, and drop the rows of old ones; the number of its rows.

        One that is published already stays as it is. Raises RunRefused, and changes nothing, if one of a later
        `as_of_ms` is published, if nothing of the run is written, or if not just `chunks` chunks are. Of equal
        `as_of_ms` the last one published counts.
        """
        with self._writing() as connection:
            # Publishers of a kind go one after the other.
            connection.execute(sa.select(_published).where(_published.c.kind == run.kind).with_for_update())
            current = _current(connection, run.kind)
            _refuse_older(run, current)
            counts = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_chunks.c.rows), 0))
            written, rows = connection.execute(counts.where(_chunks.c.run_id == run.run_id)).one()
            if not written or (chunks is not None and written != chunks):
                wanted = "at least one" if chunks is None else chunks
                raise RunRefused(
                    f"run {run.run_id} of {run.kind} has {written} chunks, not {wanted}: readers would miss rows"
                )
            if current is None or current.run_id != run.run_id:
                done = {"published_ms": now_ms, "rows": int(rows)}
                connection.execute(_runs.update().where(_runs.c.run_id == run.run_id).values(done))
                to_it = _published.update().where(_published.c.kind == run.kind)
                connection.execute(to_it.values(run_id=run.run_id))
                _forget(connection, run)
        return int(rows)

    def current(self, kind: str) -> Run | None:
        """The run of a kind that is published."""
        with self._reading() as connection:
            return None if connection is None else _current(connection, kind)

    def history(self, kind: str) -> list[Run]:
        """Every run of a kind, the last begun first, with those that were never published."""
        with self._reading() as connection:
            if connection is None:
                return []
            of_kind = sa.select(_runs).where(_runs.c.kind == kind)
            return [
                Run(*row) for row in connection.execute(of_kind.order_by(_runs.c.started_ms.desc(), _runs.c.run_id))
            ]

    def etas(self, restaurant_ids: Sequence[int], hour: int) -> tuple[Run | None, dict[int, tuple[float, float]]]:
        """The published run and what it says of restaurants in an hour of the day (0 to 23, UTC).

        That is {restaurant_id: (median, 90th percentile) in minutes}, without those that it knows nothing of.
        Raises ValueError for another hour, or more than MAX_RESTAURANTS.
        """
        if not 0 <= hour < 24:
            raise ValueError(f"hour {hour}: a day has the hours 0 to 23")
        if len(restaurant_ids) > MAX_RESTAURANTS:
            raise ValueError(f"{len(restaurant_ids)} restaurants: one read takes {MAX_RESTAURANTS}")
        asked = [number for number in restaurant_ids if -_LARGEST_ID <= number < _LARGEST_ID]
        with self._reading() as connection:
            if connection is None:
                return None, {}
            theirs = (_etas.c.run_id == _runs.c.run_id) & (_etas.c.hour == hour) & _etas.c.restaurant_id.in_(asked)
            found = connection.execute(
                sa.select(_etas.c.restaurant_id, _etas.c.eta_minutes, _etas.c.eta_minutes_p90, *_runs.c)
                .select_from(_shown(ETA).outerjoin(_etas, theirs))
                .where(_published.c.kind == ETA)
            ).all()
        run = Run(*found[0][3:]) if found else None
        return run, {row[0]: (row[1], row[2]) for row in found if row[0] is not None}

    def picks(self, customer_id: int) -> StoredPicks | None:
        """What the published run has picked for a customer."""
        if not -_LARGEST_ID <= customer_id < _LARGEST_ID:
            return None
        return self._ranked(_picks, _picks.c.customer_id == customer_id)

    def popular(self, zone_id: int | None) -> StoredPicks | None:
        """The restaurants that are ordered from most, overall (None) or in a zone, by the published run of picks."""
        return self._ranked(_popular, _popular.c.zone == _zone(zone_id))

    def _ranked(self, table: sa.Table, whose: sa.ColumnElement[bool]) -> StoredPicks | None:
        with self._reading() as connection:
            if connection is None:
                return None
            found = connection.execute(
                sa.select(table.c.restaurant_id, table.c.score, *_runs.c)
                .select_from(_shown(PICKS).join(table, table.c.run_id == _runs.c.run_id))
                .where(_published.c.kind == PICKS, whose)
                .order_by(table.c.rank)
            ).all()
        if not found:
            return None
        return StoredPicks([row[0] for row in found], [row[1] for row in found], Run(*found[0][2:]))

    def _new(self, table: sa.Table, values: Mapping[str, Any]) -> Any:
        """An insert that leaves a row alone that is there."""
        insert = sqlite.insert if self._is_sqlite else postgresql.insert
        return insert(table).values(values).on_conflict_do_nothing()

    @property
    def _is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that writes; the tables are there."""
        with self._reached():
            engine = self._engine.execution_options(**_WRITES)
            if not self._made:
                if self._file is not None:
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                    self._log_ahead()
                with engine.begin() as connection:
                    if not self._is_sqlite:
                        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MAKING)))
                    _meta.create_all(connection)
                self._made = True
            with engine.begin() as connection:
                yield connection

    def _log_ahead(self) -> None:
        """Let SQLite keep a write-ahead log, so that readers do not wait for writers; the file remembers it."""
        deadline = time.monotonic() + self._timeout_s
        with closing(self._engine.raw_connection()) as connection:
            while True:
                try:
                    connection.cursor().execute("PRAGMA journal_mode=WAL")
                except sqlite3.OperationalError as error:  # here its own timeout does not count
                    if "locked" not in str(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
                else:
                    return

    @contextmanager
    def _reading(self) -> Iterator[Connection | None]:
        """A transaction that reads; None if there are no tables yet."""
        with self._reached():
            if self._file is not None and not self._made and not _exists(self._file):
                yield None  # connecting would make an empty file
                return
            with self._engine.connect() as connection:
                self._made = self._made or sa.inspect(connection).has_table(_published.name)
                yield connection if self._made else None

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())
            where = self._engine.url.set(query={}).render_as_string(hide_password=True)
            raise StoredUnreachable(f"stored predictions in {where}: {reason}") from None


def _current(connection: Connection, kind: str) -> Run | None:
    found = connection.execute(sa.select(_runs).select_from(_shown(kind)).where(_published.c.kind == kind)).first()
    return None if found is None else Run(*found)


def _shown(kind: str) -> sa.Join:
    """The row of the published run; what is joined to it is read in the same statement."""
    return _published.join(_runs, (_published.c.run_id == _runs.c.run_id) & (_published.c.kind == kind))


def _refuse_older(run: Run, current: Run | None) -> None:
    if current is not None and current.as_of_ms > run.as_of_ms:
        raise RunRefused(
            f"run {run.run_id} of {run.kind} is as of {iso(run.as_of_ms)}, and one as of {iso(current.as_of_ms)} is "
            "published: readers would go back in time"
        )


def _forget(connection: Connection, current: Run) -> None:
    """Drop the rows of runs that no reader will see: published long ago, or left unfinished and older than this one."""
    of_kind = _runs.c.kind == current.kind
    published = sa.select(_runs.c.run_id).where(of_kind, _runs.c.published_ms.is_not(None))
    kept = published.order_by(_runs.c.as_of_ms.desc(), _runs.c.published_ms.desc()).limit(KEPT_RUNS)
    beyond = _runs.c.published_ms.is_not(None) & _runs.c.run_id.not_in(kept)
    left = _runs.c.published_ms.is_(None) & (_runs.c.as_of_ms < current.as_of_ms)
    with_rows = sa.select(_chunks.c.run_id).distinct()
    old = sa.select(_runs.c.run_id).where(
        of_kind, _runs.c.run_id != current.run_id, _runs.c.run_id.in_(with_rows), beyond | left
    )
    gone = [run_id for (run_id,) in connection.execute(old)]
    for table in (*TABLES[current.kind].values(), _chunks):
        connection.execute(table.delete().where(table.c.run_id.in_(gone)))


def _stored(row: Mapping[str, Any], run_id: str, chunk: int) -> dict[str, Any]:
    """A row as its table holds it. A key cannot be null, so zones are text, and the empty one is overall."""
    held = {**row, "run_id": run_id, "chunk": chunk}
    if "zone_id" in held:
        held["zone"] = _zone(held.pop("zone_id"))
    return held


def _zone(zone_id: int | None) -> str:
    return "" if zone_id is None else str(zone_id)


def _exists(file: Path) -> bool:
    """Whether the file is there. Raises OSError if that cannot be seen."""
    try:
        file.stat()
    except FileNotFoundError:
        return False
    return True


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # which would say the URL, and its password
        parsed = None
    if parsed is None or parsed.drivername not in ("sqlite", "postgresql", "postgresql+psycopg"):
        raise ValueError(
            "TIFFIN_PREDICTIONS_URL: expected postgresql+psycopg://user:password@host/database or sqlite:///file, or "
            "nothing for a SQLite file in the data folder; with what is there no stored prediction can be read"
        )
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def _engine(url: sa.URL, timeout_s: float) -> Engine:
    bounds: dict[str, Any] = {"pool_size": _POOL, "max_overflow": _POOL, "pool_timeout": timeout_s}
    milliseconds = max(1, round(timeout_s * 1000))
    if url.drivername != "sqlite":
        limits = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
        given = url.query.get("options", "")
        arguments = {
            "connect_timeout": max(1, round(timeout_s)),
            "tcp_user_timeout": milliseconds,  # a machine that went away says nothing
            "options": f"{given} {limits}" if given else limits,
        }
        return sa.create_engine(url, pool_pre_ping=True, connect_args=arguments, **bounds)
    bounds["poolclass"] = sa.QueuePool
    arguments = {"timeout": timeout_s, "check_same_thread": False}
    engine = sa.create_engine(url, connect_args=arguments, **bounds)

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin below, not at the driver's discretion
        connection.execute("PRAGMA synchronous=FULL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("writes"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # waits its turn now, instead of failing half way
        else:
            connection.exec_driver_sql("BEGIN")

    return engine
