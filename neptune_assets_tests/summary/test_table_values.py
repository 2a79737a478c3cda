"""Numbers and texts of the tables: metrics, params, and the count of attributes."""

from __future__ import annotations

import math
import struct
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from neptune_assets.settings import SummarySettings
from neptune_assets.summary.tables import summarize
from neptune_assets_tests.support import lake_factory as make
from neptune_assets_tests.support.summary_tables import system, tables

INF = float("inf")


NAN = float("nan")


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


@pytest.mark.parametrize("far", [253_402_300_800_000, -62_135_596_800_001, 2**62, -(2**62)])
def test_a_time_that_no_calendar_holds_does_not_stop_the_summary(tmp_path: Path, far: int) -> None:
    rows = [
        {**make.metric("m", [1.0])[0], "timestamp": far},
        {**make.params({"when": datetime(2024, 1, 1, tzinfo=UTC)})[0], "datetime_value": far},
        {**make.params({"sys/creation_time": datetime(2024, 1, 1, tzinfo=UTC)})[0], "datetime_value": far},
    ]
    lake = make.make_lake(tmp_path, {"ws/p": {"r": rows, "s": make.metric("m", [2.0])}})
    with summarize(lake.project("ws/p"), SummarySettings(memory_mb=128), lake.settings) as summary:
        found = {name: reader.read_all() for name, reader in summary.tables()}
    fits = abs(far) < 2**61
    assert found["metrics"]["first_value"].to_pylist() == [1.0, 2.0]
    assert found["metrics"]["first_time"].cast(pa.int64())[0].as_py() == (far if fits else None)
    assert found["runs"]["created_at"].cast(pa.int64())[0].as_py() == (far if fits else None)
    text = found["params"].filter(pc.equal(found["params"]["attribute_path"], "when"))["text"][0].as_py()
    assert fits or text == f"{far} ms since 1970"


def test_metrics_are_what_plain_python_says(tmp_path: Path) -> None:
    logged = {
        "a": ([1.0, 0.5, 0.25], [0, 1, 2]),
        "A": ([2.0], [7]),
        "not in order": ([3.0, 1.0, 2.0], [2, 0, 1]),
        "fractions": ([1.0, 2.0], ["0.000001", "999999999999.999999"]),
        "far": ([1.0, 2.0, -0.0, 4.0], ["999999999999.999998", "999999999999.999999", "999999999999.999997", 5]),
        "far below": ([1.0, -0.0, 3.0], ["-999999999999.999998", "-999999999999.999999", "-999999999999.999997"]),
        "negative steps": ([1.0, 2.0], [-3, "-2.5"]),
        "nan first and last": ([NAN, 4.0, NAN], [0, 1, 2]),
        "only nan": ([NAN, NAN], [0, 1]),
        "infinities": ([INF, 1.0, -INF, INF], [0, 1, 2, 3]),
        "huge": ([1.7e308, 1.7e308, 1.6e308], [0, 1, 2]),
        "tiny": ([5e-324, 5e-324], [0, 1]),
        "minus zero": ([-0.0], [0]),
        'it\'s "quoted" | `x` <b>': ([0.1, 0.2], [0, 1]),
        "n\nul\x00": ([1.0], [0]),
        "l" * 1500: ([1.0], [0]),
        "long": ([math.sin(i) for i in range(5000)], list(range(5000))),
    }
    rows = [row for path, (values, steps) in logged.items() for row in make.metric(path, values, steps)]
    lake = make.make_lake(tmp_path, {"ws/p": {"RUN-1": rows, "run-1": make.metric("a", [9.0])}})
    found = {(row["run_id"], row["attribute_path"]): row for row in tables(lake)["metrics"]}
    assert found.keys() == {("RUN-1", path) for path in logged} | {("run-1", "a")}
    assert found["run-1", "a"]["last_value"] == 9.0
    for path, (values, steps) in logged.items():
        row = found["RUN-1", path]
        exact = sorted((Decimal(str(step)), number) for number, step in enumerate(steps))
        finite = [value for value in values if math.isfinite(value)]
        assert row["count"] == len(values)
        assert row["nan_count"] == sum(map(math.isnan, values))
        assert row["positive_infinity_count"] == values.count(INF)
        assert row["negative_infinity_count"] == values.count(-INF)
        assert bits(row["first_value"]) == bits(values[exact[0][1]])
        assert bits(row["last_value"]) == bits(values[exact[-1][1]])
        assert row["min_value"] == (min(finite) if finite else None)
        assert row["max_value"] == (max(finite) if finite else None)
        if finite:
            mean = math.fsum(value / len(finite) for value in finite)
            assert row["mean_value"] == pytest.approx(mean, rel=1e-12, abs=1e-15)
        else:
            assert row["mean_value"] is None
        assert row["first_step"] == exact[0][0]
        assert row["last_step"] == exact[-1][0]
        assert row["first_time"] == make.START
        assert row["last_time"] == make.START + timedelta(seconds=len(values) - 1)


