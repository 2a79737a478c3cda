from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neptune_assets.errors import FileGoneError, SourceError
from neptune_assets_tests.support.export_factory import (
    CREATED,
    EXPORTER_SCHEMA,
    ExportFactory,
    as_table,
    exported_name,
    file_row,
    parameter,
    point,
    run_v3,
    system_rows_v3,
)
from neptune_assets_tests.support.export_reading import PROJECT, messages, read, rows, source


@pytest.fixture
def factory(tmp_path: Path) -> ExportFactory:
    return ExportFactory(tmp_path)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "zero bytes":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "text":
        path.write_bytes(b"not parquet at all\n" * 50)
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["zero bytes", "truncated", "text"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_part_makes_its_run_partial_and_the_others_are_read(factory, how, number):
    parts = [[group] for group in run_v3("r", points=9)]
    paths = factory.run(PROJECT, "r", *parts)
    factory.run(PROJECT, "sound", run_v3("sound"))
    damage(paths[number], how)
    export = source(factory)
    assert {info.run_id for info in export.runs(PROJECT)} == {"r", "sound"}
    table, end = read(export, "r")
    assert table.num_rows == sum(len(part[0]) for at, part in enumerate(parts) if at != number)
    assert paths[number].name in messages(end.errors)
    assert not read(export, "sound")[1].errors


@pytest.mark.parametrize("how", ["zero bytes", "truncated", "text"])
def test_a_run_with_no_readable_part_is_still_listed_if_its_name_tells_its_id(factory, how):
    factory.run(PROJECT, "sound", run_v3("sound"))
    for run_id in ("RUN-7", "with space"):
        (path,) = factory.run(PROJECT, run_id, run_v3(run_id))
        damage(path, how)
    export = source(factory)
    assert [info.run_id for info in export.runs(PROJECT)] == ["RUN-7", "sound"]
    table, end = read(export, "RUN-7")
    assert table.num_rows == 0
    assert exported_name("RUN-7") in messages(end.errors)
    assert exported_name("with space") in messages(export.problems(PROJECT))
    told = source(factory, {"runs": {"ids": ["with space"]}})
    assert [info.run_id for info in told.runs(PROJECT)] == ["with space"]


def test_a_project_with_no_readable_part_is_named_by_the_hash_or_reported(factory):
    for project in (PROJECT, "ws/has space"):
        (path,) = factory.run(project, "r", run_v3("r"))
        damage(path, "text")
    export = source(factory)
    assert export.projects() == [PROJECT]
    assert exported_name("ws/has space") in messages(export.problems())
    assert source(factory, {"projects": {"only": ["ws/has space"]}}).projects() == ["ws/has space"]


def test_missing_and_unfinished_parts(factory):
    paths = factory.run(PROJECT, "r", *[[group] for group in run_v3("r")], [[parameter("late", "int", 1)]])
    paths[1].unlink()
    paths[3].rename(f"{paths[3]}.tmp")
    factory.run(PROJECT, "half", run_v3("half"), unfinished=True)
    export = source(factory)
    assert [info.run_id for info in export.runs(PROJECT)] == ["r"]
    table, end = read(export, "r")
    assert "late" not in table["attribute_path"].to_pylist()
    assert f"{paths[1].name} is missing" in messages(end.errors)
    assert f"{paths[3].name} was never finished" in messages(end.errors)
    assert "half was never finished" in messages(export.problems(PROJECT))


def test_without_part_0_a_run_is_partial(factory):
    paths = factory.run(PROJECT, "r", *[[group] for group in run_v3("r")])
    paths[0].unlink()
    table, end = read(source(factory), "r")
    assert table.num_rows == sum(len(group) for group in run_v3("r")[1:])
    assert "mark of a complete run" in messages(end.errors)
    assert "no sys/ rows" in messages(end.errors)


def test_a_damaged_row_group_costs_only_itself(factory):
    groups = [[point("m", step, float(step), CREATED) for step in range(at * 100, at * 100 + 100)] for at in range(5)]
    (path,) = factory.run(PROJECT, "r", [system_rows_v3("r"), *groups])
    metadata = pq.ParquetFile(path).metadata
    column = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == "float_value")
    chunk = metadata.row_group(3).column(column)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(bytes(content))
    table, end = read(source(factory), "r")
    steps = [int(row["step"]) for row in rows(table, "m")]
    assert steps == [*range(200), *range(300, 500)]
    assert "row group 3" in messages(end.errors)
    assert path.name in messages(end.errors)


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_other_encodings_of_the_same_values_are_read_exactly(factory):
    base = as_table([*system_rows_v3("r"), *run_v3("r", points=20)[1]], PROJECT, "r")
    table = with_column(base, "step", base["step"].cast(pa.decimal128(38, 6)))
    for name in ("timestamp", "datetime_value"):
        table = with_column(table, name, base[name].cast(pa.timestamp("us", tz="UTC")))
    for name in ("project_id", "run_id", "attribute_path", "attribute_type"):
        table = with_column(table, name, base[name].dictionary_encode())
    table = with_column(table, "string_value", base["string_value"].cast(pa.large_string()))
    table = table.drop_columns(["histogram_value", "string_set_value"]).append_column(
        "extra", pa.array(range(table.num_rows))
    )
    table = table.select(list(reversed(table.column_names)))
    factory.run(PROJECT, "r", table)
    found, end = read(source(factory), "r")
    assert found.combine_chunks().equals(base.combine_chunks())
    assert not end.errors
    stored = pq.read_schema(factory.part(PROJECT, "r"))
    assert stored.field("timestamp").type.unit == "us"


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("float_value", lambda n: pa.array(["x"] * n), "string, where double"),
        ("step", lambda n: pa.array([0.5] * n), "where decimal"),
        ("timestamp", lambda n: pa.array([1] * n), "where timestamp"),
        ("attribute_path", lambda n: pa.array([1] * n), "where string"),
        ("file_value", lambda n: pa.array(["p"] * n), "where struct"),
        ("string_set_value", lambda n: pa.array(["p"] * n), "where list"),
        ("timestamp", lambda n: pa.array([1_500_001] * n, pa.timestamp("us", tz="UTC")), "exactly"),
        ("step", lambda n: pa.array([Decimal("0.0000001")] * n, pa.decimal128(38, 7)), "exactly"),
        ("int_value", lambda n: pa.array([2**63] * n, pa.uint64()), "exactly"),
        ("float_value", lambda n: pa.array([2**53 + 1] * n), "exactly"),
    ],
)
def test_wrong_types_and_lossy_casts_name_part_and_column(factory, column, values, said):
    base = as_table([point("m", step, 1.0, CREATED) for step in range(4)], PROJECT, "r")
    factory.run(PROJECT, "r", run_v3("r"), with_column(base, column, values(4)))
    table, end = read(source(factory), "r")
    assert table.num_rows == sum(len(group) for group in run_v3("r"))
    (error,) = end.errors
    assert factory.part(PROJECT, "r", 1).name in error.message
    assert f"column {column}" in error.message
    assert said in error.message


