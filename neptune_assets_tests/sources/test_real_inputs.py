"""Inputs of our own for kinds of fault that people met, made with real clients and the real exporter (cases/own)."""

from __future__ import annotations

import shutil
import tarfile
import unicodedata
from decimal import Decimal
from pathlib import Path

import pytest

from neptune_assets.errors import SourceError
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import Filters, LakeSettings
from neptune_assets.sources.export.settings import ExportSource
from neptune_assets.sources.export.source import Export
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline
from neptune_assets.sources.protocol import RunEnd
from neptune_assets_tests.conformance.sources import read
from neptune_assets_tests.support.client_reading import PROJECT, read_one
from neptune_assets_tests.support.scale_reading import offline, points_of, values_of

OWN = Path(__file__).resolve().parents[1] / "cases" / "own"
ODD = "gro\u0308\u00dfe"
"""In form D, as it was logged."""
EXPORTS = {"client-1.8.6": "team/forms", "scale-0.30.0": "team/names"}


def unpack(kind: str, name: str, folder: Path) -> Path:
    with tarfile.open(OWN / kind / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def composed(root: Path) -> None:
    """Rename everything to form C, as archivers and shares do."""
    for path in sorted(root.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(unicodedata.normalize("NFC", path.name)))


def series_in_lake(source: Offline, project: str, lake: Path, path: str) -> tuple[list[tuple[int, float]], int, int]:
    """Points of the one run's series in the lake, and how many values were replaced by others and by equal ones."""
    made = LakeSettings(root=str(lake))
    report = LakeWriter(made, source).write_project(project)
    assert not report.failed
    assert not report.partial
    (run_id,) = Lake(made).project(project).records()
    run = Lake(made).project(project).run(run_id)
    rows = [row for batch in run.batches() for row in batch.to_pylist()]
    points = [(int(step), value) for step, _, value in points_of(rows, path, "float_value")]
    return points, report.repairs.get("conflicting_rows", 0), report.repairs.get("duplicate_rows", 0)


@pytest.mark.parametrize("release", ["client-0.16.19", "client-1.14.0"])
def test_a_run_of_neptune_client_that_was_resumed_from_a_checkpoint_keeps_the_latest(
    release: str, tmp_path: Path
) -> None:
    folder = unpack("overlapping-steps", release, tmp_path / "recordings")
    source = Offline(OfflineSource(paths=[str(folder)], project=PROJECT), Filters())
    points, others, equal = series_in_lake(source, PROJECT, tmp_path / "lake", "loss")
    assert points == [(step, (2000.0 if step in {6, 7, 8} else 1000.0) + step) for step in range(10)]
    assert (others, equal) == (3, 3)
    assert read_one(folder).value("params/from") == 2


def test_a_run_of_neptune_scale_that_newer_releases_resumed_keeps_the_latest(tmp_path: Path) -> None:
    folder = unpack("overlapping-steps", "scale-0.14.0-0.22.0-0.30.0", tmp_path / "recordings")
    points, others, equal = series_in_lake(offline(folder), "team/scale", tmp_path / "lake", "loss")
    assert points == [(step, 1000.0 * min(step // 3, 2) + step) for step in range(11)]
    assert (others, equal) == (8, 4)  # two steps twice, of `loss` and `line`; and of `same`


@pytest.mark.parametrize("release", ["scale-0.14.0", "scale-0.30.0"])
def test_a_database_that_a_full_disk_left_empty_is_named_and_not_a_notice(release: str, tmp_path: Path) -> None:
    folder = unpack("unread-recordings", release, tmp_path / "recordings")
    (database,) = folder.rglob("run_operations.sqlite3")
    with pytest.raises(SourceError, match="is empty"):
        offline(folder).projects()
    unpack("overlapping-steps", "scale-0.14.0-0.22.0-0.30.0", tmp_path / "recordings")
    source = offline(folder)
    assert source.projects() == ["team/scale"]
    (problem,) = [item for item in source.problems("team/scale") if not item.notice]
    assert f"{database} is empty" in problem.message


@pytest.mark.parametrize(("release", "points"), [("client-0.16.19", "17 to 66"), ("client-1.14.0", "15 to 60")])
def test_a_log_that_a_full_disk_cut_off_is_never_complete(release: str, points: str, tmp_path: Path) -> None:
    found = read_one(unpack("unread-recordings", release, tmp_path))
    assert found.end.promised is None
    (error,) = found.errors
    assert f"Operations {points}" in error
    logged = found.points("loss")
    assert logged
    assert logged == [(Decimal(step), 1 / (1 + step)) for step in range(len(logged))]


@pytest.mark.parametrize("name", ["client-1.14.0.zip", "scale-0.22.0.tar.xz"])
def test_archives_that_zip_and_shutil_made_of_recordings_are_named(name: str, tmp_path: Path) -> None:
    shutil.copy(OWN / "archives" / name, tmp_path)
    with pytest.raises(SourceError) as raised:
        offline(tmp_path).projects()
    assert f"{tmp_path / name} is an archive with recordings in it" in str(raised.value)
    shutil.unpack_archive(tmp_path / name, tmp_path, filter="data" if "tar" in name else None)
    source = offline(tmp_path, project=PROJECT)
    assert source.projects()
    assert any(name in problem.message and not problem.notice for problem in source.problems())


@pytest.mark.parametrize("renamed", [False, True], ids=["form D", "form C"])
@pytest.mark.parametrize("release", ["client-0.16.19", "client-1.14.0"])
def test_files_of_neptune_client_in_form_d_are_found_under_either_form(
    release: str, renamed: bool, tmp_path: Path
) -> None:
    folder = unpack("nfd", release, tmp_path / "moved")
    if renamed:
        composed(folder)
    found = read_one(folder)
    assert found.errors == []
    assert found.end.promised is not None
    assert found.value(f"p/{ODD}") == ODD
    assert found.points(ODD) == [(Decimal(1), 0.5)]
    for path in (f"f/{ODD}", "set", "stars"):
        assert list(found.members(path).values()) == [b"from disk"]


@pytest.mark.parametrize("renamed", [False, True], ids=["form D", "form C"])
def test_files_of_neptune_scale_in_form_d_are_found_under_either_form(renamed: bool, tmp_path: Path) -> None:
    folder = unpack("nfd", "scale-0.30.0", tmp_path / "moved")
    if renamed:
        composed(folder)
    source = offline(folder, search_files_in=[str(folder / "proj" / "öut")])
    found = read(source, "team/names", ["nfd"])
    assert found.ends["nfd"].errors == ()
    assert values_of(found.rows["nfd"])[f"p/{ODD}"] == ODD
    contents = {}
    for row in found.rows["nfd"]:
        if row["file_value"] is not None:
            (file,) = source.files("team/names", "nfd", row["file_value"]["path"])
            with file.open() as stream:
                contents[row["attribute_path"]] = stream.read()
    assert contents == {f"f/{ODD}": b"from disk", "f/bytes": b"bytes"}


@pytest.fixture(params=EXPORTS)
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """Where neptune-exporter wrote, and its one project."""
    return unpack("exports", request.param, tmp_path) / "exports", EXPORTS[request.param]


def export(data: Path, files: Path) -> Export:
    return Export(ExportSource(data=str(data), files=str(files)), Filters())


@pytest.mark.parametrize("wrong", ["nofiles", ".", "data", "files/*"], ids=["missing", "too high", "data", "too deep"])
def test_another_directory_than_the_exporters_is_one_error_with_the_right_one(
    exported: tuple[Path, str], wrong: str
) -> None:
    root, _ = exported
    place = next(root.glob(wrong)) if "*" in wrong else root / wrong if wrong != "." else root
    with pytest.raises(SourceError) as caught:
        export(root / "data", place).projects()
    assert f"source.export.files {place} " in str(caught.value)
    assert f"Set it to {root / 'files'}." in caught.value.hint


def test_data_and_files_of_the_exporter_that_are_exchanged_are_told_so(exported: tuple[Path, str]) -> None:
    root, _ = exported
    with pytest.raises(SourceError, match="they are exchanged"):
        export(root / "files", root / "data").projects()


@pytest.mark.parametrize("renamed", [False, True], ids=["form D", "form C"])
def test_files_that_the_exporter_wrote_are_found_in_either_form(exported: tuple[Path, str], renamed: bool) -> None:
    root, project = exported
    if renamed:
        composed(root / "files")
    source = export(root / "data", root / "files")
    run_ids = [info.run_id for info in source.runs(project)]
    found = read(source, project, run_ids)
    assert all(isinstance(end, RunEnd) and end.errors == () for end in found.ends.values())
    assert not [problem for problem in source.problems(project) if not problem.notice]
    contents = []
    for run_id, rows in found.rows.items():
        for row in rows:
            if row["attribute_path"] in {f"f/{ODD}", "model/weights"}:
                (file,) = source.files(project, run_id, row["file_value"]["path"])
                with file.open() as stream:
                    contents.append((row["attribute_path"], stream.read()))
    weights = b"from disk" if project == "team/forms" else b"weights"
    assert sorted(contents) == [(f"f/{ODD}", b"from disk"), ("model/weights", weights)]
