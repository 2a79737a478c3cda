"""What is wrong in rows of old exports, put right: pure functions from batch to batch.

An export that is copied is repaired while it is read; one that stays in place is repaired whenever the lake reads it.
Both use these functions. For the second, a run's record must say all that is needed: its ``repairs`` mapping holds
counts under the names below, and :func:`repair_batch` does what the names say, without any source at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.schema import (
    FILE_TYPES,
    MAX_TIME,
    MIN_TIME,
    PARAMETER_TYPES,
    SCHEMA,
    SERIES_TYPES,
    TIME_TYPE,
    VALUE_COLUMN,
    AttributeType,
)

PHANTOM_ROWS: Final = "phantom_rows"
"""Rows dropped: a parameter or file whose value is null, which means the run has no such attribute."""

NAN_VALUES: Final = "nan_values"
"""Points of a float series whose lost value was made NaN again."""

TIMEZONE_SHIFT_MS: Final = "timezone_shift_ms"
"""Milliseconds added to every series timestamp of the run. Not a count."""

TIMEZONE: Final = "timezone="
"""Prefix of a name that ends in an IANA zone: series timestamps are that zone's local time; the value counts them."""

FOREIGN_ROWS: Final = "foreign_rows"
"""Rows dropped because their project_id or run_id is not the run's. Reading in place always leaves them out."""

UNUSABLE_ROWS: Final = "unusable_rows"
"""Rows dropped because their type is unknown, they have no path, or they are points of a series without a step."""

IMPOSSIBLE_TIMES: Final = "impossible_times"
"""Times that no row of the lake can hold: points keep value and step and lose the time, datetimes are dropped."""

LOST_FILES: Final = "lost_files"
"""Points of a file series dropped because they name no file."""

DUPLICATE_ROWS: Final = "duplicate_rows"
"""Rows dropped because a later one has the same attribute (and step) and value; done by sorting, in the lake."""

CONFLICTING_ROWS: Final = "conflicting_rows"
"""Rows dropped because a later one has the same attribute (and step) and another value. A note names each attribute."""

NOT_COUNTS: Final = frozenset({TIMEZONE_SHIFT_MS})
"""Names in a ``repairs`` mapping that must not be added up."""

_PHANTOM_TYPES: Final = PARAMETER_TYPES | FILE_TYPES - {AttributeType.FILE_SERIES}


