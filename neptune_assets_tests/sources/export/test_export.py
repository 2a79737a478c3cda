from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from neptune_assets.errors import SettingsError, SourceError, UnknownProjectError
from neptune_assets.schema import Scope
from neptune_assets_tests.support.export_factory import (
    CREATED,
    EXPORTER_SCHEMA,
    ExportFactory,
    as_table,
    exported_name,
    parameter,
    run_v2,
    run_v3,
    system_rows_v2,
    system_rows_v3,
)
from neptune_assets_tests.support.export_reading import PROJECT, messages, read, source


@pytest.fixture
def factory(tmp_path: Path) -> ExportFactory:
    return ExportFactory(tmp_path)


def test_every_row_of_a_sound_run_arrives_unchanged(factory):
    groups = run_v3("run-a", points=50)
    factory.run(PROJECT, "run-a", groups)
    table, end = read(source(factory), "run-a")
    expected = as_table([row for group in groups for row in group], PROJECT, "run-a")
    assert table.combine_chunks().equals(expected.combine_chunks())
    assert (end.errors, end.notes, end.repairs, end.promised) == ((), (), {}, None)


def test_projects_and_runs_are_named_as_their_rows_name_them(factory):
    ids = ["RUN-1", "x_part_0", "a b/ü:1", "", "Run", "run", "n" * 150, "..", "a\nb"]
    ids.remove("")
    for run_id in ids:
        factory.run(PROJECT, run_id, run_v3(run_id))
    factory.run("wörk space/p.q", "RUN-1", run_v3("RUN-1"))
    export = source(factory)
    assert export.projects() == ["wörk space/p.q", PROJECT] or export.projects() == [PROJECT, "wörk space/p.q"]
    assert export.projects() == sorted(export.projects())
    assert [info.run_id for info in export.runs(PROJECT)] == sorted(ids)
    assert [info.run_id for info in export.runs("wörk space/p.q")] == ["RUN-1"]
    for run_id in ids:
        table, end = read(export, run_id)
        assert set(table["run_id"].to_pylist()) == {run_id}
        assert not end.errors


def test_golden_names_are_the_exporters():
    from neptune_assets.sources.export.projects import parse_part, safe_name

    golden = {
        "ws/proj": "ws_proj-00871eb7ac1bdb01",
        "RUN-1": "RUN-1-549fcb30a0f06072",
        "a b/ü:1": "a_b_ü_1-24f244a5a09ae96d",
        "A": "A-1a89a399ca7c5046",
    }
    assert {name: safe_name(name) for name in golden} == golden
    part = parse_part("x_part_0-0123456789abcdef_part_12.parquet")
    assert part is not None
    assert (part.prefix, part.number, part.unfinished) == ("x_part_0-0123456789abcdef", 12, False)
    assert parse_part("x_part_01.parquet") is None
    assert parse_part("x_part_1.parquet.tmp").unfinished


def test_listing_gives_times_flags_and_sizes(factory):
    paths = factory.run(PROJECT, "old", [*run_v3("old")])
    trashed = [*system_rows_v2("SAN-1")[:-1], parameter("sys/trashed", "bool", True)]
    factory.run(PROJECT, "SAN-1", [trashed])
    archived = [*system_rows_v3("gone")[:-1], parameter("sys/archived", "bool", True)]
    factory.run(PROJECT, "gone", [archived])
    infos = {info.run_id: info for info in source(factory, {"runs": {"trashed": True}}).runs(PROJECT)}
    assert infos["old"].created_at == CREATED
    assert infos["old"].modified_at == CREATED + timedelta(hours=1)
    assert infos["old"].size_hint == paths[0].stat().st_size
    assert infos["SAN-1"].trashed
    assert infos["gone"].archived
    assert sorted(info.run_id for info in source(factory).runs(PROJECT)) == ["gone", "old"]
    kept = source(factory, {"runs": {"archived": False, "trashed": True}}).runs(PROJECT)
    assert sorted(info.run_id for info in kept) == ["SAN-1", "old"]


def test_runs_are_filtered_by_time_and_name(factory):
    for day in (1, 5, 9):
        created = datetime(2025, 3, day, tzinfo=UTC)
        factory.run(PROJECT, f"day-{day}", run_v3(f"day-{day}", created=created))
    since = {"runs": {"created_since": "2025-03-05", "created_until": "2025-03-09"}}
    assert [info.run_id for info in source(factory, since).runs(PROJECT)] == ["day-5"]
    named = {"runs": {"exclude": ["-9$"]}}
    assert [info.run_id for info in source(factory, named).runs(PROJECT)] == ["day-1", "day-5"]


