"""Points of a series by run and path, from the store or the lake, along the run's line of forks; whole or in buckets.

What was read last is kept, up to a number of bytes.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neptune_assets.lake.manifest import FileRecord
from neptune_assets.lake.parts import row_group_bounds
from neptune_assets.lake.reader import LakeRun
from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.schema import MICROSTEPS, VALUE_COLUMN, AttributeType
from neptune_assets.server.catalog.catalog import lineage
from neptune_assets.server.catalog.tables import Run
from neptune_assets.server.store.database import NOT_RECORDED, OBJECT, RESTORE, DamagedError, damaged_points, intact

if TYPE_CHECKING:
    from neptune_assets.server.catalog.catalog import Catalog

_T = TypeVar("_T")


class Cache(Generic[_T]):
    """Values by key; those used least recently go when the sizes of all are more than ``limit``."""

    def __init__(self, limit: int, size: Callable[[_T], int] = lambda _: 1) -> None:
        self._limit = limit
        self._size = size
        self._total = 0
        self._items: OrderedDict[Hashable, _T] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return what is kept under a key, making it if there is nothing. Two threads may make the same."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        made = make()
        with self._lock:
            if key not in self._items:
                self._items[key] = made
                self._total += self._size(made)
            while self._total > self._limit and len(self._items) > 1:
                _, dropped = self._items.popitem(last=False)
                self._total -= self._size(dropped)
        return made


class Lineage(Enum):
    """How far back a series goes."""

    OWN = "own"
    """The run's own points, those before its fork step, too."""
    EXPERIMENT = "experiment"
    """Back to where the experiment began."""
    FULL = "full"
    """Back to the root."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Points of one run from ``low`` to ``high``, both included, in micro-steps; None means without a bound.

    Where a child has a point of its own at its fork step, it takes the place of the parent's.
    """

    run: Run
    low: int | None
    high: int | None

    def below(self, first: int | None) -> int | None:
        """Return ``high``, or the step before it if ``first``, the first step of the children's points, is there."""
        return self.high - 1 if self.high is not None and self.high == first else self.high


def segments(run: Run, kind: Lineage, parent_of: Callable[[Run], Run | None]) -> list[Segment]:
    """Return where the points of a run's series lie, the youngest first; they do not overlap but at fork steps."""
    if kind is Lineage.OWN or run.parent is None:
        return [Segment(run, None, None)]
    line = []
    for member in lineage(run, parent_of):
        if kind is Lineage.EXPERIMENT and (member.experiment != run.experiment or member.experiment is None):
            break
        line.append(member)
        if member.fork_step is None:
            break
    found: list[Segment] = []
    high: int | None = None
    for index, member in enumerate(line or [run]):
        ends = index + 1 >= len(line)
        low = None if ends else member.fork_step
        found.append(Segment(member, low, high))
        if low is not None:
            high = low if high is None else min(high, low)
    return found


Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_EXACT: Final = 1 << 53
"""Integers up to here are doubles without rounding."""
_NO_INTS: Final = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Window:
    """Which points are asked for: steps from ``low`` to ``high``, both included, at most ``limit``, the last or first.

    Micro-steps; None means without a bound.
    """

    low: int | None = None
    high: int | None = None
    limit: int | None = None
    last: bool = True

    def narrowed(self, low: int | None, high: int | None) -> Window:
        """Return this window within other bounds."""
        lows = [step for step in (self.low, low) if step is not None]
        highs = [step for step in (self.high, high) if step is not None]
        return Window(max(lows, default=None), min(highs, default=None), self.limit, self.last)

    def fewer(self, taken: int) -> Window:
        """Return this window with what is left of its limit."""
        return Window(self.low, self.high, None if self.limit is None else self.limit - taken, self.last)

    @property
    def empty(self) -> bool:
        """True if no point can be in it."""
        return (self.limit is not None and self.limit <= 0) or (
            self.low is not None and self.high is not None and self.low > self.high
        )

    def bounds(self, steps: Ints) -> tuple[int, int]:
        """Return the range of indexes of ascending steps that are in it."""
        start = 0 if self.low is None else int(np.searchsorted(steps, self.low, "left"))
        end = len(steps) if self.high is None else int(np.searchsorted(steps, self.high, "right"))
        if self.limit is not None and end - start > self.limit:
            start, end = (end - self.limit, end) if self.last else (start, start + self.limit)
        return start, max(start, end)


@dataclass(frozen=True, slots=True)
class FloatPoints:
    """Points of a float series: micro-steps, milliseconds (0 where there is no time), values.

    ``previews`` is None where all points are final, else how complete each one is, NaN for final ones.
    """

    steps: Ints
    times: Ints
    values: Floats
    previews: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.steps)

    def slice(self, start: int, end: int) -> FloatPoints:
        """Return some of the points."""
        previews = None if self.previews is None else self.previews[start:end]
        return FloatPoints(self.steps[start:end], self.times[start:end], self.values[start:end], previews)

    def within(self, window: Window) -> FloatPoints:
        """Return the points in a window."""
        return self.slice(*window.bounds(self.steps))


