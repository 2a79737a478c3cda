"""Directories of files that are not the exporter's, and names that came back in another form of Unicode."""

from __future__ import annotations

import os
import shutil
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import boto3
import dagster as dg
import fsspec
import pytest

from neptune_assets.build import build_defs
from neptune_assets.errors import FileGoneError, SourceError
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.migration_settings import Settings
from neptune_assets.schema import Scope
from neptune_assets.settings import Filters, LakeSettings
from neptune_assets.sources.export.settings import ExportSource
from neptune_assets.sources.export.source import Export
from neptune_assets.sources.protocol import RunEnd
from neptune_assets_tests.support.export_factory import ExportFactory, exported_name, file_row, run_v2, system_rows_v2
from neptune_assets_tests.support.s3 import s3_server

CASES = Path(__file__).parents[2] / "cases"
PROJECT = "team/vision"
DIRECTORY = "team_vision-0ce73ce3d1ac9290"


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    shutil.copytree(CASES / "export-files-root/exports", tmp_path / "exports")
    return tmp_path / "exports"


def source(data: Path | str, files: Path | str, **more: str) -> Export:
    return Export(ExportSource(data=str(data), files=str(files), **more), Filters())  # type: ignore[arg-type]


def ends(export: Export, project: str = PROJECT) -> dict[str, RunEnd]:
    run_ids = [info.run_id for info in export.runs(project)]
    return {item.run_id: item for item in export.read(project, run_ids) if isinstance(item, RunEnd)}


@pytest.mark.parametrize("mode", ["copy", "in_place"])
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ("nofiles", "does not exist"),
        (".", "holds no files of these projects"),
        ("data", "holds no files of these projects"),
        (f"files/{DIRECTORY}", "holds no files of these projects"),
        (f"files/{DIRECTORY}/team", "holds no files of these projects"),
    ],
    ids=["missing", "too high", "that of data", "too deep", "much too deep"],
)
def test_another_directory_than_the_exporters_is_one_error_that_names_the_right_one(
    exports: Path, files: str, said: str, mode: str
) -> None:
    place = exports if files == "." else exports / files
    with pytest.raises(SourceError) as caught:
        source(exports / "data", place, mode=mode).projects()
    assert f"source.export.files {place} {said}" in str(caught.value)
    assert f"Set it to {exports / 'files'}." in caught.value.hint


def test_data_and_files_that_are_exchanged_are_told_so(exports: Path) -> None:
    with pytest.raises(SourceError, match="they are exchanged"):
        source(exports / "files", exports / "data").projects()


def test_a_directory_that_is_nowhere_near_is_one_problem_of_each_project_whose_rows_name_files(
    exports: Path, tmp_path: Path
) -> None:
    shutil.move(exports / "files", tmp_path / "elsewhere")
    export = source(exports / "data", exports / "files")
    (problem,) = [issue for issue in export.problems(PROJECT) if not issue.notice]
    assert f"source.export.files {exports / 'files'}: it does not exist" in problem.message


def test_the_directory_of_data_with_no_other_nearby_is_one_problem_of_each_project(exports: Path) -> None:
    shutil.rmtree(exports / "files")
    export = source(exports / "data", exports / "data")
    (problem,) = [issue for issue in export.problems(PROJECT) if not issue.notice]
    assert "None of the 3 files of team/vision is below source.export.files" in problem.message


def test_a_directory_with_nothing_of_a_project_is_one_problem_of_that_project(exports: Path) -> None:
    shutil.rmtree(exports / "files" / DIRECTORY)
    export = source(exports / "data", exports / "files")
    (problem,) = [issue for issue in export.problems(PROJECT) if "None of the 3 files" in issue.message]
    assert not problem.notice
    assert not [issue for issue in export.problems("team/nlp") if "None of the" in issue.message]


def test_urls_are_looked_at_alike(exports: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(exports), "/files-root-case", recursive=True)
    with pytest.raises(SourceError) as caught:
        source("memory://files-root-case/data", "memory://files-root-case").projects()
    assert "Set it to memory://files-root-case/files." in caught.value.hint
    memory.rm("/files-root-case", recursive=True)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The export on an S3 server: real client, emulator. Gives the server's URL."""
    with s3_server() as url:
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="id", aws_secret_access_key="secret"
        )
        client.create_bucket(Bucket="exports")
        root = CASES / "export-files-root/exports"
        for path in root.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "exports", f"team/{path.relative_to(root)}")
        yield url


