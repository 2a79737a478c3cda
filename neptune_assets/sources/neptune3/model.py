"""What the parts of this source hand to each other: runs, their attributes, and pages of series.

A *request* asks for one series of one run, from a point on; a *page* answers several requests with some points and
says which series go on. Points are columns of numbers, never one object each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from neptune_assets.schema import AttributeType

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
    """Why the server tells no more of it than its path and type."""


@dataclass(frozen=True, slots=True)
class FileReference:
    """Where the server keeps a file, how large it is and what the client said it is."""

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
class Answer:
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
