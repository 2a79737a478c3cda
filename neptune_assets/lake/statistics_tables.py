"""The statistics of runs as tables: what their columns are, and rows of many runs made at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from neptune_assets.lake.rows import NONE, concat, decimals
from neptune_assets.lake.series_facts import SeriesFacts
from neptune_assets.schema import SCHEMA, STEP_TYPE

_KEY: Final = (("run_id", pa.string()), ("digest", pa.string()))
_NAMES: Final = (("attribute_path", pa.string()), ("attribute_type", pa.string()))
SERIES: Final = pa.schema(
    [
        *_KEY,
        *_NAMES,
        ("row_count", pa.int64()),
        ("non_finite_count", pa.int64()),
        ("nan_count", pa.int64()),
        ("positive_infinity_count", pa.int64()),
        ("first_value", pa.float64()),
        ("last_value", pa.float64()),
        ("min_value", pa.float64()),
        ("max_value", pa.float64()),
        ("mean_value", pa.float64()),
        ("first_step", STEP_TYPE),
        ("last_step", STEP_TYPE),
        ("first_time", pa.int64()),
        ("last_time", pa.int64()),
        ("variance_value", pa.float64()),
    ]
)
"""One row for each attribute with points or files; times are milliseconds since 1970, as whole numbers, because not
every reader's times reach as far as the lake's. Least, greatest, mean and variance (of the population) are of finite
values; first and last are by step, of rows with a step and a value. A variance may be left out, see
:mod:`neptune_assets.lake.moments`; files from before it was kept lack the column."""

_PARAMETER_COLUMNS: Final = tuple(
    pa.field("datetime_value", pa.int64()) if name == "datetime_value" else SCHEMA.field(name)
    for name in ("int_value", "float_value", "string_value", "bool_value", "datetime_value", "string_set_value")
)
PARAMS: Final = pa.schema([*_KEY, *_NAMES, *_PARAMETER_COLUMNS])
"""One row for each parameter, as in the lake, but times as milliseconds since 1970."""

_STEPS: Final = ("first_step", "last_step")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What was found out about one run: its series, its parameters as compact rows, and their names."""

    run_id: str
    digest: str
    series: list[SeriesFacts]
    series_names: list[tuple[str, str]]
    parameters: list[pa.RecordBatch]
    parameter_names: list[tuple[str, str]]
    parameter_bytes: int

    @property
    def rows(self) -> int:
        """Rows that both tables get."""
        return len(self.series) + len(self.parameter_names)

    @property
    def nbytes(self) -> int:
        """About the bytes that this takes in memory."""
        return 600 * len(self.series) + self.parameter_bytes


def series_table(runs: Sequence[RunFacts]) -> pa.RecordBatch:
    """Return rows in :data:`SERIES`, of many runs at once: a table for each would cost small runs too much."""
    series = [item for run in runs for item in run.series]

    def numbers(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array([getattr(item, name) for item in series], kind)

    arrays = [
        *_key([(run, len(run.series)) for run in runs]),
        *_names_of([name for run in runs for name in run.series_names]),
        *(numbers(name, pa.int64()) for name in ("rows", "non_finite", "nan", "positive_infinity")),
        *(numbers(name, pa.float64()) for name in ("first", "last", "least", "greatest", "mean")),
        *(decimals(np.asarray([getattr(item, name) for item in series], np.int64)) for name in _STEPS),
        *(_instants([getattr(item, name) for item in series]) for name in ("first_time", "last_time")),
        numbers("variance", pa.float64()),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SERIES)


def parameter_table(runs: Sequence[RunFacts]) -> pa.RecordBatch:
    """Return rows in :data:`PARAMS`, of many runs at once."""
    batches = [batch for run in runs for batch in run.parameters]
    if not batches:
        return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in PARAMS], schema=PARAMS)
    rows = concat(batches)
    arrays = [
        *_key([(run, len(run.parameter_names)) for run in runs]),
        *_names_of([name for run in runs for name in run.parameter_names]),
    ]
    for field in _PARAMETER_COLUMNS:
        place = rows.schema.get_field_index(field.name)
        arrays.append(rows.column(place).cast(field.type) if place >= 0 else pa.nulls(rows.num_rows, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=PARAMS)


def _key(counts: Sequence[tuple[RunFacts, int]]) -> list[pa.Array]:
    return [
        pa.array([text for run, count in counts for text in [getattr(run, name)] * count], kind) for name, kind in _KEY
    ]


def _names_of(names: Sequence[tuple[str, str]]) -> list[pa.Array]:
    return [pa.array([path for path, _ in names], pa.string()), pa.array([kind for _, kind in names], pa.string())]


def _instants(milliseconds: Any) -> pa.Array:
    values = np.asarray(milliseconds, np.int64)
    return pa.array(values, mask=values == NONE)