VALUES = st.lists(st.floats(width=64), min_size=1, max_size=20)


@hypothesis_settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(min_size=1, max_size=5).filter(str.isprintable), VALUES, min_size=1, max_size=4))
def test_any_values_keep_their_counts_and_ends(tmp_path_factory, logged: dict[str, list[float]]) -> None:
    rows = [row for path, values in logged.items() for row in make.metric(path, values)]
    lake = make.make_lake(tmp_path_factory.mktemp("lake"), {"ws/p": {"r": rows}})
    found = {row["attribute_path"]: row for row in tables(lake)["metrics"]}
    assert found.keys() == logged.keys()
    for path, values in logged.items():
        row, finite = found[path], [value for value in values if math.isfinite(value)]
        assert row["count"] == len(values)
        assert (math.isnan(row["last_value"]) and math.isnan(values[-1])) or bits(row["last_value"]) == bits(values[-1])
        assert row["min_value"] == min(finite, default=None)
        assert row["max_value"] == max(finite, default=None)
        if finite:
            assert row["min_value"] <= row["mean_value"] <= row["max_value"]


def test_params_are_exact_in_their_column_and_as_text(tmp_path: Path) -> None:
    moment = datetime(2025, 6, 30, 23, 59, 59, 7000, tzinfo=UTC)
    logged: dict[str, tuple[Any, str]] = {
        "int/max": (2**63 - 1, "9223372036854775807"),
        "int/min": (-(2**63), "-9223372036854775808"),
        "int/odd": (2**53 + 1, "9007199254740993"),
        "bool": (True, "true"),
        "empty": ("", ""),
        "text": ("a,'b'\n\x00\"c\"", "a,'b'\n\x00\"c\""),
        "long": ("x" * 100_000, "x" * 100_000),
        "time": (moment, "2025-06-30T23:59:59.007Z"),
        "set": (["a", 'b"', "c,d"], '["a","b\\"","c,d"]'),
        "no set": ([], "[]"),
    }
    floats = [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 123456789012345678.0, NAN, INF, -INF, 1 / 3]
    rows = make.params({name: value for name, (value, _) in logged.items()})
    rows += [make.param(f"float/{number}", value) for number, value in enumerate(floats)]
    found = {row["attribute_path"]: row for row in tables(make.make_lake(tmp_path, {"ws/p": {"r": rows}}))["params"]}
    assert len(found) == len(logged) + len(floats)
    for name, (value, text) in logged.items():
        row = found[name]
        column = f"{row['attribute_type']}_value"
        assert sorted(row[column]) == sorted(value) if isinstance(value, list) else row[column] == value
        assert len(row["text"]) == len(text) if isinstance(value, list) else row["text"] == text
        others = [key for key in row if key.endswith("_value") and key != column]
        assert all(row[key] is None for key in others)
    for number, value in enumerate(floats):
        row = found[f"float/{number}"]
        assert bits(row["float_value"]) == bits(value)
        assert math.isnan(float(row["text"])) if math.isnan(value) else bits(float(row["text"])) == bits(value)


def test_attributes_count_runs_and_rows_by_type(tmp_path: Path) -> None:
    later = make.START + timedelta(days=1)
    runs = {
        "1": [*make.metric("x", [1.0, 2.0]), make.param("p", 1), *system(creation_time=make.START)],
        "2": [*make.metric("x", [1.0], start=later), make.param("p", "one"), *system(creation_time=later)],
        "3": [make.param("p", 2), make.param("P", 2)],
    }
    found = {
        (row["attribute_path"], row["attribute_type"]): row
        for row in tables(make.make_lake(tmp_path, {"ws/p": runs}))["attributes"]
    }
    counts = {key: (row["runs"], row["rows"]) for key, row in found.items()}
    expected = Counter((row["attribute_path"], row["attribute_type"]) for rows in runs.values() for row in rows)
    assert {key: rows for key, (_, rows) in counts.items()} == expected
    assert counts["x", "float_series"] == (2, 3)
    assert counts["p", "int"] == (2, 2)
    assert counts["p", "string"] == (1, 1)
    assert (found["x", "float_series"]["first_seen"], found["x", "float_series"]["last_seen"]) == (make.START, later)
    assert found["p", "string"]["first_seen"] == later
    assert found["P", "int"]["first_seen"] is None
