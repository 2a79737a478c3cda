"""Answers from the catalog: names, values and runs that a query matches, sorted and cut into pages.

Aggregates that a query needs and the catalog does not have yet are computed from the points first.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.errors import LakeDamagedError
from neptune_assets.lake.statistics import Moments
from neptune_assets.schema import AttributeType
from neptune_assets.server.catalog.tables import AGGREGATES, LAST, VARIANCE, Run, release_memory
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
from neptune_assets.server.series import FloatPoints, Window
from neptune_assets.server.store.database import DamagedError

if TYPE_CHECKING:
    from neptune_assets.server.catalog.catalog import Catalog
    from neptune_assets.server.series import SeriesReader

_ESCAPED: Final = re.compile(r"\\([^A-Za-z0-9])|([^\\.^$*+?{}\[\]|()\n])")


@dataclass(frozen=True, slots=True)
class Alternative:
    """All of ``must`` match somewhere in the path, and none of ``must_not``."""

    must: Sequence[str] = ()
    must_not: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class NameFilter:
    """Attributes by path and type; what is None does not restrict. No alternatives match nothing."""

    paths: Collection[str] | None = None
    alternatives: Sequence[Alternative] | None = None
    types: Collection[AttributeType] | None = None

    def sql(self) -> tuple[str, list[Any]]:
        """Return a condition on the table ``names`` and its values."""
        parts = ["true"]
        values: list[Any] = []
        if self.paths is not None:
            parts.append("path IN (SELECT unnest(?::VARCHAR[]))")
            values.append(list(self.paths))
        if self.types is not None:
            parts.append("type IN (SELECT unnest(?::VARCHAR[]))")
            values.append([str(kind) for kind in self.types])
        if self.alternatives is not None:
            choices = []
            for alternative in self.alternatives:
                tests = ["true"]
                for regex in alternative.must:
                    exact = exact_paths(regex)
                    tests.append(
                        "regexp_matches(path, ?)" if exact is None else "path IN (SELECT unnest(?::VARCHAR[]))"
                    )
                    values.append(regex if exact is None else exact)
                for regex in alternative.must_not:
                    tests.append("NOT regexp_matches(path, ?)")
                    values.append(regex)
                choices.append(f"({' AND '.join(tests)})")
            parts.append(f"({' OR '.join(choices)})" if choices else "false")
        return " AND ".join(parts), values


def exact_paths(regex: str) -> list[str] | None:
    """Return the texts of an expression that is nothing but a list of them, ``^(a|b)$`` or ``^a$``; else None.

    Clients ask so for exact names, with everything special escaped. Looked up, not matched: lists may be long.
    """
    if not (regex.startswith("^") and regex.endswith("$") and not regex.endswith("\\$")):
        return None
    inner = regex[1:-1]
    if inner.startswith("(") and inner.endswith(")") and not inner.endswith("\\)"):
        inner = inner[1:-1]
    elif "|" in re.sub(r"\\.", "", inner, flags=re.DOTALL):
        return None
    texts, text, place = [], "", 0
    while place < len(inner):
        if inner[place] == "|":
            texts.append(text)
            text = ""
            place += 1
            continue
        match = _ESCAPED.match(inner, place)
        if match is None:
            return None
        text += match[1] if match[1] is not None else match[2]
        place = match.end()
    return [*texts, text]


def definitions(
    catalog: Catalog,
    projects: Collection[str],
    wanted: NameFilter,
    *,
    runs: Collection[int] | None = None,
    scope: str = "runs",
    after: tuple[str, str] | None = None,
    limit: int | None = None,
) -> list[tuple[str, AttributeType]]:
    """Return distinct (path, type), sorted, of these projects, or of some of their runs only.

    ``after`` is the last pair of the page before. Raises QueryError for an invalid regular expression.
    """
    condition, values = wanted.sql()
    if runs is None:
        for project in projects:
            _gather(catalog, project)
        source = "SELECT name FROM definitions WHERE project IN (SELECT unnest(?::VARCHAR[])) AND scope = ?"
        parameters: list[Any] = [list(projects), scope]
    else:
        source = "SELECT name FROM attributes WHERE run IN (SELECT unnest(?::INTEGER[]))"
        parameters = [list(runs)]
    sql = f"SELECT path, type FROM names SEMI JOIN ({source}) USING (name) WHERE {condition}"  # noqa: S608
    parameters += values
    if after is not None:
        sql += " AND (path, type) > (?, ?)"
        parameters += after
    sql += " ORDER BY path, type"
    if limit is not None:
        sql += " LIMIT ?"
        parameters.append(limit)
    try:
        with catalog.reading() as con:
            return [(path, AttributeType(kind)) for path, kind in con.execute(sql, parameters).fetchall()]
    except duckdb.InvalidInputException as error:
        raise QueryError(f"A regular expression cannot be used: {error}", hint="It must be one of RE2.") from error


def _gather(catalog: Catalog, project: str) -> None:
    """Have the names of a project's runs in the table ``definitions``."""
    if catalog.gathered(project):
        return
    with catalog.writing() as con:
        version = catalog.version(project)
        con.execute("DELETE FROM definitions WHERE project = ?", [project])
        con.execute(
            "INSERT INTO definitions SELECT DISTINCT project, scope, name FROM runs JOIN attributes USING (run) "
            "WHERE project = ?",
            [project],
        )
    catalog.gathered(project, version)


