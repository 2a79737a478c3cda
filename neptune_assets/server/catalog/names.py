"""Which attributes are meant: by exact paths, or by regular expressions and types; and the list of those there are."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import duckdb

from neptune_assets.schema import AttributeType
from neptune_assets.server.nql import QueryError

if TYPE_CHECKING:
    from neptune_assets.server.catalog.catalog import Catalog

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

    ``after`` is the last pair of the page before. Raises QueryError for what is no regular expression.
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
