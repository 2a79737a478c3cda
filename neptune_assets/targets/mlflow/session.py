"""One connection to MLflow's tracking database that speaks Arrow: SQLite and PostgreSQL through their ADBC drivers.

Statements are SQLAlchemy's, built from MLflow's own table models and with every value bound; rows go in and come out as
Arrow. Nothing else in the process may have a SQLite file open at the same time: this driver and Python's own bring a
SQLite library each, and whenever one of them closes the file, the other's locks on it are gone.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any, Final
from urllib.parse import quote

import adbc_driver_manager.dbapi
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from neptune_assets import durable
from neptune_assets.errors import TargetError, TargetUnavailableError
from neptune_assets.lake.storage_errors import next_action
from neptune_assets.targets.mlflow.config import Connection
from neptune_assets.targets.mlflow.file_gate import FileGate, gate_of

DIRECT_DIALECTS: Final = frozenset({"sqlite", "postgresql"})
"""Databases that can be written directly; all others go through MLflow's own client."""

BATCH_ROWS: Final = 65_536

_DIALECTS: Final[dict[str, Any]] = {
    "sqlite": sqlite.dialect(paramstyle="qmark"),
    "postgresql": postgresql.dialect(paramstyle="numeric_dollar"),  # type: ignore[no-untyped-call]
}
_BUSY_MS: Final = 60_000
_CACHE_KB: Final = 32 << 10
"""SQLite writes a transaction that outgrows this into the file early and then keeps readers out until it ends."""
_READ_CACHE_KB: Final = 4 << 10
"""The rows of a run lie side by side: reading them back needs no more."""
_CACHED_ROWS: Final = _CACHE_KB << 10 >> 9
"""Rows of metrics, at half a kilobyte with all indexes, that surely stay in the cache."""

_TRANSIENT: Final = ("08", "40", "53", "55P03", "57P")
"""PostgreSQL's classes of errors that trying again can heal: connection, conflict, resources, lock, shutdown."""


@contextmanager
def database_errors(doing: str, shown: str) -> Iterator[None]:
    """Turn what the driver raises while ``doing`` something into TargetErrors."""
    try:
        yield
    except adbc_driver_manager.Error as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:500]
        if _is_transient(error):
            raise TargetUnavailableError(
                f"MLflow's database {shown} did not answer while {doing}: {first}.",
                hint="Check that it is up and not locked, then load again; finished runs are not loaded twice.",
            ) from error
        if "disk is full" in str(error) or "No space left" in str(error):
            raise TargetError(f"MLflow's database {shown}: {first}.", hint=next_action(errno.ENOSPC)) from error
        raise TargetError(
            f"MLflow's database {shown} refused {doing}: {first}.",
            hint="Look at the database's own log; `direct: false` loads through MLflow's client instead.",
        ) from error


