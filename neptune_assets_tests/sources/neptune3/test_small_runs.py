from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from neptune_assets.schema import SCHEMA, AttributeType
from neptune_assets.sources.neptune3.reading import Block, Collector, weight
from neptune_assets.sources.neptune3.rows import (
    Attribute,
    FileReference,
    FloatPart,
    ListedRun,
    ObjectPart,
    Request,
    RunAttributes,
)
from neptune_assets.sources.protocol import RunEnd, RunRows

VALUES: list[tuple[str, AttributeType, Any]] = [
    ("bool", AttributeType.BOOL, False),
    ("int", AttributeType.INT, -(2**63)),
    ("float", AttributeType.FLOAT, math.nan),
    ("string", AttributeType.STRING, "nul \x00 ☃"),
    ("empty", AttributeType.STRING, ""),
    ("datetime", AttributeType.DATETIME, 1_740_830_400_123),
    ("set", AttributeType.STRING_SET, ["b", "a", "b"]),
    ("no strings", AttributeType.STRING_SET, []),
    ("file", AttributeType.FILE, FileReference("key/of file", 7, "text/plain")),
]


def collector(run_id: str, values: list[tuple[str, AttributeType, Any]], parts: list[FloatPart | ObjectPart]) -> Any:
    run = ListedRun(run_id, f"T-{run_id}")
    found = RunAttributes(run, [Attribute(path, kind, value) for path, kind, value in values])
    for part in parts:
        found.attributes.append(Attribute(part.request.path, part.request.type, None, None, previews=False))
    return Collector("w/p", found, lambda path, kind: True, all_types=True)


def floats(path: str, steps: list[float], values: list[float], first: int = 1_700_000_000_000) -> FloatPart:
    return FloatPart(
        Request(ListedRun("", ""), path, AttributeType.FLOAT_SERIES),
        np.asarray(steps, np.float64),
        np.arange(first, first + len(steps), dtype=np.int64),
        np.asarray(values, np.float64),
    )


def objects(path: str, kind: AttributeType, points: list[tuple[float, int, Any]]) -> ObjectPart:
    return ObjectPart(Request(ListedRun("", ""), path, kind), points)


RUNS: dict[str, tuple[list[tuple[str, AttributeType, Any]], list[FloatPart | ObjectPart]]] = {
    "everything": (
        VALUES,
        [
            floats("m/a", [0, 0.5, 1e-06, 9_000_000_000.25], [1.5, math.inf, -0.0, math.nan]),
            objects("log", AttributeType.STRING_SERIES, [(1.0, 5, "x"), (2.0, 6, "")]),
            objects("hist", AttributeType.HISTOGRAM_SERIES, [(1.0, 5, ("COUNTING", [0.0, 1.0], [3.0]))]),
            objects("files", AttributeType.FILE_SERIES, [(1.0, 5, FileReference("k", 1, ""))]),
        ],
    ),
    "nothing": ([], []),
    "values only": (VALUES[:3], []),
    "points only": ([], [floats("m/a", [3], [4.0]), floats("m/b", [1, 2], [5.0, 6.0])]),
    "last": (VALUES[3:], []),
}


def one_by_one(run_id: str) -> list[dict[str, Any]]:
    values, parts = RUNS[run_id]
    alone = collector(run_id, values, parts)
    batches = [*alone.values(), *alone.take(parts), *alone.finish()]
    return [row for batch in batches for row in batch.to_pylist()]


def in_a_block(*runs: tuple[str, Any, list[FloatPart | ObjectPart]]) -> tuple[dict[str, Any], dict[str, RunEnd]]:
    block = Block("w/p")
    for run_id, values, parts in runs:
        block.add(collector(run_id, values, parts), parts)
    rows: dict[str, list[dict[str, Any]]] = {}
    ends: dict[str, RunEnd] = {}
    for chunk in block.runs():
        assert chunk.run_id not in ends
        if isinstance(chunk, RunRows):
            assert chunk.batch.schema.equals(SCHEMA)
            chunk.batch.validate(full=True)
            assert pa.compute.all(pa.compute.equal(chunk.batch["run_id"], chunk.run_id)).as_py()
            rows.setdefault(chunk.run_id, []).extend(chunk.batch.to_pylist())
        else:
            ends[chunk.run_id] = chunk
    assert list(ends) == [run_id for run_id, _, _ in runs]
    assert not list(block.runs())
    return rows, ends


def in_order(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(repr(row) for row in rows)


def test_runs_of_a_block_are_what_each_is_alone() -> None:
    rows, ends = in_a_block(*((run_id, *RUNS[run_id]) for run_id in RUNS))
    assert set(rows) == set(RUNS) - {"nothing"}
    for run_id, found in rows.items():
        assert in_order(found) == in_order(one_by_one(run_id)), run_id
    assert not any(end.errors for end in ends.values())
    assert ends["points only"].promised == {"float_series": 2}
    assert ends["nothing"].promised == {}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_no_row_can_hold_is_told_by_its_run_and_leaves_the_others_alone(place: int) -> None:
    bad = (
        "bad",
        [("huge", AttributeType.INT, 2**63), ("odd", AttributeType.STRING, "\ud800"), ("fine", AttributeType.INT, 1)],
        [
            floats("far", [1e13], [1.0]),
            floats("late", [1], [1.0], first=2**60),
            floats("not", [math.nan], [1.0]),
            floats("good", [1], [2.0]),
        ],
    )
    runs: list[Any] = [("points only", *RUNS["points only"]), ("last", *RUNS["last"])]
    runs.insert(place, bad)
    rows, ends = in_a_block(*runs)
    assert {row["attribute_path"] for row in rows["bad"]} == {"fine", "good", "late"}
    assert {issue.attribute_path for issue in ends["bad"].errors} == {"huge", "odd", "far", "not"}
    (late,) = (row for row in rows["bad"] if row["attribute_path"] == "late")
    assert (late["step"], late["timestamp"], late["float_value"]) == (1, None, 1.0)
    (note,) = ends["bad"].notes
    assert "'late'; these points are kept without a time" in note.message
    for run_id in ("points only", "last"):
        assert in_order(rows[run_id]) == in_order(one_by_one(run_id))
        assert not ends[run_id].errors


def test_a_block_of_runs_without_rows_ends_them_all() -> None:
    rows, ends = in_a_block(("a", [], []), ("b", [], []))
    assert not rows
    assert list(ends) == ["a", "b"]


def test_long_texts_fill_a_block() -> None:
    block = Block("w/p")
    block.add(collector("r", [("text", AttributeType.STRING, "x" * 2_000_000)], []), [])
    assert block.full
    texts = objects("log", AttributeType.STRING_SERIES, [(1.0, 5, "x" * 100_000)])
    assert weight([texts, floats("m", [1, 2], [3, 4])]) == 1_003
