"""Tables of the catalog in DuckDB: its schema, the runs of a project, their rows, and what forks inherit.

Series of the parent that begin at or before the fork step belong to the child, too: set by set, parents before
children. How such a series ends is read from the points when a request needs it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

import duckdb
import pyarrow as pa

from neptune_assets.schema import SERIES_TYPES, AttributeType
from neptune_assets.tempdirs import TempDirectory

AGGREGATES: Final = 1
"""Last value and step, least, greatest, mean and number of points of a float series."""
VARIANCE: Final = 2
"""Variance of a float series, where the lake's statistics do not hold it: old ones, and of values near either end."""
LAST: Final = 4
"""Last value and step, and number of points, of a series of strings, histograms or files."""


def everything(kind: AttributeType) -> int:
    """Return the bits of a series of which nothing was read; 0 for anything else."""
    if kind is AttributeType.FLOAT_SERIES:
        return AGGREGATES | VARIANCE
    if kind in {AttributeType.STRING_SERIES, AttributeType.HISTOGRAM_SERIES, AttributeType.FILE_SERIES}:
        return LAST
    return 0


def release_memory() -> None:
    """Give memory that was freed back to the system, where the C library can: large queries leave a lot of it."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class Database:
    """Made anew at every start; whatever is in it can be read again from the lake and the store."""

    def __init__(self, *, memory_mb: int, threads: int, scratch: Path | None = None) -> None:
        # Those of servers that were killed are removed by the next one.
        self._scratch = TempDirectory("server", scratch)
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


@dataclass(frozen=True, slots=True)
class Run:
    """One run (or model, or version of one); ``number`` is its number in the catalog.

    ``origin`` says who holds its points. ``store_id`` is its number in the store's database. ``parent`` is the project
    and the run id (or sys id) that it was forked from, ``fork_step`` in micro-steps, ``created`` in milliseconds.
    """

    number: int
    project: str
    scope: str
    run_id: str
    sys_id: str
    origin: Literal["lake", "store"]
    store_id: int | None = None
    uuid: str | None = None
    experiment: str | None = None
    created: int | None = None
    trashed: bool = False
    archived: bool = False
    parent: tuple[str, str] | None = None
    fork_step: int | None = None
    version: str | int = 0
    """Digest in the lake, or revision in the store."""


class ProjectRuns:
    """The runs of one project and scope. Never changed once it is in the catalog: a changed copy takes its place."""

    def __init__(self) -> None:
        self._by_id: dict[str, Run] = {}
        self._by_number: dict[int, Run] = {}
        self._by_sys_id: dict[str, Run] = {}
        self._by_uuid: dict[str, Run] = {}

    def copy(self) -> ProjectRuns:
        """Return a copy to be changed while others go on reading this one."""
        made = ProjectRuns()
        made._by_id = dict(self._by_id)
        made._by_number = dict(self._by_number)
        made._by_sys_id = dict(self._by_sys_id)
        made._by_uuid = dict(self._by_uuid)
        return made

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._by_id.values())

    def by_id(self, run_id: str) -> Run | None:
        """Return the run with this id."""
        return self._by_id.get(run_id)

    def by_number(self, number: int) -> Run | None:
        """Return the run with this number in the catalog."""
        return self._by_number.get(number)

    def by_sys_id(self, sys_id: str) -> Run | None:
        """Return the run with this sys/id."""
        return self._by_sys_id.get(sys_id)

    def by_uuid(self, uuid: str) -> Run | None:
        """Return the run with this uuid; only runs of the store have one."""
        return self._by_uuid.get(uuid)

    def put(self, run: Run) -> None:
        """Add a run, or replace the one of the same id."""
        self.remove(run.run_id)
        self._by_id[run.run_id] = run
        self._by_number[run.number] = run
        self._by_sys_id[run.sys_id] = run
        if run.uuid is not None:
            self._by_uuid[run.uuid] = run

    def remove(self, run_id: str) -> Run | None:
        """Forget a run and return it."""
        run = self._by_id.pop(run_id, None)
        if run is not None:
            del self._by_number[run.number]
            if self._by_sys_id.get(run.sys_id) is run:
                del self._by_sys_id[run.sys_id]
            if run.uuid is not None:
                self._by_uuid.pop(run.uuid, None)
        return run

    def parent(self, run: Run) -> Run | None:
        """Return the run of this project that a run was forked from, named by its id or, in old data, its sys id."""
        if run.parent is None or run.parent[0] != run.project:
            return None
        return self._by_id.get(run.parent[1]) or self._by_sys_id.get(run.parent[1])

    def heads(self) -> dict[str, Run]:
        """Return, for every experiment, its youngest run; one that is trashed only where all of them are."""
        heads: dict[str, Run] = {}
        for run in self._by_id.values():
            if run.experiment:
                head = heads.get(run.experiment)
                if head is None or _age(run) > _age(head):
                    heads[run.experiment] = run
        return heads


def _age(run: Run) -> tuple[bool, int, int, str]:
    return (not run.trashed, run.created or 0, run.number, run.run_id)


def made_up_sys_id(run_id: str, taken: Iterable[str] = ()) -> str:
    """Return a sys/id for a run of the lake that has none: always the same one, and none of those ``taken``."""
    others = set(taken)
    for attempt in range(1_000):
        digest = blake2b(f"{run_id}\0{attempt}".encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()
        if (sys_id := f"LAKE-{digest}") not in others:
            return sys_id
    raise AssertionError("unreachable")


VALUES: Final = {
    "number": "DOUBLE",
    "whole": "BIGINT",
    "text": "VARCHAR",
    "flag": "BOOLEAN",
    "moment": "BIGINT",
    "members": "VARCHAR[]",
    "least": "DOUBLE",
    "greatest": "DOUBLE",
    "mean": "DOUBLE",
    "variance": "DOUBLE",
    "points": "BIGINT",
    "first_step": "BIGINT",
    "last_step": "BIGINT",
    "detail": "VARCHAR",
    "previewed": "BOOLEAN",
    "pending": "UTINYINT",
}
"""Columns of an attribute's value, in order, with their SQL types."""

