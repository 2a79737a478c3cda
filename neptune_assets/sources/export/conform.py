"""Columns of a part as the lake's schema has them: only casts that keep every value are made."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.types as pt

from neptune_assets.schema import SCHEMA

KEYS: Final = ("project_id", "run_id", "attribute_path", "attribute_type")
"""Columns that a part cannot do without; any other may be missing."""


class ColumnError(Exception):
    """A column of a part holds something other than the format says."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(f"column {column} {reason}")
        self.column = column


def check_columns(found: pa.Schema) -> None:
    """Raise ColumnError for the first column that is missing and needed, doubled, or of a type that cannot be cast."""
    for field in SCHEMA:
        indices = found.get_all_field_indices(field.name)
        if len(indices) > 1:
            raise ColumnError(field.name, "is there more than once")
        if not indices:
            if field.name in KEYS:
                raise ColumnError(field.name, "is missing")
        elif not _castable(found.field(indices[0]).type, field.type):
            raise ColumnError(field.name, f"is {found.field(indices[0]).type}, where {field.type} belongs")


def conform_batch(batch: pa.RecordBatch, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    """Return the batch in ``schema``: extra columns left out, missing ones null, others cast exactly.

    Raises ColumnError if a cast would change a value.
    """
    columns = []
    for field in schema:
        index = batch.schema.get_field_index(field.name)
        column = pa.nulls(batch.num_rows, field.type) if index < 0 else batch.column(index)
        column = column if column.type.equals(field.type) else _cast(column, field)
        _check_text(column, field)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(column: pa.Array, field: pa.Field) -> pa.Array:
    try:
        if pt.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column.cast(field.type, safe=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise ColumnError(field.name, f"cannot be cast from {column.type} exactly: {error}") from error


def _check_text(column: pa.Array, field: pa.Field) -> None:
    """Raise ColumnError for bytes that are not text: one of them would end every query over the project."""
    if pt.is_string(field.type) or pt.is_nested(field.type):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise ColumnError(field.name, f"is damaged: {error}") from error


def _castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Tell whether all or some values of a type can be cast exactly; those that cannot are found when casting."""
    if pt.is_dictionary(found):
        found = found.value_type
    if found.equals(wanted) or pt.is_null(found):
        return True
    if pt.is_string(wanted):
        return bool(pt.is_large_string(found) or pt.is_string_view(found))
    if pt.is_timestamp(wanted):
        return bool(pt.is_timestamp(found))
    if pt.is_decimal(wanted):
        return bool(pt.is_decimal(found) or pt.is_integer(found))
    if pt.is_int64(wanted):
        return bool(pt.is_integer(found))
    if pt.is_float64(wanted):
        return bool(pt.is_floating(found) or pt.is_integer(found))
    if pt.is_list(wanted):
        return (pt.is_list(found) or pt.is_large_list(found)) and _castable(found.value_type, wanted.value_type)
    if pt.is_struct(wanted):
        if not pt.is_struct(found):
            return False
        have = {found.field(index).name: found.field(index).type for index in range(found.num_fields)}
        return set(have) == {wanted.field(index).name for index in range(wanted.num_fields)} and all(
            _castable(have[wanted.field(index).name], wanted.field(index).type) for index in range(wanted.num_fields)
        )
    return False
