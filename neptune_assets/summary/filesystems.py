"""How DuckDB reaches Parquet parts that are not on a local disk: the lake's storage, and that of exports in place.

DuckDB knows one file system for each protocol. Where a lake and an export lie on different stores of one protocol (two
s3:// endpoints), the path decides which of them is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem

from neptune_assets.lake.in_place import storage_in_place
from neptune_assets.summary.quoting import plain_path

if TYPE_CHECKING:
    import duckdb

    from neptune_assets.lake.reader import LakeProject
    from neptune_assets.lake.storage import Storage


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
    exports = {protocol: storage_in_place(place, settings) for protocol, place in sorted(places.items()) if protocol}
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
