"""Changed runs of a store into the catalog: their attributes as they are, series only by their first and last step."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from neptune_assets.schema import PARAMETER_TYPES, SERIES_TYPES, AttributeType
from neptune_assets.server.catalog.pending import everything
from neptune_assets.server.catalog.runs import Run
from neptune_assets.server.nql import COLUMNS
from neptune_assets.server.store.checksums import ATTRIBUTE, intact
from neptune_assets.server.store.database import RESTORE
from neptune_assets.server.store.runs import SELECT_RUN, run_of
from neptune_assets.server.store.runs import Run as StoredRun
from neptune_assets.server.store.values import decode

if TYPE_CHECKING:
    import duckdb

_SCHEMA: Final = pa.schema(
    [
        ("run", pa.int32()),
        ("path", pa.string()),
        ("type", pa.string()),
        ("number", pa.float64()),
        ("whole", pa.int64()),
        ("text", pa.string()),
        ("flag", pa.bool_()),
        ("moment", pa.int64()),
        ("members", pa.list_(pa.string())),
        ("first_step", pa.int64()),
        ("last_step", pa.int64()),
        ("detail", pa.string()),
        ("pending", pa.uint8()),
    ]
)
_COLUMN: Final = {kind: COLUMNS[kind] for kind in PARAMETER_TYPES}
_KINDS: Final = {kind.value: kind for kind in AttributeType}
# Where a series begins is a look at one end of an index.
_ATTRIBUTES: Final = f"""
    SELECT path, type, value, last_step, revision,
        CASE
            WHEN type = 'float_series' THEN coalesce(
                (SELECT min(step) FROM points WHERE attribute = attributes.id),
                (SELECT min(step) FROM previews WHERE attribute = attributes.id)
            )
            WHEN value IS NULL THEN (SELECT min(step) FROM objects WHERE attribute = attributes.id)
        END AS first_step
    , {intact("attributes", *ATTRIBUTE)} AS intact FROM attributes WHERE run = ?
"""  # noqa: S608 - our own names
_BATCH: Final = 20_000
_log = logging.getLogger(__name__)


def changed_runs(connection: sqlite3.Connection, since: int) -> Iterator[StoredRun]:
    """Yield the runs that a commit after ``since`` touched."""
    for row in connection.execute(f"{SELECT_RUN} WHERE revision > ? ORDER BY id", (since,)):
        run = run_of(row)
        if run is not None and run.intact:
            yield run
        elif run is not None:
            _log.error("The row of run %r is damaged in the store; it is not shown. %s", run.run_id, RESTORE)


def catalog_run(project: str, number: int, stored: StoredRun) -> Run:
    """Return a run of the store as the catalog knows it."""
    parent = None
    if stored.parent_run_id is not None:
        parent = (stored.parent_project or project, stored.parent_run_id)
    return Run(
        number=number,
        project=project,
        scope=stored.scope,
        run_id=stored.run_id,
        sys_id=stored.sys_id,
        origin="store",
        store_id=stored.id,
        uuid=stored.uuid,
        experiment=stored.experiment,
        created=stored.created_at,
        trashed=bool(stored.trashed),
        archived=bool(stored.archived),
        parent=parent,
        fork_step=stored.fork_step,
        version=stored.revision,
    )


def import_attributes(
    con: duckdb.DuckDBPyConnection,
    connection: sqlite3.Connection,
    runs: Iterable[tuple[Run, Mapping[str, tuple[AttributeType, Any]]]],
    since: int,
) -> None:
    """Add the attributes of these runs that changed after ``since`` to ``incoming``, and drop what they lost.

    Every run comes with the attributes that the server makes of its row, for what the client did not write itself.
    """
    con.execute("CREATE OR REPLACE TEMP TABLE present (run INTEGER, path VARCHAR)")
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    present: list[tuple[int, str]] = []
    for run, system in runs:
        numbers.append(run.number)
        written = set()
        for item in connection.execute(_ATTRIBUTES, (run.store_id,)):
            if not item["intact"]:
                _log.error(
                    "Attribute %r of run %r is damaged in the store; it is not shown. %s",
                    *(item["path"], run.run_id, RESTORE),
                )
                continue
            written.add(item["path"])
            if item["revision"] > since:
                rows.append(_stored_row(run.number, item))
        made = system.keys() - written
        rows.extend(_row(run.number, path, *system[path]) for path in made)
        present.extend((run.number, path) for path in written | made)
        if len(present) >= _BATCH:
            _insert(con, rows, present)
    _insert(con, rows, present)
    con.execute(
        "DELETE FROM attributes WHERE NOT inherited AND run IN (SELECT unnest(?::INTEGER[])) AND NOT EXISTS "
        "(FROM present JOIN names USING (path) WHERE present.run = attributes.run AND names.name = attributes.name)",
        [numbers],
    )
    con.execute("DROP TABLE present")


def gone_runs(connection: sqlite3.Connection, known: Collection[Run]) -> list[Run]:
    """Return those of the runs that the store does not hold any more."""
    ids = {row[0] for row in connection.execute("SELECT id FROM runs")}
    return [run for run in known if run.store_id not in ids]


def _row(number: int, path: str, kind: AttributeType, value: Any) -> dict[str, Any]:
    if kind is AttributeType.STRING_SET and value is not None:
        value = sorted(value)
    return {"run": number, "path": path, "type": kind.value, _COLUMN.get(kind, "detail"): value}


def _stored_row(number: int, item: sqlite3.Row) -> dict[str, Any]:
    kind = _KINDS[item["type"]]
    if kind not in SERIES_TYPES:
        # What has no column of its own stays JSON.
        return _row(number, item["path"], kind, decode(kind, item["value"]) if kind in _COLUMN else item["value"])
    return {
        "run": number,
        "path": item["path"],
        "type": kind.value,
        "pending": everything(kind),
        "first_step": item["first_step"],
        "last_step": item["last_step"],
    }


def _insert(con: duckdb.DuckDBPyConnection, rows: list[dict[str, Any]], present: list[tuple[int, str]]) -> None:
    """Hand over what was gathered, and empty the lists."""
    table = pa.table([pa.array([row.get(field.name) for row in rows], field.type) for field in _SCHEMA], _SCHEMA)
    con.register("stored", table)
    con.execute("INSERT INTO incoming BY NAME SELECT * REPLACE (coalesce(pending, 0) AS pending) FROM stored")
    con.unregister("stored")
    names = pa.table(
        {
            "run": pa.array([number for number, _ in present], pa.int32()),
            "path": pa.array([path for _, path in present], pa.string()),
        }
    )
    con.register("seen", names)
    con.execute("INSERT INTO present SELECT run, path FROM seen")
    con.unregister("seen")
    rows.clear()
    present.clear()