def test_a_part_without_ids_is_refused(factory):
    base = as_table(run_v3("r")[1], PROJECT, "r").drop_columns(["attribute_type"])
    factory.run(PROJECT, "r", run_v3("r"), base)
    assert "attribute_type is missing" in messages(read(source(factory), "r")[1].errors)


def test_rows_of_other_runs_and_projects_are_left_out_and_reported(factory):
    foreign = [{**point("m", 0, 1.0, CREATED), "run_id": "other"}, {**point("m", 1, 1.0, CREATED), "project_id": "w/o"}]
    factory.run(PROJECT, "r", [*run_v3("r"), foreign])
    table, end = read(source(factory), "r")
    assert table.num_rows == sum(len(group) for group in run_v3("r"))
    assert end.repairs == {"foreign_rows": 2}
    assert "2 rows of another run" in messages(end.errors)


def test_parts_named_for_another_run(factory):
    factory.run(PROJECT, "right", run_v3("right"))
    factory.part(PROJECT, "right").rename(factory.part(PROJECT, "wrong"))
    export = source(factory)
    assert [info.run_id for info in export.runs(PROJECT)] == ["right"]
    table, end = read(export, "right")
    assert table.num_rows == sum(len(group) for group in run_v3("right"))
    assert exported_name("wrong") in messages(end.notes)
    factory.run(PROJECT, "right", run_v3("right", points=7))
    assert len(export.runs(PROJECT)) == 1
    assert read(export, "right")[0].num_rows == sum(len(group) for group in run_v3("right", points=7))
    assert exported_name("wrong") in messages(export.problems(PROJECT))


