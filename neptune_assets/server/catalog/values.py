"""Values of attributes, run by run and path by path, a page at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import duckdb
import pyarrow as pa

from neptune_assets.schema import AttributeType
from neptune_assets.server.catalog.filling import fill
from neptune_assets.server.catalog.names import NameFilter
from neptune_assets.server.catalog.pending import AGGREGATES, LAST, VARIANCE
from neptune_assets.server.catalog.runs import Run
from neptune_assets.server.nql import QueryError

if TYPE_CHECKING:
    from neptune_assets.server.catalog.catalog import Catalog
    from neptune_assets.server.series.reader import SeriesReader

_COLUMNS: Final = (
    "number, whole, text, flag, moment, members, least, greatest, mean, variance, points, last_step, detail, previewed"
)


@dataclass(frozen=True, slots=True)
class Value:
    """One attribute of a run. What is set depends on the type, see ``tables.sql``; ``number`` is the last one."""

    run: Run
    path: str
    type: AttributeType
    number: float | None
    whole: int | None
    text: str | None
    flag: bool | None
    moment: int | None
    members: list[str] | None
    least: float | None
    greatest: float | None
    mean: float | None
    variance: float | None
    points: int | None
    last_step: int | None
    detail: str | None
    previewed: bool | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ended: the place of the run among those asked for, path and type."""

    run: int
    path: str
    type: str


def values(
    catalog: Catalog,
    reader: SeriesReader,
    runs: Sequence[Run],
    wanted: NameFilter,
    *,
    after: Place | None = None,
    limit: int | None = None,
    complete: bool = True,
) -> tuple[list[Value], Place | None]:
    """Return values ordered by run (as given), path and type, and where the page ended if more may follow.

    ``complete=False`` leaves out what would have to be read from points. Raises QueryError for what is no regular
    expression.
    """
    condition, parameters = wanted.sql()
    source = (
        "FROM (SELECT unnest(?::INTEGER[]) AS run, unnest(range(?)) AS place) asked JOIN attributes a USING (run) "
        f"JOIN names n USING (name) WHERE {condition}"
    )
    parameters = [[run.number for run in runs], len(runs), *parameters]
    if after is not None:
        source += " AND (place > ? OR (place = ? AND (path, type) > (?, ?)))"
        parameters += [after.run, after.run, after.path, after.type]
    order = "ORDER BY place, path, type"
    if limit is not None:
        order += " LIMIT ?"
        parameters.append(limit)
    try:
        with catalog.reading() as con:
            pending = con.execute(
                f"SELECT DISTINCT run, name FROM (SELECT run, name, pending {source} {order}) "  # noqa: S608
                "WHERE (pending & ?) <> 0",
                [*parameters, AGGREGATES | LAST | VARIANCE if complete else 0],
            ).fetchall()
        if pending:
            _complete(catalog, reader, runs, pending)
        with catalog.reading() as con:
            rows = con.execute(f"SELECT place, path, type, {_COLUMNS} {source} {order}", parameters).fetchall()
    except duckdb.InvalidInputException as error:
        raise QueryError(f"A regular expression cannot be used: {error}", hint="It must be one of RE2.") from error
    found = [Value(runs[place], path, AttributeType(kind), *rest) for place, path, kind, *rest in rows]
    more = limit is not None and len(rows) == limit and bool(rows)
    return found, Place(*rows[-1][:3]) if more else None


def ends(catalog: Catalog, series: Collection[tuple[int, str]]) -> dict[tuple[int, str], tuple[int, int]]:
    """Return the first and the last micro-step of float series, given by run's number and path, as far as known."""
    asked = pa.table(
        {
            "run": pa.array([run for run, _ in series], pa.int32()),
            "path": pa.array([path for _, path in series], pa.string()),
        }
    )
    with catalog.reading() as con:
        con.register("asked", asked)
        rows = con.execute(
            "SELECT run, path, first_step, last_step FROM attributes JOIN names n USING (name) "
            "JOIN asked USING (run, path) WHERE n.type = ? AND first_step IS NOT NULL AND last_step IS NOT NULL",
            [AttributeType.FLOAT_SERIES.value],
        ).fetchall()
    return {(run, path): (first, last) for run, path, first, last in rows}


def _complete(
    catalog: Catalog, reader: SeriesReader, runs: Sequence[Run], pending: Collection[tuple[int, int]]
) -> None:
    of_project: dict[str, tuple[set[int], set[int]]] = {}
    projects = {run.number: run.project for run in runs}
    for run, name in pending:
        names, numbers = of_project.setdefault(projects[run], (set(), set()))
        names.add(name)
        numbers.add(run)
    for project, (names, numbers) in of_project.items():
        fill(catalog, reader, project, names, numbers, AGGREGATES | LAST | VARIANCE)
