"""Rows of one run in a compact form: numbers for attributes, steps and times, and only the columns that hold anything.

Sorting, hashing and writing work on this form, which is several times smaller and faster than rows in the lake's
schema. :func:`pack` and :func:`unpack` turn one into the other exactly. A compact batch has the columns ``attribute``
(int32 id), ``step`` (int64 micro-steps) and ``time`` (int64 milliseconds), neither null, then value columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.schema import SCHEMA, STEP_TYPE, TIME_TYPE

NONE: Final = np.iinfo(np.int64).min
"""Stands for a null step or time. No step is as low (18 digits), and it sorts first."""

KEYS: Final = ("attribute", "step", "time")
VALUES: Final = tuple(SCHEMA.names[SCHEMA.get_field_index("int_value") :])

_COLUMNS: Final = tuple((field.name, field.type) for field in SCHEMA)
_ENCODED_NAMES: Final = ("project_id", "run_id", "attribute_path", "attribute_type")
_ENCODED: Final = pa.schema(
    (name, pa.dictionary(pa.int32(), kind) if name in _ENCODED_NAMES else kind) for name, kind in _COLUMNS
)

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


class Attributes:
    """Ids of a run's attributes: one small number for each distinct (path, type), in order of first sight."""

    def __init__(self, names: Iterable[tuple[str, str]] = ()) -> None:
        self.names = list(names)
        self._ids = {name: number for number, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def id(self, path: str, kind: str) -> int | None:
        """Return the id of an attribute, or None if no row had it."""
        return self._ids.get((path, kind))

    def encode(self, paths: pa.Array, kinds: pa.Array) -> npt.NDArray[np.int32]:
        """Return the ids of rows with these paths and types. Raises ValueError for a null."""
        path_names, kind_names, codes = distinct_codes(paths, kinds)
        width = max(1, len(kind_names))
        # The codes are a small dense range: counting finds the distinct ones without sorting.
        distinct = np.flatnonzero(np.bincount(codes))
        ids = np.empty(int(distinct[-1]) + 1 if len(distinct) else 0, np.int32)
        for code in distinct.tolist():
            name = (path_names[code // width], kind_names[code % width])
            known = self._ids.get(name)
            if known is None:
                known = self._ids[name] = len(self.names)
                self.names.append(name)
            ids[code] = known
        of_rows: npt.NDArray[np.int32] = ids[codes]
        return of_rows

    def ranks(self) -> npt.NDArray[np.int32]:
        """Return, for every id, its place among all ids sorted by (path, type) in code point order."""
        order = sorted(range(len(self.names)), key=self.names.__getitem__)
        ranks = np.empty(len(order), np.int32)
        ranks[np.asarray(order, np.intp)] = np.arange(len(order), dtype=np.int32)
        return ranks


def distinct_codes(paths: pa.Array, kinds: pa.Array) -> tuple[list[str], list[str], Int64]:
    """Return distinct paths, distinct types, and for every row the number of its path times the types plus its type.

    Raises ValueError for a null.
    """
    if paths.null_count or kinds.null_count:
        raise ValueError("a row has no attribute_path or no attribute_type")
    path_codes, kind_codes = paths.dictionary_encode(), kinds.dictionary_encode()
    width = max(1, len(kind_codes.dictionary))
    codes = path_codes.indices.to_numpy().astype(np.int64) * width + kind_codes.indices.to_numpy()
    return path_codes.dictionary.to_pylist(), kind_codes.dictionary.to_pylist(), codes


def pack(batch: pa.RecordBatch, attributes: Attributes) -> pa.RecordBatch:
    """Turn rows in the lake's schema into compact rows, adding new attributes to ``attributes``."""
    return compact(batch, attributes.encode(batch["attribute_path"], batch["attribute_type"]))


def compact(batch: pa.RecordBatch, ids: Int32) -> pa.RecordBatch:
    """Turn rows in the lake's schema, whose attributes have these ids, into compact rows; value columns may lack."""
    arrays = [
        pa.array(ids),
        pa.array(microsteps(batch["step"])),
        pa.array(_filled(batch["timestamp"].view(pa.int64()))),
    ]
    names = list(KEYS)
    for name in VALUES:
        if name not in batch.schema.names:
            continue
        column = batch[name]
        if column.null_count < len(column):
            names.append(name)
            arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, names=names)


def unpack(
    rows: pa.RecordBatch, attributes: Attributes, project_id: str, run_id: str, *, encoded: bool = False
) -> pa.RecordBatch:
    """Turn compact rows, grouped by attribute, into rows in the lake's schema.

    ``encoded`` leaves the four name columns dictionary-encoded.
    """
    count = rows.num_rows
    ids = rows["attribute"].to_numpy()
    starts = np.ones(count, np.bool_)
    starts[1:] = ids[1:] != ids[:-1]
    names = [attributes.names[place] for place in ids[starts].tolist()]
    indices = pa.array(np.cumsum(starts, dtype=np.int32) - np.int32(1))
    constant = pa.array(np.zeros(count, np.int32))
    columns: dict[str, pa.Array] = {
        "project_id": pa.DictionaryArray.from_arrays(constant, pa.array([project_id], pa.string())),
        "run_id": pa.DictionaryArray.from_arrays(constant, pa.array([run_id], pa.string())),
        "attribute_path": pa.DictionaryArray.from_arrays(indices, pa.array([path for path, _ in names], pa.string())),
        "attribute_type": _types(names, indices),
        "timestamp": _nullable(rows["time"].to_numpy()).view(TIME_TYPE),
    }
    if not encoded:
        for name in _ENCODED_NAMES:
            columns[name] = columns[name].dictionary.take(columns[name].indices)
    columns.update(zip(rows.schema.names, rows.columns, strict=True))
    columns["step"] = decimals(rows["step"].to_numpy())
    arrays = [columns[name] if name in columns else pa.nulls(count, kind) for name, kind in _COLUMNS]
    return pa.RecordBatch.from_arrays(arrays, schema=_ENCODED if encoded else SCHEMA)


def microsteps(steps: pa.Array) -> npt.NDArray[np.int64]:
    """Return decimal(18,6) steps as whole micro-steps, :data:`NONE` for null."""
    if steps.null_count == len(steps):
        return np.full(len(steps), NONE, np.int64)
    buffer = steps.buffers()[1]
    # 128-bit little-endian two's complement; 18 digits always fit the lower half.
    low = np.frombuffer(buffer, np.int64)[2 * steps.offset : 2 * (steps.offset + len(steps)) : 2]
    if steps.null_count:
        return np.where(validity(steps), low, NONE)
    return np.ascontiguousarray(low)


def validity(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Return which values of an array are not null, from its bitmap: compute functions cost small runs too much."""
    bitmap = array.buffers()[0]
    if not array.null_count or bitmap is None:
        return np.full(len(array), not array.null_count, np.bool_)
    bits = np.frombuffer(bitmap, np.uint8)
    return np.unpackbits(bits, count=array.offset + len(array), bitorder="little")[array.offset :].view(np.bool_)


def raw(array: pa.Array, kind: type[Any]) -> npt.NDArray[Any]:
    """Return the numbers of an array of 8-byte values as they are in memory, undefined where it is null."""
    if not len(array):
        return np.zeros(0, kind)
    return np.frombuffer(array.buffers()[1], kind)[array.offset : array.offset + len(array)]


def decimals(micro: npt.NDArray[np.int64]) -> pa.Array:
    """Return micro-steps as decimal(18,6); null where they are :data:`NONE`."""
    missing = micro == NONE
    words = np.empty(2 * len(micro), np.int64)
    words[0::2] = np.where(missing, 0, micro)
    words[1::2] = words[0::2] >> 63
    mask = None
    if missing.any():
        mask = pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(STEP_TYPE, len(micro), [mask, pa.py_buffer(words)])


def concat(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Join compact batches; a column that one of them lacks is null there."""
    if len(batches) == 1:
        return batches[0]
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    return pa.RecordBatch.from_arrays(
        [_one_chunk(table.column(place)) for place in range(table.num_columns)], names=table.column_names
    )


def pieces(rows: Any, max_rows: int, max_bytes: int) -> Iterator[Any]:
    """Cut a batch into slices of at most ``max_rows`` rows and about ``max_bytes`` bytes, one row at the least."""
    count = rows.num_rows
    if count == 0:
        return
    if count <= max_rows and (count == 1 or rows.nbytes <= max_bytes):
        yield rows
        return
    if count > max_rows:
        for start in range(0, count, max_rows):
            yield from pieces(rows.slice(start, max_rows), max_rows, max_bytes)
        return
    half = count // 2
    yield from pieces(rows.slice(0, half), max_rows, max_bytes)
    yield from pieces(rows.slice(half), max_rows, max_bytes)


def no_rows() -> pa.RecordBatch:
    """Return compact rows of a run that has none."""
    return pa.RecordBatch.from_pydict(
        {
            "attribute": pa.array([], pa.int32()),
            "step": pa.array([], pa.int64()),
            "time": pa.array([], pa.int64()),
        }
    )


def _types(names: list[tuple[str, str]], indices: pa.Array) -> pa.DictionaryArray:
    kinds = sorted({kind for _, kind in names})
    place = {kind: number for number, kind in enumerate(kinds)}
    of_name = np.asarray([place[kind] for _, kind in names], np.int32)
    codes = of_name[indices.to_numpy()] if names else np.zeros(0, np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(kinds, pa.string()))


def _filled(column: pa.Array) -> npt.NDArray[np.int64]:
    values = raw(column, np.int64)
    return np.where(validity(column), values, NONE) if column.null_count else values


def _nullable(values: npt.NDArray[np.int64]) -> pa.Array:
    missing = values == NONE
    return pa.array(values, mask=missing if missing.any() else None)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    chunks = column.chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.nulls(0, column.type)
