"""Points of series: pages of the server's answers as arrays, and arrays as Arrow batches.

Times are the epoch milliseconds of the answer itself. What the client makes of them, local times without a zone, says
nothing definite about the hour that comes twice in autumn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.schema import MAX_STEP, MICROSTEPS, SCHEMA, TIME_TYPE, VALUE_COLUMN, AttributeType
from neptune_assets.sources.neptune2.values import real
from neptune_assets.sources.offline.state import RunState
from neptune_assets.sources.rows import decimal_steps
from neptune_assets.sources.values import micro_steps, text

BATCH_ROWS: Final = 16_384
BATCH_BYTES: Final = 4 << 20
CALLS: Final[Mapping[AttributeType, str]] = {
    AttributeType.FLOAT_SERIES: "getFloatSeriesValues",
    AttributeType.STRING_SERIES: "getStringSeriesValues",
    AttributeType.FILE_SERIES: "getImageSeriesValues",
}
"""The call that gives the points of each type."""

_EXACT: Final = 2.0**43
"""Below this, a double times a million is off by less than a thousandth."""
_TIME_LIMIT: Final = 253_402_300_800_000
"""Epoch milliseconds of the year 10000."""
_NO_TIME: Final = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Page:
    """Some points of one series: whole micro-steps, epoch milliseconds, values; and how many the server has in all.

    A time that the server does not tell is the lowest number there is.
    """

    steps: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64] | list[str]
    total: int
    unsure: int = 0
    """Times that could be an hour later, for the hour came twice."""

    def __len__(self) -> int:
        return len(self.steps)


def parse_page(answer: Mapping[str, Any], kind: AttributeType) -> Page:
    """Turn an answer into a page of floats or strings; TypeError, KeyError or ValueError if it is none."""
    points: Sequence[Mapping[str, Any]] = answer.get("values") or ()
    raw = [point["value"] for point in points]
    values: npt.NDArray[np.float64] | list[str]
    if kind is AttributeType.FLOAT_SERIES:
        # Whole numbers come without a point, and not-a-number may come as text.
        values = np.array([value if type(value) is float else real(value) for value in raw], np.float64)
    else:
        values = [text(value) for value in raw]
    return Page(
        steps_of([point["step"] for point in points]),
        _times([point["timestampMillis"] for point in points]),
        values,
        int(answer["totalItemCount"]),
        int(answer.get("unsureTimes") or 0),
    )


def steps_of(steps: Sequence[float]) -> npt.NDArray[np.int64]:
    """Steps as whole micro-steps, rounded half to even in decimal; raises ValueError for what is out of range."""
    numbers = np.array(steps, np.float64)
    if len(numbers) and not (np.abs(numbers) < MAX_STEP).all():
        raise ValueError("a step is out of range")
    products = numbers * MICROSTEPS
    near = np.rint(products)
    result = near.astype(np.int64)
    for place in np.flatnonzero((np.abs(products) >= _EXACT) | (np.abs(products - near) >= 0.499)).tolist():
        result[place] = micro_steps(steps[place])
    return result


def _times(times: Sequence[int]) -> npt.NDArray[np.int64]:
    numbers = np.array(times, np.int64)
    if len(numbers) and not (np.abs(numbers) < _TIME_LIMIT).all():
        raise ValueError("a time is out of range")
    return numbers


def image_page(answer: Mapping[str, Any], offset: int, asked: int) -> tuple[Page, bool]:
    """Turn an answer about images into a page of their places, and tell if steps and times are the server's.

    Neptune's own service tells only how many there are; then steps are places in the series and times are unknown.
    """
    total = int(answer["totalItemCount"])
    points: Sequence[Mapping[str, Any]] = answer.get("values") or ()
    if points and all("step" in point and "timestampMillis" in point for point in points):
        places = [str(offset + place) for place in range(len(points))]
        steps = steps_of([point["step"] for point in points])
        return Page(steps, _times([point["timestampMillis"] for point in points]), places, total), True
    found = range(offset, min(offset + asked, total))
    steps = np.array(found, np.int64) * MICROSTEPS
    return Page(steps, np.full(len(found), _NO_TIME, np.int64), [str(place) for place in found], total), False


class PointBuffer:
    """Gathers points of many series of one run and one type into batches of a handy size."""

    def __init__(self, project_id: str, run_id: str, kind: AttributeType) -> None:
        self._project_id = project_id
        self._run_id = run_id
        self.kind = kind
        self._column = VALUE_COLUMN[kind]
        self._reset()

    def _reset(self) -> None:
        self._paths: list[str] = []
        self._lengths: list[int] = []
        self._steps: list[npt.NDArray[np.int64]] = []
        self._times: list[npt.NDArray[np.int64]] = []
        self._values: list[Any] = []
        self._rows = 0
        self._bytes = 0

    def add(self, path: str, page: Page) -> Iterator[pa.RecordBatch]:
        """Add points; yields a batch when enough have come together. Raises ValueError for text that is not Unicode."""
        if not len(page):
            return
        if isinstance(page.values, list):
            self._bytes += sum(len(value) if value.isascii() else len(value.encode("utf-8")) for value in page.values)
        self._paths.append(path)
        self._lengths.append(len(page))
        self._steps.append(page.steps)
        self._times.append(page.times)
        self._values.append(page.values)
        self._rows += len(page)
        if self._rows >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            yield from self.flush()

    def flush(self) -> Iterator[pa.RecordBatch]:
        """Yield what is left."""
        if not self._rows:
            return
        rows = self._rows
        positions = np.repeat(np.arange(len(self._paths)), self._lengths)
        times = np.concatenate(self._times)
        unknown = times == _NO_TIME
        columns: dict[str, pa.Array] = {
            "project_id": pa.repeat(pa.scalar(self._project_id, pa.string()), rows),
            "run_id": pa.repeat(pa.scalar(self._run_id, pa.string()), rows),
            "attribute_path": pa.array(self._paths, pa.string()).take(pa.array(positions)),
            "attribute_type": pa.repeat(pa.scalar(str(self.kind), pa.string()), rows),
            "step": decimal_steps(np.concatenate(self._steps)),
            "timestamp": pa.array(times, pa.int64(), mask=unknown if unknown.any() else None).cast(TIME_TYPE),
            self._column: self._array(),
        }
        arrays = [columns[field.name] if field.name in columns else pa.nulls(rows, field.type) for field in SCHEMA]
        self._reset()
        yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)

    def _array(self) -> pa.Array:
        if self._column == "float_value":
            return pa.array(np.concatenate(self._values))
        strings = pa.array([value for values in self._values for value in values], pa.string())
        return strings if self._column == "string_value" else pa.StructArray.from_arrays([strings], names=["path"])


@dataclass(slots=True)
class SeriesProgress:
    """How far the reading of one series has come."""

    path: str
    kind: AttributeType
    got: int = 0
    total: int = 0
    page: int = 0
    """Points that the server gives at once, once that is known: it may be fewer than were asked for."""
    unsure: int = 0
    told: bool = True
    failed: bool = False
    more: bool = False
    """True while another page has been asked for."""

    def take(self, page: Page, told: bool) -> bool:
        """Count a page in; True if there is another."""
        self.more = False
        self.total = page.total
        self.told = told
        self.unsure += page.unsure
        self.got += len(page)
        self.page = self.page or len(page)
        self.more = bool(len(page)) and self.got < self.total
        return self.more

    def fail(self) -> None:
        """Read no further."""
        self.failed = True
        self.more = False

    def report(self, state: RunState) -> None:
        """Tell the run what is odd about the series, once all of it was read that could be."""
        if self.failed:
            return
        if self.got < self.total:
            state.error(
                f"The server gave {self.got:,} of {self.total:,} points of {self.path!r}.", self.path, self.kind
            )
        if self.unsure:
            state.note(
                f"{self.unsure:,} times of {self.path!r} are in the hour that comes twice in autumn and could be an "
                "hour later: with source.neptune2.client set to public, times come as local times.",
                self.path,
                self.kind,
            )
        if not self.told:
            state.repair("steps_numbered", self.got)
            state.note(
                f"The server does not tell steps and times of the images of {self.path!r}; steps are their places "
                "in the series.",
                self.path,
                self.kind,
            )