_log = logging.getLogger(__name__)
_SCHEMA: Final = pa.schema(
    [
        ("run", pa.int32()),
        ("name", pa.int32()),
        ("number", pa.float64()),
        ("text", pa.string()),
        ("least", pa.float64()),
        ("greatest", pa.float64()),
        ("mean", pa.float64()),
        ("variance", pa.float64()),
        ("points", pa.int64()),
        ("last_step", pa.int64()),
        ("detail", pa.string()),
        ("previewed", pa.bool_()),
    ]
)
_BATCH: Final = 5_000
_ROOM: Final = 2.0**-64


def fill(
    catalog: Catalog,
    reader: SeriesReader,
    project: str,
    names: Collection[int] | None,
    runs: Collection[int] | None = None,
    what: int = AGGREGATES | LAST,
) -> None:
    """Complete these attributes of a project, all if None, of these runs, all if None; ``what`` are pending bits."""
    series = [row[:2] for row in _pending(catalog, project, names, runs, what)]
    for batch in (series[start : start + _BATCH] for start in range(0, len(series), _BATCH)):
        # What is read from the points later is saved later, or a figure would go back; who had to wait looks again.
        with catalog.claims.of(batch):
            version = catalog.version(project)
            found = _pending(catalog, project, {name for _, name in batch}, {number for number, _ in batch}, what)
            claimed = set(batch)
            rows: list[dict[str, Any]] = []
            for number, name, path, kind, scope in found:
                run = catalog.runs(project, scope).by_number(number)
                if run is None or (number, name) not in claimed:
                    continue
                try:
                    measured = _measured(reader, run, path, AttributeType(kind))
                except (DamagedError, LakeDamagedError) as error:
                    # No figures rather than wrong ones; tables of the other series go on.
                    _log.error("Series %r of run %r of %s has no figures: %s", path, run.run_id, project, error)
                    measured = {}
                rows.append({"run": number, "name": name, **measured})
            if rows:
                _save(catalog, project, version, rows)


def _pending(
    catalog: Catalog, project: str, names: Collection[int] | None, runs: Collection[int] | None, what: int
) -> list[tuple[int, int, str, str, str]]:
    """Return run, name, path, type and scope of what is still to be read."""
    sql = (
        "SELECT a.run, a.name, n.path, n.type, r.scope FROM attributes a "
        "JOIN names n USING (name) JOIN runs r USING (run) WHERE r.project = ? AND (a.pending & ?) <> 0"
    )
    parameters: list[Any] = [project, what]
    for column, wanted in (("a.name", names), ("a.run", runs)):
        if wanted is not None:
            sql += f" AND {column} IN (SELECT unnest(?::INTEGER[]))"
            parameters.append(list(wanted))
    with catalog.reading() as con:
        return con.execute(f"{sql} ORDER BY a.run, n.path", parameters).fetchall()


