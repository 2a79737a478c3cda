"""One run while it is read: which attributes it should have, which arrived, and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from neptune_assets.schema import MAX_STEP, SERIES_TYPES, AttributeType
from neptune_assets.sources.neptune3.model import (
    Attribute,
    FloatPart,
    Floats,
    ObjectPart,
    Request,
    RunAttributes,
)
from neptune_assets.sources.neptune3.rows import (
    COMPLETION,
    NO_TIME,
    PREVIEW,
    add_points,
    float_batches,
    in_range,
    value_cell,
)
from neptune_assets.sources.offline.state import Issues
from neptune_assets.sources.protocol import RunEnd
from neptune_assets.sources.rows import RowBuilder
from neptune_assets.sources.times import OddTimes
from neptune_assets.sources.values import micro_step

_COUNTS: Final = "sys/diagnostics/attributes/"
_COUNTED: Final = {
    f"{_COUNTS}{name}_count": kind
    for name, kind in {
        "bool": AttributeType.BOOL,
        "file_ref": AttributeType.FILE,
        "file_ref_series": AttributeType.FILE_SERIES,
        "float": AttributeType.FLOAT,
        "float_series": AttributeType.FLOAT_SERIES,
        "histogram_series": AttributeType.HISTOGRAM_SERIES,
        "int": AttributeType.INT,
        "string": AttributeType.STRING,
        "string_series": AttributeType.STRING_SERIES,
        "string_set": AttributeType.STRING_SET,
    }.items()
}
"""Where Neptune says how many attributes of each type a run has."""


class Collector:
    """Turns what arrives of one run into batches, and ends with what was promised and did not arrive.

    ``keep(path, type)`` is the filter on attributes; ``all_types`` says that attributes of every type were asked for.
    """

    def __init__(
        self, project_id: str, found: RunAttributes, keep: Callable[[str, str], bool], *, all_types: bool
    ) -> None:
        self.run = found.run
        self._project_id = project_id
        self._kept: list[Attribute] = []
        self._builder = RowBuilder(project_id, found.run.run_id, lambda path, kind: True)
        self._errors = Issues()
        self._notes = Issues()
        self._failed: set[tuple[str, AttributeType]] = set()
        self._reached: dict[tuple[str, AttributeType], int] = {}
        self._previews: set[str] = set()
        self._odd_times = OddTimes()
        self._keep(item for item in found.attributes if keep(item.path, str(item.type)))
        if all_types:
            self._count(found.attributes)
        for path, kind in found.unknown.items():
            if keep(path, kind):
                self.note(f"{path!r} is of the type {kind!r}, which this version cannot read.", path, kind)

    def _keep(self, attributes: Iterable[Attribute]) -> None:
        """Take each attribute once, however often the server sends it."""
        known: dict[tuple[str, AttributeType], Attribute] = {}
        for item in attributes:
            first = known.setdefault((item.path, item.type), item)
            # As text, since not-a-number differs from itself.
            if first is not item and repr(first) != repr(item):
                self.error(f"The server tells two things of {item.path!r}; the first is kept.", item.path, item.type)
        self._kept = list(known.values())

    def error(self, message: str, path: str | None = None, kind: str | None = None) -> None:
        """Report something that makes the run partial."""
        self._errors.add(message, path, kind)

    def note(self, message: str, path: str | None = None, kind: str | None = None) -> None:
        """Report something that does not make the run partial."""
        self._notes.add(message, path, kind)

    def requests(self) -> list[Request]:
        """What to ask for: every series from its end."""
        return [Request(self.run, item.path, item.type) for item in self._kept if item.type in SERIES_TYPES]

    def singles(self) -> Iterator[Attribute]:
        """The attributes that are no series."""
        return (item for item in self._kept if item.type not in SERIES_TYPES)

    def refuse(self, item: Attribute, problem: Exception) -> None:
        """Report a value that no row can hold."""
        self._failed.add((item.path, item.type))
        self.error(f"The value of {item.path!r} cannot be kept: {problem}.", item.path, str(item.type))

    def values(self) -> Iterator[pa.RecordBatch]:
        """Give the attributes that are no series."""
        for item in self.singles():
            try:
                self._builder.value(item.type, item.path, value_cell(item))
            except (ValueError, OverflowError, TypeError) as problem:
                self.refuse(item, problem)
            yield from self._builder.drain()

    def take(self, parts: Sequence[FloatPart | ObjectPart]) -> Iterator[pa.RecordBatch]:
        """Give the points that arrived."""
        accepted = list(self.accepted(parts))
        yield from self.points([part for part in accepted if isinstance(part, ObjectPart)])
        floats = [part for part in accepted if isinstance(part, FloatPart)]
        yield from float_batches(self._project_id, self.run.run_id, floats)

    def accepted(self, parts: Sequence[FloatPart | ObjectPart]) -> Iterator[FloatPart | ObjectPart]:
        """Remember what arrived, and leave out what no row can hold."""
        for part in parts:
            if isinstance(part, FloatPart):
                yield self._accepted_floats(part)
            else:
                yield self._accepted_objects(part)

    def _accepted_floats(self, part: FloatPart) -> FloatPart:
        path = part.request.path
        good = in_range(part.steps)
        if not good.all():
            self._out_of_range(part.request, len(good) - int(good.sum()))
            part = FloatPart(
                part.request,
                part.steps[good],
                part.times[good],
                part.values[good],
                None if part.preview is None else part.preview[good],
                None if part.completion is None else part.completion[good],
            )
        beyond = self._odd_times.beyond(path, part.times)
        if beyond is not None:
            part.times = np.where(beyond, NO_TIME, part.times)
        final = part.steps
        if part.preview is not None:
            self._previews.update((path + PREVIEW, path + COMPLETION))
            final = part.steps[~part.preview]
        self._reach(part.request, final)
        return part

    def _accepted_objects(self, part: ObjectPart) -> ObjectPart:
        points = [point for point in part.points if -MAX_STEP < point[0] < MAX_STEP]
        if len(points) < len(part.points):
            self._out_of_range(part.request, len(part.points) - len(points))
        times = np.asarray([point[1] for point in points], np.int64)
        beyond = self._odd_times.beyond(part.request.path, times)
        if beyond is not None:
            points = [
                (step, None if odd else time, value)
                for odd, (step, time, value) in zip(beyond.tolist(), points, strict=True)
            ]
        self._reach(part.request, np.asarray([point[0] for point in points], np.float64))
        return ObjectPart(part.request, points)

    def _out_of_range(self, request: Request, count: int) -> None:
        self.fail(request, f"{count:,} of its points have steps that no row can hold.")

    def points(self, parts: Sequence[ObjectPart]) -> Iterator[pa.RecordBatch]:
        """Give points of strings, histograms and files, as far as they fill batches."""
        for part in parts:
            refused = add_points(self._builder, part)
            if refused:
                self.fail(part.request, f"{refused:,} of its points cannot be kept.")
            yield from self._builder.drain()

    def fail(self, request: Request, reason: str) -> None:
        """Mark a series as not read to its end."""
        self._failed.add((request.path, request.type))
        self.error(f"{request.path!r} could not be read: {reason}", request.path, str(request.type))

    def finish(self) -> Iterator[pa.RecordBatch]:
        """Give the rows that are left."""
        yield from self._builder.flush()

    def end(self) -> RunEnd:
        """Compare what was promised with what arrived and end the run."""
        promised: Counter[str] = Counter()
        inherited = 0
        for item in self._kept:
            if item.type not in SERIES_TYPES or self._expected(item):
                promised[str(item.type)] += 1
            else:
                inherited += self.run.parent is not None
        promised[str(AttributeType.FLOAT_SERIES)] += len(self._previews)
        if inherited:
            self.note(f"{inherited} series are its ancestors' alone: the run has no points of its own in them.")
        notes = (*self._notes.told(), *self._odd_times.issues())
        return RunEnd(self.run.run_id, +promised, self._errors.told(), notes)

    def _expected(self, item: Attribute) -> bool:
        """True if points of a series should have arrived; tells what is missing."""
        key = (item.path, item.type)
        reached = self._reached.get(key)
        if key in self._failed:
            return True
        if item.undescribed and reached is None:
            self.error(f"{item.path!r} could not be read: {item.undescribed}", item.path, str(item.type))
            return True
        if item.undescribed:
            self.note(
                f"The server does not describe the series {item.path!r}, so that its end cannot be compared: "
                f"{item.undescribed}",
                item.path,
                str(item.type),
            )
            return True
        if reached is None:
            if self.run.parent is not None:
                return False
            if item.previews or (item.last_step is None and item.type is AttributeType.FLOAT_SERIES):
                self.note(f"The series {item.path!r} has no final point.", item.path, str(item.type))
                return False
            self.error(
                f"The server lists the series {item.path!r} and sent none of its points.",
                item.path,
                str(item.type),
            )
        elif item.last_step is not None and not item.previews and not _goes_to(reached, item.last_step):
            self.error(
                f"The series {item.path!r} ends at step {reached / 1e6:g}; the server says {item.last_step:g}.",
                item.path,
                str(item.type),
            )
        return True

    def _reach(self, request: Request, steps: Floats) -> None:
        """Remember how far a series got."""
        if len(steps):
            key = (request.path, request.type)
            last = micro_step(float(steps.max()))
            self._reached[key] = max(last, self._reached.get(key, last))

    def _count(self, attributes: Sequence[Attribute]) -> None:
        """Compare the number of attributes listed with the numbers that the server keeps with the run."""
        listed = Counter(item.type for item in attributes)
        for item in attributes:
            kind = _COUNTED.get(item.path)
            if kind is not None and isinstance(item.value, int) and listed[kind] < item.value:
                self.error(
                    f"The server counts {item.value} attributes of type {kind} and lists {listed[kind]}.",
                    None,
                    str(kind),
                )


def _goes_to(reached: int, step: float) -> bool:
    """True if micro-steps reach a step, which may be any number at all."""
    return abs(step) < MAX_STEP and reached >= micro_step(step)
