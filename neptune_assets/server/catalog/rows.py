"""Rows on their way into the catalog: numbered runs, attributes by path and type, in one transaction with the rest.

``incoming`` is a table of a connection: the catalog's columns with ``path`` and ``type`` in place of a name's number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import duckdb
import pyarrow as pa

from neptune_assets.server.catalog.runs import Run

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
