"""From the data frames of neptune-query's public functions to columns, without stacking them and without a row loop.

A frame of metrics has an index of (run, step) and, for each attribute, a column of times and one of values; a place
without a time is a hole of the wide frame, a place with a time and no value is a NaN that was logged.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from neptune_assets.sources.neptune3.model import Floats, Ints

_NO_TIME = np.iinfo(np.int64).min


def float_columns(frame: Any) -> Iterator[tuple[str, Floats, Ints, Floats, Any, Any]]:
    """Yield path, steps, times (epoch ms), values, preview flags and completions of each attribute of one run.

    The last two are None unless the frame has them. Points come the last first, as on the wire.
    """
    if not len(frame.columns):
        return
    steps = frame.index.get_level_values("step").to_numpy(np.float64)
    for path in dict.fromkeys(frame.columns.get_level_values(0)):
        times = milliseconds(frame[(path, "absolute_time")])
        there = np.flatnonzero(times != _NO_TIME)[::-1]
        values = frame[(path, "value")].to_numpy(np.float64)
        preview = completion = None
        if (path, "is_preview") in frame.columns:
            preview = frame[(path, "is_preview")].to_numpy()[there].astype(np.bool_)
            completion = frame[(path, "preview_completion")].to_numpy(np.float64)[there]
        yield path, steps[there], times[there], values[there], preview, completion


def object_points(frame: Any) -> Iterator[tuple[str, list[tuple[float, int, Any]]]]:
    """Yield path and points (step, epoch ms, value) of each attribute of one run, the last first."""
    if not len(frame.columns):
        return
    steps = frame.index.get_level_values("step").to_numpy(np.float64)
    for path in dict.fromkeys(frame.columns.get_level_values(0)):
        times = milliseconds(frame[(path, "absolute_time")])
        there = np.flatnonzero(times != _NO_TIME)[::-1]
        values = frame[(path, "value")].array
        yield path, [(float(steps[place]), int(times[place]), values[place]) for place in there.tolist()]


def milliseconds(column: Any) -> Ints:
    """Turn a column of times into epoch milliseconds; the lowest number marks a missing one."""
    times: Ints = column.to_numpy(dtype="datetime64[ms]").astype(np.int64)
    return times


def epoch_milliseconds(moment: datetime) -> int:
    """Turn an aware time (pandas' too) into epoch milliseconds, exactly."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
