"""SQL text from values that come from outside: literals, identifiers, and paths for DuckDB's Parquet reader.

Table functions and views cannot bind parameters, so whatever stands in their text is quoted here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_GLOB = re.compile(r"[\[*?]")


def literal(value: str) -> str:
    """Return ``value`` as an SQL string literal. Raises ValueError for NUL, which SQL text cannot hold."""
    if "\x00" in value:
        raise ValueError(f"{value!r} holds a NUL character")
    return "'" + value.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return ``name`` as a quoted SQL identifier. Raises ValueError for NUL and for the empty name."""
    if not name or "\x00" in name:
        raise ValueError(f"{name!r} cannot name anything in SQL")
    return '"' + name.replace('"', '""') + '"'


def plain_path(path: str) -> str:
    """Return ``path`` so that DuckDB's glob matches it and nothing else: ``[``, ``*`` and ``?`` lose their meaning."""
    return _GLOB.sub(lambda match: f"[{match.group()}]", path)


def literals(values: Iterable[str]) -> str:
    """Return an SQL list of string literals."""
    return "[" + ", ".join(literal(value) for value in values) + "]"


def parquet(patterns: Iterable[str]) -> str:
    """Return a ``read_parquet`` call over glob patterns (pass plain paths through :func:`plain_path` first)."""
    return parquet_of(literal(pattern) for pattern in patterns)


def parquet_of(
    patterns: Iterable[str], *, union_by_name: bool = False, filenames: bool = False, rows: bool = False
) -> str:
    """Return a ``read_parquet`` call over glob patterns that are given as SQL, which must be constant.

    Hive partitioning is off: a directory named ``a=b`` above the lake is no column. ``union_by_name`` fills columns
    that a file lacks with null. ``filenames`` adds ``filename``, ``rows`` adds ``file_row_number``.
    """
    options = "hive_partitioning = false"
    if union_by_name:
        options += ", union_by_name = true"
    if filenames:
        options += ", filename = true"
    if rows:
        options += ", file_row_number = true"
    return f"read_parquet([{', '.join(patterns)}], {options})"