@pytest.mark.parametrize("how", ["no part 0", "truncated", "no part 1"])
@pytest.mark.parametrize("partial", ["right", "wrong"])
def test_of_two_sets_of_parts_of_one_run_the_whole_one_is_read(factory, partial, how):
    content = run_v3("right")
    for name in ("wrong", "right"):
        factory.run(PROJECT, "right", content[:1], content[1:2], content[2:])
        if name == "wrong":
            for number in range(3):
                factory.part(PROJECT, "right", number).rename(factory.part(PROJECT, "wrong", number))
    number = 0 if how == "no part 0" else 1
    part = factory.part(PROJECT, partial, number)
    if how == "truncated":
        part.write_bytes(part.read_bytes()[:-20])
    else:
        part.unlink()
    export = source(factory)
    assert [info.run_id for info in export.runs(PROJECT)] == ["right"]
    table, end = read(export, "right")
    assert not end.errors
    assert table.num_rows == sum(len(group) for group in content)
    (problem,) = [issue for issue in export.problems(PROJECT) if not issue.notice]
    assert exported_name(partial) in problem.message


def test_of_two_sets_of_parts_that_are_both_partial_the_one_named_for_the_run_is_read_and_is_partial(factory):
    content = run_v3("right")
    for name in ("wrong", "right"):
        factory.run(PROJECT, "right", content[:1], content[1:])
        factory.part(PROJECT, "right", 0).unlink()
        if name == "wrong":
            factory.part(PROJECT, "right", 1).rename(factory.part(PROJECT, "wrong", 1))
    export = source(factory)
    export.runs(PROJECT)
    table, end = read(export, "right")
    assert table.num_rows == sum(len(group) for group in content[1:])
    assert "Part " + factory.part(PROJECT, "right").name in messages(end.errors)
    assert exported_name("wrong") in messages(export.problems(PROJECT))


def test_rows_of_unknown_type_and_points_without_step(factory):
    odd = [{"attribute_path": "x", "attribute_type": "tensor"}, {**point("m", 0, 1.0, CREATED), "step": None}]
    factory.run(PROJECT, "r", [*run_v3("r"), odd])
    table, end = read(source(factory), "r")
    assert table.num_rows == sum(len(group) for group in run_v3("r"))
    assert end.repairs == {"unusable_rows": 2}
    assert "tensor" in messages(end.errors)
    assert "float_series" in messages(end.errors)


def test_the_error_report_makes_its_runs_partial(factory):
    for run_id in ("a", "b", "c"):
        factory.run(PROJECT, run_id, run_v3(run_id))
    factory.errors(
        [
            {
                "project_id": PROJECT,
                "run_id": "a",
                "attribute_path": "metrics/lost",
                "attribute_type": "float_series",
                "exception": "NeptuneTimeout",
            },
            {"project_id": PROJECT, "run_id": "b", "attribute_path": None, "attribute_type": None, "exception": "E"},
            {"project_id": "ws/other", "run_id": "c", "attribute_path": "m", "attribute_type": None, "exception": "E"},
            {"project_id": PROJECT, "run_id": "never", "attribute_path": None, "exception": "E"},
        ]
    ).open("a").write("{broken\n")
    export = source(factory)
    (error,) = read(export, "a")[1].errors
    assert (error.attribute_path, error.attribute_type) == ("metrics/lost", "float_series")
    assert "NeptuneTimeout" in error.message
    assert len(read(export, "b")[1].errors) == 1
    assert not read(export, "c")[1].errors
    problems = messages(export.problems(PROJECT))
    assert "never" in problems
    assert "Line 5" in problems
    filtered = source(factory, {"attributes": {"exclude": ["^metrics/lost$"]}})
    assert not read(filtered, "a")[1].errors
    assert len(read(filtered, "b")[1].errors) == 1


