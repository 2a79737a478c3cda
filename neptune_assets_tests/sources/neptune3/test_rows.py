from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from neptune_assets.errors import FileGoneError
from neptune_assets.schema import SCHEMA, AttributeType
from neptune_assets.sources.neptune3.rows import (
    FileReference,
    FloatPart,
    ListedRun,
    ObjectPart,
    Request,
    add_points,
    file_of,
    float_batches,
    reference_of,
)
from neptune_assets.sources.rows import RowBuilder

RUN = ListedRun("r", "T-1")


def part(path: str, steps: list[float], values: list[float], previews: list[bool] | None = None) -> FloatPart:
    return FloatPart(
        Request(RUN, path, AttributeType.FLOAT_SERIES),
        np.asarray(steps),
        np.arange(len(steps), dtype=np.int64) + 1_700_000_000_123,
        np.asarray(values),
        None if previews is None else np.asarray(previews),
        None if previews is None else np.asarray([0.5 if preview else 1.0 for preview in previews]),
    )


def batches_of(*parts: FloatPart) -> list[pa.RecordBatch]:
    return [batch for batch, _ in float_batches("w/p", ["r"], [(0, each) for each in parts])]


def test_float_points_become_rows_of_the_one_schema() -> None:
    values = [0.1, math.nan, math.inf, -0.0]
    (batch,) = batches_of(part("m", [1.5, 1.0, 0.5, 0.0], values), part("n", [3.0], [1.0]))
    assert batch.schema.equals(SCHEMA)
    batch.validate(full=True)
    rows = batch.to_pylist()
    assert [row["attribute_path"] for row in rows] == ["m"] * 4 + ["n"]
    assert [row["step"] for row in rows] == [Decimal(step) for step in ("1.5", "1", "0.5", "0", "3")]
    assert [row["timestamp"] for row in rows[:2]] == [
        datetime(2023, 11, 14, 22, 13, 20, micro, tzinfo=UTC) for micro in (123_000, 124_000)
    ]
    assert repr([row["float_value"] for row in rows]) == repr([*values, 1.0])


def test_batches_are_cut() -> None:
    count = 150_000
    batches = batches_of(part("m", list(range(count)), [1.0] * count))
    assert sum(batch.num_rows for batch in batches) == count
    assert max(batch.num_rows for batch in batches) <= 65_536


def test_previews_become_series_of_their_own() -> None:
    batches = batches_of(part("m", [1, 2, 3], [0.1, 0.2, 0.3], [False, True, True]))
    rows = pa.Table.from_batches(batches).to_pylist()
    assert [(row["attribute_path"], row["step"], row["float_value"]) for row in rows] == [
        ("m", 1, 0.1),
        ("m:preview", 2, 0.2),
        ("m:preview", 3, 0.3),
        ("m:preview_completion", 2, 0.5),
        ("m:preview_completion", 3, 0.5),
    ]


def test_points_that_no_row_holds_are_counted_and_the_others_stay() -> None:
    builder = RowBuilder("w/p", "r", lambda path, kind: True)
    request = Request(RUN, "s", AttributeType.STRING_SERIES)
    points = [(1.0, 10**18, "a"), (2.0, 5, "\ud800"), (3.0, 5, "ok")]
    assert add_points(builder, ObjectPart(request, points)) == 2
    (batch,) = builder.flush()
    assert batch["string_value"].to_pylist() == ["ok"]


@pytest.mark.parametrize("step", [None, 0.0, 1.5])
@pytest.mark.parametrize("mime_type", ["text/plain; charset=utf-8", "", "a b/ü"])
def test_a_reference_holds_all_that_fetching_takes(step: float | None, mime_type: str) -> None:
    file = FileReference("my key/ with ☃ spaces .bin", 17, mime_type)
    assert file_of(reference_of(file, step)) == (file, step)


@pytest.mark.parametrize("reference", ["", "\0", "/etc/passwd", "../x", "x y z k"])
def test_other_text_is_no_reference(reference: str) -> None:
    with pytest.raises(FileGoneError):
        file_of(reference)
