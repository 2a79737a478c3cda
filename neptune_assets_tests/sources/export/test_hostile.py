"""Exports that claim more than they hold, hold more than they say, or hold values that few things can hold."""

from __future__ import annotations

import resource
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.export_factory import (
    CREATED,
    EXPORTER_SCHEMA,
    ExportFactory,
    as_table,
    parameter,
    point,
    run_v3,
    system_rows_v2,
    system_rows_v3,
)
from neptune_assets_tests.support.export_reading import PROJECT, messages, read, rows, source

YEAR_10030 = 254_349_073_000_000
BEFORE_YEAR_1 = -70_000_000_000_000
MICROSECONDS_END = 9_223_372_036_854_775


@pytest.fixture
def factory(tmp_path: Path) -> ExportFactory:
    return ExportFactory(tmp_path)


def at(table: pa.Table, path: str, column: str, milliseconds: int) -> pa.Table:
    """The table with one column's time replaced in the rows of an attribute."""
    times = table[column].combine_chunks().view(pa.int64()).to_pylist()
    named = [name == path for name in table["attribute_path"].to_pylist()]
    changed = [milliseconds if here else time for here, time in zip(named, times, strict=True)]
    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(column), pa.array(changed, pa.int64()).view(table[column].type))


def times_of(table: pa.Table, path: str, column: str = "timestamp") -> list[int | None]:
    named = [name == path for name in table["attribute_path"].to_pylist()]
    return [
        time
        for here, time in zip(named, table[column].combine_chunks().view(pa.int64()).to_pylist(), strict=True)
        if here
    ]


@pytest.mark.parametrize(
    ("milliseconds", "kept"),
    [
        (YEAR_10030, True),
        (BEFORE_YEAR_1, True),
        (1_740_000_000_000_000, True),  # time.time() * 1000 where seconds belong
        (MICROSECONDS_END, True),
        (MICROSECONDS_END + 1, False),
        (2**62, False),
        (-(2**62), False),
        (-(2**63), False),
        (2**63 - 1, False),
    ],
)
@pytest.mark.parametrize("system", [system_rows_v2, system_rows_v3])
@pytest.mark.parametrize("source_tz", ["report", "infer", "Europe/Warsaw"])
def test_an_odd_time_costs_neither_its_project_nor_its_point(factory, milliseconds, kept, system, source_tz):
    content = [*system("odd"), point("m", 0, 1.5, CREATED), point("m", 1, 2.5, CREATED), point("far", 2, 3.5, CREATED)]
    factory.run(PROJECT, "healthy", run_v3("healthy"))
    factory.run(PROJECT, "odd", at(as_table(content, PROJECT, "odd"), "far", "timestamp", milliseconds))
    export = source(factory, source_tz=source_tz)
    assert [info.run_id for info in export.runs(PROJECT)] == ["healthy", "odd"]
    assert not read(export, "healthy")[1].errors
    table, end = read(export, "odd")
    assert not end.errors
    assert [
        (row["step"], row["float_value"])
        for row in table.select(["attribute_path", "step", "float_value"])
        .filter(pa.compute.equal(table["attribute_path"], "far"))
        .to_pylist()
    ] == [(2, 3.5)]
    assert str(milliseconds) in messages(end.notes)
    assert "'far'" in messages(end.notes)
    if not kept:
        assert times_of(table, "far") == [None]
        assert end.repairs["impossible_times"] == 1
    elif source_tz != "Europe/Warsaw" or system is system_rows_v3:
        assert times_of(table, "far") == [milliseconds]


@pytest.mark.parametrize("name", ["sys/creation_time", "my/time"])
@pytest.mark.parametrize(("milliseconds", "kept"), [(YEAR_10030, True), (BEFORE_YEAR_1, True), (2**62, False)])
def test_a_datetime_that_cannot_be_held_is_an_issue_of_its_run(factory, name, milliseconds, kept):
    content = [*system_rows_v3("odd"), parameter("my/time", "datetime", CREATED), point("m", 0, 1.5, CREATED)]
    factory.run(PROJECT, "odd", at(as_table(content, PROJECT, "odd"), name, "datetime_value", milliseconds))
    export = source(factory)
    (info,) = export.runs(PROJECT)
    assert info.created_at == (None if name == "sys/creation_time" else CREATED)
    table, end = read(export, "odd")
    assert times_of(table, name, "datetime_value") == ([milliseconds] if kept else [])
    assert [issue.attribute_path for issue in end.errors] == ([] if kept else [name])


