"""What values one run holds, counted without writing: points that are infinite, steps that are not whole, and the like.

One pass over the run, vectorised; memory does not grow with the run. Targets decide what becomes of each kind of value.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.lake.reader import LakeRun
from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.schema import FILE_TYPES, MICROSTEPS, PARAMETER_TYPES, VALUE_COLUMN, AttributeType

MAX_INT: Final = 2**63 - 1
MAX_DOUBLE_INT: Final = 2**53
MANY_BINS: Final = 512

_STEPPED: Final = (AttributeType.FLOAT_SERIES, AttributeType.STRING_SERIES, AttributeType.HISTOGRAM_SERIES)


class Kind(StrEnum):
    """Kinds of value that some target cannot hold as they are."""

    NULL = "no value"
    NO_STEP = "no step"
    NO_TIME = "no time"
    INFINITE = "infinite"
    UNEVEN_STEP = "a step that the multiplier does not make a whole 64-bit number"
    BEFORE_1970 = "a time before 1970"
    NEGATIVE_ZERO = "-0.0"
    BEYOND_DOUBLE = "a whole number beyond 2^53"
    MANY_BINS = "more than 512 bins"
    NO_FILE = "no file in the lake"


@dataclass(slots=True)
class ValueCounts:
    """Rows of one run by attribute type, and those of each kind.

    A point of a float series counts as one of infinite, uneven step, before 1970, -0.0: the first that holds.
    """

    rows: Counter[str] = field(default_factory=Counter)
    kinds: Counter[tuple[str, Kind]] = field(default_factory=Counter)

    def of(self, attribute_type: AttributeType, kind: Kind) -> int:
        """Rows of this type and kind."""
        return self.kinds[str(attribute_type), kind]

    def each(self, kind: Kind) -> list[tuple[str, int]]:
        """Return (attribute type, rows) of all types that have rows of this kind."""
        return sorted((name, rows) for (name, of), rows in self.kinds.items() if of is kind and rows)

    def update(self, other: ValueCounts) -> None:
        """Add the counts of another run."""
        self.rows.update(other.rows)
        self.kinds.update(other.kinds)


def count_values(run: LakeRun, step_multiplier: int = 1) -> ValueCounts:
    """Read a run once and count its values. ``step_multiplier`` is what its plan says."""
    counts = ValueCounts(Counter(run.record.rows))
    if run.record.rows.get(AttributeType.FLOAT_SERIES):
        for batch in run.batches(types=[AttributeType.FLOAT_SERIES], columns=("step", "timestamp", "float_value")):
            _points(batch, step_multiplier, counts)
    for kind in (AttributeType.STRING_SERIES, AttributeType.HISTOGRAM_SERIES):
        if run.record.rows.get(kind):
            column = VALUE_COLUMN[kind]
            for batch in run.batches(types=[kind], columns=("step", "timestamp", column)):
                _series(batch, kind, column, counts)
    _parameters(run, counts)
    _files(run, counts)
    return counts


def _points(batch: pa.RecordBatch, multiplier: int, counts: ValueCounts) -> None:
    kind = str(AttributeType.FLOAT_SERIES)
    values = batch["float_value"].fill_null(np.nan).to_numpy()
    micro = microsteps(batch["step"])
    factor = multiplier // int(np.gcd(multiplier, MICROSTEPS))
    whole, rest = np.divmod(micro, np.int64(MICROSTEPS // np.gcd(multiplier, MICROSTEPS)))
    uneven = (rest != 0) | (np.abs(whole) > MAX_INT // factor) | (micro == NONE)
    times = batch["timestamp"].cast(pa.int64())
    infinite = np.isinf(values)
    early = times.fill_null(0).to_numpy() < 0
    minus = (values == 0.0) & np.signbit(values)
    left = np.ones(len(values), np.bool_)
    for name, mask in (
        (Kind.INFINITE, infinite),
        (Kind.UNEVEN_STEP, uneven),
        (Kind.BEFORE_1970, early),
        (Kind.NEGATIVE_ZERO, minus),
    ):
        counts.kinds[kind, name] += int(np.count_nonzero(mask & left))
        left &= ~mask
    counts.kinds[kind, Kind.NO_TIME] += times.null_count
    counts.kinds[kind, Kind.NO_STEP] += batch["step"].null_count


def _series(batch: pa.RecordBatch, kind: AttributeType, column: str, counts: ValueCounts) -> None:
    counts.kinds[str(kind), Kind.NULL] += batch[column].null_count
    counts.kinds[str(kind), Kind.NO_STEP] += batch["step"].null_count
    counts.kinds[str(kind), Kind.NO_TIME] += batch["timestamp"].null_count
    if kind is AttributeType.HISTOGRAM_SERIES:
        bins = pc.list_value_length(pc.struct_field(batch[column], "values"))
        counts.kinds[str(kind), Kind.MANY_BINS] += pc.sum(pc.greater(bins, MANY_BINS)).as_py() or 0


def _parameters(run: LakeRun, counts: ValueCounts) -> None:
    kinds = [kind for kind in sorted(PARAMETER_TYPES) if run.record.rows.get(kind)]
    columns = ("attribute_type", *sorted({VALUE_COLUMN[kind] for kind in kinds}))
    for batch in run.batches(types=kinds, columns=columns) if kinds else ():
        for kind in kinds:
            values = batch[VALUE_COLUMN[kind]].filter(pc.equal(batch["attribute_type"], str(kind)))
            counts.kinds[str(kind), Kind.NULL] += values.null_count
            if kind is AttributeType.INT:
                numbers = values.fill_null(0).to_numpy()
                beyond = (numbers > MAX_DOUBLE_INT) | (numbers < -MAX_DOUBLE_INT)
                counts.kinds[str(kind), Kind.BEYOND_DOUBLE] += int(np.count_nonzero(beyond))


def _files(run: LakeRun, counts: ValueCounts) -> None:
    stored = {(item.attribute_path, item.step) for item in run.record.files}
    kinds = [kind for kind in sorted(FILE_TYPES) if run.record.rows.get(kind)]
    for batch in run.batches(types=kinds, columns=("attribute_path", "attribute_type", "step")) if kinds else ():
        steps = microsteps(batch["step"]).tolist()
        for path, kind, step in zip(
            batch["attribute_path"].to_pylist(), batch["attribute_type"].to_pylist(), steps, strict=True
        ):
            place = step if kind == AttributeType.FILE_SERIES and step != NONE else None
            if (path, place) not in stored:
                counts.kinds[kind, Kind.NO_FILE] += 1