@pytest.mark.parametrize("mode", ["copy", "in_place"])
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ("team/nofiles", "does not exist"),
        ("team", "holds no files of these projects"),
        ("team/data", "holds no files of these projects"),
        (f"team/files/{DIRECTORY}", "holds no files of these projects"),
    ],
    ids=["missing", "too high", "that of data", "too deep"],
)
def test_a_wrong_directory_of_files_on_s3_is_the_same_error(
    bucket: str, monkeypatch: pytest.MonkeyPatch, files: str, said: str, mode: str
) -> None:
    with pytest.raises(SourceError) as caught:
        on_s3(bucket, monkeypatch, "team/data", files, mode=mode).projects()
    assert f"source.export.files s3://exports/{files} {said}" in str(caught.value)
    assert "Set it to s3://exports/team/files." in caught.value.hint


def test_wrong_directories_of_data_on_s3_are_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="they are exchanged"):
        on_s3(bucket, monkeypatch, "team/files", "team/data").projects()
    with pytest.raises(SourceError) as caught:
        on_s3(bucket, monkeypatch, "team", "team/files").projects()
    assert "data s3://exports/team is not an export" in str(caught.value)
    assert "s3://exports/team/data" in caught.value.hint
    with pytest.raises(SourceError, match="s3://exports/elsewhere"):
        on_s3(bucket, monkeypatch, "elsewhere", "team/files").projects()