NO_POINTS: Final = FloatPoints(_NO_INTS, _NO_INTS, np.zeros(0, np.float64))


def step_doubles(steps: Ints) -> Floats:
    """Return steps as clients see them, each rounded once."""
    if len(steps) and max(abs(int(steps.min())), abs(int(steps.max()))) > _EXACT:
        return np.array([step / MICROSTEPS for step in steps.tolist()], np.float64)
    return steps / MICROSTEPS


def join(pieces: list[FloatPoints]) -> FloatPoints:
    """Put pieces, in ascending order, together."""
    pieces = [piece for piece in pieces if len(piece)]
    if len(pieces) <= 1:
        return pieces[0] if pieces else NO_POINTS
    previews = None
    if any(piece.previews is not None for piece in pieces):
        previews = np.concatenate(
            [np.full(len(piece), np.nan, np.float32) if piece.previews is None else piece.previews for piece in pieces]
        )
    return FloatPoints(
        np.concatenate([piece.steps for piece in pieces]),
        np.concatenate([piece.times for piece in pieces]),
        np.concatenate([piece.values for piece in pieces]),
        previews,
    )


@dataclass(frozen=True, slots=True)
class ObjectPoint:
    """A point of a series of strings (``value`` is a str), histograms or files (a dict, as the store keeps them)."""

    step: int
    time: int
    value: Any


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


_PIECE: Final = 65_536
_INTACT: Final = intact("objects", *OBJECT)


def attribute_of(connection: sqlite3.Connection, run: Run, path: str, kind: AttributeType) -> int | None:
    """Return the number of a run's attribute, None if it has none of that type."""
    row = connection.execute(
        "SELECT id FROM attributes WHERE run = ? AND path = ? AND type = ?", (run.store_id, path, kind.value)
    ).fetchone()
    return None if row is None else int(row[0])


def float_points(connection: sqlite3.Connection, attribute: int, window: Window) -> FloatPoints:
    """Return final points in a window."""
    rows = _rows(connection, f"step, time, bits, ifnull(checksum, {NOT_RECORDED})", "points", attribute, window)
    flat = np.fromiter(chain.from_iterable(rows), np.int64)
    if not len(flat):
        return NO_POINTS
    table = flat.reshape(-1, 4)
    if damaged_points(attribute, *table.T).any():
        raise DamagedError("Points of a series are damaged in the store.", hint=RESTORE)
    if window.last:
        table = table[::-1]
    steps, times, bits = (np.ascontiguousarray(table[:, column]) for column in range(3))
    return FloatPoints(steps, times, bits.view(np.float64))


def float_pieces(connection: sqlite3.Connection, attribute: int, window: Window) -> Iterator[FloatPoints]:
    """Yield final points in a window, some thousands at a time, those that the window wants first first."""
    while not window.empty:
        limit = _PIECE if window.limit is None else min(_PIECE, window.limit)
        piece = float_points(connection, attribute, Window(window.low, window.high, limit, window.last))
        if len(piece):
            yield piece
        if len(piece) < limit:
            return
        window = window.fewer(len(piece))
        if window.last:
            window = window.narrowed(None, int(piece.steps[0]) - 1)
        else:
            window = window.narrowed(int(piece.steps[-1]) + 1, None)


def with_previews(
    connection: sqlite3.Connection, attribute: int, window: Window, final: Iterable[FloatPoints]
) -> Iterator[FloatPoints]:
    """Add the points that are not final to pieces of a window; they come after all final ones."""
    rows = list(_rows(connection, "step, time, bits, completion", "previews", attribute, window))
    previews = []
    if rows:
        table = np.array(rows, np.int64)
        if window.last:
            table = table[::-1]
        steps, times, bits, completion = (np.ascontiguousarray(table[:, column]) for column in range(4))
        ratios = completion.view(np.float64).astype(np.float32)
        previews.append(FloatPoints(steps, times, bits.view(np.float64), ratios))
    for piece in chain(previews, final) if window.last else chain(final, previews):
        some = piece.within(window)
        if len(some):
            yield some
        window = window.fewer(len(some))


def object_points(
    connection: sqlite3.Connection, attribute: int, kind: AttributeType, window: Window
) -> list[ObjectPoint]:
    """Return points of a series of strings, histograms or files in a window, ascending."""
    found = _rows(connection, f"step, time, value, {_INTACT}", "objects", attribute, window)
    rows = []
    for step, time, value, is_intact in found:
        if not is_intact:
            raise DamagedError("Values of a series are damaged in the store.", hint=RESTORE)
        rows.append((step, time, value))
    if window.last:
        rows.reverse()
    plain = kind is AttributeType.STRING_SERIES
    return [ObjectPoint(step, time, value if plain else json.loads(value)) for step, time, value in rows]


