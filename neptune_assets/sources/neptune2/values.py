"""Values in the server's answers, checked and converted, and the references to files that rows hold.

Functions raise TypeError or ValueError for invalid input.
"""

from __future__ import annotations

import json
import re
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, cast, get_args

import numpy as np

from neptune_assets.errors import FileGoneError
from neptune_assets.sources.values import text

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_FAR: Final = re.compile(r"([+-]?\d{4,6}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d{1,3})?)?)\d*Z?", re.ASCII)
"""Times as Java writes them; years beyond 9999 have a sign."""


def milliseconds(value: Any) -> int:
    """A time as the server writes it, ISO 8601, as whole epoch milliseconds; without an offset it is UTC."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a valid time")
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        far = _FAR.fullmatch(value)
        if far is None:
            raise
        return int(np.datetime64(far[1], "ms").astype(np.int64))
    # The offset is taken away from the number: the time itself may be the first or last that there is.
    return (found.replace(tzinfo=UTC) - EPOCH) // _MILLISECOND - (found.utcoffset() or timedelta()) // _MILLISECOND


def sent(name: str) -> str:
    """A name by which the server can be asked for something; raises ValueError for what no request can hold."""
    if not name:
        raise ValueError("a name is empty")
    name.encode()
    return name


def real(value: Any) -> float:
    """A number; not-a-number and infinities may be written as text, as Java does."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{value!r:.80} is not a number")
    return float(value)


def whole(value: Any) -> int:
    """A whole number; raises TypeError for anything else, true and false included."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise TypeError(f"{value!r:.80} is not a whole number")


def texts(value: Any) -> list[str]:
    """A list of strings; raises TypeError for anything else."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.80} is not a list")
    return [text(item) for item in value]


FileKind = Literal["file", "file_set", "image", "artifact", "artifact_files"]


@dataclass(frozen=True, slots=True)
class Reference:
    """One file, file set, image or artifact, written as JSON that nothing else is mistaken for.

    ``owner`` is the server's key of the run, or of the project for artifacts; ``place`` is the image's place in its
    series or the artifact's hash; ``extension`` is without a dot; ``size`` is in bytes, -1 where it is not known.
    """

    kind: FileKind
    owner: str
    path: str
    place: str = ""
    extension: str = ""
    size: int = -1

    def __str__(self) -> str:
        return json.dumps(astuple(self), ensure_ascii=False)

    @property
    def name(self) -> str:
        """A name for the file: the last part of the attribute's path, with the extension."""
        last = self.path.rsplit("/", 1)[-1].replace("\0", "_")
        extension = self.extension if not set(self.extension) & {"/", "\\", "\0"} else ""
        name = f"{last}.{extension}" if extension else last
        return name if name not in {"", ".", ".."} else "file"


def parse_reference(reference: str) -> Reference:
    """Read a reference back. Raises FileGoneError for what is none."""
    try:
        parts = json.loads(reference)
        kind, owner, path, place, extension, size = parts
    except (ValueError, TypeError):
        raise _unknown(reference) from None
    texts = (kind, owner, path, place, extension)
    if kind not in get_args(FileKind) or not all(isinstance(text, str) for text in texts) or type(size) is not int:
        raise _unknown(reference)
    return Reference(cast(FileKind, kind), owner, path, place, extension, size)


def _unknown(reference: str) -> FileGoneError:
    return FileGoneError(
        f"{reference!r:.200} is not a valid file of this source.", hint="Use a reference from a row of a run."
    )
