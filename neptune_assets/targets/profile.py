"""What a target has to know of a run before it writes it: names, steps, times, parameters, and values to watch.

:func:`profile` reads names, steps and times of everything and the values of parameters; :func:`count_values` counts
values that some targets cannot hold, such as infinite points, for a plan. Both are one vectorised pass over the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.lake.layout import extension_of
from neptune_assets.lake.reader import LakeRun
from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.schema import FILE_TYPES, MICROSTEPS, PARAMETER_TYPES, VALUE_COLUMN, AttributeType
from neptune_assets.targets.times import whole_milliseconds

MAX_INT: Final = 2**63 - 1
MAX_DOUBLE_INT: Final = 2**53
MANY_BINS: Final = 512


Ints = npt.NDArray[np.int64]

Attribute = tuple[str, str]
"""(attribute path, attribute type)."""

_SERIES: Final = (AttributeType.FLOAT_SERIES, AttributeType.STRING_SERIES, AttributeType.HISTOGRAM_SERIES)
_VALUES: Final = tuple(sorted({VALUE_COLUMN[kind] for kind in PARAMETER_TYPES}))
_COLUMNS: Final = ("attribute_path", "attribute_type", "step", "timestamp", "file_value", *_VALUES)


@dataclass
class RunProfile:
    """A run without the values of its series and the content of its files."""

    parameters: list[tuple[Attribute, Any]] = field(default_factory=list)
    """In the lake's order; the value is None where the source had none, and a time is in milliseconds since 1970."""
    series: dict[Attribute, None] = field(default_factory=dict)
    multiplier: int = 1
    """The smallest power of ten that makes the steps of all float series whole."""
    earliest: int | None = None
    latest: int | None = None
    """Of the points of all series, in milliseconds since 1970."""
    files: dict[Attribute, str] = field(default_factory=dict)
    """Attributes that are files, and the extension, without dot, that the lake's file of each has."""


def profile(run: LakeRun) -> RunProfile:
    """Read a run once, in memory that grows with its names and parameters only."""
    result = RunProfile()
    for batch in run.batches(columns=_COLUMNS):
        kinds = batch["attribute_type"].dictionary_encode()
        present = set(kinds.dictionary.to_pylist())
        if present & {*PARAMETER_TYPES}:
            _take_parameters(result, _only(batch, kinds, PARAMETER_TYPES))
        if present & {*FILE_TYPES}:
            _take_files(result, _only(batch, kinds, FILE_TYPES))
        if present & {*_SERIES}:
            _take_series(result, batch if present <= {*_SERIES} else _only(batch, kinds, _SERIES))
    return result


def _only(batch: pa.RecordBatch, kinds: pa.DictionaryArray, wanted: Collection[AttributeType]) -> pa.RecordBatch:
    mask = pc.is_in(kinds.dictionary, pa.array([str(kind) for kind in wanted])).take(kinds.indices)
    return batch.filter(mask)


def _take_parameters(result: RunProfile, batch: pa.RecordBatch) -> None:
    columns = {name: whole_milliseconds(batch[name]) for name in _VALUES}
    for row, (path, kind) in enumerate(
        zip(batch["attribute_path"].to_pylist(), batch["attribute_type"].to_pylist(), strict=True)
    ):
        result.parameters.append(((path, kind), columns[VALUE_COLUMN[AttributeType(kind)]][row].as_py()))


def _take_files(result: RunProfile, batch: pa.RecordBatch) -> None:
    for path, kind, value in zip(
        batch["attribute_path"].to_pylist(),
        batch["attribute_type"].to_pylist(),
        batch["file_value"].to_pylist(),
        strict=True,
    ):
        result.files[(path, kind)] = extension_of((value or {}).get("path") or "")


def _take_series(result: RunProfile, batch: pa.RecordBatch) -> None:
    paths, types = batch["attribute_path"].dictionary_encode(), batch["attribute_type"].dictionary_encode()
    codes = paths.indices.to_numpy().astype(np.int64) * len(types.dictionary) + types.indices.to_numpy()
    path_names, type_names = paths.dictionary.to_pylist(), types.dictionary.to_pylist()
    # Counting finds the distinct ones of a small dense range without sorting.
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        result.series[(path_names[code // len(type_names)], type_names[code % len(type_names)])] = None
    if AttributeType.FLOAT_SERIES in type_names:
        steps = batch["step"]
        if len(type_names) > 1:
            steps = steps.filter(pc.equal(batch["attribute_type"], AttributeType.FLOAT_SERIES))
        micro = microsteps(steps)
        result.multiplier = smallest_multiplier(micro[micro != NONE], result.multiplier)
    limits = pc.min_max(whole_milliseconds(batch["timestamp"]))
    if limits["min"].is_valid:
        least, most = limits["min"].as_py(), limits["max"].as_py()
        result.earliest = least if result.earliest is None else min(least, result.earliest)
        result.latest = most if result.latest is None else max(most, result.latest)


def scale(micro: Ints, multiplier: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return micro-steps times the multiplier as whole steps, and where that is exact and fits 64 bits.

    Exact integer arithmetic: nothing is rounded, so two steps never become one.
    """
    divisor = MICROSTEPS // np.gcd(multiplier, MICROSTEPS)
    factor = multiplier // int(np.gcd(multiplier, MICROSTEPS))
    whole, rest = np.divmod(micro, np.int64(divisor))
    if factor >= 2**63:
        return np.zeros_like(whole), (rest == 0) & (whole == 0)
    limit = (2**63 - 1) // factor
    fits = (rest == 0) & (np.abs(whole) <= limit)
    return np.where(fits, whole, 0) * np.int64(factor), fits


def smallest_multiplier(micro: Ints, so_far: int = 1) -> int:
    """Return the smallest power of ten, not below ``so_far``, that makes all these micro-steps whole."""
    multiplier = so_far
    while multiplier < MICROSTEPS and np.any(micro % (MICROSTEPS // multiplier)):
        multiplier *= 10
    return multiplier


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


@dataclass(frozen=True, slots=True)
class UnsupportedValues:
    """Values of one attribute type that a target cannot hold as they are, and what becomes of each."""

    attribute_type: str
    what: str
    rows: int
    fate: str
    """What happens to them, as a clause: ``kept exactly in artifact ...``, ``dropped``."""


Outcomes = Sequence[tuple[Kind, Collection[AttributeType] | None, str]]
"""What becomes of values of a kind, of these attribute types or of all, as a clause. A target's own table."""


def unsupported_values(values: ValueCounts, outcomes: Outcomes) -> list[UnsupportedValues]:
    """Return the counted values that a target with these outcomes cannot hold."""
    return [
        UnsupportedValues(name, kind.value, rows, outcome)
        for kind, types, outcome in outcomes
        for name, rows in values.each(kind)
        if types is None or name in types
    ]
