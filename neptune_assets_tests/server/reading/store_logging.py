"""Runs written straight into a store, as an ingest would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from neptune_assets.schema import AttributeType
from neptune_assets.server.store.projects import ProjectStore
from neptune_assets.server.store.runs import NewRun, Run, encode, float_bits, to_json

Points = Mapping[float, Any]
START = 1_735_689_600_000
"""Milliseconds of 2025-01-01; a point at step s is s seconds later."""
TYPES = {
    bool: AttributeType.BOOL,
    int: AttributeType.INT,
    float: AttributeType.FLOAT,
    str: AttributeType.STRING,
    datetime: AttributeType.DATETIME,
    list: AttributeType.STRING_SET,
    dict: AttributeType.FILE,
}


def micro(step: float) -> int:
    return round(step * 1_000_000)


def time_of(step: float) -> int:
    return START + round(step * 1_000)


def log(
    project: ProjectStore,
    run_id: str,
    *,
    values: Mapping[str, Any] | None = None,
    floats: Mapping[str, Points] | None = None,
    strings: Mapping[str, Points] | None = None,
    histograms: Mapping[str, Points] | None = None,
    files: Mapping[str, Points] | None = None,
    previews: Mapping[str, Points] | None = None,
    **new: Any,
) -> Run:
    """Make the run if there is none, and log to it; files are (path, size, mime type), previews (value, completion)."""
    with project.write() as writing:
        run = writing.run(run_id) or writing.create_run(NewRun(run_id, **new))
        operations = writing.operations(run)
        for path, value in (values or {}).items():
            kind = TYPES[type(value)]
            stored = round(value.timestamp() * 1000) if kind is AttributeType.DATETIME else value
            assert not operations.assign(path, kind, encode(kind, stored))
        for path, points in (floats or {}).items():
            attribute = operations.attribute(path, AttributeType.FLOAT_SERIES)
            assert attribute is not None
            assert not operations.append_floats(attribute, *_columns(points))
        for kind, series in (
            (AttributeType.STRING_SERIES, strings),
            (AttributeType.HISTOGRAM_SERIES, histograms),
            (AttributeType.FILE_SERIES, files),
        ):
            for path, points in (series or {}).items():
                attribute = operations.attribute(path, kind)
                assert attribute is not None
                steps, times, contents = _columns(points)
                texts = contents if kind is AttributeType.STRING_SERIES else [to_json(item) for item in contents]
                assert not operations.append_objects(attribute, steps, times, texts)
        for path, points in (previews or {}).items():
            attribute = operations.attribute(path, AttributeType.FLOAT_SERIES)
            assert attribute is not None
            for step, (value, completion) in points.items():
                bits, ratio = float_bits(value), float_bits(completion)
                assert not operations.preview(attribute, micro(step), time_of(step), bits, ratio)
    return run


def _columns(points: Points) -> tuple[list[int], list[int], Sequence[Any]]:
    return [micro(step) for step in points], [time_of(step) for step in points], list(points.values())
