"""Find damage: sha256 of parts, files and derived files, made while they are written and compared when they are read.

Files had sha256 from the first version and targets and servers know it; processors hash it at 1.4 to 2 GB/s, a
hundredth of what decoding the same bytes takes. Derived files (statistics, tables, reports) have theirs in
``.<name>.sha256`` beside them, as coreutils' ``sha256sum --check`` reads it. Damaged runs are noted for the writer.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from neptune_assets import durable
from neptune_assets.errors import LakeDamagedError, NeptuneAssetsError
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.manifest import RunRecord
from neptune_assets.lake.storage import BLOCK, Storage
from neptune_assets.schema import Scope

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

REPAIR: Final = (
    "Restore it from a backup, run `python -m neptune_assets.verify --repair`, or materialize the project's lake asset "
    "with full_refresh while the source can still be read."
)

_REMEMBERED: Final = 100_000


class HashingSink(io.RawIOBase):
    """A new local file that hashes what is written to it, from its beginning to its end."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("xb")
        self._digest = sha256()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any, /) -> int:
        """Append bytes."""
        self._digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._file.tell()

    def flush(self) -> None:
        """Hand over to the operating system what was written."""
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def hexdigest(self) -> str:
        """Return the sha256 of all that was written."""
        return self._digest.hexdigest()


class CheckedFile(io.RawIOBase):
    """A stored file that is read once, from its beginning: its last bytes leave only if all were as recorded.

    If the file has another size or sha256, ``read`` raises what ``damaged`` makes of the difference. It cannot seek,
    because bytes that are read in another order could not be checked.
    """

    def __init__(
        self, stream: BinaryIO, size: int, sha256_hex: str, damaged: Callable[[str], NeptuneAssetsError]
    ) -> None:
        super().__init__()
        self._stream = stream
        self._size = size
        self._expected = sha256_hex
        self._damaged = damaged
        self._digest = sha256()
        self._read = 0
        self._checked = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return at most ``size`` next bytes, all that are left if it is negative or None; empty at the end."""
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(BLOCK), b""))
        if size == 0:
            return b""
        # One byte more than recorded shows that a file grew.
        data = self._stream.read(min(size, self._size - self._read + 1))
        self._read += len(data)
        self._digest.update(data)
        if self._read > self._size or (not data and self._read < self._size):
            raise self._damaged(f"it does not have the {self._size:,} bytes that were recorded")
        if self._read == self._size and not self._checked:
            if self._stream.read(1):
                raise self._damaged(f"it has more than the {self._size:,} bytes that were recorded")
            if self._digest.hexdigest() != self._expected:
                raise self._damaged(f"its sha256 is {self._digest.hexdigest()} instead of {self._expected}")
            self._checked = True
        return data

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer and return how many bytes that were."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()


class CheckedParts:
    """Parts that were compared with their sha256 while this lake was open: each once, until its file changes.

    On local disks that is seen by inode, times and size; on object stores a part is taken as read before. Its pages
    have checksums of their own, which are verified at every reading.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._seen: dict[tuple[str, str], tuple[int, ...]] = {}

    def known(self, path: str, sha256_hex: str) -> bool:
        """True if a part was compared before and is the same file still. Raises FileNotFoundError."""
        return self._seen.get((path, sha256_hex)) == self._mark(path)

    def difference(self, path: str, size: int, sha256_hex: str, content: bytes | None = None) -> str | None:
        """Read a part's bytes unless that was done before; return what differs, or None. Raises FileNotFoundError.

        ``content`` is what was fetched of it already.
        """
        mark = self._mark(path)
        if content is None and self.known(path, sha256_hex):
            return None
        with self._storage.open(path) if content is None else io.BytesIO(content) as stream:
            found_size, found = hash_stream(stream)
        if found_size != size:
            return f"it has {found_size:,} bytes instead of {size:,}"
        if found != sha256_hex:
            return f"its sha256 is {found} instead of {sha256_hex}"
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen[path, sha256_hex] = mark
        return None

    def _mark(self, path: str) -> tuple[int, ...]:
        if not self._storage.local:
            return ()
        found = os.stat(path)  # noqa: PTH116
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def hash_stream(stream: BinaryIO, progress: Callable[[int], None] | None = None) -> tuple[int, str]:
    """Return bytes and sha256 of a stream, in memory of one block; ``progress`` is called with bytes read."""
    digest, size = sha256(), 0
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    while count := stream.readinto(view):  # type: ignore[attr-defined]
        digest.update(view[:count])
        size += count
        if progress is not None:
            progress(count)
    return size, digest.hexdigest()


NOTE: Final = ".sha256"


