"""Files by neptune-query's public function: downloaded to a temporary directory, checked, read, removed."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from neptune_assets.errors import FileGoneError
from neptune_assets.sources.neptune3.model import FileReference, RefusedError

_DOWNLOADS: Final = 3
"""Times a file that comes shorter than it should be is asked for."""


def open_public_download(
    call: Callable[[int, Callable[[], Any]], Any],
    project: str,
    run_id: str,
    path: str,
    step: float | None,
    reference: FileReference,
) -> BinaryIO:
    """Download a file and open it; closing it removes it. ``call`` calls a public function, as so many requests.

    Raises FileGoneError if the server does not have it or it ends early.
    """
    from neptune_query import runs as neptune_runs
    from neptune_query.types import File

    file = File(
        project_identifier=project,
        experiment_name=None,
        run_id=run_id,
        attribute_path=path,
        step=step,
        path=reference.key,
        size_bytes=reference.size,
        mime_type=reference.mime_type,
    )
    what = "cannot be fetched"
    for _ in range(_DOWNLOADS):
        place = tempfile.TemporaryDirectory(prefix="neptune_assets-download-")
        try:
            frame = call(2, lambda at=place.name: neptune_runs.download_files(files=[file], destination=at))  # type: ignore[misc]
            found = [value for value in frame.to_numpy().ravel().tolist() if isinstance(value, str)]
            size = Path(found[0]).stat().st_size if found else -1
            if size == reference.size:
                return cast(BinaryIO, io.BufferedReader(_Temporary(found[0], place)))
        except (RefusedError, OSError) as error:
            place.cleanup()
            raise _gone(project, reference, f"cannot be fetched: {error}") from error
        except BaseException:
            place.cleanup()
            raise
        place.cleanup()
        if not found:
            what = "is not on the server (404)"
            break
        what = f"ends after {size:,} of {reference.size:,} bytes"
    raise _gone(project, reference, what)


class _Temporary(io.FileIO):
    """A file in a temporary directory of its own, which goes when the file is closed."""

    def __init__(self, path: str, directory: tempfile.TemporaryDirectory[str]) -> None:
        super().__init__(path, "rb")
        self._directory = directory

    def close(self) -> None:
        super().close()
        self._directory.cleanup()


def _gone(project: str, reference: FileReference, what: str) -> FileGoneError:
    return FileGoneError(
        f"The file {reference.key!r} of {project} {what}.",
        hint="The run stays partial; materialize again once the server has the file.",
    )
