"""Attributes of many runs that are no series, as rows of the one schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.schema import SCHEMA, VALUE_COLUMN, AttributeType
from neptune_assets.sources.rows import check_value

_COLUMNS: Final = tuple(SCHEMA.names[SCHEMA.get_field_index("int_value") :])


class ValueRows:
    """Collects rows, of whatever types, of runs that are known by number."""

    def __init__(self) -> None:
        self._runs: list[int] = []
        self._paths: list[str] = []
        self._types: list[str] = []
        self._places: dict[str, list[int]] = {}
        self._cells: dict[str, list[Any]] = {}

    def add(self, run: int, path: str, kind: AttributeType, value: Any) -> None:
        """Add a row. Raises ValueError for what no row can hold, and adds nothing then."""
        column = VALUE_COLUMN[kind]
        check_value("string_value", path)
        if column == "float_value":
            value = float(value)
        else:
            check_value(column, value)
        if column not in self._cells:
            self._places[column], self._cells[column] = [], []
        self._places[column].append(len(self._runs))
        self._cells[column].append(value)
        self._runs.append(run)
        self._paths.append(path)
        self._types.append(str(kind))

    def table(self, project_id: str, run_ids: Sequence[str]) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """Return the rows, and the number of each one's run."""
        count = len(self._runs)
        runs = np.array(self._runs, np.int64)
        columns: dict[str, pa.Array] = {
            "project_id": pa.repeat(pa.scalar(project_id, pa.string()), count),
            "run_id": pa.array(run_ids, pa.string()).take(pa.array(runs)),
            "attribute_path": pa.array(self._paths, pa.string()),
            "attribute_type": pa.array(self._types, pa.string()),
        }
        for column, cells in self._cells.items():
            # Positions of the rows that have a value here; null elsewhere.
            places = np.full(count, -1, np.int64)
            places[self._places[column]] = np.arange(len(cells))
            columns[column] = _array(column, cells).take(pa.array(places, mask=places < 0))
        arrays = [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in SCHEMA]
        return pa.Table.from_arrays(arrays, schema=SCHEMA), runs


def _array(column: str, cells: list[Any]) -> pa.Array:
    if column == "file_value":
        return pa.StructArray.from_arrays([pa.array(cells, pa.string())], names=["path"])
    field = SCHEMA.field(column)
    if column == "datetime_value":
        return pa.array(cells, pa.int64()).cast(field.type)
    return pa.array(cells, field.type)
