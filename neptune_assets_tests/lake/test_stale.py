"""A complete run is never replaced by a partial reading of it, unless that is asked for. Real engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neptune_assets.lake.committer import stale_reason
from neptune_assets.lake.manifest import IssueRecord, RunRecord
from neptune_assets.lake.reader import Lake, LakeProject
from neptune_assets.lake.reports import WriteReport
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import Filters, LakeSettings
from neptune_assets.sources.export.settings import ExportSource
from neptune_assets.sources.export.source import Export
from neptune_assets.sources.protocol import Issue
from neptune_assets_tests.support.export_factory import CREATED, ExportFactory, point, run_v3
from neptune_assets_tests.support.lake_factory import file, metric, table_run
from neptune_assets_tests.support.table_source import TableRun, TableSource

P = "ws/p"
LOST = [Issue("a batch failed", "m", "float_series")]


def version(number: int, **options: Any) -> TableRun:
    rows = [*metric("m", [float(number)] * number), file("f", f"content {number}".encode(), "f.txt")]
    return table_run(P, "r", rows, **options)


def write(root: Path, source: Any, **options: Any) -> WriteReport:
    return LakeWriter(LakeSettings(root=str(root)), source).write_project(P, **options)


def project(root: Path) -> LakeProject:
    return Lake(LakeSettings(root=str(root))).project(P)


def whole(root: Path, number: int) -> RunRecord:
    """The run's record, after checking that the lake holds exactly this version of it and nothing else."""
    run = project(root).run("r")
    points = [row for batch in run.batches() for row in batch.to_pylist() if row["attribute_path"] == "m"]
    assert [row["float_value"] for row in points] == [float(number)] * number
    assert run.content_digest() == run.record.digest
    (stored,) = run.file_records("f")
    with run.open_file(stored.path) as stream:
        assert stream.read() == f"content {number}".encode()
    assert len([path for path in (root / "files").rglob("*") if path.is_file()]) == 1
    assert not [path for path in root.rglob("*") if ".staging" in path.parts]
    return run.record


def test_a_partial_reading_leaves_the_complete_run(tmp_path: Path) -> None:
    source = TableSource({P: {"r": version(2)}})
    first = write(tmp_path, source)
    before = whole(tmp_path, 2)
    source.content[P]["r"] = version(3, errors=LOST)
    report = write(tmp_path, source)
    assert (report.changed, report.partial, report.stale) == (["r"], [], ["r"])
    assert report.rows == {}
    (issue,) = report.issues
    assert (issue.run_id, issue.attribute_path) == ("r", "m")
    assert "a batch failed" in issue.message
    record = whole(tmp_path, 2)
    assert record.complete
    assert record.stale == "m: a batch failed"
    assert (record.fingerprint, record.digest, record.generation) == (
        before.fingerprint,
        before.digest,
        before.generation,
    )
    assert report.digest == first.digest == project(tmp_path).digest


def test_it_is_read_again_until_it_is_whole(tmp_path: Path) -> None:
    source = TableSource({P: {"r": version(2)}})
    write(tmp_path, source)
    source.content[P]["r"] = version(3, errors=LOST)
    for _ in range(2):
        source.reads.clear()
        assert write(tmp_path, source).stale == ["r"]
        assert source.reads == ["r"]
    source.content[P]["r"] = version(3)
    report = write(tmp_path, source)
    assert (report.stale, report.partial, report.issues) == ([], [], [])
    assert whole(tmp_path, 3).stale is None
    source.reads.clear()
    assert write(tmp_path, source).skipped == ["r"]
    assert source.reads == []


def test_a_source_that_is_as_before_again_makes_it_current(tmp_path: Path) -> None:
    source = TableSource({P: {"r": version(2)}})
    write(tmp_path, source)
    source.content[P]["r"] = version(3, errors=LOST)
    write(tmp_path, source)
    source.content[P]["r"] = version(2)
    report = write(tmp_path, source)
    assert (report.retried, report.unchanged_content, report.stale) == (["r"], ["r"], [])
    assert whole(tmp_path, 2).stale is None


def test_a_full_refresh_takes_what_there_is(tmp_path: Path) -> None:
    source = TableSource({P: {"r": version(2)}})
    write(tmp_path, source)
    source.content[P]["r"] = version(3, errors=LOST)
    report = write(tmp_path, source, full_refresh=True)
    assert (report.partial, report.stale) == (["r"], [])
    record = whole(tmp_path, 3)
    assert record.state == "partial"
    assert record.stale is None


def test_a_partial_run_gives_way_to_a_newer_partial_one(tmp_path: Path) -> None:
    source = TableSource({P: {"r": version(2, errors=LOST)}})
    write(tmp_path, source)
    source.content[P]["r"] = version(3, errors=LOST)
    assert write(tmp_path, source).partial == ["r"]
    assert whole(tmp_path, 3).stale is None


def test_a_complete_run_whose_parts_are_damaged_gives_way(tmp_path: Path) -> None:
    source = TableSource({P: {"r": version(2)}})
    write(tmp_path, source)
    (part,) = (tmp_path / "data").rglob("*_part_0.parquet")
    part.write_bytes(part.read_bytes()[:-1])
    source.content[P]["r"] = version(3, errors=LOST)
    report = write(tmp_path, source)
    assert (report.partial, report.stale) == (["r"], [])
    whole(tmp_path, 3)


@pytest.mark.parametrize("damaged", [False, True])
def test_in_place_the_complete_run_stays_only_where_the_export_still_holds_it(tmp_path: Path, damaged: bool) -> None:
    factory = ExportFactory(tmp_path)
    factory.run(P, "r", run_v3("r"), [[point("late", 0, 1.0, CREATED)]])
    source = Export(ExportSource(data=str(factory.data), mode="in_place"), Filters())
    root = tmp_path / "lake"
    assert write(root, source).partial == []
    before = project(root).records()["r"]
    if damaged:
        factory.part(P, "r", 1).unlink()
        factory.run(P, "r", run_v3("r")[1:])
    else:
        entry = {"project_id": P, "run_id": "r", "attribute_path": "x", "attribute_type": "float", "exception": "E"}
        factory.errors([entry], place=factory.data)
    report = write(root, source)
    record = project(root).records()["r"]
    if damaged:
        assert (report.partial, report.stale) == (["r"], [])
    else:
        assert (report.partial, report.stale) == ([], ["r"])
        assert record.digest == before.digest == project(root).run("r").content_digest()


def test_a_record_with_a_reason_survives_the_manifest_and_reasons_are_bounded() -> None:
    record = RunRecord("r", "complete", "d", "f", "g", "now", stale="why")
    assert RunRecord.from_json(record.to_json()) == record
    reason = stale_reason([IssueRecord("x" * 5_000, "p")] * 9)
    assert reason.endswith(" and 4 more")
    assert len(reason) < 6_000
