"""Damage that comes after the lake was written: it is found, named, and healed by the next materialization."""

from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import pytest

from neptune_assets.checks import check_files, check_schema
from neptune_assets.errors import LakeDamagedError
from neptune_assets.lake.reader import Lake, LakeProject
from neptune_assets.lake.reports import WriteReport
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.lake_factory import Rows, file, make_source, metric, params

P = "ws/proj"
KEY = dg.AssetKey(["lake", "runs"])


def rows(number: int) -> Rows:
    return [*params({"n": number}), *metric("m", [n / 7 for n in range(50)]), file("f", b"x" * 100, "a.bin")]


def write(root: Path, runs: dict[str, Rows]) -> WriteReport:
    return LakeWriter(LakeSettings(root=str(root)), make_source({P: runs})).write_project(P)


def opened(root: Path) -> LakeProject:
    return Lake(LakeSettings(root=str(root))).project(P)


def part_of(root: Path, run_id: str) -> Path:
    (part,) = (root / "data").rglob(f"{run_id}-*.parquet")
    return part


def test_a_part_of_another_commit_fails_the_check_and_the_next_materialization_heals_it(tmp_path: Path) -> None:
    root = tmp_path / "lake"
    write(root, {"a": rows(1), "b": rows(5)})
    old = part_of(root, "a").read_bytes()
    write(root, {"a": rows(2), "b": rows(5)})
    assert len(old) == part_of(root, "a").stat().st_size, "the test needs an old part of the same size"
    part_of(root, "a").write_bytes(old)
    assert write(root, {"a": rows(2), "b": rows(5)}).skipped == ["a", "b"]
    result = check_schema(opened(root), KEY)
    assert not result.passed
    assert "is of another commit" in str(result.description)
    report = write(root, {"a": rows(2), "b": rows(5)})
    assert (report.changed, report.skipped) == (["a"], ["b"])
    assert check_schema(opened(root), KEY).passed
    assert opened(root).run("a").content_digest() == opened(root).records()["a"].digest
    assert write(root, {"a": rows(2), "b": rows(5)}).skipped == ["a", "b"]


@pytest.mark.parametrize("damage", ["missing", "cut", "folder missing"])
def test_files_that_are_not_as_recorded_fail_the_check_and_are_healed(tmp_path: Path, damage: str) -> None:
    root = tmp_path / "lake"
    write(root, {"a": rows(1), "b": rows(5)})
    (stored,) = [path for path in (root / "files").rglob("*.bin") if path.parts[-3].startswith("a-")]
    if damage == "missing":
        stored.unlink()
    elif damage == "cut":
        stored.write_bytes(b"x")
    else:
        shutil.rmtree(root / "files")
    assert not check_files(opened(root), KEY).passed
    report = write(root, {"a": rows(1), "b": rows(5)})
    assert "a" in report.changed
    assert check_files(opened(root), KEY).passed
    run = opened(root).run("a")
    with run.open_file(run.record.files[0].path) as stream:
        assert stream.read() == b"x" * 100


def test_a_damaged_file_of_the_right_size_is_replaced_by_a_full_refresh(tmp_path: Path) -> None:
    root = tmp_path / "lake"
    write(root, {"a": rows(1)})
    (stored,) = (root / "files").rglob("*.bin")
    stored.write_bytes(b"y" * 100)
    run = opened(root).run("a")
    with run.open_file(run.record.files[0].path) as stream, pytest.raises(LakeDamagedError):
        stream.read()
    source = make_source({P: {"a": rows(1)}})
    LakeWriter(LakeSettings(root=str(root)), source).write_project(P, full_refresh=True)
    run = opened(root).run("a")
    with run.open_file(run.record.files[0].path) as stream:
        assert stream.read() == b"x" * 100
