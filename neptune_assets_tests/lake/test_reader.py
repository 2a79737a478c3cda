from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neptune_assets.errors import LakeDamagedError, LakeError, UnknownProjectError, UnsafePathError
from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.parts import WriteLimits
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import SCHEMA, AttributeType
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.lake_factory import file, forget_hashes, make_lake, make_source, metric, params, texts

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


def test_types_choose_over_many_row_groups(tmp_path: Path) -> None:
    settings = LakeSettings(root=str(tmp_path))
    LakeWriter(settings, make_source({P: {"a": ROWS}}), limits=WriteLimits(row_group_rows=9)).write_project(P)
    run = Lake(settings).project(P).run("a")
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
    with pytest.raises(LakeDamagedError, match=r"a-.*part_0.parquet of run 'a' of .* is damaged: its sha256 is"):
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
    with pytest.raises(LakeDamagedError, match="bytes instead of"):
        read(run)
    with pytest.raises(LakeDamagedError, match="bytes instead of"):
        run.check()
    forget_hashes(tmp_path)
    run = Lake(LakeSettings(root=str(tmp_path))).project(P).run("a")
    read(run)
    with pytest.raises(LakeDamagedError, match="their digest is not the recorded"):
        run.check()


def test_a_file_that_changed_is_refused_before_its_last_bytes_leave(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    lake = make_lake(tmp_path, {P: {"a": [file("weights", content, "w.bin")]}})
    (stored,) = (tmp_path / "files").rglob("*.*")
    run = lake.project(P).run("a")
    (record,) = run.file_records("weights")
    with run.open_file(record.path) as stream:
        assert stream.read() == content
    raw = bytearray(content)
    raw[5] ^= 1
    for damaged in (bytes(raw), content[:-1], content + b"x", b""):
        stored.write_bytes(damaged)
        received = io.BytesIO()
        with run.open_file(record.path) as stream, pytest.raises(LakeDamagedError, match=r"'a' of .* is damaged"):
            shutil.copyfileobj(stream, received, 1 << 20)
        assert len(received.getvalue()) < len(content)
