"""What is read again, what stays as it is, and what is removed when a source changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import Issue
from neptune_assets_tests.support.lake_factory import file, metric, texts
from neptune_assets_tests.support.lake_writing import DIRECTORY, P, rows_of, run, write
from neptune_assets_tests.support.table_source import TableSource


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"errors": [Issue("a batch failed", "m", "float_series")]}, "a batch failed"),
        ({"promised": {"float_series": 2}}, "promised 2 attributes of type float_series, 1 arrived"),
        ({"promised": {"float_series": 1, "int": 1}}, "promised 1 attributes of type int, 0 arrived"),
        ({"promised": {}}, "promised 0 attributes of type float_series, 1 arrived"),
        ({"ends": False}, "stopped before"),
    ],
)
def test_what_did_not_arrive_makes_a_run_partial_and_it_is_read_again(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    source = TableSource({P: {"RUN-1": run(metric("m", [1.0]), fingerprint="same", **options)}})
    report = write(tmp_path, source)
    assert report.partial == ["RUN-1"]
    record = Lake(LakeSettings(root=str(tmp_path))).project(P).records()["RUN-1"]
    assert record.state == "partial"
    assert message in record.errors[0].message
    assert len(rows_of(tmp_path)) == 1
    source.content[P]["RUN-1"] = run([*metric("m", [1.0]), *metric("k", [2.0])], fingerprint="same")
    report = write(tmp_path, source)
    assert report.retried == ["RUN-1"]
    assert report.partial == []
    assert len(rows_of(tmp_path)) == 2


def test_only_what_changed_is_read_again(tmp_path: Path) -> None:
    source = TableSource({P: {name: run(metric("m", [1.0]), name) for name in ("a", "b", "c")}})
    first = write(tmp_path, source)
    assert first.new == ["a", "b", "c"]
    source.reads.clear()
    source.content[P]["b"] = run(metric("m", [1.0, 2.0]), "b")
    source.content[P]["d"] = run(metric("m", [3.0]), "d")
    second = write(tmp_path, source)
    assert source.reads == ["b", "d"]
    assert (second.new, second.changed, second.skipped) == (["d"], ["b"], ["a", "c"])
    assert second.digest != first.digest
    source.reads.clear()
    third = write(tmp_path, source)
    assert source.reads == []
    assert third.skipped == ["a", "b", "c", "d"]
    assert third.digest == second.digest
    assert third.total_rows == 0
    assert [row["float_value"] for row in rows_of(tmp_path, "b")] == [1.0, 2.0]
    write(tmp_path, source, full_refresh=True)
    assert source.reads == ["a", "b", "c", "d"]


def test_a_new_fingerprint_over_the_same_content_rewrites_nothing(tmp_path: Path) -> None:
    rows = [*metric("m", [1.0]), file("f", b"bytes", "f.txt")]
    source = TableSource({P: {"a": run(rows, "a", fingerprint="1")}})
    first = write(tmp_path, source)
    (part,) = (tmp_path / "data" / DIRECTORY).glob("*.parquet")
    before = part.stat()
    source.content[P]["a"] = run(rows, "a", fingerprint="2")
    second = write(tmp_path, source)
    assert second.unchanged_content == ["a"]
    assert second.digest == first.digest
    assert (part.stat().st_ino, part.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert write(tmp_path, source).skipped == ["a"]
    assert Lake(LakeSettings(root=str(tmp_path))).project(P).run("a").content_digest() is not None


def test_vanished_runs_stay_and_are_marked_until_they_come_back(tmp_path: Path) -> None:
    source = TableSource({P: {name: run(metric("m", [1.0]), name) for name in ("a", "b")}})
    digest = write(tmp_path, source).digest
    kept = source.content[P].pop("a")
    report = write(tmp_path, source)
    assert report.deleted_in_source == ["a"]
    marked = Lake(LakeSettings(root=str(tmp_path))).project(P).records()["a"].vanished_at
    assert marked is not None
    assert len(rows_of(tmp_path, "a")) == 1
    assert report.digest == digest
    assert write(tmp_path, source).deleted_in_source == ["a"]
    assert Lake(LakeSettings(root=str(tmp_path))).project(P).records()["a"].vanished_at == marked
    source.content[P]["a"] = kept
    assert write(tmp_path, source).reappeared == ["a"]
    assert Lake(LakeSettings(root=str(tmp_path))).project(P).records()["a"].vanished_at is None


def test_a_run_that_shrinks_loses_its_old_parts_and_files(tmp_path: Path) -> None:
    noise = [os.urandom(7_500).hex() for _ in range(3000)]
    source = TableSource({P: {"a": run([*texts("log", noise), file("f", b"old")], "a")}})
    write(tmp_path, source, part_mb=1)
    assert len(list((tmp_path / "data" / DIRECTORY).glob("*.parquet"))) > 1
    source.content[P]["a"] = run([*metric("m", [1.0]), file("f", b"new")], "a")
    write(tmp_path, source, part_mb=1)
    assert len(list((tmp_path / "data" / DIRECTORY).glob("*.parquet"))) == 1
    stored = [path.read_bytes() for path in (tmp_path / "files").rglob("*") if path.is_file()]
    assert stored == [b"new"]


def test_a_part_that_was_removed_is_written_again(tmp_path: Path) -> None:
    source = TableSource({P: {"a": run(metric("m", [1.0]), "a")}})
    write(tmp_path, source)
    (part,) = (tmp_path / "data" / DIRECTORY).glob("*.parquet")
    part.unlink()
    assert write(tmp_path, source).changed == ["a"]
    assert len(rows_of(tmp_path, "a")) == 1