class Session:
    """One connection, from the first statement to :meth:`close` one transaction; what is not committed is undone.

    In one process, sessions of one SQLite file wait for each other instead of asking for its lock again and again:
    one that ``writes`` for the one before, one that reads while another puts its pages into the file.
    """

    def __init__(self, connection: Connection, *, writes: bool) -> None:
        self._dialect = _DIALECTS[str(connection.dialect)]
        self._writes = writes
        self._rows = 0
        self._gate: FileGate | None = None
        self._file = connection.database_file
        self.is_file = self._file is not None
        if connection.database_file is not None:
            gate = gate_of(str(connection.database_file))
            if writes:
                gate.enter_writer()
            else:
                gate.enter_reader()
            self._gate = gate
        try:
            self._connection: Any = _connect(connection)
        except BaseException:
            self._release()
            raise
        if connection.database_file is not None:
            try:
                cache = _CACHE_KB if writes else _READ_CACHE_KB
                for pragma in (f"busy_timeout = {_BUSY_MS}", f"cache_size = -{cache}"):
                    self._run(f"PRAGMA {pragma}")
            except BaseException:
                self.close()
                raise

    def execute(self, statement: sa.Executable) -> None:
        """Run a statement that returns nothing."""
        self._run(*self._compiled(statement))

    def rows(self, statement: sa.Executable) -> list[tuple[Any, ...]]:
        """Run a query and return its rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(*self._compiled(statement))
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found

    def batches(self, statement: sa.Executable) -> Iterator[pa.RecordBatch]:
        """Run a query and yield its rows as Arrow, in bounded memory."""
        with self._connection.cursor() as cursor:
            if self.is_file:
                cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})
                cursor.execute(*self._compiled(statement))
            else:
                # PostgreSQL's driver streams (by COPY) only what has no parameters; else it holds the whole answer.
                cursor.execute(self._literal(statement))
            yield from cursor.fetch_record_batch()

    def insert(self, table: sa.Table, rows: pa.RecordBatch) -> None:
        """Append rows to a table, by the names of their columns."""
        if rows.num_rows:
            self._rows += rows.num_rows
            if self._gate is not None and self._rows > _CACHED_ROWS:
                self._gate.shut()
            with self._connection.cursor() as cursor:
                cursor.adbc_ingest(table.name, rows, mode="append")

    def commit(self) -> None:
        """Make everything since the last commit visible at once."""
        if self._gate is not None and self._writes:
            self._gate.shut()
        self._connection.commit()
        if self._file is not None and self._writes:
            # Else a power cut may bring the journal back, which undoes the commit; what it replaced is gone by then.
            durable.sync(self._file.parent)

    def close(self) -> None:
        """Undo what was not committed and let go of the connection."""
        try:
            self._connection.close()
        finally:
            self._release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, sql: str, values: Sequence[Any] | None = None) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values)

    def _compiled(self, statement: sa.Executable) -> tuple[str, list[Any] | None]:
        compiled: Any = statement.compile(  # type: ignore[attr-defined]
            dialect=self._dialect, compile_kwargs={"render_postcompile": True}
        )
        values = [compiled.params[name] for name in compiled.positiontup or ()]
        return compiled.string, values or None

    def _literal(self, statement: sa.Executable) -> str:
        """The statement with its values written into it, quoted by SQLAlchemy."""
        compiled = statement.compile(  # type: ignore[attr-defined]
            dialect=self._dialect, compile_kwargs={"literal_binds": True}
        )
        return str(compiled)

    def _release(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            if self._writes:
                gate.leave_writer()
            else:
                gate.leave_reader()


class _Shared:
    """Stands for what several connections share, which none of them may close."""

    def close(self) -> None:
        """Leave it open."""


_connecting: Final = Lock()
"""The driver counts connections of one database, and not for several threads."""


def _connect(connection: Connection) -> Any:
    address = _address(connection)
    if connection.database_file is not None:
        return importlib.import_module("adbc_driver_sqlite.dbapi").connect(address)
    # Opening a database, other than connecting to it, reads all its types, which takes longer than loading a run.
    with _connecting:
        opened = adbc_driver_manager.AdbcConnection(_postgres(address))
    return adbc_driver_manager.dbapi.Connection(_Shared(), opened)  # type: ignore[arg-type]


@cache
def _postgres(address: str) -> adbc_driver_manager.AdbcDatabase:
    opened: adbc_driver_manager.AdbcDatabase = importlib.import_module("adbc_driver_postgresql").connect(address)
    return opened


def _address(connection: Connection) -> str:
    if connection.database_file is not None:
        return f"file:{quote(str(connection.database_file))}?mode=rw"
    url = sa.make_url(connection.uri).set(drivername="postgresql")
    return url.render_as_string(hide_password=False)


def _is_transient(error: adbc_driver_manager.Error) -> bool:
    if error.sqlstate:
        return error.sqlstate.startswith(_TRANSIENT)
    text = str(error)
    return "database is locked" in text or ("libpq" in text and isinstance(error, adbc_driver_manager.OperationalError))