@pytest.mark.parametrize("place", [".", "exports", "exports/data"])
def test_the_error_report_is_found_where_the_exporter_leaves_it(factory, place):
    factory.run(PROJECT, "a", run_v3("a"))
    factory.errors(
        [{"project_id": PROJECT, "run_id": "a", "attribute_path": "m", "exception": "E"}], factory.directory / place
    )
    assert len(read(source(factory), "a")[1].errors) == 1


def test_an_error_report_elsewhere_is_read_where_settings_name_it(factory, tmp_path):
    factory.run(PROJECT, "a", run_v3("a"))
    elsewhere = tmp_path / "started" / "here"
    entry = {"project_id": PROJECT, "run_id": "a", "attribute_path": "m", "exception": "E"}
    report = factory.errors([entry], elsewhere).rename(elsewhere / "my errors.jsonl")
    assert not read(source(factory), "a")[1].errors
    (error,) = read(source(factory, error_report=str(report)), "a")[1].errors
    assert str(report) in error.message
    beside = factory.errors([entry])
    assert len(read(source(factory, error_report=str(beside)), "a")[1].errors) == 1
    marks = {source(factory, error_report=given).runs(PROJECT)[0].fingerprint for given in (None, str(report))}
    assert len(marks) == 2
    with pytest.raises(SourceError, match=r"nowhere\.jsonl"):
        source(factory, error_report=str(tmp_path / "nowhere.jsonl")).projects()


def test_strange_things_in_a_project_are_reported_and_not_read(factory):
    factory.run(PROJECT, "r", run_v3("r"))
    project = factory.project(PROJECT)
    (project / "notes.txt").write_text("x")
    (project / ".hidden").write_text("x")
    (project / "dir_part_0.parquet").mkdir()
    outside = factory.directory / "outside.parquet"
    outside.write_bytes(factory.part(PROJECT, "r").read_bytes())
    factory.part(PROJECT, "linked").symlink_to(outside)
    (factory.data / "away").symlink_to(factory.directory)
    export = source(factory)
    assert [info.run_id for info in export.runs(PROJECT)] == ["r"]
    problems = messages(export.problems(PROJECT))
    for name in ("notes.txt", "dir_part_0.parquet", exported_name("linked")):
        assert name in problems
    assert ".hidden" not in problems
    assert "away" in messages(export.problems())


def test_small_row_groups_come_together_and_huge_ones_apart(factory):
    tiny = [[point("m", step, 1.0, CREATED)] for step in range(400)]
    factory.run(PROJECT, "tiny", [system_rows_v3("tiny"), *tiny])
    export = source(factory)
    chunks = list(export.read(PROJECT, ["tiny"]))
    assert len(chunks) == 2
    count = 300_000
    steps = pa.array(np.arange(count)).cast(pa.decimal128(19, 0)).cast(pa.decimal128(18, 6), safe=False)
    columns = {
        "project_id": pa.repeat(pa.scalar(PROJECT), count),
        "run_id": pa.repeat(pa.scalar("huge"), count),
        "attribute_path": pa.repeat(pa.scalar("m"), count),
        "attribute_type": pa.repeat(pa.scalar("float_series"), count),
        "step": steps,
        "timestamp": pa.repeat(pa.scalar(CREATED, pa.timestamp("ms", tz="UTC")), count),
        "float_value": pa.array(np.arange(count, dtype=float)),
    }
    table = pa.Table.from_arrays(
        [columns.get(field.name, pa.nulls(count, field.type)) for field in EXPORTER_SCHEMA], schema=EXPORTER_SCHEMA
    )
    factory.run(PROJECT, "huge", [system_rows_v3("huge")], table)
    assert pq.ParquetFile(factory.part(PROJECT, "huge", 1)).metadata.num_row_groups == 1
    found, end = read(source(factory), "huge")
    assert found.num_rows == count + len(system_rows_v3("huge"))
    assert found["float_value"].drop_null().to_numpy().sum() == count * (count - 1) / 2
    assert not end.errors