_MEASURED: Final = ("number", "text", "least", "greatest", "mean", "variance", "points", "detail", "previewed")
"""What is read from the points of a series."""

_RUNS: Final = pa.schema(
    [
        ("run", pa.int32()),
        ("project", pa.string()),
        ("scope", pa.string()),
        ("run_id", pa.string()),
        ("sys_id", pa.string()),
        ("created", pa.int64()),
        ("trashed", pa.bool_()),
    ]
)


def begin_incoming(con: duckdb.DuckDBPyConnection) -> None:
    """Make the empty table ``incoming``."""
    columns = ", ".join(f"{name} {kind}" for name, kind in VALUES.items())
    con.execute(f"CREATE OR REPLACE TEMP TABLE incoming (run INTEGER, path VARCHAR, type VARCHAR, {columns})")


def take_incoming(con: duckdb.DuckDBPyConnection) -> None:
    """Move ``incoming`` into the catalog, in place of what was there at the same paths of the same runs."""
    con.execute(
        "INSERT INTO names SELECT nextval('name_numbers'), path, type FROM (SELECT DISTINCT path, type FROM incoming) "
        "ANTI JOIN names USING (path, type)"
    )
    # Until somebody reads the points, a series that grew keeps what was known of it: no query sees it without a value.
    con.execute(
        f"UPDATE incoming SET {', '.join(f'{name} = old.{name}' for name in _MEASURED)} "  # noqa: S608
        "FROM (SELECT a.*, n.path, n.type FROM attributes a JOIN names n USING (name)) old "
        "WHERE incoming.pending <> 0 AND incoming.points IS NULL "
        "AND incoming.run = old.run AND incoming.path = old.path AND incoming.type = old.type"
    )
    con.execute(
        "DELETE FROM attributes USING (SELECT DISTINCT i.run, n.name FROM incoming i JOIN names n USING (path)) old "
        "WHERE attributes.run = old.run AND attributes.name = old.name"
    )
    columns = ", ".join(VALUES)
    con.execute(
        f"INSERT INTO attributes (run, name, {columns}, inherited) "  # noqa: S608
        f"SELECT run, name, {columns}, false FROM incoming JOIN names USING (path, type)"
    )
    con.execute("DROP TABLE incoming")


def put_runs(con: duckdb.DuckDBPyConnection, runs: Iterable[Run]) -> None:
    """Write rows of runs, in place of earlier ones of the same numbers. Heads are set by :func:`set_heads`."""
    items = [(run.number, run.project, run.scope, run.run_id, run.sys_id, run.created, run.trashed) for run in runs]
    rows = [dict(zip(_RUNS.names, item, strict=True)) for item in items]
    con.register("new_runs", pa.Table.from_pylist(rows, schema=_RUNS))
    con.execute("DELETE FROM runs WHERE run IN (SELECT run FROM new_runs)")
    con.execute("INSERT INTO runs BY NAME SELECT *, false AS head FROM new_runs")
    con.unregister("new_runs")


