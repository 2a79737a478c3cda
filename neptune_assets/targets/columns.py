"""Rows of a run in the lake as columns, apart by attribute type: what targets that write many rows at a time read.

Steps are int64 micro-steps (:func:`~neptune_assets.lake.rows.microsteps`), times int64 milliseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.schema import VALUE_COLUMN, AttributeType

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NO_TIME: Final = int(np.iinfo(np.int64).max)
"""Stands for a missing time, so that the earliest of several times is their minimum."""


def plain(column: Any) -> Any:
    """Return a column as one array whose buffers begin at offset 0 and whose values are not dictionary-encoded."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column


def milliseconds(column: Any) -> Ints:
    """Return times as milliseconds since 1970 in UTC; :data:`NO_TIME` for nulls."""
    column = plain(column).cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64())
    return np.asarray(column.fill_null(NO_TIME).to_numpy(zero_copy_only=False), dtype=np.int64)


def codes(column: Any) -> tuple[Ints, list[str]]:
    """Return a number for each text of the column, and the texts in the order of their numbers.

    Columns of the lake are sorted, so that equal texts stand together: only where they change is looked at twice.
    """
    column = plain(column)
    if len(column) == 0:
        return np.empty(0, dtype=np.int64), []
    stretches = pc.run_end_encode(column)
    ends = np.asarray(stretches.run_ends.to_numpy(zero_copy_only=False), dtype=np.int64)
    encoded = stretches.values.dictionary_encode()
    numbers = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    return np.repeat(numbers, np.diff(ends, prepend=0)), encoded.dictionary.to_pylist()


_ROWS: Final = 65_536
_FEW_ROWS: Final = 2_048
"""Rows read at once where they may be long: histograms and texts."""
_NAMES: Final = ("attribute_path", "attribute_type", "step", "timestamp")
_LONG: Final = (AttributeType.HISTOGRAM_SERIES, AttributeType.STRING_SERIES)


def typed_rows(run: LakeRun, types: Collection[AttributeType]) -> Iterator[tuple[AttributeType, pa.RecordBatch]]:
    """Yield (type, rows of that type) for these attribute types, each type in the order of the lake.

    Batches have path, type, step, timestamp and the type's value. One pass reads everything, unless the run has many
    rows that may be long, which are then read a few at a time.
    """
    wanted = {kind for kind in types if run.record.rows.get(str(kind))}
    if sum(run.record.rows.get(str(kind), 0) for kind in _LONG) <= _FEW_ROWS:
        yield from _pass(run, wanted, _ROWS)
        return
    yield from _pass(run, wanted & {AttributeType.FLOAT_SERIES}, _ROWS)
    yield from _pass(run, wanted - {AttributeType.FLOAT_SERIES}, _FEW_ROWS)


def _pass(
    run: LakeRun, wanted: Collection[AttributeType], batch_rows: int
) -> Iterator[tuple[AttributeType, pa.RecordBatch]]:
    if not wanted:
        return
    columns = [*_NAMES, *sorted({VALUE_COLUMN[kind] for kind in wanted})]
    # A type that is hardly there is no reason to look at every row for it, and neither is leaving one out.
    every = sum(run.record.rows.get(str(kind), 0) for kind in wanted) * 2 > run.record.total_rows
    for batch in run.batches(types=None if every else wanted, columns=columns, batch_rows=batch_rows):
        numbers, names = codes(batch.column("attribute_type"))
        for number, name in enumerate(names):
            kind = AttributeType(name)
            if kind not in wanted:
                continue
            own = batch.select([*_NAMES, VALUE_COLUMN[kind]])
            if len(names) > 1:
                own = own.take(pa.array(np.flatnonzero(numbers == number)))
            yield kind, own


def series_values(rows: pa.RecordBatch, kind: AttributeType) -> Iterator[tuple[str, int | None, int | None, Any]]:
    """Yield (path, step or None, time or None, value) of rows of one type, one by one: for those that are few."""
    for path, step, time, value in zip(
        plain(rows.column("attribute_path")).to_pylist(),
        microsteps(rows.column("step")).tolist(),
        milliseconds(rows.column("timestamp")).tolist(),
        plain(rows.column(VALUE_COLUMN[kind])).to_pylist(),
        strict=True,
    ):
        yield path, None if step == NONE else step, None if time == NO_TIME else time, value
