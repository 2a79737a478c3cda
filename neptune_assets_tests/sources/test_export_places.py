"""Directories of files that are not the exporter's, and names that came back in another form of Unicode."""

from __future__ import annotations

import os
import shutil
import tarfile
import unicodedata
from pathlib import Path

import dagster as dg
import fsspec
import pytest

from neptune_assets.build import build_defs
from neptune_assets.errors import FileGoneError, SourceError
from neptune_assets.migration_settings import Settings
from neptune_assets.settings import Filters
from neptune_assets.sources.export.settings import ExportSource
from neptune_assets.sources.export.source import Export
from neptune_assets.sources.protocol import RunEnd

CASES = Path(__file__).resolve().parent.parent / "cases"
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