def test_long_strings_do_not_make_huge_batches(factory):
    text = "x" * 200_000
    lines = [point("logs", step, f"{step}{text}", CREATED, "string_series") for step in range(400)]
    factory.run(PROJECT, "r", [system_rows_v3("r"), lines])
    export = source(factory)
    sizes = [chunk.batch.nbytes for chunk in list(export.read(PROJECT, ["r"]))[:-1]]
    assert sum(sizes) > 80_000_000
    assert max(sizes) < 40_000_000


@contextmanager
def special(path: Path, kind: str) -> Iterator[str]:
    """Put a pipe, a socket or a device in a path's place; yields what messages call it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "socket":
        place = Path.cwd()
        with socket.socket(socket.AF_UNIX) as listening:
            # Addresses of sockets are short.
            os.chdir(path.parent)
            try:
                listening.bind(path.name)
            finally:
                os.chdir(place)
            yield "a socket"
    elif kind == "pipe":
        os.mkfifo(path)
        yield "a named pipe"
    else:
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("making a device needs rights that this user has not")
        yield "a device"


KINDS = ["pipe", "socket", "device"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_special_files_in_an_export_are_named_as_what_they_are(factory, kind):
    factory.run(PROJECT, "r", *([group] for group in run_v3("r")))
    other = factory.data / exported_name("ws/other")
    stray = factory.project(PROJECT) / "notes"
    report = factory.directory / "neptune_exporter_errors.jsonl"
    with special(other, kind) as named, special(stray, kind), special(report, kind):
        export = source(factory)
        assert export.projects() == [PROJECT]
        whole, of_project = messages(export.problems()), messages(export.problems(PROJECT))
        assert f"{other} is {named}" in whole
        for path in (other, stray, report):
            (found,) = [issue for issue in export.problems(PROJECT) if f"{path} is {named}" in issue.message]
            assert not found.notice, of_project


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_a_special_file_in_the_place_of_a_part_leaves_its_run_partial(factory, kind):
    factory.run(PROJECT, "r", *([group] for group in run_v3("r")))
    part = factory.part(PROJECT, "r", 1)
    part.unlink()
    with special(part, kind) as named:
        export = source(factory)
        (info,) = [info for info in export.runs(PROJECT) if info.run_id == "r"]
        table, end = read(export, info.run_id)
    assert table.num_rows
    assert f"{part.name} cannot be read: it is {named}, not a regular file" in messages(end.errors)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_a_special_file_in_the_place_of_files_is_named(factory, kind):
    factory.run(PROJECT, "r", *([group] for group in run_v3("r")))
    factory.run(PROJECT, "f", [run_v3("f")[0], [file_row("model", "f/model")]])
    with special(factory.files / exported_name(PROJECT), kind) as named:
        export = source(factory)
        assert f"is {named}, not a directory" in messages(export.problems(PROJECT))
        with pytest.raises(FileGoneError):
            export.files(PROJECT, "f", "f/model")


FLIPS = """
import io, sys
import pyarrow as pa, pyarrow.parquet as pq
from neptune_assets.sources.export.parts import Part
from neptune_assets_tests.support.export_factory import as_table, run_v2

table = as_table([row for group in run_v2("r") for row in group], "ws/proj", "r")
sink = io.BytesIO()
pq.write_table(table, sink)
content = sink.getvalue()
length = int.from_bytes(content[-8:-4], "little")
opened = 0
for place in range(len(content) - 8 - length, len(content) - 8):
    damaged = bytearray(content)
    damaged[place] ^= 0x41
    try:
        part = Part("part", pa.BufferReader(bytes(damaged)))
        for _ in part.batches(failed=lambda error: None):
            pass
        for group in part.row_groups:
            part.bounds(group, "attribute_path")
            part.first_time(group)
    except Exception:
        continue
    opened += 1
print(length, opened)
"""


def test_no_damaged_byte_of_a_footer_ends_the_process():
    done = subprocess.run([sys.executable, "-c", FLIPS], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    length, opened = map(int, done.stdout.split())
    assert length > opened > 0