def _measured(reader: SeriesReader, run: Run, path: str, kind: AttributeType) -> dict[str, Any]:
    if kind is AttributeType.FLOAT_SERIES:
        return aggregates(lambda: reader.float_pieces(run, path, previews=True))
    last = reader.objects(run, path, kind, Window(limit=1))
    if not last:
        return {}
    value = last[0].value
    if kind is AttributeType.STRING_SERIES:
        return {"last_step": last[0].step, "text": value}
    return {"last_step": last[0].step, "detail": json.dumps(value)}


def aggregates(pieces: Callable[[], Iterable[FloatPoints]]) -> dict[str, Any]:
    """Return a float series in short: least, greatest, mean and variance are of finite values.

    ``pieces`` gives the points in ascending order; it is called again for values whose squares have no room.
    """
    found: dict[str, Any] = {"points": 0, "previewed": False}
    bounds: tuple[float, float] | None = None
    moments = Moments()
    for piece in pieces():
        found["points"] += len(piece)
        found["number"], found["last_step"] = float(piece.values[-1]), int(piece.steps[-1])
        found["previewed"] |= piece.previews is not None
        finite = piece.values[np.isfinite(piece.values)]
        if len(finite):
            least, greatest = float(finite.min()), float(finite.max())
            bounds = (least, greatest) if bounds is None else (min(least, bounds[0]), max(greatest, bounds[1]))
            moments.add(finite, _mean(finite))
    if not found["points"]:
        return {"points": 0}
    if bounds is None:
        return found
    found["least"], found["greatest"] = bounds
    mean, variance = moments.mean, moments.variance(*bounds)
    if variance is None:
        mean, variance = _scaled(pieces(), *bounds)
    found["mean"], found["variance"] = min(bounds[1], max(bounds[0], mean)), variance
    return found


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Return the mean of finite values; the factor is exact and keeps the sum of the largest doubles finite."""
    return float((values * _ROOM).sum()) / len(values) / _ROOM


def _scaled(pieces: Iterable[FloatPoints], least: float, greatest: float) -> tuple[float, float]:
    """Return mean and variance by way of values that are not above 1: powers of two are exact."""
    exponent = int(np.frexp(max(abs(least), abs(greatest)))[1])
    moments = Moments()
    for piece in pieces:
        finite = np.ldexp(piece.values[np.isfinite(piece.values)], -exponent)
        if len(finite):
            moments.add(finite, float(finite.mean()))
    variance = moments.variance(float(np.ldexp(least, -exponent)), float(np.ldexp(greatest, -exponent))) or 0.0
    with np.errstate(over="ignore"):
        return float(np.ldexp(moments.mean, exponent)), float(np.ldexp(variance, 2 * exponent))


def _save(catalog: Catalog, project: str, version: int, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    columns = [name for name in _SCHEMA.names if name not in {"run", "name"}]
    with catalog.writing() as con:
        con.register("measured", table)
        # What was logged since the points were read is not in these figures: it stays pending.
        con.execute(
            f"UPDATE attributes SET {', '.join(f'{name} = m.{name}' for name in columns)}, "  # noqa: S608
            "pending = CASE WHEN ? THEN 0 ELSE pending END "
            "FROM measured m WHERE attributes.run = m.run AND attributes.name = m.name",
            [catalog.version(project) == version],
        )
        con.unregister("measured")


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

    ``complete=False`` leaves out what would have to be read from points. Raises QueryError for an invalid regular
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
            _fill_values(catalog, reader, runs, pending)
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


def _fill_values(
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
    _fill_operands(catalog, reader, asked, named, wanted)
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


def _fill_operands(
    catalog: Catalog, reader: SeriesReader, asked: Search, named: Named, wanted: Collection[Operand]
) -> None:
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
