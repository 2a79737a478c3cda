"""Files that appear whole or not at all: summary tables and the database."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from neptune_assets import durable
from neptune_assets.errors import LakeDamagedError
from neptune_assets.lake.hashed_files import UNKNOWN, difference, replacing_hashed
from neptune_assets.lake.storage import Storage
from neptune_assets.scratch import ScratchDirectory

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an unused path beside ``path``; what was written there takes its place when the block ends well.

    Writers of the same path wait for each other, so the last to begin is the last to finish. Readers keep the old file
    as long as they have it open. What a killed writer left behind is removed by the next.
    """
    durable.make_directory(path.parent)
    with _waiting_lock(path.with_name(f".{path.name}.lock")):
        # Under the lock nobody else is writing: whatever looks like a temporary file is left over.
        prefix = f".{path.name}-"
        for name in path.parent.iterdir():
            if name.name.startswith(prefix):
                name.unlink()
        temporary = path.with_name(f"{prefix}{uuid.uuid4().hex}.tmp")
        try:
            yield temporary
            durable.put(temporary, path)
        finally:
            for name in path.parent.iterdir():
                if name.name.startswith(temporary.name):
                    name.unlink()


def write_table(
    reader: pa.RecordBatchReader, path: str, filesystem: AbstractFileSystem | None = None, scratch: str | None = None
) -> int:
    """Write a stream to one Parquet file (zstd) and return its rows; the old file stays until the new one is whole.

    ``path`` is local, or with ``filesystem`` (fsspec, not local) a path on it: the file is then written to ``scratch``
    first, because closing a half-written object would publish it. Its sha256 is noted beside it.
    """
    if filesystem is None or is_local(filesystem):
        with ExitStack() as noting, replacing(Path(path)) as temporary:
            rows = _write(reader, str(temporary))
            noting.enter_context(replacing_hashed(temporary, path))
        return rows
    with ScratchDirectory("table", scratch) as directory:
        local = directory / "table.parquet"
        rows = _write(reader, str(local))
        with replacing_hashed(local, path, filesystem):
            filesystem.put_file(str(local), path)
        return rows


def check_table(storage: Storage, path: str) -> None:
    """Raise LakeDamagedError if a table is not what was written; FileNotFoundError if there is none."""
    damage = difference(path, None if storage.local else storage.filesystem)
    if damage not in {None, UNKNOWN}:
        raise LakeDamagedError(f"The table {path} is damaged: {damage}.", hint="Materialize its asset again.")


def is_local(filesystem: Any) -> bool:
    """True if this fsspec file system is the local disk."""
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _write(reader: pa.RecordBatchReader, path: str) -> int:
    import pyarrow.parquet as pq

    rows = 0
    with pq.ParquetWriter(path, reader.schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


@contextmanager
def _waiting_lock(path: Path) -> Iterator[None]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held the lock before removed the file: another of the same name may be locked by now.
            if _same_file(descriptor, path):
                try:
                    yield
                finally:
                    path.unlink()
                return
        finally:
            os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)