def drop_runs(con: duckdb.DuckDBPyConnection, numbers: Iterable[int]) -> None:
    """Remove runs and their attributes."""
    gone = list(numbers)
    if gone:
        con.execute("DELETE FROM runs WHERE run IN (SELECT unnest(?::INTEGER[]))", [gone])
        con.execute("DELETE FROM attributes WHERE run IN (SELECT unnest(?::INTEGER[]))", [gone])


def set_heads(con: duckdb.DuckDBPyConnection, project: str, scope: str, heads: Iterable[int]) -> None:
    """Say which runs of a project are the heads of their experiments, and that the others are not."""
    con.execute(
        "UPDATE runs SET head = NOT head WHERE project = ? AND scope = ? "
        "AND head <> (run IN (SELECT unnest(?::INTEGER[])))",
        [project, scope, list(heads)],
    )


_SERIES: Final = ", ".join(f"'{kind}'" for kind in sorted(SERIES_TYPES))
_PENDING: Final = " ".join(f"WHEN '{kind}' THEN {everything(AttributeType(kind))}" for kind in sorted(SERIES_TYPES))
# The parent's series that reach into the child.
_REACHING: Final = f"""
    SELECT f.child, f.anew, a.name, n.path, a.first_step, CASE n.type {_PENDING} END::UTINYINT AS pending
    FROM forks f JOIN attributes a ON a.run = f.parent JOIN names n USING (name)
    WHERE n.type IN ({_SERIES}) AND a.first_step <= f.step
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Fork:
    """A child by its number, its parent's, and the step. ``anew``: the parent changed since the child was looked at."""

    child: int
    parent: int
    step: int
    anew: bool


def inherit(con: duckdb.DuckDBPyConnection, forks: Iterable[Fork]) -> None:
    """Bring what these children inherit up to date; their parents must be so already, and none of them be a child."""
    items = list(forks)
    table = pa.table(
        {
            "child": pa.array([fork.child for fork in items], pa.int32()),
            "parent": pa.array([fork.parent for fork in items], pa.int32()),
            "step": pa.array([fork.step for fork in items], pa.int64()),
            "anew": pa.array([fork.anew for fork in items], pa.bool_()),
        }
    )
    con.register("forks", table)
    con.execute(f"CREATE OR REPLACE TEMP TABLE reaching AS {_REACHING}")
    con.execute(
        "DELETE FROM attributes WHERE inherited AND run IN (SELECT child FROM forks WHERE anew) "
        "AND NOT EXISTS (FROM reaching r WHERE r.child = attributes.run AND r.name = attributes.name)"
    )
    # Until somebody reads the points, what was known of a series stays: no query sees it without a value.
    con.execute(
        "UPDATE attributes SET pending = r.pending, first_step = r.first_step FROM reaching r "
        "WHERE attributes.run = r.child AND attributes.name = r.name AND attributes.inherited AND r.anew"
    )
    con.execute(
        "UPDATE attributes SET pending = attributes.pending | r.pending, "
        "first_step = least(attributes.first_step, r.first_step) FROM reaching r "
        "WHERE attributes.run = r.child AND attributes.name = r.name AND NOT attributes.inherited "
        "AND (r.anew OR attributes.pending <> 0)"
    )
    # Points of its own before the fork step stay outside of its line, but are in what the lake's writer measured.
    con.execute(
        f"UPDATE attributes SET pending = attributes.pending | CASE n.type {_PENDING} END::UTINYINT "  # noqa: S608
        "FROM forks f, names n WHERE attributes.run = f.child AND n.name = attributes.name "
        f"AND n.type IN ({_SERIES}) AND NOT attributes.inherited AND attributes.first_step < f.step "
        "AND (f.anew OR attributes.pending <> 0)"
    )
    con.execute(
        "INSERT INTO attributes (run, name, first_step, pending, inherited) "
        "SELECT r.child, r.name, r.first_step, r.pending, true FROM reaching r "
        "WHERE NOT EXISTS (FROM attributes a JOIN names n USING (name) WHERE a.run = r.child AND n.path = r.path)"
    )
    con.execute("DROP TABLE reaching")
    con.unregister("forks")


class Claims:
    """Series whose points somebody reads to save their figures; each is claimed by one thread at a time."""

    def __init__(self) -> None:
        self._held: set[tuple[int, int]] = set()
        self._changed = threading.Condition()

    @contextmanager
    def of(self, series: Collection[tuple[int, int]]) -> Iterator[None]:
        """Hold these series, given by numbers of run and name, when nobody else holds any of them."""
        with self._changed:
            self._changed.wait_for(lambda: self._held.isdisjoint(series))
            self._held.update(series)
        try:
            yield
        finally:
            with self._changed:
                self._held.difference_update(series)
                self._changed.notify_all()
