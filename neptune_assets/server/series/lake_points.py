"""Points of a run of the lake: row groups that hold the series, found by their statistics, kept decoded for a while.

Clients page through series by asking again and again; without the cache every page would decode its row groups anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neptune_assets.lake.parts import row_group_bounds
from neptune_assets.lake.records import FileRecord
from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.lake.runs import LakeRun
from neptune_assets.schema import VALUE_COLUMN, AttributeType
from neptune_assets.server.series.cache import Cache
from neptune_assets.server.series.points import FloatPoints, ObjectPoint, Window

_NAMES: Final = ("attribute_path", "attribute_type")
_COLUMNS: Final = (*_NAMES, "step", "timestamp", "float_value")
_PARTS_KNOWN: Final = 20_000
_RUNS_KNOWN: Final = 64
_FEW_ROWS: Final = 4_096


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of one row group: which belong to which attribute, with steps, times and numbers of all of them."""

    ranges: dict[tuple[str, str], tuple[int, int]]
    rows: FloatPoints

    @property
    def size(self) -> int:
        return 24 * len(self.rows) + 300 * len(self.ranges)

    def within(self, path: str, kind: AttributeType, window: Window) -> tuple[int, int]:
        """Return the range of rows of a series in a window, empty if there are none."""
        start, end = self.ranges.get((path, kind.value), (0, 0))
        first, last = window.bounds(self.rows.steps[start:end])
        return start + first, start + last


class LakePoints:
    """Reads points of runs of the lake; any number of threads may use it. ``cache_mb`` bounds what is kept decoded."""

    def __init__(self, cache_mb: int = 192) -> None:
        self._groups: Cache[tuple[_Group, ...]] = Cache(
            cache_mb << 20, lambda groups: sum(group.size for group in groups)
        )
        # A run that is repaired on its way is kept as a whole or not at all.
        self._kept_rows = (cache_mb << 20) // 4 // 24
        self._bounds: Cache[list[tuple[str, str] | None]] = Cache(_PARTS_KNOWN)
        self._files: Cache[dict[tuple[str, int | None], FileRecord]] = Cache(_RUNS_KNOWN)

    def floats(self, run: LakeRun, path: str, window: Window) -> Iterator[FloatPoints]:
        """Yield points of a float series in a window, a row group at a time, those that the window wants first first.

        Raises LakeError if a part is missing or damaged.
        """
        kind = AttributeType.FLOAT_SERIES
        for group in self._float_groups(run, path, backwards=window.last):
            piece = group.rows.slice(*group.within(path, kind, window))
            if len(piece):
                yield piece
                window = window.fewer(len(piece))
                if window.empty:
                    return

    def objects(self, run: LakeRun, path: str, kind: AttributeType, window: Window) -> list[ObjectPoint]:
        """Return points of a series of strings, histograms or files in a window, ascending."""
        found: list[list[ObjectPoint]] = []
        for group, values in self._object_groups(run, path, kind, backwards=window.last):
            start, end = group.within(path, kind, window)
            if start == end:
                continue
            steps, times = group.rows.steps[start:end].tolist(), group.rows.times[start:end].tolist()
            if kind is AttributeType.FILE_SERIES:
                cells = [self._file(run, path, step) for step in steps]
            else:
                cells = values().slice(start, end - start).to_pylist()
            found.append([ObjectPoint(*point) for point in zip(steps, times, cells, strict=True)])
            window = window.fewer(end - start)
            if window.empty:
                break
        if window.last:
            found.reverse()
        return [point for piece in found for point in piece]

    def _file(self, run: LakeRun, path: str, step: int | None) -> dict[str, Any]:
        index = self._files.get(_identity(run), lambda: {(f.attribute_path, f.step): f for f in run.record.files})
        record = index.get((path, step))
        # A file whose bytes the lake does not have is shown without a place.
        return {"path": "", "size": 0} if record is None else {"path": record.path, "size": record.size}

    def _float_groups(self, run: LakeRun, path: str, *, backwards: bool) -> Iterator[_Group]:
        """Yield row groups that may hold a float series."""
        if run.record.in_place is None:
            for part, number in self._places(run, path, backwards=backwards):
                yield self._group(run, part, number)
            return
        groups = self._groups_in_place(run)
        # In the order of paths: what comes after the series need not be read.
        found: list[_Group] = []
        for group in groups:
            if (path, AttributeType.FLOAT_SERIES.value) in group.ranges:
                if backwards:
                    found.append(group)
                else:
                    yield group
            elif min(group.ranges, default=("",))[0] > path:
                break
        yield from reversed(found)

    def _groups_in_place(self, run: LakeRun) -> Iterable[_Group]:
        """Return all float series of a run that is repaired and sorted on its way, kept if it is not too large."""

        def decoded() -> Iterator[_Group]:
            return map(_decoded, _batches_in_place(run, AttributeType.FLOAT_SERIES, _COLUMNS))

        if run.record.total_rows > self._kept_rows:
            return decoded()
        return self._groups.get((*_identity(run), None, None), lambda: tuple(decoded()))

    def _object_groups(self, run: LakeRun, path: str, kind: AttributeType, *, backwards: bool) -> Iterator[Any]:
        """Yield row groups that may hold a series, each with a function that reads its column of values."""
        column = VALUE_COLUMN[kind]
        if run.record.in_place is not None:
            batches = list(_batches_in_place(run, kind, dict.fromkeys((*_COLUMNS, column))))
            for batch in reversed(batches) if backwards else batches:
                yield _decoded(batch), partial(batch.column, column)
            return
        for part, number in self._places(run, path, backwards=backwards):
            yield self._group(run, part, number), partial(_read_column, run, part, number, column)

    def _places(self, run: LakeRun, path: str, *, backwards: bool) -> list[tuple[int, int]]:
        """Return parts and numbers of the row groups that may hold an attribute."""
        found: list[tuple[int, int]] = []
        for part in range(len(run.record.parts)):
            bounds = self._bounds.get((*_identity(run), part), partial(self._look, run, part))
            found.extend(
                (part, number) for number, bound in enumerate(bounds) if bound is None or bound[0] <= path <= bound[1]
            )
        return found[::-1] if backwards else found

    def _look(self, run: LakeRun, part: int) -> list[tuple[str, str] | None]:
        """Return the bounds of a part, and keep its rows if they are few: opening it again would cost more."""
        with _readable(run), run.open_part(run.record.parts[part], _NAMES) as file:
            if file.metadata.num_row_groups == 1 and file.metadata.num_rows <= _FEW_ROWS:
                self._groups.get((*_identity(run), part, 0), lambda: (_decoded(_one_batch(file, 0, _COLUMNS)),))
            return row_group_bounds(file, "attribute_path")

    def _group(self, run: LakeRun, part: int, number: int) -> _Group:
        (group,) = self._groups.get(
            (*_identity(run), part, number), lambda: (_decoded(_read(run, part, number, _COLUMNS)),)
        )
        return group