def _rows(connection: sqlite3.Connection, columns: str, table: str, attribute: int, window: Window) -> sqlite3.Cursor:
    sql, values = f"SELECT {columns} FROM {table} WHERE attribute = ?", [attribute]  # noqa: S608
    if window.low is not None:
        sql += " AND step >= ?"
        values.append(window.low)
    if window.high is not None:
        sql += " AND step <= ?"
        values.append(window.high)
    sql += f" ORDER BY step {'DESC' if window.last else 'ASC'}"
    if window.limit is not None:
        sql += " LIMIT ?"
        values.append(window.limit)
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor.execute(sql, values)


_NOWHERE: Final = (float("nan"), float("nan"))


@dataclass(frozen=True, slots=True)
class Bucket:
    """Points with steps above ``low`` up to ``high``; first, last, least, greatest and sum are of finite values.

    ``first`` and ``last`` are (step, value), NaN both where no value is finite.
    """

    index: int
    low: float
    high: float
    first: tuple[float, float]
    last: tuple[float, float]
    least: float | None
    greatest: float | None
    finite: int
    nans: int
    positive_infinities: int
    negative_infinities: int
    total: float | None


def edges(low: float, high: float, count: int) -> npt.NDArray[np.float64]:
    """Return the upper ends of all buckets but the last, which has none.

    The first bucket holds what is not above ``low``. If there is no range there is one bucket, and no end.
    """
    if low == high or count < 2:
        return np.zeros(0, np.float64)
    width = (high - low) / (count - 1)
    return low + width * np.arange(count, dtype=np.float64)


def gather(pieces: Iterable[FloatPoints], low: float, ends: npt.NDArray[np.float64]) -> list[Bucket]:
    """Return the buckets that hold any point, in order; ``ends`` are from :func:`edges`, pieces in ascending order."""
    found: list[Bucket] = []
    for piece in pieces:
        for bucket in _gathered(piece, low, ends):
            # Pieces end where they happen to: the first bucket of one may be the last of the one before.
            if found and found[-1].index == bucket.index:
                found[-1] = _together(found[-1], bucket)
            else:
                found.append(bucket)
    return found


def _gathered(points: FloatPoints, low: float, ends: npt.NDArray[np.float64]) -> Iterator[Bucket]:
    steps = step_doubles(points.steps)
    values = points.values
    if not len(ends):
        steps, values = steps[steps >= low], values[steps >= low]
    if not len(steps):
        return
    places = np.searchsorted(ends, steps, "left")
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    stops = np.append(starts[1:], len(steps))
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        index = int(places[start])
        some = values[start:stop]
        finite = np.flatnonzero(np.isfinite(some))
        first = last = _NOWHERE
        if len(finite):
            first, last = (
                (float(steps[start + place]), float(some[place])) for place in (int(finite[0]), int(finite[-1]))
            )
        known = some[finite]
        with np.errstate(over="ignore"):
            total = float(known.sum()) if len(known) else None
        yield Bucket(
            index=index,
            low=_lower(index, low, ends),
            high=float(ends[index]) if index < len(ends) else float("inf"),
            first=first,
            last=last,
            least=float(known.min()) if len(known) else None,
            greatest=float(known.max()) if len(known) else None,
            finite=len(known),
            nans=int(np.isnan(some).sum()),
            positive_infinities=int(np.isposinf(some).sum()),
            negative_infinities=int(np.isneginf(some).sum()),
            total=total,
        )


def _together(before: Bucket, after: Bucket) -> Bucket:
    """Return one bucket of what is in two of the same index."""
    known = [bucket for bucket in (before, after) if bucket.finite]
    return Bucket(
        index=before.index,
        low=before.low,
        high=before.high,
        first=known[0].first if known else _NOWHERE,
        last=known[-1].last if known else _NOWHERE,
        least=min((bucket.least for bucket in known if bucket.least is not None), default=None),
        greatest=max((bucket.greatest for bucket in known if bucket.greatest is not None), default=None),
        finite=before.finite + after.finite,
        nans=before.nans + after.nans,
        positive_infinities=before.positive_infinities + after.positive_infinities,
        negative_infinities=before.negative_infinities + after.negative_infinities,
        total=sum(bucket.total for bucket in known if bucket.total is not None) if known else None,
    )


def _lower(index: int, low: float, ends: npt.NDArray[np.float64]) -> float:
    if index > 0:
        return float(ends[index - 1])
    return float("-inf") if len(ends) else low


_EVERYTHING: Final = Window()
_ASCENDING: Final = Window(last=False)
_BUCKETS_KEPT: Final = 100_000


