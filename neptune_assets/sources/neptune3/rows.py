"""What the server sent of runs, their attributes and points, and rows of the one schema made of it.

A *request* asks for one series of one run, from a point on; a *page* answers several requests with some points and says
which series go on. Float points arrive as columns and stay columns; all else goes through the row builder that
recordings use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.errors import FileGoneError
from neptune_assets.schema import MAX_STEP, AttributeType
from neptune_assets.sources.rows import BATCH_ROWS, RowBuilder, rows_of_series
from neptune_assets.sources.values import micro_steps

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One run as the server lists it."""

    run_id: str
    sys_id: str
    created_at: datetime | None = None
    modified_at: datetime | None = None
    modified: str = ""
    """The time of the last change as the server has it, where no datetime holds it."""
    archived: bool = False
    trashed: bool = False
    parent: str | None = None
    attributes: int = 0
    """Attributes the server counts; 0 if it does not say."""
    points: int = 0
    """Points of all series the server counts; 0 if it does not say."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a run: its value if it is a single one, where it ends if it is a series.

    ``value`` is a float, int, string, bool, epoch milliseconds (datetime), list of strings, or :class:`FileReference`.
    """

    path: str
    type: AttributeType
    value: Any = None
    last_step: float | None = None
    previews: bool = False
    undescribed: str = ""
    """Why no more than its path and type is known."""


@dataclass(frozen=True, slots=True)
class FileReference:
    """Where the server keeps a file, how large it is and its type according to the client."""

    key: str
    size: int
    mime_type: str


@dataclass(frozen=True, slots=True)
class Request:
    """Points of one series of one run, from ``after`` on: a step (points come last first) or a token of the server.

    ``reached`` is the lowest step that came so far, and ``empty`` how many pages without points came last; for series
    that go on by tokens.
    """

    run: ListedRun
    path: str
    type: AttributeType
    after: float | str | None = None
    reached: float | None = None
    empty: int = 0


@dataclass(slots=True)
class FloatPart:
    """Points of one float series in one page; ``preview`` and ``completion`` are None where all points are final.

    Times are epoch milliseconds; the lowest number is none.
    """

    request: Request
    steps: Floats
    times: Ints
    values: Floats
    preview: npt.NDArray[np.bool_] | None = None
    completion: Floats | None = None


@dataclass(slots=True)
class ObjectPart:
    """Points of one series of strings, histograms or files: (step, epoch milliseconds, value)."""

    request: Request
    points: list[tuple[float, int | None, Any]]


@dataclass(slots=True)
class Page:
    """The answer to some requests: points, and requests for the rest."""

    parts: Sequence[FloatPart | ObjectPart] = ()
    rest: Sequence[Request] = ()


@dataclass(slots=True)
class Response:
    """What came of some requests: a page, and those that failed with the reason."""

    page: Page
    failed: list[tuple[Request, str]] = field(default_factory=list)


@dataclass(slots=True)
class RunAttributes:
    """Everything one run has, except the points of its series; ``unknown`` are types this version does not know."""

    run: ListedRun
    attributes: list[Attribute] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """The server answered, and will not give what was asked for; or it failed for as long as it is worth trying."""

    def __init__(self, message: str, *, status: int | None = None, exhausted: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.exhausted = exhausted
        """True if trying for longer might have helped."""


PREVIEW: Final = ":preview"
COMPLETION: Final = ":preview_completion"
"""What is put after the path of a float series to name the series of its points that are not final."""

_SENT: Final = {
    AttributeType.STRING_SERIES: str,
    AttributeType.HISTOGRAM_SERIES: tuple,
    AttributeType.FILE_SERIES: FileReference,
}


def in_range(steps: Floats) -> npt.NDArray[np.bool_]:
    """Which steps a row can hold."""
    return np.asarray(np.abs(steps) < MAX_STEP)


def float_batches(
    project_id: str, run_ids: Sequence[str], parts: Sequence[tuple[int, FloatPart]]
) -> Iterator[tuple[pa.RecordBatch, Ints]]:
    """Turn points of runs, known by their place in ``run_ids``, into batches of rows and the runs of these.

    Points that are not final become series of their own. Raises ValueError if a step is out of range.
    """
    series = [piece for run, part in parts for piece in _pieces(run, part) if len(piece[2])]
    if not series:
        return
    runs = np.array([piece[0] for piece in series], np.int64)
    paths = pa.array([piece[1] for piece in series], pa.string())
    of_row = np.repeat(np.arange(len(series)), [len(piece[2]) for piece in series])
    steps = micro_steps(np.concatenate([piece[2] for piece in series]))
    times = np.concatenate([piece[3] for piece in series])
    values = np.concatenate([piece[4] for piece in series])
    for start in range(0, len(of_row), BATCH_ROWS):
        rows = slice(start, start + BATCH_ROWS)
        of_run = runs[of_row[rows]]
        yield (
            rows_of_series(
                project_id,
                run_ids,
                AttributeType.FLOAT_SERIES,
                paths,
                of_row[rows],
                steps[rows],
                times[rows],
                values[rows],
                of_run if len(run_ids) > 1 else None,
            ),
            of_run,
        )


def _pieces(run: int, part: FloatPart) -> Iterator[tuple[int, str, Floats, Ints, Floats]]:
    """Run, name, steps, times and values of the series that a part holds points of."""
    path = part.request.path
    if part.preview is None or part.completion is None:
        yield run, path, part.steps, part.times, part.values
        return
    final, waiting = ~part.preview, part.preview
    yield run, path, part.steps[final], part.times[final], part.values[final]
    times = part.times[waiting]
    yield run, path + PREVIEW, part.steps[waiting], times, part.values[waiting]
    yield run, path + COMPLETION, part.steps[waiting], times, part.completion[waiting]


def value_cell(item: Attribute) -> Any:
    """Return a single value as a row holds it. Raises ValueError if the server sent none."""
    attribute_type, value = item.type, item.value
    if value is None:
        raise ValueError(item.undescribed or "the server sent none")
    if attribute_type is AttributeType.FILE:
        return reference_of(value, None)
    if attribute_type is AttributeType.STRING_SET:
        return sorted(set(value))
    return value


def add_points(builder: RowBuilder, part: ObjectPart) -> int:
    """Add points of a series of strings, histograms or files; return how many a row could not hold.

    Raises ValueError if a step is out of range.
    """
    refused = 0
    sent = _SENT[part.request.type]
    steps = np.asarray([point[0] for point in part.points], np.float64)
    for micros, (step, time, value) in zip(micro_steps(steps).tolist(), part.points, strict=True):
        if not isinstance(value, sent):
            refused += 1
            continue
        if isinstance(value, FileReference):
            value = reference_of(value, step)
        try:
            builder.point(part.request.type, part.request.path, micros, time, value)
        except ValueError:
            refused += 1
    return refused


def reference_of(file: FileReference, step: float | None) -> str:
    """Write a file as text that :func:`file_of` understands: everything that fetching and checking it takes."""
    return f"{file.size} {'' if step is None else repr(float(step))} {quote(file.mime_type, safe='')} {file.key}"


def file_of(reference: str) -> tuple[FileReference, float | None]:
    """Read what :func:`reference_of` wrote. Raises FileGoneError for any other text."""
    size, step, mime_type, key = [*reference.split(" ", 3), "", "", "", ""][:4]
    try:
        return FileReference(key, int(size), unquote(mime_type)), float(step) if step else None
    except ValueError:
        pass
    raise FileGoneError(f"{reference!r} is not a valid file of a Neptune server.", hint="List the runs again.")
