from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest

from neptune_assets.lake.repair import (
    NAN_VALUES,
    PHANTOM_ROWS,
    TIMEZONE,
    TIMEZONE_SHIFT_MS,
    conform,
    drop_phantom_rows,
    localize_timestamps,
    repair_batch,
    restore_nan,
    shift_timestamps,
)
from neptune_assets.schema import SCHEMA
from neptune_assets_tests.support.lake_factory import file, files, histograms, metric, param, params, texts
from neptune_assets_tests.support.table_source import as_table

NOON = datetime(2025, 7, 1, 12, tzinfo=UTC)


def batch(rows: list[dict[str, object]]) -> pa.RecordBatch:
    return as_table("ws/p", "r", rows).combine_chunks().to_batches()[0]


def phantom(kind: str) -> dict[str, object]:
    return {"attribute_path": f"none/{kind}", "attribute_type": kind}


def test_phantom_rows_go_and_everything_with_a_value_stays() -> None:
    real = [
        *params({"f": math.nan, "i": 0, "s": "", "b": False, "d": NOON, "t": []}),
        file("file", b""),
        *metric("m", [None]),
        *texts("log", [None]),  # type: ignore[list-item]
        *histograms("h", [([], [])]),
        *files("series", [b""]),
    ]
    kinds = ["float", "int", "string", "bool", "datetime", "string_set", "file", "file_set", "artifact"]
    wrong = {"attribute_path": "f2", "attribute_type": "float", "string_value": "not the float's own column"}
    lost = {"attribute_path": "f3", "attribute_type": "file", "file_value": {"path": None}}
    mixed = batch([*real, *map(phantom, kinds), wrong, lost])
    kept, dropped = drop_phantom_rows(mixed)
    assert dropped == len(kinds) + 2
    assert kept["attribute_path"].to_pylist() == [row["attribute_path"] for row in real]
    again, none = drop_phantom_rows(kept)
    assert none == 0
    assert again is kept


def test_a_null_point_with_a_time_is_nan_again() -> None:
    rows = [*metric("m", [1.0, None, -0.0, math.inf]), *metric("n", [None], start=None), param("p", None, "float")]
    repaired, count = restore_nan(batch(rows))
    assert count == 1
    assert repr(repaired["float_value"].to_pylist()) == "[1.0, nan, -0.0, inf, None, None]"
    assert repaired.schema.equals(SCHEMA)


def test_times_of_series_move_and_parameters_stay() -> None:
    moved = shift_timestamps(batch([*metric("m", [1.0], start=NOON), param("d", NOON)]), -2 * 3_600_000)
    assert moved["timestamp"].to_pylist() == [NOON - timedelta(hours=2), None]
    assert moved["datetime_value"].to_pylist() == [None, NOON]


def test_local_times_become_utc_over_a_change_of_clocks() -> None:
    local = [datetime(2025, month, 1, 12, tzinfo=UTC) for month in (1, 7)]
    autumn = datetime(2025, 10, 26, 2, 30, tzinfo=UTC)
    rows = [row for when in [*local, autumn] for row in metric("m", [1.0], steps=[when.month], start=when)]
    moved = localize_timestamps(batch(rows), "Europe/Warsaw")
    assert moved["timestamp"].to_pylist() == [
        datetime(2025, 1, 1, 11, tzinfo=UTC),
        datetime(2025, 7, 1, 10, tzinfo=UTC),
        datetime(2025, 10, 26, 0, 30, tzinfo=UTC),
    ]


def test_what_the_record_says_is_what_is_done() -> None:
    rows = batch([phantom("int"), *metric("m", [None], start=NOON)])
    assert repair_batch(rows, {}).equals(rows)
    done = repair_batch(rows, {PHANTOM_ROWS: 1, NAN_VALUES: 1, TIMEZONE_SHIFT_MS: 1000})
    assert done.num_rows == 1
    assert repr(done["float_value"].to_pylist()) == "[nan]"
    assert done["timestamp"].to_pylist() == [NOON + timedelta(seconds=1)]
    assert repair_batch(rows, {f"{TIMEZONE}Asia/Tokyo": 1})["timestamp"].to_pylist()[1] == NOON - timedelta(hours=9)


def test_other_writers_types_become_ours() -> None:
    strange = pa.record_batch(
        {
            "extra": pa.array([1]),
            "attribute_path": pa.array(["m"]).dictionary_encode(),
            "attribute_type": pa.array(["float_series"], pa.large_string()),
            "step": pa.array([Decimal("1.5")], pa.decimal128(38, 6)),
            "timestamp": pa.array([NOON], pa.timestamp("us", "UTC")),
            "float_value": pa.array([0.1]),
        }
    )
    ours = conform(strange, "ws/p", "r")
    assert ours.schema.equals(SCHEMA)
    row = ours.to_pylist()[0]
    assert (row["project_id"], row["run_id"], row["attribute_path"]) == ("ws/p", "r", "m")
    assert (row["step"], row["timestamp"], row["float_value"]) == (Decimal("1.5"), NOON, 0.1)
    assert row["string_set_value"] is None
    assert conform(ours) is ours


def test_a_step_that_does_not_fit_is_refused() -> None:
    huge = pa.record_batch({"step": pa.array([Decimal(10) ** 20], pa.decimal128(38, 6))})
    with pytest.raises(pa.ArrowInvalid):
        conform(huge)
