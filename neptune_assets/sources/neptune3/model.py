"""What the parts of this source hand to each other: runs, their attributes, and pages of series.

A *request* asks for one series of one run, from a point on; a *page* answers several requests with some points and
says which series go on. Points are columns of numbers, never one object each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO, Protocol

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


class Reader(Protocol):
    """One way to ask the server. Every method raises :class:`RefusedError` for what will not heal.

    Methods may be called from several threads at a time.
    """

    def projects(self, workspace: str | None) -> list[str]:
        """Return the projects that the token may see."""

    def alive(self, project: str) -> None:
        """Ask for next to nothing, with patience."""

    def list_runs(self, project: str, query: Any = None) -> list[ListedRun]:
        """Return the runs of a project; ``query`` is a :class:`neptune_query.filters.Filter`, None for all."""

    def attributes(
        self,
        project: str,
        runs: Sequence[ListedRun],
        types: Sequence[str] | None,
        names: Sequence[str] | None = None,
    ) -> list[RunAttributes]:
        """Return the attributes of runs, of these types (None for all), with the values of those that are single.

        With ``names``, those of these names only, whatever their types, and with less patience.
        """

    def definitions(
        self, project: str, runs: Sequence[ListedRun], types: Sequence[str] | None
    ) -> Mapping[str, Set[AttributeType]]:
        """Return the path of every attribute that any of the runs has, and its types as far as they are known."""

    def page(self, project: str, requests: Sequence[Request], *, again: bool = False) -> Page:
        """Return points of series: float series only, or others only; ``again`` if these failed among others."""

    def groups(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Cut requests, in order, into groups that :meth:`page` can answer at once."""

    def download(self, project: str, run_id: str, path: str, step: float | None, reference: FileReference) -> BinaryIO:
        """Open a file for streaming."""


class RefusedError(Exception):
    """The server answered, and will not give what was asked for; or it failed for as long as it is worth trying."""

    def __init__(self, message: str, *, status: int | None = None, exhausted: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.exhausted = exhausted
        """True if trying for longer might have helped."""