def test_attribute_filters_leave_rows_out(factory):
    factory.run(PROJECT, "r", run_v3("r"))
    chosen = {"attributes": {"classes": ["metrics"], "exclude": ["loss"]}}
    table, end = read(source(factory, chosen), "r")
    assert set(table["attribute_path"].to_pylist()) == {"metrics/acc"}
    assert not end.errors


def test_fingerprints_change_with_what_is_read_and_only_then(factory):
    factory.run(PROJECT, "r", run_v3("r"))
    factory.run(PROJECT, "other", run_v3("other"))

    def fingerprints(filters=None, **given) -> dict[str, str]:
        return {info.run_id: info.fingerprint for info in source(factory, filters, **given).runs(PROJECT)}

    first = fingerprints()
    assert fingerprints() == first
    assert first["r"] != first["other"]
    assert fingerprints(source_tz="infer") != first
    assert fingerprints({"attributes": {"exclude": ["x"]}}) != first
    assert fingerprints({"runs": {"exclude": ["x"]}}) == first
    factory.errors([{"project_id": PROJECT, "run_id": "r", "attribute_path": "m", "exception": "E"}])
    after_error = fingerprints()
    assert after_error["r"] != first["r"]
    assert after_error["other"] == first["other"]
    part = factory.part(PROJECT, "other")
    os.utime(part, ns=(part.stat().st_atime_ns, part.stat().st_mtime_ns + 1_000))
    assert fingerprints()["other"] != after_error["other"]


def test_one_object_sees_runs_that_come_later(factory):
    factory.run(PROJECT, "r1", run_v3("r1"))
    export = source(factory)
    assert [info.run_id for info in export.runs(PROJECT)] == ["r1"]
    factory.run(PROJECT, "r2", run_v3("r2"))
    assert [info.run_id for info in export.runs(PROJECT)] == ["r1", "r2"]
    factory.run("ws/new", "r1", run_v3("r1"))
    assert [info.run_id for info in export.runs("ws/new")] == ["r1"]
    assert export.projects() == ["ws/new", PROJECT]


def test_unknown_project_and_unknown_run(factory):
    factory.run(PROJECT, "r", run_v3("r"))
    export = source(factory)
    with pytest.raises(UnknownProjectError, match="ws/other"):
        export.runs("ws/other")
    ends = list(export.read(PROJECT, ["nope", "r"]))
    assert ends[0].run_id == "nope"
    assert "nope" in ends[0].errors[0].message
    assert ends[-1].run_id == "r"
    assert not ends[-1].errors


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda data: None, "is not a directory"),
        (lambda data: (data.parent.mkdir(parents=True), data.write_text("x")), "is not a directory"),
        (lambda data: data.mkdir(parents=True), "is empty"),
        (lambda data: (data / "photos").mkdir(parents=True), "is not an export"),
    ],
    ids=["missing", "a file", "empty", "something else"],
)
def test_what_is_no_export_is_one_clear_error(factory, make, said):
    make(factory.data)
    with pytest.raises(SourceError, match=said) as caught:
        source(factory).projects()
    assert str(factory.data) in caught.value.message
    assert caught.value.hint


def test_the_directory_above_or_below_is_recognised(factory):
    factory.run(PROJECT, "r", run_v3("r"))
    with pytest.raises(SourceError, match=r"Did you mean .*exports/data\?"):
        source(factory, data=str(factory.data.parent)).projects()
    with pytest.raises(SourceError, match="one project"):
        source(factory, data=str(factory.project(PROJECT))).projects()


def test_an_export_that_goes_away_does_not_look_empty(factory):
    factory.run(PROJECT, "r", run_v3("r"))
    export = source(factory)
    assert len(export.runs(PROJECT)) == 1
    factory.data.rename(factory.data.with_name("elsewhere"))
    factory.data.mkdir()
    with pytest.raises(SourceError):
        export.runs(PROJECT)


def test_project_filters_apply(factory):
    for name in ("ws/a", "ws/b", "other/c"):
        factory.run(name, "r", run_v3("r"))
    assert source(factory, {"projects": {"only": ["ws/a", "ws/zzz"]}}).projects() == ["ws/a"]
    assert source(factory, {"projects": {"include": ["^ws/"], "exclude": ["b$"]}}).projects() == ["ws/a"]


