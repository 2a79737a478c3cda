from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from neptune_assets.lake.repair import conform, repair_batch
from neptune_assets_tests.support.export_factory import (
    CREATED,
    ExportFactory,
    as_table,
    file_row,
    parameter,
    point,
    run_v2,
    run_v3,
    system_rows_v2,
    system_rows_v3,
)
from neptune_assets_tests.support.export_reading import PROJECT, messages, read, rows, source


@pytest.fixture
def factory(tmp_path: Path) -> ExportFactory:
    return ExportFactory(tmp_path)


def test_phantom_rows_are_dropped_and_counted(factory):
    phantoms = [
        *(parameter(f"p/{kind}", kind, None) for kind in ("float", "int", "string", "bool", "datetime", "string_set")),
        file_row("f/null", None),
        {**file_row("f/null_path", None), "file_value": {"path": None}},
        file_row("fs/hole", None, "file_series", 3),
    ]
    real = [
        parameter("e/string", "string", ""),
        parameter("e/set", "string_set", []),
        parameter("e/false", "bool", False),
        parameter("e/zero", "int", 0),
        parameter("e/minus", "float", -0.0),
    ]
    factory.run(PROJECT, "r", [*run_v3("r"), phantoms + real])
    table, end = read(source(factory), "r")
    assert end.repairs == {"phantom_rows": len(phantoms)}
    assert not end.errors
    paths = table["attribute_path"].to_pylist()
    assert {row["attribute_path"] for row in real} <= set(paths)
    assert not {row["attribute_path"] for row in phantoms} & set(paths)
    assert math.copysign(1, rows(table, "e/minus")[0]["float_value"]) == -1


def test_lost_nan_comes_back_and_infinities_stay(factory):
    values = [1.0, None, math.inf, -math.inf, None]
    points = [point("m", step, value, CREATED + timedelta(seconds=step)) for step, value in enumerate(values)]
    hole = {**point("m", 9, None, None)}
    factory.run(PROJECT, "r", [*run_v3("r"), [*points, hole]])
    table, end = read(source(factory), "r")
    found = [row["float_value"] for row in rows(table, "m")]
    assert [str(value) for value in found] == ["1.0", "nan", "inf", "-inf", "nan"]
    assert end.repairs == {"nan_values": 2, "phantom_rows": 1}
    assert not end.errors


def test_a_file_of_a_series_that_was_not_downloaded_makes_the_run_partial(factory):
    lost = [
        file_row("images", None, "file_series", 1, CREATED),
        file_row("images", "r/i.png", "file_series", 2, CREATED),
    ]
    factory.run(PROJECT, "r", [*run_v3("r"), lost])
    table, end = read(source(factory), "r")
    assert [row["step"] for row in rows(table, "images")] == [2]
    assert end.repairs == {"lost_files": 1}
    assert [(error.attribute_path, error.attribute_type) for error in end.errors] == [("images", "file_series")]


def test_points_without_value_of_other_series_are_kept_and_noted(factory):
    points = [point("log", 0, None, CREATED, "string_series"), point("log", 1, "", CREATED, "string_series")]
    factory.run(PROJECT, "r", [*run_v3("r"), points])
    table, end = read(source(factory), "r")
    assert [row["string_value"] for row in rows(table, "log")] == [None, ""]
    assert [note.attribute_path for note in end.notes] == ["log"]
    assert not end.errors


@pytest.mark.parametrize("hours", [-14, -8, -3.5, -0.25, 1, 2, 5.75, 14])
def test_times_of_another_zone_are_reported_or_put_right(factory, hours):
    offset = timedelta(hours=hours)
    factory.run(PROJECT, "SAN-1", run_v2("SAN-1", host_offset=offset))
    true = [CREATED + timedelta(seconds=3 + step) for step in range(5)]

    table, end = read(source(factory), "SAN-1")
    assert [row["timestamp"] for row in rows(table, "m/a")] == [moment + offset for moment in true]
    assert not end.repairs
    assert "local time at UTC" in messages(end.notes)

    table, end = read(source(factory, source_tz="infer"), "SAN-1")
    assert [row["timestamp"] for row in rows(table, "m/a")] == true
    assert rows(table, "sys/creation_time")[0]["datetime_value"] == CREATED
    assert end.repairs == {"timezone_shift_ms": int(-hours * 3_600_000)}
    assert not end.errors

    table, end = read(source(factory, source_tz="UTC"), "SAN-1")
    assert [row["timestamp"] for row in rows(table, "m/a")] == [moment + offset for moment in true]
    assert (end.notes, end.repairs) == ((), {})


@pytest.mark.parametrize("delay", [timedelta(seconds=-90), timedelta(0), timedelta(minutes=4)])
def test_right_times_are_left_alone(factory, delay):
    factory.run(PROJECT, "SAN-1", run_v2("SAN-1", host_offset=delay))
    _, end = read(source(factory, source_tz="infer"), "SAN-1")
    assert (end.notes, end.repairs) == ((), {})


@pytest.mark.parametrize("offset", [timedelta(minutes=67), timedelta(hours=15), timedelta(days=-3)])
def test_what_is_no_time_zone_is_not_taken_for_one(factory, offset):
    factory.run(PROJECT, "SAN-1", run_v2("SAN-1", host_offset=offset))
    _, end = read(source(factory, source_tz="infer"), "SAN-1")
    assert not end.repairs
    assert "cannot be told" in messages(end.notes)