@pytest.mark.parametrize("mode", ["copy", "in_place"])
@pytest.mark.parametrize("milliseconds", [2**62, -(2**63)])
def test_a_datetime_that_cannot_be_held_costs_no_row_of_another_type(factory, tmp_path, mode, milliseconds):
    content = [*system_rows_v3("odd"), parameter("my/time", "datetime", CREATED), parameter("lr", "float", 0.5)]
    table = at(as_table(content, PROJECT, "odd"), "my/time", "datetime_value", milliseconds)
    factory.run(PROJECT, "odd", at(table, "lr", "datetime_value", milliseconds))
    lake = LakeSettings(root=str(tmp_path / "lake"))
    report = LakeWriter(lake, source(factory, mode=mode)).write_project(PROJECT)
    assert (report.partial, report.failed) == (["odd"], {})
    run = Lake(lake).project(PROJECT).run("odd")
    assert str(milliseconds) in "".join(issue.message for issue in run.record.errors)
    held = [row for batch in run.batches() for row in batch.to_pylist()]
    assert [row["float_value"] for row in held if row["attribute_path"] == "lr"] == [0.5]
    assert len(held) == len(content) - 1


def test_one_row_that_the_schema_cannot_hold_costs_only_itself(factory):
    table = as_table([*system_rows_v3("r"), *(point("m", step, 1.0, CREATED) for step in range(500))], PROJECT, "r")
    wide = table["step"].cast(pa.decimal128(38, 6)).combine_chunks()
    steps = [10**20 if row == 77 else step.as_py() for row, step in enumerate(wide)]
    place = table.schema.get_field_index("step")
    table = table.set_column(place, "step", pa.array(steps, pa.decimal128(38, 6)))
    factory.run(PROJECT, "r", table)
    found, end = read(source(factory), "r")
    assert found.num_rows == table.num_rows - 1
    assert "column step cannot be cast" in messages(end.errors)


def test_bytes_that_are_no_text_cost_only_their_rows(factory):
    table = as_table(
        [*system_rows_v3("r"), parameter("p", "string", "x"), parameter("q", "string", "fine")], PROJECT, "r"
    )
    texts = [b"\xff\xfe" if value == "x" else (value or "").encode() for value in table["string_value"].to_pylist()]
    place = table.schema.get_field_index("string_value")
    raw = pa.array(texts, pa.binary())
    damaged = pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
    factory.run(PROJECT, "r", table.set_column(place, "string_value", damaged))
    found, end = read(source(factory), "r")
    assert rows(found, "q")[0]["string_value"] == "fine"
    assert "string_value is damaged" in messages(end.errors)


def flat(count: int, **columns: pa.Array) -> pa.Table:
    """A table of points of strings with some columns replaced."""
    given = {
        "project_id": pa.repeat(PROJECT, count),
        "run_id": pa.repeat("bomb", count),
        "attribute_path": pa.repeat("log", count),
        "attribute_type": pa.repeat("string_series", count),
        "step": pa.array([Decimal(step) for step in range(count)], pa.decimal128(18, 6)),
        **columns,
    }
    arrays = [given.get(field.name, pa.nulls(count, field.type)) for field in EXPORTER_SCHEMA]
    return pa.Table.from_arrays(arrays, EXPORTER_SCHEMA.names)


_READ = """
import sys
from pathlib import Path
from neptune_assets_tests.support.export_reading import PROJECT, source
from neptune_assets_tests.support.export_factory import ExportFactory
from neptune_assets.sources.protocol import RunEnd
export = source(ExportFactory(Path(sys.argv[1])))
infos = export.runs(PROJECT)
rows = 0
for chunk in export.read(PROJECT, [info.run_id for info in infos]):
    if isinstance(chunk, RunEnd):
        print("END", chunk.run_id, [issue.message for issue in chunk.errors])
    else:
        rows += chunk.batch.num_rows
(most,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print("ROWS", rows, "MIB", int(most) >> 10)
"""


