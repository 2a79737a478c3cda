"""Columns of the lake as numpy arrays: steps as whole micro-steps, times as milliseconds, names as numbers."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

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


def present(column: Any) -> Bools:
    """Return a mask of the values that are not null."""
    mask: Bools = np.asarray(plain(column).is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    return mask


def microsteps(column: Any) -> Ints:
    """Return decimal(18, 6) steps as whole micro-steps, exactly; what stands for a null is without meaning.

    Each decimal takes 16 bytes, and as steps stay below 10**12 the lower eight hold the whole number.
    """
    column = plain(column)
    if len(column) == 0:
        return np.empty(0, dtype=np.int64)
    if column.type != pa.decimal128(18, 6):
        column = column.cast(pa.decimal128(18, 6))
    raw = np.frombuffer(column.buffers()[1], dtype="<i8")
    return np.asarray(raw[2 * column.offset : 2 * (column.offset + len(column)) : 2], dtype=np.int64)


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