class SeriesReader:
    """Reads points for the runs of a catalog; any number of threads may use it. Whether a series exists, that knows."""

    def __init__(self, catalog: Catalog, cache_mb: int = 192) -> None:
        self._catalog = catalog
        self._lake = LakePoints(cache_mb)
        self._buckets: Cache[list[Bucket]] = Cache(_BUCKETS_KEPT, len)

    def floats(
        self,
        run: Run,
        path: str,
        window: Window = _EVERYTHING,
        lineage: Lineage = Lineage.FULL,
        *,
        previews: bool = False,
    ) -> FloatPoints:
        """Return points of a float series in a window; ``previews`` adds those that are not final."""
        found = list(self.float_pieces(run, path, window, lineage, previews=previews))
        return join(found[::-1] if window.last else found)

    def float_pieces(
        self,
        run: Run,
        path: str,
        window: Window = _ASCENDING,
        lineage: Lineage = Lineage.FULL,
        *,
        previews: bool = False,
    ) -> Iterator[FloatPoints]:
        """Yield the same in pieces of bounded size, from the end of the window that is wanted first.

        A piece is ascending in itself. Where the store holds the points, it is read until the last piece was taken.
        """
        parts = self._float_parts(run, path, window, lineage, previews=previews)
        for member, part in parts if window.last else reversed(parts):
            part = Window(part.low, part.high, window.limit, window.last)
            for piece in self._own_floats(member, path, part, previews=previews and member is run):
                yield piece
                window = window.fewer(len(piece))
            if window.empty:
                return

    def _float_parts(
        self, run: Run, path: str, window: Window, lineage: Lineage, *, previews: bool
    ) -> list[tuple[Run, Window]]:
        """Return which runs hold points of a window, the youngest first, and where."""
        line = segments(run, lineage, self._catalog.parent)
        found: list[tuple[Run, Window]] = []
        first: int | None = None
        for segment in line:
            part = window.narrowed(segment.low, segment.below(first))
            if part.empty:
                continue
            found.append((segment.run, part))
            if segment is not line[-1]:
                # Where the line goes on below it: a parent's point at this step is not one of the line.
                begin = Window(part.low, part.high, limit=1, last=False)
                for piece in self._own_floats(segment.run, path, begin, previews=previews and segment.run is run):
                    first = int(piece.steps[0])
        return found

    def objects(
        self,
        run: Run,
        path: str,
        kind: AttributeType,
        window: Window = _EVERYTHING,
        lineage: Lineage = Lineage.FULL,
    ) -> list[ObjectPoint]:
        """Return points, ascending, of a series of strings, histograms or files in a window."""
        found: list[list[ObjectPoint]] = []
        for segment in segments(run, lineage, self._catalog.parent):
            part = window.narrowed(segment.low, segment.below(found[-1][0].step if found else None))
            if part.empty:
                continue
            piece = self._own_objects(segment.run, path, kind, part)
            if piece:
                found.append(piece)
            if window.last:
                window = window.fewer(len(piece))
        points = [point for piece in reversed(found) for point in piece]
        return points if window.last else points[: window.limit]

    def buckets(
        self, run: Run, path: str, low: float, high: float, count: int, lineage: Lineage, *, previews: bool
    ) -> list[Bucket]:
        """Return a float series gathered into buckets; kept for a while, as charts ask for the same again and again.

        A client that gave up waiting finds, when it asks again, what was gathered meanwhile.
        """

        def gathered() -> list[Bucket]:
            pieces = self.float_pieces(run, path, lineage=lineage, previews=previews)
            return gather(pieces, low, edges(low, high, count))

        if run.origin == "store" or run.parent is not None:
            return gathered()
        key = (run.number, run.version, path, low, high, count)
        return self._buckets.get(key, gathered)

    def lake_run(self, run: Run) -> LakeRun:
        """Return a run of the lake as the lake's reader has it."""
        return self._catalog.lake_project(run).run(run.run_id)

    def _own_floats(self, run: Run, path: str, window: Window, *, previews: bool) -> Iterator[FloatPoints]:
        if run.origin == "lake":
            yield from self._lake.floats(self.lake_run(run), path, window)
            return
        with self._catalog.store_of(run).read() as connection:
            attribute = attribute_of(connection, run, path, AttributeType.FLOAT_SERIES)
            if attribute is None:
                return
            pieces = float_pieces(connection, attribute, window)
            yield from with_previews(connection, attribute, window, pieces) if previews else pieces

    def _own_objects(self, run: Run, path: str, kind: AttributeType, window: Window) -> list[ObjectPoint]:
        if run.origin == "lake":
            return self._lake.objects(self.lake_run(run), path, kind, window)
        with self._catalog.store_of(run).read() as connection:
            attribute = attribute_of(connection, run, path, kind)
            return [] if attribute is None else object_points(connection, attribute, kind, window)