def conform(batch: pa.RecordBatch, project_id: str | None = None, run_id: str | None = None) -> pa.RecordBatch:
    """Return the batch in the lake's schema: columns in order, missing ones null, extra ones dropped, types cast.

    Dictionary-encoded strings become plain, other decimal widths and time units become the lake's. Ids that are given
    replace a missing column. Raises pyarrow.ArrowInvalid for a value that does not fit.
    """
    if batch.schema.equals(SCHEMA):
        return batch
    given = {"project_id": project_id, "run_id": run_id}
    columns = []
    for field in SCHEMA:
        index = batch.schema.get_field_index(field.name)
        if index < 0:
            known = given.get(field.name)
            columns.append(
                pa.nulls(batch.num_rows, field.type)
                if known is None
                else pa.repeat(pa.scalar(known, field.type), batch.num_rows)
            )
            continue
        column = batch.column(index)
        columns.append(column if column.type.equals(field.type) else column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def drop_phantom_rows(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    """Drop parameter and file rows whose own value column is null. Returns the batch and how many were dropped.

    Series are left alone: their null values mean something else.
    """
    suspects = _is_one_of(batch["attribute_type"], _PHANTOM_TYPES)
    if not pc.any(suspects).as_py():
        return batch, 0
    empty = None
    for column in sorted({VALUE_COLUMN[kind] for kind in PARAMETER_TYPES | FILE_TYPES}):
        kinds = {kind for kind, name in VALUE_COLUMN.items() if name == column}
        values = pc.struct_field(batch[column], "path") if column == "file_value" else batch[column]
        missing = pc.and_(_is_one_of(batch["attribute_type"], kinds), pc.is_null(values))
        empty = missing if empty is None else pc.or_(empty, missing)
    phantom = pc.and_(suspects, empty)
    dropped = int(pc.sum(phantom).as_py() or 0)
    return (batch.filter(pc.invert(phantom)), dropped) if dropped else (batch, 0)


def own_rows(batch: pa.RecordBatch, project_id: str, run_id: str) -> pa.RecordBatch:
    """Keep the rows of one run of one project."""
    own = pc.and_(pc.equal(batch["run_id"], run_id), pc.equal(batch["project_id"], project_id))
    own = pc.fill_null(own, False)
    return batch if pc.all(own).as_py() else batch.filter(own)


def drop_unusable_rows(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Drop rows of unknown type, without path, and points of a series without a step. Returns kept and dropped rows."""
    kinds = batch["attribute_type"]
    known = pc.and_(_is_one_of(kinds, AttributeType), pc.is_valid(batch["attribute_path"]))
    usable = pc.and_not(known, pc.and_(_is_one_of(kinds, SERIES_TYPES), pc.is_null(batch["step"])))
    return _parted(batch, usable)


def drop_empty_points(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Drop points of a float series without value (NaN is one), and points of a file series that name no file.

    Returns kept and dropped rows.
    """
    kinds = batch["attribute_type"]
    no_file = pc.is_null(pc.struct_field(batch["file_value"], "path"))
    empty = pc.or_(
        pc.and_(pc.equal(kinds, str(AttributeType.FILE_SERIES)), no_file),
        pc.and_(pc.equal(kinds, str(AttributeType.FLOAT_SERIES)), pc.is_null(batch["float_value"])),
    )
    return _parted(batch, pc.invert(empty))


def restore_nan(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    """Make the null value of a float series point that has a timestamp NaN. Returns the batch and how many."""
    lost = pc.and_(
        pc.equal(batch["attribute_type"], str(AttributeType.FLOAT_SERIES)),
        pc.and_(pc.is_null(batch["float_value"]), pc.is_valid(batch["timestamp"])),
    )
    count = int(pc.sum(lost).as_py() or 0)
    if not count:
        return batch, 0
    return _with(batch, "float_value", pc.if_else(lost, pa.scalar(float("nan")), batch["float_value"])), count


def impossible_datetimes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return attribute_path and value, in epoch milliseconds, of the datetimes that no row of the lake can hold."""
    values = batch["datetime_value"].view(pa.int64())
    beyond = _impossible(batch)
    paths = batch["attribute_path"].filter(beyond)
    return pa.RecordBatch.from_arrays([paths, values.filter(beyond)], names=["attribute_path", "value"])


def stray_datetimes(batch: pa.RecordBatch) -> int:
    """Return how many rows of other types hold a datetime that no row of the lake can hold."""
    beyond = pc.fill_null(_beyond(batch["datetime_value"].view(pa.int64())), False)
    return int(pc.sum(pc.and_not(beyond, _impossible(batch))).as_py() or 0)


def drop_impossible_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Take the times of points away that no row of the lake can hold, and drop such datetimes.

    What a row of another type has in ``datetime_value`` is not its value: the row stays, without it.
    """
    times = batch["timestamp"].view(pa.int64())
    beyond = pc.fill_null(_beyond(times), False)
    if pc.any(beyond).as_py():
        batch = _with(batch, "timestamp", pc.if_else(beyond, pa.scalar(None, pa.int64()), times).view(TIME_TYPE))
    beyond = _impossible(batch)
    batch = batch.filter(pc.invert(beyond)) if pc.any(beyond).as_py() else batch
    values = batch["datetime_value"].view(pa.int64())
    beyond = pc.fill_null(_beyond(values), False)
    if pc.any(beyond).as_py():
        kept = pc.if_else(beyond, pa.scalar(None, pa.int64()), values).view(TIME_TYPE)
        batch = _with(batch, "datetime_value", kept)
    return batch


def shift_timestamps(batch: pa.RecordBatch, milliseconds: int) -> pa.RecordBatch:
    """Add milliseconds to every series timestamp; parameters of type datetime are right and stay."""
    if not milliseconds:
        return batch
    shifted = pc.add_checked(batch["timestamp"].cast(pa.int64()), pa.scalar(milliseconds, pa.int64()))
    return _with(batch, "timestamp", shifted.cast(TIME_TYPE))


def localize_timestamps(batch: pa.RecordBatch, zone: str) -> pa.RecordBatch:
    """Read every series timestamp as local time of an IANA zone and return it in UTC.

    Of the hour that occurs twice in autumn the first is taken; the hour that is skipped in spring moves past the gap.
    """
    local = batch["timestamp"].cast(pa.timestamp("ms"))
    moments = pc.assume_timezone(local, zone, ambiguous="earliest", nonexistent="latest")
    return _with(batch, "timestamp", moments.cast(TIME_TYPE))


def repair_batch(batch: pa.RecordBatch, repairs: Mapping[str, int]) -> pa.RecordBatch:
    """Make the repairs that a run's record names. Duplicates are resolved later, by sorting."""
    if repairs.get(UNUSABLE_ROWS):
        batch, _ = drop_unusable_rows(batch)
    if repairs.get(PHANTOM_ROWS):
        batch, _ = drop_phantom_rows(batch)
    if repairs.get(NAN_VALUES):
        batch, _ = restore_nan(batch)
    if repairs.get(PHANTOM_ROWS) or repairs.get(LOST_FILES):
        batch, _ = drop_empty_points(batch)
    if repairs.get(IMPOSSIBLE_TIMES):
        batch = drop_impossible_times(batch)
    batch = shift_timestamps(batch, repairs.get(TIMEZONE_SHIFT_MS, 0))
    for name in repairs:
        if name.startswith(TIMEZONE):
            batch = localize_timestamps(batch, name.removeprefix(TIMEZONE))
    return batch


def _beyond(milliseconds: pa.Array) -> pa.Array:
    return pc.or_(pc.less(milliseconds, MIN_TIME), pc.greater(milliseconds, MAX_TIME))


def _impossible(batch: pa.RecordBatch) -> pa.Array:
    beyond = pc.fill_null(_beyond(batch["datetime_value"].view(pa.int64())), False)
    return pc.and_(beyond, _is_one_of(batch["attribute_type"], {AttributeType.DATETIME}))


def _with(batch: pa.RecordBatch, column: str, values: pa.Array) -> pa.RecordBatch:
    index = batch.schema.get_field_index(column)
    return batch.set_column(index, batch.schema.field(index), values)


def _parted(batch: pa.RecordBatch, kept: pa.Array) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    if pc.all(kept).as_py():
        return batch, batch.slice(0, 0)
    return batch.filter(kept), batch.filter(pc.invert(kept))


def _is_one_of(types: pa.Array, kinds: Iterable[AttributeType]) -> pa.Array:
    # Made when needed: the first pa.array() of a process looks for pandas, which takes seconds to import.
    return pc.is_in(types, pa.array(sorted(str(kind) for kind in kinds)))
