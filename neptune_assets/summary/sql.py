"""SQL text from values of outside, and how DuckDB reaches Parquet that is not on a local disk.

Table functions and views cannot bind parameters, so whatever is part of their text is quoted here and nowhere else.
DuckDB knows one file system for each protocol. If a lake and an export are on different stores of one protocol (two
s3:// endpoints), the path decides which of them is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem

from neptune_assets.lake.reader import external_storage

if TYPE_CHECKING:
    import duckdb

    from neptune_assets.lake.reader import LakeProject
    from neptune_assets.lake.storage import Storage

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

    Hive partitioning is off: a directory named ``a=b`` above the lake is not a column. ``union_by_name`` fills columns
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


def register_filesystems(con: duckdb.DuckDBPyConnection, project: LakeProject) -> None:
    """Let a connection read the parts of a project wherever they lie; it may be called again for other projects.

    Raises SettingsError if a secret that the storage needs is not set.
    """
    settings, storage = project.lake.settings, project.lake.storage
    own = _protocol(storage.url(storage.root))
    places = {
        _protocol(part.name): part.name
        for record in project.records().values()
        if record.in_place is not None
        for part in record.parts
    }
    exports = {protocol: external_storage(place, settings) for protocol, place in sorted(places.items()) if protocol}
    shared = exports.pop(own, None)
    if own:
        lake = storage.filesystem
        _register(con, own, lake if shared is None else TwoStores(own, storage, shared.filesystem))
    for protocol, export in exports.items():
        if protocol != "file":
            _register(con, protocol, export.filesystem)


def _register(con: duckdb.DuckDBPyConnection, protocol: str, filesystem: AbstractFileSystem) -> None:
    if con.filesystem_is_registered(protocol):
        if not isinstance(filesystem, TwoStores):
            return
        con.unregister_filesystem(protocol)
    con.register_filesystem(filesystem)


def _protocol(url: str) -> str:
    return url.partition("://")[0] if "://" in url else ""


class TwoStores(AbstractFileSystem):  # type: ignore[misc]
    """Two stores behind one protocol: what lies below the lake's root is the lake's, all else the export's."""

    cachable = False

    def __init__(self, protocol: str, lake: Storage, export: AbstractFileSystem) -> None:
        super().__init__()
        self.protocol = protocol
        self._lake = lake.filesystem
        self._export = export
        # DuckDB hands patterns to glob() and paths to everything else.
        self._roots = (f"{lake.root}/", f"{plain_path(lake.root)}/")

    def _of(self, path: str) -> AbstractFileSystem:
        bare = path.removeprefix(f"{self.protocol}://")
        return self._lake if bare.startswith(self._roots) else self._export

    def glob(self, path: str, **options: Any) -> Any:
        """Return the files that match a pattern."""
        return self._of(path).glob(path, **options)

    def info(self, path: str, **options: Any) -> Any:
        """Return what the store says of a file."""
        return self._of(path).info(path, **options)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        """List a directory."""
        return self._of(path).ls(path, detail=detail, **options)

    def exists(self, path: str, **options: Any) -> bool:
        """True if the store has the file."""
        return bool(self._of(path).exists(path, **options))

    def modified(self, path: str) -> Any:
        """Return when a file was last changed."""
        return self._of(path).modified(path)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """Open a file for reading."""
        return self._of(path).open(path, mode, **options)