def measured(factory: ExportFactory) -> tuple[int, int, str]:
    """Rows read, the greatest memory in MiB, and what was said, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(factory.directory)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    words = last.split()
    return int(words[1]), int(words[3]), "\n".join(said)


def dictionary_bomb(factory: ExportFactory, column: str) -> None:
    count, big = 100, "x" * (16 << 20)
    text = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([big]))
    short = pa.repeat("v", count)
    nested = {
        "string_value": text,
        "attribute_path": text,
        "file_value": pa.StructArray.from_arrays([text], ["path"]),
        "string_set_value": pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), text),
    }[column]
    path = factory.part(PROJECT, "bomb")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = flat(count, string_value=short)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, nested), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("column", ["string_value", "attribute_path", "file_value", "string_set_value"])
def test_a_text_repeated_by_its_dictionary_does_not_fill_the_memory(factory, column):
    dictionary_bomb(factory, column)
    count, mebibytes, said = measured(factory)
    assert count == 100, said
    assert mebibytes < 1_000, said


def test_a_page_of_more_than_the_memory_allowed_is_refused_by_name(factory):
    path = factory.part(PROJECT, "bomb")
    path.parent.mkdir(parents=True)
    text = pa.array(["y" * (300 << 20)])
    pq.write_table(flat(1, string_value=text), path, compression="zstd", use_dictionary=False)
    del text
    assert path.stat().st_size < 200_000
    count, mebibytes, said = measured(factory)
    assert count == 0
    assert mebibytes < 600
    assert "its pages take 300 MiB at once" in said


def test_a_text_that_all_of_its_page_shares_does_not_fill_the_memory(factory):
    path = factory.part(PROJECT, "bomb")
    path.parent.mkdir(parents=True)
    pq.write_table(
        flat(200, string_value=pa.repeat("z" * (1 << 20), 200)),
        path,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"string_value": "DELTA_BYTE_ARRAY"},
    )
    count, mebibytes, said = measured(factory)
    assert (count, mebibytes < 1_000) == (200, True), said


def test_rows_that_the_footer_claims_and_the_pages_do_not_hold_are_missed(factory):
    (path,) = factory.run(PROJECT, "r", run_v3("r")[:1])
    content = path.read_bytes()
    claimed = pq.read_metadata(path).num_rows
    # Thrift's compact protocol: a field i64 of a row group (num_rows is its third), zigzag.
    old, new = bytes([0x16, claimed * 2]), bytes([0x16, claimed * 2 + 8])
    footer = content.rindex(old, 0, content.rindex(b"ARROW:schema"))
    path.write_bytes(content[:footer] + new + content[footer + 2 :])
    if pq.read_metadata(path).row_group(0).num_rows != claimed + 4:
        pytest.fail("the footer was not changed where it was meant to be")
    table, end = read(source(factory), "r")
    assert table.num_rows == claimed
    assert f"holds {claimed} rows, its footer says {claimed + 4}" in messages(end.errors)


def test_rows_that_only_the_whole_footer_claims_are_missed(factory):
    (path,) = factory.run(PROJECT, "r", run_v3("r")[:1])
    content = path.read_bytes()
    claimed = pq.read_metadata(path).num_rows
    # The file's number of rows is the footer's third field too, and comes before those of the row groups.
    old, new = bytes([0x16, claimed * 2]), bytes([0x16, claimed * 2 + 8])
    length = int.from_bytes(content[-8:-4], "little")
    places = [at for at in range(len(content) - 8 - length, len(content) - 8) if content[at : at + 2] == old]
    for at in places:
        path.write_bytes(content[:at] + new + content[at + 2 :])
        changed = pq.read_metadata(path)
        if (changed.num_rows, changed.row_group(0).num_rows) == (claimed + 4, claimed):
            break
    else:
        pytest.fail("the footer was not changed where it was meant to be")
    table, end = read(source(factory), "r")
    assert table.num_rows == claimed
    assert f"its footer says {claimed + 4} rows, its row groups hold {claimed}" in messages(end.errors)