def test_the_right_directories_on_s3_give_every_file(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    export = on_s3(bucket, monkeypatch, "team/data", "team/files")
    assert not [issue for issue in export.problems(PROJECT) if not issue.notice]


def on_s3(url: str, monkeypatch: pytest.MonkeyPatch, data: str, files: str, mode: str = "copy") -> Export:
    monkeypatch.setenv("EXPORT_KEY", "id")
    monkeypatch.setenv("EXPORT_SECRET", "secret")
    storage = {
        "options": {"endpoint_url": url},
        "secrets_env": {"key": "EXPORT_KEY", "secret": "EXPORT_SECRET"},
    }
    given = {"data": f"s3://exports/{data}", "files": f"s3://exports/{files}", "mode": mode, "storage": storage}
    return Export(ExportSource.model_validate(given), Filters())


@pytest.fixture
def registry(tmp_path: Path) -> ExportFactory:
    """An export of a run and a model, each with a file."""
    factory = ExportFactory(tmp_path)
    factory.run(PROJECT, "RUN-1", [*run_v2("RUN-1"), [file_row("f", "RUN-1/f")]])
    factory.file(PROJECT, "RUN-1/f", b"run")
    factory.run(PROJECT, "PRJ-MOD", [system_rows_v2("PRJ-MOD"), [file_row("f", "PRJ-MOD/f")]], scope="models")
    factory.file(PROJECT, "PRJ-MOD/f", b"model", scope="models")
    return factory


def opened(factory: ExportFactory, **changed: Path) -> Export:
    places = {name: getattr(factory, name) for name in ("data", "files", "model_data", "model_files")} | changed
    return Export(ExportSource.model_validate({name: str(path) for name, path in places.items()}), Filters())


@pytest.mark.parametrize("wrong", ["missing", "too high", "that of data", "too deep"])
def test_a_wrong_directory_of_the_models_files_is_one_error_that_names_the_right_one(
    registry: ExportFactory, wrong: str
) -> None:
    exports = registry.directory / "exports"
    place = {
        "missing": exports / "nothing",
        "too high": exports,
        "that of data": registry.model_data,
        "too deep": registry.model_files / exported_name(PROJECT),
    }[wrong]
    with pytest.raises(SourceError) as caught:
        opened(registry, model_files=place).projects()
    assert f"source.export.model_files {place} " in str(caught.value)
    assert caught.value.hint == f"Set it to {registry.model_files}."


def test_files_of_models_that_are_nowhere_are_a_problem_of_their_project(registry: ExportFactory) -> None:
    shutil.rmtree(registry.model_files)
    (problem,) = [issue for issue in opened(registry).problems(PROJECT) if not issue.notice]
    assert f"below source.export.model_files {registry.model_files}: it does not exist" in problem.message


def test_models_data_and_files_that_are_exchanged_are_reported(registry: ExportFactory) -> None:
    with pytest.raises(SourceError, match=r"model_files .* they are exchanged"):
        opened(registry, model_data=registry.model_files, model_files=registry.model_data).projects()


@pytest.mark.parametrize("mode", ["copy", "in_place"])
@pytest.mark.parametrize(("scope", "run_id"), [(Scope.RUNS, "RUN-1"), (Scope.MODELS, "PRJ-MOD")])
def test_what_names_files_is_partial_where_their_directory_is_not_set(
    registry: ExportFactory, tmp_path: Path, mode: str, scope: Scope, run_id: str
) -> None:
    given = {name: str(getattr(registry, name)) for name in ("data", "model_data")}
    export = Export(ExportSource.model_validate({**given, "mode": mode}), Filters())
    report = LakeWriter(LakeSettings(root=str(tmp_path / "lake")), export, scope).write_project(PROJECT)
    assert report.partial == [run_id]
    setting = "files" if scope == Scope.RUNS else "model_files"
    record = Lake(LakeSettings(root=str(tmp_path / "lake"))).project(PROJECT, scope).run(run_id).record
    assert any(f"source.export.{setting} is not set" in issue.message for issue in record.errors)


def test_a_materialization_ends_with_that_error(exports: Path, tmp_path: Path) -> None:
    export = {"data": str(exports / "data"), "files": str(exports)}
    settings = Settings.model_validate({"source": {"export": export}, "lake": {"root": str(tmp_path / "lake")}})
    defs = build_defs(settings, [PROJECT], prefix="x")
    result = dg.materialize(
        list(defs.assets or ()),  # type: ignore[arg-type]
        selection=dg.AssetSelection.assets("x/lake/runs"),
        partition_key=PROJECT,
        resources=defs.resources,
        raise_on_error=False,
    )
    assert not result.success
    (failure,) = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    assert failure is not None
    assert str(exports / "files") in str(failure)


@pytest.fixture
def mac(tmp_path: Path) -> Path:
    with tarfile.open(CASES / "nfd-file-names/export.tar") as archive:
        archive.extractall(tmp_path / "mac", filter="data")
    (data,) = (tmp_path / "mac").rglob("data")
    return data.parent


def contents(export: Export, run_id: str, references: list[str]) -> list[str]:
    found = [export.files(PROJECT, run_id, reference) for reference in references]
    return [file.open().read().decode() for (file,) in found]


def references(form: str) -> list[str]:
    names = ("podgląd/błąd", "größe")
    return [f"{PROJECT}/VIS-9/{unicodedata.normalize(form, name)}" for name in names]


def test_names_that_a_mac_left_in_form_d_are_found(mac: Path) -> None:
    export = source(mac / "data", mac / "files")
    assert contents(export, "VIS-9", references("NFC")) == ["podgląd/błąd", "größe"]
    assert ends(export)["VIS-9"].errors == ()
    assert not [issue for issue in export.problems(PROJECT) if "No row names" in issue.message]


def test_rows_in_form_d_find_names_in_form_c(mac: Path) -> None:
    rename(mac / "files", "NFC")
    export = source(mac / "data", mac / "files")
    assert contents(export, "VIS-9", references("NFD")) == ["podgląd/błąd", "größe"]


def test_two_names_that_differ_in_their_form_only_are_named(mac: Path) -> None:
    (found,) = [path for path in (mac / "files").rglob("gr*") if path.is_file()]
    mixed = "gro\u0308\u00dfe\u0301"
    folder = found.parent
    (folder / unicodedata.normalize("NFD", mixed)).write_text("one", encoding="utf-8")
    (folder / "gr\u00f6\u00dfe\u0301").write_text("two", encoding="utf-8")
    reference = f"{PROJECT}/VIS-9/{unicodedata.normalize('NFC', mixed)}"
    with pytest.raises(FileGoneError, match="differ in their Unicode form only"):
        source(mac / "data", mac / "files").files(PROJECT, "VIS-9", reference)


def rename(root: Path, form: str) -> None:
    for path in sorted(root.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(unicodedata.normalize(form, path.name)))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["files", "data"])
def test_a_pipe_in_an_export_is_named_and_not_waited_for(exports: Path, name: str) -> None:
    place = f"files/{DIRECTORY}/{PROJECT}/VIS-2/model/weights"
    if name == "data":
        place = f"data/{DIRECTORY}/VIS-2-2e1a5e3ff6a3145e_part_0.parquet"
    (exports / place).unlink()
    os.mkfifo(exports / place)
    export = source(exports / "data", exports / "files")
    if name == "files":
        (file,) = export.files(PROJECT, "VIS-2", f"{PROJECT}/VIS-2/model/weights")
        with pytest.raises(OSError, match="weights"):
            file.open()
    else:
        whole = ends(export)
        said = [issue.message for issue in export.problems(PROJECT)]
        said += [issue.message for end in whole.values() for issue in end.errors]
        assert any("VIS-2-2e1a5e3ff6a3145e_part_0.parquet" in message for message in said)
        assert whole["VIS-1"].errors == whole["VIS-3"].errors == ()
