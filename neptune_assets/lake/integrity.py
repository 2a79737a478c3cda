"""Find damage: the sha256 of every part and file, made while its bytes are written and compared while they are read.

One hash everywhere. Files had sha256 from the first version and targets and servers know it; processors hash it at
1.4 to 2 GB/s, a hundredth of what decoding the same bytes takes, so a faster hash would win nothing that can be
measured. Unlike a checksum it also tells apart contents that somebody made to look alike.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final

from neptune_assets.errors import NeptuneAssetsError
from neptune_assets.lake.storage import BLOCK, Storage

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

    On local disks that is told by inode, times and size; on object stores a part is taken as read before. Its pages
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
    """Return bytes and sha256 of what a stream gives, in memory of one block; ``progress`` is told bytes read."""
    digest, size = sha256(), 0
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    while count := stream.readinto(view):  # type: ignore[attr-defined]
        digest.update(view[:count])
        size += count
        if progress is not None:
            progress(count)
    return size, digest.hexdigest()
