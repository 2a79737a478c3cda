"""From what the server sent to Arrow batches of the one schema.

Float points come as columns and stay columns. Everything else goes through the row builder that recordings use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa

from neptune_assets.errors import FileGoneError
from neptune_assets.schema import MAX_STEP, MICROSTEPS, SCHEMA, TIME_TYPE, AttributeType
from neptune_assets.sources.neptune3.model import FileReference, FloatPart, Floats, Ints, ObjectPart
from neptune_assets.sources.rows import BATCH_ROWS, RowBuilder, decimal_steps

PREVIEW: Final = ":preview"
COMPLETION: Final = ":preview_completion"
"""What is put after the path of a float series to name the series of its points that are not final."""

_TIME_LIMIT: Final = 253_402_300_800_000


def micro_steps(steps: Floats) -> Ints:
    """Turn steps into whole micro-steps, the nearest; raises ValueError for what no step can be.

    Whole steps and fractions are turned apart: the product of a large step and 10^6 would not be exact.
    """
    if not bool((np.abs(steps) < MAX_STEP).all()):
        raise ValueError("a step is out of range")
    whole = np.floor(steps)
    fraction = np.rint((steps - whole) * MICROSTEPS)
    return whole.astype(np.int64) * MICROSTEPS + fraction.astype(np.int64)


def float_batches(project_id: str, run_id: str, parts: Sequence[FloatPart]) -> Iterator[pa.RecordBatch]:
    """Turn points of one run into batches; points that are not final become series of their own.

    Raises ValueError if a step or a time is out of range.
    """
    columns: list[tuple[str, Ints, Ints, Floats]] = []
    for part in parts:
        path = part.request.path
        micros = micro_steps(part.steps)
        if part.preview is None or part.completion is None:
            columns.append((path, micros, part.times, part.values))
            continue
        final, waiting = ~part.preview, part.preview
        columns.append((path, micros[final], part.times[final], part.values[final]))
        times = part.times[waiting]
        columns.append((path + PREVIEW, micros[waiting], times, part.values[waiting]))
        columns.append((path + COMPLETION, micros[waiting], times, part.completion[waiting]))
    columns = [column for column in columns if len(column[1])]
    if not columns:
        return
    names = pa.array([column[0] for column in columns], pa.string())
    numbers = np.repeat(np.arange(len(columns), dtype=np.int32), [len(column[1]) for column in columns])
    micros = np.concatenate([column[1] for column in columns])
    times = np.concatenate([column[2] for column in columns])
    values = np.concatenate([column[3] for column in columns])
    if not bool((np.abs(times) < _TIME_LIMIT).all()):
        raise ValueError("a time is out of range")
    for start in range(0, len(numbers), BATCH_ROWS):
        piece = slice(start, start + BATCH_ROWS)
        yield _float_batch(
            project_id, run_id, names.take(pa.array(numbers[piece])), micros[piece], times[piece], values[piece]
        )


def _float_batch(
    project_id: str, run_id: str, paths: pa.Array, micros: Ints, times: Ints, values: Floats
) -> pa.RecordBatch:
    count = len(micros)
    columns: dict[str, pa.Array] = {
        "project_id": pa.repeat(pa.scalar(project_id, pa.string()), count),
        "run_id": pa.repeat(pa.scalar(run_id, pa.string()), count),
        "attribute_path": paths,
        "attribute_type": pa.repeat(pa.scalar(str(AttributeType.FLOAT_SERIES), pa.string()), count),
        "step": decimal_steps(micros),
        "timestamp": pa.array(times, pa.int64()).cast(TIME_TYPE),
        "float_value": pa.array(values, pa.float64()),
    }
    arrays = [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def add_value(builder: RowBuilder, path: str, attribute_type: AttributeType, value: Any) -> None:
    """Add a single value; raises ValueError if no row can hold it."""
    if attribute_type is AttributeType.FILE:
        value = reference_of(value, None)
    elif attribute_type is AttributeType.STRING_SET:
        value = sorted(set(value))
    builder.value(attribute_type, path, value)


def add_points(builder: RowBuilder, part: ObjectPart) -> int:
    """Add points of a series of strings, histograms or files; return how many a row could not hold."""
    refused = 0
    steps = np.asarray([point[0] for point in part.points], np.float64)
    for micros, (step, time, value) in zip(micro_steps(steps).tolist(), part.points, strict=True):
        if isinstance(value, FileReference):
            value = reference_of(value, step)
        try:
            builder.point(part.request.type, part.request.path, micros, time, value)
        except ValueError:
            refused += 1
    return refused


def reference_of(file: FileReference, step: float | None) -> str:
    """Write a file as text that :func:`file_of` understands: everything that fetching and checking it takes."""
    return f"{file.size} {'' if step is None else repr(float(step))} {quote(file.mime_type, safe='')} {file.key}"


def file_of(reference: str) -> tuple[FileReference, float | None]:
    """Read what :func:`reference_of` wrote. Raises FileGoneError for any other text."""
    size, step, mime_type, key = [*reference.split(" ", 3), "", "", "", ""][:4]
    try:
        return FileReference(key, int(size), unquote(mime_type)), float(step) if step else None
    except ValueError:
        pass
    raise FileGoneError(f"{reference!r} names no file of a Neptune server.", hint="List the runs again.")
