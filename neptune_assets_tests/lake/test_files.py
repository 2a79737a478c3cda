from __future__ import annotations

import hashlib
from decimal import Decimal
from pathlib import Path

from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.lake_factory import file, file_set, files, metric, param
from neptune_assets_tests.support.lake_writing import DIRECTORY, P, raw_rows, rows_of, run, write
from neptune_assets_tests.support.table_source import TableSource


def test_files_are_stored_by_content_and_rows_name_them(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(100)
    rows = [
        file("named", b"text", "report.TXT"),
        file("guessed", png),
        file("unknown", b"\x01\x02"),
        *files("series", [b"0", b"1"], steps=["0.5", -1]),
        file_set("set", {"a/b.txt": b"1", "../evil": b"2", "c": b""}),
        file_set("empty", {}),
        file("art/fact", {"files_list.json": b"[]"}, kind="artifact"),
    ]
    write(tmp_path, TableSource({P: {"RUN-1": run(rows)}}))
    lake_run = Lake(LakeSettings(root=str(tmp_path))).project(P).run("RUN-1")
    root = tmp_path / "files" / DIRECTORY
    paths = {(r["attribute_path"], r["step"]): r["file_value"]["path"] for r in raw_rows(tmp_path)}
    base = "RUN-1-549fcb30a0f06072"
    sha = hashlib.sha256(b"text").hexdigest()
    assert paths["named", None] == f"{base}/{safe_name('named')}/{sha[:16]}.TXT"
    assert paths["guessed", None].endswith(".png")
    assert "." not in paths["unknown", None].rsplit("/", 1)[1]
    assert paths["series", Decimal("0.5")].rsplit("/", 1)[1].startswith("step_0.500000-")
    assert paths["series", Decimal(-1)].rsplit("/", 1)[1].startswith("step_-1.000000-")
    assert (root / paths["guessed", None]).read_bytes() == png
    assert (root / paths["series", Decimal(-1)]).read_bytes() == b"1"
    assert (root / paths["art/fact", None]).read_bytes() == b"[]"
    assert (root / paths["empty", None]).is_dir()
    assert (root / paths["set", None] / "a/b.txt").read_bytes() == b"1"
    members = {item.member: item for item in lake_run.file_records("set")}
    assert set(members) == {"a/b.txt", "../evil", "c"}
    for name, content in (("a/b.txt", b"1"), ("../evil", b"2"), ("c", b"")):
        assert members[name].sha256 == hashlib.sha256(content).hexdigest()
        assert members[name].size == len(content)
        with lake_run.open_file(members[name].path) as stream:
            assert stream.read() == content
    assert all(path.resolve().is_relative_to(root) for path in root.rglob("*"))
    assert not list(tmp_path.rglob(".staging-*"))
    assert lake_run.content_digest() == lake_run.record.digest


def test_a_file_that_is_gone_makes_the_run_partial_and_keeps_the_rest(tmp_path: Path) -> None:
    source = TableSource({P: {"RUN-1": run([file("gone", None), file("there", b"x"), *metric("m", [1.0])])}})
    report = write(tmp_path, source)
    assert report.partial == ["RUN-1"]
    assert [(issue.attribute_path, issue.attribute_type) for issue in report.issues] == [("gone", "file")]
    paths = {row["attribute_path"]: row["file_value"] for row in rows_of(tmp_path)}
    assert paths["gone"] == {"path": None}
    assert paths["there"]["path"]


def test_one_file_store_for_equal_contents_of_an_unchanged_file(tmp_path: Path) -> None:
    source = TableSource({P: {"a": run([file("f", b"same"), param("p", 1)], "a")}})
    write(tmp_path, source)
    (stored,) = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    before = stored.stat().st_ino
    source.content[P]["a"] = run([file("f", b"same"), param("p", 2)], "a")
    write(tmp_path, source)
    assert stored.stat().st_ino == before
