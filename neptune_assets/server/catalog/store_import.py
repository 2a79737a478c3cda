"""Changed runs of a store into the catalog: their attributes as they are, series only by their first and last step."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from neptune_assets.schema import SERIES_TYPES, AttributeType
from neptune_assets.server.catalog.pending import everything
from neptune_assets.server.catalog.runs import Run
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
_COLUMN: Final = {
    AttributeType.FLOAT: "number",
    AttributeType.INT: "whole",
    AttributeType.STRING: "text",
    AttributeType.BOOL: "flag",
    AttributeType.DATETIME: "moment",
    AttributeType.STRING_SET: "members",
}
_FIRST_STEP: Final = {
    AttributeType.FLOAT_SERIES: "SELECT min(step) FROM (SELECT step FROM points WHERE attribute = :attribute UNION ALL "
    "SELECT step FROM previews WHERE attribute = :attribute)",
}
_FIRST_OBJECT: Final = "SELECT min(step) FROM objects WHERE attribute = :attribute"
_BATCH: Final = 20_000


def changed_runs(connection: sqlite3.Connection, since: int) -> Iterator[StoredRun]:
    """Yield the runs that a commit after ``since`` touched."""
    for row in connection.execute(f"{SELECT_RUN} WHERE revision > ? ORDER BY id", (since,)):
        run = run_of(row)
        if run is not None:
            yield run


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
    rows: list[tuple[Any, ...]] = []
    for run, system in runs:
        numbers.append(run.number)
        present = []
        query = "SELECT id, path, type, value, last_step, revision FROM attributes WHERE run = ?"
        for item in connection.execute(query, (run.store_id,)):
            present.append(item["path"])
            if item["revision"] > since:
                rows.append(_stored_row(connection, run.number, item))
        made = system.keys() - set(present)
        rows.extend(_row(run.number, path, *system[path]) for path in made)
        present.extend(made)
        con.execute("INSERT INTO present SELECT ?, unnest(?::VARCHAR[])", [run.number, present])
        if len(rows) >= _BATCH:
            _insert(con, rows)
            rows.clear()
    _insert(con, rows)
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


def _row(number: int, path: str, kind: AttributeType, value: Any) -> tuple[Any, ...]:
    cells = dict.fromkeys(_SCHEMA.names)
    cells.update(run=number, path=path, type=kind.value, pending=0)
    column = _COLUMN.get(kind, "detail")
    cells[column] = sorted(value) if column == "members" and value is not None else value
    return tuple(cells.values())


def _stored_row(connection: sqlite3.Connection, number: int, item: sqlite3.Row) -> tuple[Any, ...]:
    kind = AttributeType(item["type"])
    if kind not in SERIES_TYPES:
        value = item["value"] if kind not in _COLUMN else decode(kind, item["value"])
        return _row(number, item["path"], kind, value)
    query = _FIRST_STEP.get(kind, _FIRST_OBJECT)
    first = connection.execute(query, {"attribute": item["id"]}).fetchone()[0]
    cells = dict.fromkeys(_SCHEMA.names)
    cells.update(run=number, path=item["path"], type=kind.value, pending=everything(kind))
    cells.update(first_step=first, last_step=item["last_step"])
    return tuple(cells.values())


def _insert(con: duckdb.DuckDBPyConnection, rows: list[tuple[Any, ...]]) -> None:
    if not rows:
        return
    columns = zip(*rows, strict=True)
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], _SCHEMA)
    con.register("stored", table)
    con.execute("INSERT INTO incoming BY NAME SELECT * FROM stored")
    con.unregister("stored")
