"""What is said when a lake's storage fails: which place, how much space is left, and what to do next."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from neptune_assets.errors import LakeError
from neptune_assets.lake.storage import Storage

DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers that say that a disk, a quota or a file is full."""


@contextmanager
def storage_errors(storage: Storage, doing: str) -> Iterator[None]:
    """Turn an OSError, or a store that does not answer, while ``doing`` something into a LakeError with a next action.

    The message names the path and, on local disks, the free space.
    """
    try:
        yield
    except OSError as error:
        raise _lake_error(storage, doing, error) from error
    except Exception as error:
        if not type(error).__module__.startswith(_CLIENTS):
            raise
        raise _lake_error(storage, doing, error) from error


_CLIENTS: Final = ("botocore.", "aiobotocore.", "aiohttp.", "gcsfs.", "google.", "azure.")
"""Packages of object stores' clients, whose errors are not all OSErrors."""


def next_action(number: int | None) -> str:
    """Return what to do about an error of the operating system, by its number."""
    if number in DISK_FULL:
        return "Make room on that disk (or raise the file size limit) and try again; finished runs are kept."
    if number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return "Let this user read and write there, or set the path to a place where it may, and try again."
    return "Check that the storage can be reached, read and written, then try again."


def disk_message(error: OSError) -> str:
    """Return an error of the operating system in one sentence with its path, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}. {next_action(error.errno)}"


def _lake_error(storage: Storage, doing: str, error: Exception) -> LakeError:
    place = getattr(error, "filename", None) or storage.url(storage.root)
    number = getattr(error, "errno", None)
    space = ""
    if storage.local:
        try:
            space = f" ({(storage.free_bytes() or 0) / 1e6:,.1f} MB free)"
        except OSError as second:
            space = f" (free space unknown: {second.strerror})"
    hint = next_action(number)
    reason = getattr(error, "strerror", None) or str(error)
    result = LakeError(f"{doing} failed at {place}{space}: {reason}.", hint=hint)
    # An object store may answer the next time; a local disk does not heal by itself.
    result.transient = not storage.local and number not in {errno.EACCES, errno.EPERM}
    return result