def _identity(run: LakeRun) -> tuple[str, ...]:
    return run.project_id, run.project.scope.value, run.run_id, run.record.generation


def _batches_in_place(run: LakeRun, kind: AttributeType, columns: Sequence[str] | dict[str, None]) -> Iterator[Any]:
    yield from run.batches([kind], list(columns))


def _read_column(run: LakeRun, part: int, number: int, column: str) -> pa.Array:
    return _read(run, part, number, [column]).column(column)


def _read(run: LakeRun, part: int, number: int, columns: Sequence[str]) -> pa.RecordBatch:
    with _readable(run), run.open_part(run.record.parts[part], _NAMES) as file:
        return _one_batch(file, number, columns)


@contextmanager
def _readable(run: LakeRun) -> Iterator[None]:
    """Raise LakeError for a part that cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise run.unreadable(error) from error


def _one_batch(file: pq.ParquetFile, number: int, columns: Sequence[str]) -> pa.RecordBatch:
    table = file.read_row_group(number, columns=list(columns), use_threads=False).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _decoded(rows: pa.RecordBatch) -> _Group:
    paths, kinds = (_encoded(rows[name]) for name in _NAMES)
    names, types = paths.dictionary.to_pylist(), kinds.dictionary.to_pylist()
    width = max(1, len(types))
    codes = paths.indices.to_numpy().astype(np.int64) * width + kinds.indices.to_numpy()
    steps = microsteps(rows["step"])
    ranges = {}
    if len(codes):
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(codes)], strict=True):
            key = (names[int(codes[start]) // width], types[int(codes[start]) % width])
            # Points without a step come first; nobody can ask for them.
            ranges[key] = (start + int(np.searchsorted(steps[start:end], NONE, "right")), end)
    times = pc.fill_null(rows["timestamp"].cast(pa.int64()), 0).to_numpy()
    # Without a value there is not a number.
    values = pc.fill_null(rows["float_value"], float("nan")).to_numpy()
    return _Group(ranges, FloatPoints(steps, times, values))


def _encoded(column: pa.Array) -> pa.DictionaryArray:
    return column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
