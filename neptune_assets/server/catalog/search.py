"""Runs that a query matches, sorted and cut into pages, straight from the catalog."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import duckdb

from neptune_assets.schema import AttributeType
from neptune_assets.server.catalog.database import release_memory
from neptune_assets.server.catalog.filling import fill
from neptune_assets.server.catalog.pending import AGGREGATES, LAST, VARIANCE
from neptune_assets.server.catalog.runs import Run
from neptune_assets.server.nql import (
    Named,
    Node,
    Operand,
    QueryError,
    column_of,
    compile_query,
    operands,
    paths_of,
    types_of,
)

if TYPE_CHECKING:
    from neptune_assets.server.catalog.catalog import Catalog
    from neptune_assets.server.series.reader import SeriesReader

_at_once: Final = threading.BoundedSemaphore(4)
"""Searches that are planned at the same time: what that takes is beyond DuckDB's memory limit."""
_LARGE: Final = 100
_NUMBERS: Final = frozenset({"number", "whole"})

YOUNGEST: Final = Operand("sys/creation_time", "datetime")
"""What clients sort by unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Search:
    """What is asked: of which projects, which runs, in which order, from where on.

    ``heads`` takes only the heads of experiments. Trashed runs are found only by a query that names sys/trashed, or
    with ``trash``.
    """

    projects: Collection[str]
    query: Node | None = None
    scope: str = "runs"
    heads: bool = False
    sort: Operand = YOUNGEST
    descending: bool = True
    limit: int = 10_000
    offset: int = 0
    trash: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A page of runs, and how many the query matches in all."""

    runs: list[Run]
    total: int


def search(catalog: Catalog, reader: SeriesReader, asked: Search) -> Found:
    """Answer a search; projects must be up to date. Raises QueryError for what cannot be asked."""
    paths = paths_of(asked.query)
    named = names_of(catalog, {*paths, asked.sort.path})
    wanted = [asked.sort, *(operands(asked.query) if asked.query is not None else ())]
    _complete(catalog, reader, asked, named, wanted)
    condition = compile_query(asked.query, named, datetime.now(UTC))
    pivot = dict(condition.pivot)
    order = _order(asked, named, pivot, condition.names)
    joined = ""
    parameters: list[Any] = []
    if pivot:
        columns = "".join(f", {sql} AS {name}" for name, sql in pivot.items())
        joined = (
            f"LEFT JOIN (SELECT run{columns} FROM attributes "  # noqa: S608
            "WHERE name IN (SELECT unnest(?::INTEGER[])) GROUP BY run) USING (run)"
        )
        parameters.append(sorted(condition.names))
    where = "project IN (SELECT unnest(?::VARCHAR[])) AND scope = ?"
    parameters += [list(asked.projects), asked.scope]
    if asked.heads:
        where += " AND head"
    if not asked.trash and "sys/trashed" not in paths:
        where += " AND NOT trashed"
    matching = f"FROM runs {joined} WHERE {where} AND {condition.sql}"
    parameters += condition.parameters
    try:
        with _at_once, catalog.reading() as con:
            total = con.execute(f"SELECT count(*) {matching}", parameters).fetchone()
            rows = con.execute(
                f"SELECT project, run {matching} ORDER BY {order} LIMIT ? OFFSET ?",
                [*parameters, asked.limit, asked.offset],
            ).fetchall()
    except duckdb.InvalidInputException as error:
        raise QueryError(f"A regular expression cannot be used: {error}", hint="It must be one of RE2.") from error
    if len(condition.parameters) + len(pivot) > _LARGE:
        release_memory()
    runs = [catalog.runs(project, asked.scope).by_number(number) for project, number in rows]
    return Found([run for run in runs if run is not None], int(total[0]) if total else 0)


def names_of(catalog: Catalog, paths: Collection[str]) -> Named:
    """Return what the catalog calls these paths, by type."""
    found: dict[str, dict[AttributeType, int]] = {}
    with catalog.reading() as con:
        rows = con.execute(
            "SELECT path, type, name FROM names WHERE path IN (SELECT unnest(?::VARCHAR[]))", [sorted(paths)]
        ).fetchall()
    for path, kind, name in rows:
        found.setdefault(path, {})[AttributeType(kind)] = name
    return found


def _complete(catalog: Catalog, reader: SeriesReader, asked: Search, named: Named, wanted: Collection[Operand]) -> None:
    """Have everything that the query compares, and that runs are sorted by, in the catalog."""
    plain: set[int] = set()
    variances: set[int] = set()
    for operand in wanted:
        for kind in types_of(operand.type):
            name = named.get(operand.path, {}).get(kind)
            if name is not None:
                (variances if operand.aggregate == "variance" else plain).add(name)
    for project in asked.projects:
        if plain:
            fill(catalog, reader, project, plain)
        if variances:
            fill(catalog, reader, project, variances, what=AGGREGATES | LAST | VARIANCE)


def _order(asked: Search, named: Named, pivot: dict[str, str], names: set[int]) -> str:
    """Return ORDER BY; runs without the attribute come last, whatever the direction."""
    direction = "DESC" if asked.descending else "ASC"
    columns: dict[str, set[int]] = {}
    for kind, name in sorted(named.get(asked.sort.path, {}).items()):
        if kind in types_of(asked.sort.type) and (column := column_of(asked.sort, kind)) is not None:
            columns.setdefault(column, set()).add(name)
            names.add(name)
    keys = []
    numbers = []
    for place, (column, ids) in enumerate(columns.items()):
        listed = ", ".join(str(int(name)) for name in sorted(ids))
        pivot[f"s{place}"] = f"any_value({column}) FILTER (name IN ({listed}))"
        if column in _NUMBERS:
            numbers.append(f"s{place}::DOUBLE" if len(columns) > 1 else f"s{place}")
        else:
            keys.append(f"s{place} {direction} NULLS LAST")
    if numbers:
        # Integers and floats of one path are one order.
        keys.insert(0, f"coalesce({', '.join(numbers)}) {direction} NULLS LAST")
    return ", ".join([*keys, f"run {direction}"])
