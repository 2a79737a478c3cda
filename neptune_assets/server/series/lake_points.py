"""Points of a run of the lake: row groups that hold the series, found by their statistics, kept decoded for a while.

Clients page through series by asking again and again; without the cache every page would decode its row groups anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neptune_assets.errors import LakeError
from neptune_assets.lake.records import FileRecord
from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.lake.runs import LakeRun
from neptune_assets.schema import VALUE_COLUMN, AttributeType
from neptune_assets.server.series.points import FloatPoints, Ints, ObjectPoint, Window, join, known_times

_KEYS: Final = ("attribute_path", "attribute_type", "step", "timestamp")
_PARTS_KNOWN: Final = 20_000
_RUNS_KNOWN: Final = 64
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Group:
    """The float series in one row group: where each begins and ends."""

    ranges: dict[str, tuple[int, int]]
    points: FloatPoints

    @property
    def size(self) -> int:
        return 24 * len(self.points) + 200 * len(self.ranges)


class LakePoints:
    """Reads points of runs of the lake; any number of threads may use it. ``cache_mb`` bounds what is kept decoded."""

    def __init__(self, cache_mb: int = 192) -> None:
        self._groups: _Cache[_Group] = _Cache(cache_mb << 20, lambda group: group.size)
        self._bounds: _Cache[list[tuple[str, str] | None]] = _Cache(_PARTS_KNOWN, lambda _: 1)
        self._files: _Cache[dict[tuple[str, int | None], FileRecord]] = _Cache(_RUNS_KNOWN, lambda _: 1)

    def floats(self, run: LakeRun, path: str, window: Window) -> FloatPoints:
        """Return points of a float series in a window. Raises LakeError if a part is missing or damaged."""
        if run.record.in_place is not None:
            return join(list(self._in_place(run, path))).within(window)
        found: list[FloatPoints] = []
        for part, number in self._places(run, path, backwards=window.last):
            group = self._group(run, part, number)
            if path in group.ranges:
                piece = group.points.slice(*group.ranges[path]).within(window)
                found.append(piece)
                window = window.fewer(len(piece))
                if window.empty:
                    break
        if window.last:
            found.reverse()
        return join(found)

    def objects(self, run: LakeRun, path: str, kind: AttributeType, window: Window) -> list[ObjectPoint]:
        """Return points of a series of strings, histograms or files in a window, ascending."""
        found: list[list[ObjectPoint]] = []
        for table in self._tables(run, path, kind, backwards=window.last):
            rows = table.filter(
                pc.and_(pc.equal(table["attribute_path"], path), pc.equal(table["attribute_type"], kind.value))
            )
            steps, times = _steps(rows), _times(rows)
            known = int(np.searchsorted(steps, NONE, "right"))
            start, end = window.bounds(steps[known:])
            start, end = start + known, end + known
            values = rows[VALUE_COLUMN[kind]].slice(start, end - start).to_pylist()
            if kind is AttributeType.FILE_SERIES:
                values = [self._file(run, path, int(step)) for step in steps[start:end]]
            found.append(
                [
                    ObjectPoint(int(step), int(time), value)
                    for step, time, value in zip(steps[start:end], times[start:end], values, strict=True)
                ]
            )
            window = window.fewer(end - start)
            if window.empty:
                break
        if window.last:
            found.reverse()
        return [point for piece in found for point in piece]

    def file(self, run: LakeRun, path: str) -> dict[str, Any]:
        """Return what the store would keep of a single file: its path in the lake and its size."""
        return self._file(run, path, None)

    def _file(self, run: LakeRun, path: str, step: int | None) -> dict[str, Any]:
        def index() -> dict[tuple[str, int | None], FileRecord]:
            return {(item.attribute_path, item.step): item for item in run.record.files}

        record = self._files.get((*_identity(run), 0, 0), index).get((path, step))
        # A file whose bytes the lake does not have is shown without a place.
        return {"path": "", "size": 0} if record is None else {"path": record.path, "size": record.size}

    def _in_place(self, run: LakeRun, path: str) -> Iterator[FloatPoints]:
        for batch in run.batches([AttributeType.FLOAT_SERIES], [*_KEYS, "float_value"]):
            rows = batch.filter(pc.equal(batch["attribute_path"], path))
            if rows.num_rows:
                points = FloatPoints(_steps(rows), _times(rows), _values(rows))
                yield points.slice(int(np.searchsorted(points.steps, NONE, "right")), len(points))

    def _tables(self, run: LakeRun, path: str, kind: AttributeType, *, backwards: bool) -> Iterator[pa.RecordBatch]:
        columns = [*_KEYS, VALUE_COLUMN[kind]]
        if run.record.in_place is not None:
            batches = list(run.batches([kind], columns))
            yield from reversed(batches) if backwards else batches
            return
        for part, number in self._places(run, path, backwards=backwards):
            yield _read(run, part, number, columns)

    def _places(self, run: LakeRun, path: str, *, backwards: bool) -> list[tuple[int, int]]:
        """Return parts and numbers of the row groups that may hold an attribute."""
        found: list[tuple[int, int]] = []
        for part in range(len(run.record.parts)):
            bounds = self._bounds.get((*_identity(run), part, 0), partial(_bounds, run, part))
            found.extend(
                (part, number) for number, bound in enumerate(bounds) if bound is None or bound[0] <= path <= bound[1]
            )
        return found[::-1] if backwards else found

    def _group(self, run: LakeRun, part: int, number: int) -> _Group:
        def read() -> _Group:
            return _decoded(_read(run, part, number, [*_KEYS, "float_value"]))

        return self._groups.get((*_identity(run), part, number), read)


class _Cache(OrderedDict[tuple[Any, ...], "_T"]):
    """What was used last, up to a total size."""

    def __init__(self, limit: int, size: Callable[[_T], int]) -> None:
        super().__init__()
        self._limit = limit
        self._size = size
        self._total = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...], make: Callable[[], _T]) -> _T:  # type: ignore[override]
        """Return what is kept under a key, making it if there is nothing."""
        with self._lock:
            if key in self:
                self.move_to_end(key)
                return self[key]
        made = make()
        with self._lock:
            if key not in self:
                self[key] = made
                self._total += self._size(made)
            while self._total > self._limit and len(self) > 1:
                _, dropped = self.popitem(last=False)
                self._total -= self._size(dropped)
        return made


def _identity(run: LakeRun) -> tuple[str, str, str, str]:
    return run.project_id, run.project.scope.value, run.run_id, run.record.generation


def _bounds(run: LakeRun, part: int) -> list[tuple[str, str] | None]:
    """Return the least and greatest path of every row group of a part; None where the file does not say."""
    with run.open_part(run.record.parts[part]) as file:
        column = file.schema_arrow.get_field_index("attribute_path")
        found: list[tuple[str, str] | None] = []
        for number in range(file.metadata.num_row_groups):
            statistics = file.metadata.row_group(number).column(column).statistics
            known = statistics is not None and statistics.has_min_max
            found.append((statistics.min, statistics.max) if known else None)
        return found


def _read(run: LakeRun, part: int, number: int, columns: list[str]) -> pa.RecordBatch:
    try:
        with run.open_part(run.record.parts[part]) as file:
            return _one_batch(file, number, columns)
    except (pa.ArrowException, OSError) as error:
        raise LakeError(
            f"A Parquet part of run {run.run_id!r} of {run.project_id!r} cannot be read: {error}.",
            hint="Materialize the project's lake asset with full_refresh to write the run anew.",
        ) from error


def _one_batch(file: pq.ParquetFile, number: int, columns: list[str]) -> pa.RecordBatch:
    table = file.read_row_group(number, columns=columns, use_threads=False).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _decoded(rows: pa.RecordBatch) -> _Group:
    paths, kinds = rows["attribute_path"].dictionary_encode(), rows["attribute_type"].dictionary_encode()
    codes = paths.indices.to_numpy().astype(np.int64) * max(1, len(kinds.dictionary)) + kinds.indices.to_numpy()
    edges = np.flatnonzero(np.diff(codes)) + 1
    starts = np.concatenate(([0], edges)) if len(codes) else np.zeros(0, np.int64)
    ends = np.concatenate((edges, [len(codes)])) if len(codes) else starts
    names, types = paths.dictionary.to_pylist(), kinds.dictionary.to_pylist()
    width = max(1, len(types))
    steps = _steps(rows)
    ranges, kept = {}, np.zeros(len(codes), np.bool_)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if types[int(codes[start]) % width] == AttributeType.FLOAT_SERIES:
            # Points without a step come first; nobody can ask for them.
            start += int(np.searchsorted(steps[start:end], NONE, "right"))
            ranges[names[int(codes[start]) // width] if start < end else ""] = (start, end)
            kept[start:end] = True
    ranges.pop("", None)
    if not kept.all():
        shifts = np.concatenate(([0], np.cumsum(kept)))
        ranges = {path: (int(shifts[start]), int(shifts[end])) for path, (start, end) in ranges.items()}
    points = FloatPoints(steps, _times(rows), _values(rows))
    if not kept.all():
        points = FloatPoints(points.steps[kept], points.times[kept], points.values[kept])
    return _Group(ranges, points)


def _steps(rows: pa.RecordBatch) -> Ints:
    return microsteps(rows["step"])


def _times(rows: pa.RecordBatch) -> Ints:
    return known_times(pc.fill_null(rows["timestamp"].cast(pa.int64()), int(NONE)).to_numpy())


def _values(rows: pa.RecordBatch) -> Any:
    # Without a value there is not a number.
    return pc.fill_null(rows["float_value"], float("nan")).to_numpy()
