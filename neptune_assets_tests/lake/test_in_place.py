from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neptune_assets.errors import FileGoneError, LakeError, UnsafePathError
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.repair import TIMEZONE_SHIFT_MS, repair_batch
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import AttributeType, Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import InPlaceRun, RunEnd, RunInfo, RunRows
from neptune_assets_tests.support.lake_factory import START, file, files, metric, param
from neptune_assets_tests.support.table_source import as_table

P = "ws/proj"


def read(run: Any, *args: Any, **options: Any) -> list[dict[str, Any]]:
    return [row for batch in run.batches(*args, **options) for row in batch.to_pylist()]


class ForeignExport:
    """A source that reads in place what somebody else wrote, as the export source does."""

    kind = "foreign"

    def __init__(self, root: Path, rows: Sequence[dict[str, Any]], repairs: dict[str, int]) -> None:
        self.place = root
        self.repairs = repairs
        self.stays = True
        (root / "files").mkdir(parents=True)
        table = as_table(P, "a", rows)
        half = table.num_rows // 2
        self.parts = [root / "a_part_0.parquet", root / "a_part_1.parquet"]
        for part, piece in zip(self.parts, (table.slice(0, half), table.slice(half)), strict=True):
            pq.write_table(piece, part, row_group_size=16)
        for row in rows:
            content = row.get("_content")
            if isinstance(content, bytes):
                path = root / "files" / row["file_value"]["path"].replace("\\", "/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def projects(self) -> list[str]:
        return [P]

    def runs(self, project_id: str, scope: Scope = Scope.RUNS) -> list[RunInfo]:
        return [RunInfo("a", hashlib.sha256(b"".join(p.read_bytes() for p in self.parts)).hexdigest())]

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Any:
        for run_id in run_ids:
            for part in self.parts:
                for batch in pq.ParquetFile(part).iter_batches():
                    yield RunRows(run_id, repair_batch(batch, self.repairs))
            yield RunEnd(run_id, repairs=self.repairs)

    def files(self, project_id: str, run_id: str, reference: str, scope: Scope = Scope.RUNS) -> Any:
        path = self.place / "files" / reference.replace("\\", "/")
        if not path.exists():
            raise FileGoneError(f"{reference} is gone.", hint="Bring it back.")
        return [DiskFile(path)]

    def problems(self, project_id: str) -> Any:
        return ()

    def in_place(self, project_id: str, run_id: str, scope: Scope) -> InPlaceRun | None:
        return InPlaceRun([str(part) for part in self.parts], str(self.place / "files")) if self.stays else None


class DiskFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.relative_path = path.name

    def open(self) -> BinaryIO:
        return self.path.open("rb")


FOREIGN = [
    *metric("m", [3.0, 1.0, None, 0.5], steps=[3, 1, 2, "0.5"]),
    {"attribute_path": "none", "attribute_type": "int"},
    *files("pictures", [b"one", b"two"], start=None),
    file("a\\windows", b"bytes", "x.bin"),
    file("gone", None),
    *metric("m", [9.0], steps=[1], start=START.replace(year=2026)),
    param("p", "v"),
]


REPAIRS = {"phantom_rows": 1, "nan_values": 1, TIMEZONE_SHIFT_MS: 3_600_000}


def test_in_place_nothing_is_copied_and_reading_gives_the_same_as_a_copy(tmp_path: Path) -> None:
    source = ForeignExport(tmp_path / "export", FOREIGN, REPAIRS)
    before = {path: path.read_bytes() for path in (tmp_path / "export").rglob("*") if path.is_file()}
    in_place, copied = LakeSettings(root=str(tmp_path / "in place")), LakeSettings(root=str(tmp_path / "copied"))
    report = LakeWriter(in_place, source).write_project(P)
    source.stays = False
    other = LakeWriter(copied, source).write_project(P)
    assert report.digest == other.digest
    assert report.repairs == other.repairs == {"phantom_rows": 1, "nan_values": 1, "conflicting_rows": 1}
    assert report.partial == ["a"]
    assert not list((tmp_path / "in place" / "data").rglob("*.parquet"))
    assert not (tmp_path / "in place" / "files").exists()
    assert {path: path.read_bytes() for path in before} == before
    one, two = (Lake(settings).project(P).run("a") for settings in (in_place, copied))

    def bare(rows: list[dict[str, Any]]) -> list[Any]:
        return [{**row, "file_value": row["file_value"] and bool(row["file_value"]["path"])} for row in rows]

    assert repr(bare(read(one))) == repr(bare(read(two)))
    values = [(str(row["step"]), row["float_value"]) for row in read(one, types=[AttributeType.FLOAT_SERIES])]
    assert repr(values) == "[('0.500000', 0.5), ('1.000000', 9.0), ('2.000000', nan), ('3.000000', 3.0)]"
    assert one.content_digest() == two.content_digest() == one.record.digest
    for run in (one, two):
        for path, content in (("pictures", b"two"), ("a\\windows", b"bytes")):
            with run.open_file(run.file_records(path)[-1].path) as stream:
                assert stream.read() == content
    assert Lake(in_place).project(P).parts() == {"a": [str(part) for part in source.parts]}
    with pytest.raises(UnsafePathError):
        one.open_file("..\\..\\secret")


@pytest.mark.parametrize("repairs", [{"phantom_rows": 1}, {**REPAIRS, "unknown_repair": 3}])
def test_a_run_that_reading_in_place_would_change_is_copied_instead(tmp_path: Path, repairs: dict[str, int]) -> None:
    class Filtered(ForeignExport):
        def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Any:
            for chunk in super().read(project_id, run_ids, scope):
                if isinstance(chunk, RunRows):
                    keep = pa.array([path != "p" for path in chunk.batch["attribute_path"].to_pylist()])
                    yield RunRows(chunk.run_id, chunk.batch.filter(keep))
                else:
                    yield chunk

    whole = [row for row in FOREIGN if row["attribute_path"] != "gone"]
    source = Filtered(tmp_path / "export", whole, repairs)
    settings = LakeSettings(root=str(tmp_path / "lake"))
    report = LakeWriter(settings, source).write_project(P)
    assert report.new == ["a"]
    run = Lake(settings).project(P).run("a")
    assert run.record.in_place is None
    assert any("copied into the lake although" in note.message for note in run.record.notes)
    assert "p" not in {row["attribute_path"] for row in read(run)}
    assert run.content_digest() == run.record.digest
    assert LakeWriter(settings, source).write_project(P).skipped == ["a"]


def test_rows_of_others_and_rows_without_use_are_left_out_in_place_too(tmp_path: Path) -> None:
    class Strict(ForeignExport):
        def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Any:
            for run_id in run_ids:
                yield RunRows(run_id, as_table(P, "a", metric("m", [1.0, 2.0])).to_batches()[0])
                yield RunEnd(run_id, repairs=self.repairs)

    rows = [
        *metric("m", [1.0, 2.0]),
        {"attribute_path": "odd", "attribute_type": "tensor"},
        {"attribute_path": "odd", "attribute_type": "float_series", "float_value": 1.0, "timestamp": START},
        *metric("grid", [None], start=None),
        {**files("pictures", [b""])[0], "file_value": None, "_content": None},
    ]
    repairs = {"foreign_rows": 1, "unusable_rows": 2, "phantom_rows": 1, "lost_files": 1}
    source = Strict(tmp_path / "export", rows, repairs)
    mixed = pa.concat_tables([pq.read_table(source.parts[1]), as_table("ws/other", "a", [param("x", 1)])])
    pq.write_table(mixed, source.parts[1])
    settings = LakeSettings(root=str(tmp_path / "lake"))
    LakeWriter(settings, source).write_project(P)
    run = Lake(settings).project(P).run("a")
    assert run.record.in_place is not None
    assert [row["float_value"] for row in read(run)] == [1.0, 2.0]


def test_in_place_parts_that_changed_are_not_read(tmp_path: Path) -> None:
    source = ForeignExport(tmp_path / "export", FOREIGN, REPAIRS)
    settings = LakeSettings(root=str(tmp_path / "lake"))
    LakeWriter(settings, source).write_project(P)
    pq.write_table(as_table(P, "a", metric("m", [1.0])), source.parts[1])
    with pytest.raises(LakeError, match="changed since"):
        read(Lake(settings).project(P).run("a"))


def test_changing_from_copy_to_in_place_and_back_leaves_nothing_behind(tmp_path: Path) -> None:
    source = ForeignExport(tmp_path / "export", [*metric("m", [1.0, 2.0]), file("f", b"x", "x.bin")], {})
    settings = LakeSettings(root=str(tmp_path / "lake"))
    for stays in (False, True, False):
        source.stays = stays
        report = LakeWriter(settings, source).write_project(P)
        assert report.new or report.changed
        assert len(list((tmp_path / "lake" / "data").rglob("*.parquet"))) == (0 if stays else 1)
        assert len(list((tmp_path / "lake").rglob("*.bin"))) == (0 if stays else 1)
        assert len(read(Lake(settings).project(P).run("a"))) == 3
        assert LakeWriter(settings, source).write_project(P).skipped == ["a"]
