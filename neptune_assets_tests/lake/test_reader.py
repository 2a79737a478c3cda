from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neptune_assets.errors import FileGoneError, LakeError, UnknownProjectError, UnsafePathError
from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.repair import TIMEZONE_SHIFT_MS, repair_batch
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import SCHEMA, AttributeType, Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import InPlaceRun, RunEnd, RunInfo, RunRows
from neptune_assets_tests.support.lake_factory import (
    START,
    file,
    files,
    make_lake,
    metric,
    param,
    params,
    texts,
)
from neptune_assets_tests.support.table_source import as_table

P = "ws/proj"
ROWS = [
    *params({"lr": 0.1, "name": "x", "n": 3}),
    *metric("m/b", [float(n) for n in range(100)]),
    *metric("m/a", [float(n) for n in range(50)]),
    *texts("log", [f"line {n}" for n in range(30)]),
    file("f", b"content", "a.txt"),
]


def read(run: Any, *args: Any, **options: Any) -> list[dict[str, Any]]:
    return [row for batch in run.batches(*args, **options) for row in batch.to_pylist()]


def test_rows_come_sorted_in_the_schema_with_plain_strings(tmp_path: Path) -> None:
    run = make_lake(tmp_path, {P: {"a": ROWS}}).project(P).run("a")
    batches = list(run.batches(batch_rows=7))
    assert all(batch.schema.equals(SCHEMA) and 0 < batch.num_rows <= 7 for batch in batches)
    rows = [row for batch in batches for row in batch.to_pylist()]
    keys = [(row["attribute_path"], row["attribute_type"], row["step"] or 0) for row in rows]
    assert keys == sorted(keys)
    assert len(rows) == len(ROWS)


def test_types_and_columns_choose(tmp_path: Path) -> None:
    run = make_lake(tmp_path, {P: {"a": ROWS}}).project(P).run("a")
    rows = read(run, types=[AttributeType.FLOAT_SERIES, AttributeType.INT], columns=["step", "attribute_path"])
    assert len(rows) == 151
    assert list(rows[0]) == ["step", "attribute_path"]
    assert {row["attribute_path"] for row in rows} == {"m/a", "m/b", "n"}
    assert read(run, types=[AttributeType.HISTOGRAM_SERIES]) == []
    assert read(run, types=[]) == []
    with pytest.raises(ValueError, match="no such columns: nope"):
        read(run, columns=["nope"])


def test_types_choose_over_many_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neptune_assets.lake.parts.ROW_GROUP_ROWS", 9)
    run = make_lake(tmp_path, {P: {"a": ROWS}}).project(P).run("a")
    for kind in AttributeType:
        assert len(read(run, types=[kind])) == sum(row["attribute_type"] == kind for row in ROWS)


def test_projects_and_runs_are_listed_in_order(tmp_path: Path) -> None:
    lake = make_lake(tmp_path, {"ws/b": {"2": [], "1": metric("m", [1.0])}, "ws/a": {"x": []}})
    assert lake.projects() == ["ws/a", "ws/b"]
    project = lake.project("ws/b")
    assert list(project.records()) == ["1", "2"]
    assert [run.run_id for run in project.runs()] == ["1", "2"]
    assert all(Path(part).is_file() for parts in project.parts().values() for part in parts)
    with pytest.raises(UnknownProjectError, match="ws/c"):
        lake.project("ws/c")
    with pytest.raises(LakeError, match="no run 'zzz'"):
        project.run("zzz")


def test_files_open_by_path_and_no_path_leaves_the_root(tmp_path: Path) -> None:
    run = make_lake(tmp_path, {P: {"a": ROWS}}).project(P).run("a")
    (record,) = run.file_records("f")
    with run.open_file(record.path) as stream:
        assert stream.read() == b"content"
    (tmp_path / "files" / safe_name(P) / "link").symlink_to("/etc/passwd")
    for hostile in ("../../secret", "/etc/passwd", "a/../../b", "", ".", "a//b", "a\0", "link"):
        with pytest.raises(UnsafePathError):
            run.open_file(hostile)
    with pytest.raises(LakeError, match="full_refresh"):
        run.open_file(f"{record.path}x")


def test_a_part_of_another_commit_is_not_read(tmp_path: Path) -> None:
    make_lake(tmp_path, {P: {"a": metric("m", [1.0])}})
    (part,) = (tmp_path / "data" / safe_name(P)).glob("*.parquet")
    old = part.read_bytes()
    lake = make_lake(tmp_path, {P: {"a": metric("m", [2.0])}})
    part.write_bytes(old)
    with pytest.raises(LakeError, match="is of another commit") as error:
        read(lake.project(P).run("a"))
    assert not error.value.transient
    part.write_bytes(old[:-100])
    with pytest.raises(LakeError, match="cannot be read"):
        read(lake.project(P).run("a"))
    part.unlink()
    with pytest.raises(LakeError, match="is missing"):
        read(lake.project(P).run("a"))


def test_damage_in_the_middle_of_a_part_is_named(tmp_path: Path) -> None:
    lake = make_lake(tmp_path, {P: {"a": texts("log", [os.urandom(50).hex() for _ in range(1000)])}})
    (part,) = (tmp_path / "data" / safe_name(P)).glob("*.parquet")
    raw = bytearray(part.read_bytes())
    raw[2000:9000] = os.urandom(7000)
    part.write_bytes(raw)
    with pytest.raises(LakeError, match="cannot be read"):
        read(lake.project(P).run("a"))


def test_a_run_that_was_written_again_while_it_was_open_says_so(tmp_path: Path) -> None:
    run = make_lake(tmp_path, {P: {"a": metric("m", [1.0])}}).project(P).run("a")
    make_lake(tmp_path, {P: {"a": metric("m", [2.0])}})
    with pytest.raises(LakeError, match="materialized again") as error:
        read(run)
    assert error.value.transient


def test_a_reader_in_the_middle_keeps_its_version(tmp_path: Path) -> None:
    run = make_lake(tmp_path, {P: {"a": metric("m", [1.0] * 100)}}).project(P).run("a")
    batches = run.batches(batch_rows=10)
    first = next(batches)
    make_lake(tmp_path, {P: {"a": metric("m", [2.0] * 100)}})
    values = [*first["float_value"].to_pylist(), *(v for b in batches for v in b["float_value"].to_pylist())]
    assert values == [1.0] * 100


def test_content_digest_notices_changed_rows(tmp_path: Path) -> None:
    run = make_lake(tmp_path, {P: {"a": ROWS}}).project(P).run("a")
    assert run.content_digest() == run.record.digest
    (part,) = (tmp_path / "data" / safe_name(P)).glob("*.parquet")
    table = pq.read_table(part)
    column = table.schema.get_field_index("int_value")
    changed = table.set_column(column, SCHEMA.field("int_value"), pa.array([4] * table.num_rows, pa.int64()))
    metadata = {b"neptune_assets.generation": run.record.generation.encode()}
    pq.write_table(changed.replace_schema_metadata(metadata), part)
    assert run.content_digest() != run.record.digest


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
    assert report.repairs == other.repairs == {"phantom_rows": 1, "nan_values": 1, "duplicate_rows": 1}
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
