"""What one pass over a run tells: its parameters, which series it has with which steps and times, and its files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.lake.layout import extension_of
from neptune_assets.lake.reader import LakeRun
from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.schema import FILE_TYPES, PARAMETER_TYPES, VALUE_COLUMN, AttributeType
from neptune_assets.targets.mlflow.points import smallest_multiplier
from neptune_assets.targets.times import whole_milliseconds

Attribute = tuple[str, str]
"""(attribute path, attribute type)."""

_SERIES: Final = (AttributeType.FLOAT_SERIES, AttributeType.STRING_SERIES, AttributeType.HISTOGRAM_SERIES)
_VALUES: Final = tuple(sorted({VALUE_COLUMN[kind] for kind in PARAMETER_TYPES}))
_COLUMNS: Final = ("attribute_path", "attribute_type", "step", "timestamp", "file_value", *_VALUES)


@dataclass
class Overview:
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


def overview(run: LakeRun) -> Overview:
    """Read a run once, in bounded memory."""
    result = Overview()
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


def _take_parameters(result: Overview, batch: pa.RecordBatch) -> None:
    columns = {name: whole_milliseconds(batch[name]) for name in _VALUES}
    for row, (path, kind) in enumerate(
        zip(batch["attribute_path"].to_pylist(), batch["attribute_type"].to_pylist(), strict=True)
    ):
        result.parameters.append(((path, kind), columns[VALUE_COLUMN[AttributeType(kind)]][row].as_py()))


def _take_files(result: Overview, batch: pa.RecordBatch) -> None:
    for path, kind, value in zip(
        batch["attribute_path"].to_pylist(),
        batch["attribute_type"].to_pylist(),
        batch["file_value"].to_pylist(),
        strict=True,
    ):
        result.files[(path, kind)] = extension_of((value or {}).get("path") or "")


def _take_series(result: Overview, batch: pa.RecordBatch) -> None:
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