def test_3x_times_are_never_touched(factory):
    groups = [system_rows_v3("r"), [point("m", 0, 1.0, CREATED + timedelta(hours=2))]]
    factory.run(PROJECT, "r", groups)
    for zone in ("infer", "report", "Europe/Warsaw"):
        table, end = read(source(factory, source_tz=zone), "r")
        assert rows(table, "m")[0]["timestamp"] == CREATED + timedelta(hours=2)
        assert (end.notes, end.repairs) == ((), {})


def test_a_named_zone_knows_summer_time(factory):
    zone = ZoneInfo("Europe/Warsaw")
    # Half-hourly over the spring change of 2025-03-30 and the autumn change of 2025-10-26.
    true = [
        start + timedelta(minutes=30 * at)
        for start in (datetime(2025, 3, 29, 22, tzinfo=UTC), datetime(2025, 10, 25, 20, tzinfo=UTC))
        for at in range(12)
    ]
    stored = [moment.astimezone(zone).replace(tzinfo=UTC) for moment in true]
    doubled = [
        moment
        for moment in true
        if datetime(2025, 10, 26, 1, tzinfo=UTC) <= moment < datetime(2025, 10, 26, 2, tzinfo=UTC)
    ]
    created = true[0] - timedelta(seconds=1)
    points = [point("m", step, 1.0, moment) for step, moment in enumerate(stored)]
    factory.run(PROJECT, "SAN-1", [system_rows_v2("SAN-1", created), points])
    table, end = read(source(factory, source_tz="Europe/Warsaw"), "SAN-1")
    found = [row["timestamp"] for row in rows(table, "m")]
    expected = [moment - timedelta(hours=1) if moment in doubled else moment for moment in true]
    assert len(doubled) == 2
    assert found == expected
    assert end.repairs == {"timezone=Europe/Warsaw": len(true)}
    # Both the first and the second pass through the doubled hour are in doubt.
    assert "4 times are in an hour" in messages(end.notes)


def test_without_sys_id_times_are_kept_and_it_is_said(factory):
    groups = run_v2("SAN-1", host_offset=timedelta(hours=2))
    groups[0] = [row for row in groups[0] if row["attribute_path"] != "sys/id"]
    factory.run(PROJECT, "SAN-1", groups)
    _, end = read(source(factory, source_tz="infer"), "SAN-1")
    assert not end.repairs
    assert "sys/id is missing" in messages(end.notes)


def test_large_ints_are_exact_and_flagged(factory):
    big = {"a": 2**53, "b": 2**53 + 2, "c": -(2**63), "d": 2**63 - 1, "e": -(2**53) - 2}
    factory.run(PROJECT, "r", [*run_v3("r"), [parameter(name, "int", value) for name, value in big.items()]])
    table, end = read(source(factory), "r")
    assert {name: rows(table, name)[0]["int_value"] for name in big} == big
    assert [note.attribute_path for note in end.notes] == ["b", "c", "d", "e"]
    assert not end.errors


def test_steps_of_old_file_series_are_noted_as_indexes(factory):
    series = [file_row("images", f"{PROJECT}/SAN-1/images/{at}.png", "file_series", at) for at in range(3)]
    factory.run(PROJECT, "SAN-1", [*run_v2("SAN-1"), series])
    table, end = read(source(factory), "SAN-1")
    assert [row["step"] for row in rows(table, "images")] == [0, 1, 2]
    assert [row["timestamp"] for row in rows(table, "images")] == [None] * 3
    assert "are indexes" in messages(end.notes)
    assert not end.errors


def test_six_decimals_of_a_step_are_exact(factory):
    steps = ["0.000001", "-0.5", "999999999999.999999", "-999999999999.999999", "0.29", "1234567.100000"]
    factory.run(PROJECT, "r", [*run_v3("r"), [point("m", step, 1.0, CREATED) for step in steps]])
    table, _ = read(source(factory), "r")
    assert [row["step"] for row in rows(table, "m")] == [row["step"] for row in (point("m", s, 1, None) for s in steps)]


def test_strange_text_survives(factory):
    strange = {
        "nul": "a\0b",
        "lines": "a\nb\r\n",
        "empty": "",
        "long": "ü" * 5_000,
        "n" * 1_200: "name",
        "A/b": "1",
        "a/B": "2",
    }
    factory.run(PROJECT, "r", [*run_v3("r"), [parameter(name, "string", text) for name, text in strange.items()]])
    table, end = read(source(factory), "r")
    assert {name: rows(table, name)[0]["string_value"] for name in strange} == strange
    assert not end.errors


@pytest.mark.parametrize("zone", ["infer", "Europe/Warsaw", "America/New_York"])
def test_the_lake_repeats_the_repairs_from_the_record_alone(factory, zone):
    damaged = [
        parameter("p/phantom", "int", None),
        point("m/nan", 0, None, CREATED + timedelta(hours=3)),
        point("m/nan", 1, 2.0, CREATED + timedelta(hours=3)),
        file_row("f/phantom", None),
    ]
    groups = [*run_v2("SAN-1", host_offset=timedelta(hours=1)), damaged]
    factory.run(PROJECT, "SAN-1", groups)
    copied, end = read(source(factory, source_tz=zone), "SAN-1")
    raw = as_table([row for group in groups for row in group], PROJECT, "SAN-1").combine_chunks().to_batches()[0]
    again = pa.Table.from_batches([repair_batch(conform(raw), end.repairs)])
    as_text = [[str(row) for row in table.to_pylist()] for table in (copied, again)]
    assert as_text[0] == as_text[1]
    assert len(end.repairs) == 3
