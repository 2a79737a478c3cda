"""The DuckDB database behind the catalog: a scratch file, one writer at a time, any number of readers."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path

import duckdb

from neptune_assets.scratch import ScratchDirectory


def release_memory() -> None:
    """Give memory that was freed back to the system, where the C library can: large queries leave a lot of it."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class Database:
    """Made anew at every start; whatever is in it can be read again from the lake and the store."""

    def __init__(self, *, memory_mb: int, threads: int, scratch: Path | None = None) -> None:
        # Those of servers that were killed are removed by the next one.
        self._scratch = ScratchDirectory("server", scratch)
        self.directory = self._scratch.path
        self._lock = threading.Lock()
        self._connection = duckdb.connect(
            str(self.directory / "catalog.duckdb"),
            config={
                "memory_limit": f"{memory_mb}MiB",
                "threads": threads,
                "temp_directory": str(self.directory / "spill"),
                "preserve_insertion_order": False,
                # Nothing here needs an extension, and nothing may be fetched over the network.
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )
        self._connection.execute("SET enable_progress_bar = false")
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute(files(__package__).joinpath("tables.sql").read_text(encoding="utf-8"))

    @contextmanager
    def reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Lend a connection inside a transaction: all of its statements see one moment."""
        with self._connection.cursor() as cursor:
            cursor.execute("BEGIN")
            yield cursor

    @contextmanager
    def writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Lend the writer's connection inside a transaction that commits at the end, or leaves nothing behind."""
        with self._lock, self._connection.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                yield cursor
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    def close(self) -> None:
        """Close and remove everything."""
        self._connection.close()
        self._scratch.close()