@contextmanager
def replacing_hashed(local: Path, path: str, filesystem: AbstractFileSystem | None = None) -> Iterator[None]:
    """Note the sha256 of ``local`` beside ``path``, where the block puts it; ``filesystem`` None is the local disk."""
    with local.open("rb") as stream:
        _, new = hash_stream(stream)
    old = [digest for digest in _noted(path, filesystem) or [] if digest != new]
    _write(path, filesystem, [*old[-1:], new])
    yield
    _write(path, filesystem, [new])


UNKNOWN: Final = "it was written before derived files were hashed"


def difference(path: str, filesystem: AbstractFileSystem | None = None) -> str | None:
    """Return how a file is not what was noted, :data:`UNKNOWN` if nothing was, and None if it is.

    Raises FileNotFoundError if there is no such file.
    """
    with Path(path).open("rb") if filesystem is None else filesystem.open(path, "rb") as stream:
        _, found = hash_stream(stream)
    noted = _noted(path, filesystem)
    if noted is None:
        return UNKNOWN
    if found in noted:
        return None
    return f"its sha256 is {found} instead of {' or '.join(noted) or 'what ' + _note(path) + ' held'}"


def _note(path: str) -> str:
    """Return where the hash of a file is: in a hidden file, so that who reads a directory of tables passes over it."""
    directory, slash, name = path.rpartition("/")
    return f"{directory}{slash}.{name}{NOTE}"


def _noted(path: str, filesystem: AbstractFileSystem | None) -> list[str] | None:
    try:
        raw = Path(_note(path)).read_bytes() if filesystem is None else filesystem.cat_file(_note(path))
    except FileNotFoundError:
        return None
    return [line.split(b" ", 1)[0].decode("ascii", "replace") for line in raw.splitlines() if line]


def _write(path: str, filesystem: AbstractFileSystem | None, digests: list[str]) -> None:
    name = path.rpartition("/")[2]
    data = "".join(f"{digest}  {name}\n" for digest in digests).encode()
    if filesystem is None:
        durable.write(_note(path), data)
    else:
        filesystem.pipe_file(_note(path), data)


_NAME: Final = "damaged.json"


class DamagedRuns:
    """The damaged runs of one project, by id with what is wrong, in ``.manifest/damaged.json``; no file if none is.

    Two that note at once can lose one note: what is damaged is found again by the next check.
    """

    def __init__(self, storage: Storage, layout: Layout, project_id: str, scope: Scope) -> None:
        self._storage = storage
        self._path = f"{layout.manifest(project_id, scope)}/{_NAME}"

    def read(self) -> dict[str, str]:
        """Return what is noted. Raises LakeDamagedError if the notes cannot be read."""
        try:
            found = json.loads(self._storage.read(self._path))
            return {str(run_id): str(reason) for run_id, reason in found.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            raise LakeDamagedError(
                f"The notes of damaged runs in {self._storage.url(self._path)} cannot be read: {error}.",
                hint="Remove that file and run `python -m neptune_assets.verify`, which makes it again.",
            ) from error

    def add(self, found: Mapping[str, str]) -> None:
        """Note runs that were found damaged; the next materialization reads them anew."""
        if found:
            self._write({**self.read(), **found})

    def remove(self, run_ids: Collection[str]) -> None:
        """Forget runs that were written anew, are whole after all, or are gone."""
        known = self.read()
        left = {run_id: reason for run_id, reason in known.items() if run_id not in run_ids}
        if left != known:
            self._write(left)

    def _write(self, runs: dict[str, str]) -> None:
        if runs:
            self._storage.put(self._path, json.dumps(runs, sort_keys=True).encode("ascii"))
        else:
            self._storage.delete(self._path)


class Holdings:
    """What the lake holds for the runs of one project, by two listings: sizes of parts and of files.

    What listings cannot show, bytes of the right length and parts of another commit, is found by the checks ``schema``
    and ``intact``, which note the run as damaged. Opening every part at each materialization would cost large lakes on
    object stores more than all the rest of one that finds nothing new.
    """

    def __init__(
        self, parts: Mapping[str, int], files: Mapping[str, int], files_root: str, damaged: Collection[str]
    ) -> None:
        self._parts = parts
        self._files = files
        self._root = files_root
        self._damaged = damaged

    def holds(self, record: RunRecord) -> bool:
        """True if the lake has the run's parts and files in the sizes recorded, and it is not known as damaged."""
        return (
            record.run_id not in self._damaged
            and all(self._parts.get(part.name) == part.bytes for part in record.parts)
            and all(self._files.get(f"{self._root}/{item.path}") == item.size for item in record.files)
        )