def test_model_registry(factory):
    factory.run(PROJECT, "RUN-1", run_v2("RUN-1"))
    factory.run(PROJECT, "PRJ-MOD", [system_rows_v2("PRJ-MOD")], scope="models")
    factory.run(PROJECT, "PRJ-MOD-1", [system_rows_v2("PRJ-MOD-1")], scope="model_versions")
    factory.run("ws/only-models", "M", [system_rows_v2("M")], scope="models")
    factory.file("ws/proj", "models/PRJ-MOD/weights", b"w", scope="models")
    export = source(factory)
    assert export.projects() == ["ws/only-models", PROJECT]
    assert [info.run_id for info in export.runs(PROJECT)] == ["RUN-1"]
    assert [info.run_id for info in export.runs(PROJECT, Scope.MODELS)] == ["PRJ-MOD"]
    assert [info.run_id for info in export.runs(PROJECT, Scope.MODEL_VERSIONS)] == ["PRJ-MOD-1"]
    assert export.runs("ws/only-models") == []
    table, end = read(export, "PRJ-MOD", scope=Scope.MODELS)
    assert table.num_rows == 5
    assert not end.errors
    (file,) = export.files(PROJECT, "PRJ-MOD", "models/PRJ-MOD/weights", Scope.MODELS)
    with file.open() as stream:
        assert stream.read() == b"w"
    without = source(factory, {"model_registry": False})
    assert without.projects() == [PROJECT]
    assert without.runs(PROJECT, Scope.MODELS) == []


def test_in_place_names_parts_and_files_root_and_copy_names_nothing(factory):
    paths = factory.run(PROJECT, "r", run_v3("r")[:2], run_v3("r")[2:], [[]])
    factory.part(PROJECT, "r", 2).write_bytes(b"PAR1")
    export = source(factory, mode="in_place")
    place = export.in_place(PROJECT, "r", Scope.RUNS)
    assert place is not None
    assert list(place.parts) == [str(path) for path in paths[:2]]
    assert place.files_root == str(factory.files / exported_name(PROJECT))
    assert source(factory).in_place(PROJECT, "r", Scope.RUNS) is None


def test_nothing_is_ever_written(factory):
    factory.run(PROJECT, "r", run_v3("r"))
    factory.file(PROJECT, "r/x.bin", b"x")

    def state() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(factory.directory.rglob("*"))
        }

    before = state()
    export = source(factory)
    export.projects()
    export.runs(PROJECT)
    read(export, "r")
    export.problems(PROJECT)
    assert state() == before


def test_a_missing_secret_is_named_and_its_value_never_shown(factory, monkeypatch):
    factory.run(PROJECT, "r", run_v3("r"))
    storage = {"secrets_env": {"secret": "EXPORT_TEST_SECRET"}}
    monkeypatch.delenv("EXPORT_TEST_SECRET", raising=False)
    with pytest.raises(SettingsError, match="EXPORT_TEST_SECRET"):
        source(factory, data="s3://bucket/data", storage=storage)
    monkeypatch.setenv("EXPORT_TEST_SECRET", "hunter2")
    assert "hunter2" not in repr(source(factory, data="s3://bucket/data", storage=storage))


def test_a_renamed_project_directory_is_read_and_reported(factory):
    factory.run(PROJECT, "r", run_v3("r"))
    factory.project(PROJECT).rename(factory.data / "mine")
    export = source(factory)
    assert export.projects() == [PROJECT]
    assert [info.run_id for info in export.runs(PROJECT)] == ["r"]
    assert "mine" in messages(export.problems(PROJECT))
    table, end = read(export, "r")
    assert table.num_rows == len([row for group in run_v3("r") for row in group])
    assert not end.errors


def test_two_directories_of_one_project(factory):
    factory.run(PROJECT, "r", run_v3("r"))
    copy = factory.data / "aaa"
    copy.mkdir()
    (copy / factory.part(PROJECT, "r").name).write_bytes(factory.part(PROJECT, "r").read_bytes())
    export = source(factory)
    assert export.projects() == [PROJECT]
    assert "aaa" in messages(export.problems(PROJECT))
    assert len(export.runs(PROJECT)) == 1


def test_factory_schema_is_the_packages():
    from neptune_assets.schema import SCHEMA

    assert SCHEMA.equals(EXPORTER_SCHEMA)
