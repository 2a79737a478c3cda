from __future__ import annotations

import hashlib
import math
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neptune_assets.errors import LakeError, SourceError, UnknownProjectError
from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.parts import GENERATION, RUN_ID
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.reports import Progress, WriteReport
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import SCHEMA, Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import Issue
from neptune_assets_tests.support.lake_factory import (
    START,
    file,
    file_set,
    files,
    histograms,
    make_lake,
    metric,
    param,
    params,
    table_run,
    texts,
)
from neptune_assets_tests.support.table_source import TableRun, TableSource, as_table

P = "ws/proj"
DIRECTORY = "ws_proj-00871eb7ac1bdb01"


def run(rows: Any, run_id: str = "RUN-1", **options: Any) -> TableRun:
    return table_run(P, run_id, rows, **options)


def write(root: Path, source: TableSource, **options: Any) -> WriteReport:
    settings = {key: options.pop(key) for key in ("part_mb", "rows_in_memory", "scratch") if key in options}
    return LakeWriter(LakeSettings(root=str(root), **settings), source).write_project(P, **options)


def rows_of(root: Path, run_id: str = "RUN-1") -> list[dict[str, Any]]:
    project = Lake(LakeSettings(root=str(root))).project(P)
    return pa.Table.from_batches(project.run(run_id).batches(), SCHEMA).to_pylist()


def raw_rows(root: Path, run_id: str = "RUN-1") -> list[dict[str, Any]]:
    """Read the Parquet files as they lie, without anything of ours."""
    paths = sorted((root / "data" / DIRECTORY).glob(f"{safe_name(run_id)}_part_*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


HOSTILE = [
    *params(
        {
            "empty": "",
            "nul": "a\0b",
            "lines": "a\r\nb\n",
            "max": 2**63 - 1,
            "min": -(2**63),
            "odd": 2**53 + 1,
            "minus zero": -0.0,
            "nan": math.nan,
            "inf": -math.inf,
            "tiny": 5e-324,
            "when": datetime(1969, 12, 31, 23, 59, 59, 999000, tzinfo=UTC),
            "set": ["b", "", "ü"],
            "no": False,
            "a.b": 1,
            "a_b": 2,
            "A.b": 3,
            "n" * 1500: 4,
            "ü/ /\0/'\"": 5,
        }
    ),
    *metric("m", [math.nan, math.inf, -0.0, 0.1], steps=["-999999999999.999999", "0.000001", 1, "999999999999.999999"]),
    *texts("log", ["", "\0", "line\n"]),
    *histograms("h", [([0.0, 0.5, math.inf], [1.0, -0.0]), ([], [])]),
    *histograms("d", [([0.0, 1.0], [0.25])], kind="DENSITY"),
]


def test_hostile_names_and_values_come_back_exactly(tmp_path: Path) -> None:
    run_id = "a_part_0/..\0" + "ü" * 1200
    write(tmp_path, TableSource({P: {run_id: run(HOSTILE, run_id)}}))
    expected = sorted(as_table(P, run_id, HOSTILE).to_pylist(), key=lambda r: (r["attribute_path"], r["step"] or 0))
    assert repr(raw_rows(tmp_path, run_id)) == repr(expected)
    assert repr(rows_of(tmp_path, run_id)) == repr(expected)


def test_parts_say_whose_they_are_and_use_the_tuned_encodings(tmp_path: Path) -> None:
    write(tmp_path, TableSource({P: {"RUN-1": run(metric("m", [0.5] * 1000))}}))
    (path,) = (tmp_path / "data" / DIRECTORY).glob("*.parquet")
    assert path.name == "RUN-1-549fcb30a0f06072_part_0.parquet"
    metadata = pq.read_metadata(path)
    record = Lake(LakeSettings(root=str(tmp_path))).project(P).records()["RUN-1"]
    assert metadata.metadata[GENERATION.encode()].decode() == record.generation
    assert metadata.metadata[RUN_ID.encode()] == b"RUN-1"
    assert pq.read_schema(path).remove_metadata().equals(SCHEMA)
    columns = {metadata.row_group(0).column(n).path_in_schema: metadata.row_group(0).column(n) for n in range(10)}
    assert all(column.compression == "ZSTD" for column in columns.values())
    assert columns["step"].physical_type == "INT64"
    assert "DELTA_BINARY_PACKED" in columns["step"].encodings
    assert "DELTA_BINARY_PACKED" in columns["timestamp"].encodings
    assert "BYTE_STREAM_SPLIT" in columns["float_value"].encodings
    assert columns["attribute_path"].has_dictionary_page


def test_large_runs_roll_over_into_numbered_parts(tmp_path: Path) -> None:
    noise = os.urandom(3_000_000)
    rows = [*texts("log", [noise[i : i + 15_000].hex() for i in range(0, len(noise), 15_000)]), *metric("a", range(9))]
    settings = {"part_mb": 1}
    # Row groups of 32 MiB in memory would hold all of it: make the run large enough for several.
    many = [
        row for copy in range(12) for row in [{**r, "attribute_path": f"{r['attribute_path']}{copy}"} for r in rows]
    ]
    write(tmp_path, TableSource({P: {"RUN-1": run(many)}}), **settings)
    record = Lake(LakeSettings(root=str(tmp_path))).project(P).records()["RUN-1"]
    assert [part.name for part in record.parts] == [
        f"RUN-1-549fcb30a0f06072_part_{number}.parquet" for number in range(len(record.parts))
    ]
    assert len(record.parts) > 1
    assert sum(part.rows for part in record.parts) == len(many)
    for part in record.parts:
        path = tmp_path / "data" / DIRECTORY / part.name
        assert path.stat().st_size == part.bytes
        assert pq.read_metadata(path).num_rows == part.rows
    assert len(rows_of(tmp_path)) == len(many)


def test_counts_state_and_facts_stand_in_the_record(tmp_path: Path) -> None:
    created = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    rows = [
        *params({"sys/name": "n", "sys/creation_time": created, "sys/forking/parent": "RUN-0", "sys/forking/step": 7}),
        *metric("m", [1.0, 2.0]),
        *metric("k", [1.0]),
    ]
    promised = {"string": 2, "datetime": 1, "int": 1, "float_series": 2}
    report = write(tmp_path, TableSource({P: {"RUN-1": run(rows, promised=promised, notes=[Issue("a note")])}}))
    record = Lake(LakeSettings(root=str(tmp_path))).project(P).records()["RUN-1"]
    assert record.complete
    assert record.rows == {"datetime": 1, "float_series": 3, "int": 1, "string": 2}
    assert record.attributes == promised
    assert (record.name, record.parent, record.fork_step) == ("n", "RUN-0", 7_000_000)
    assert record.created_at == created.isoformat()
    assert record.source == "table"
    assert [note.message for note in record.notes] == ["a note"]
    assert report.rows == record.rows
    assert report.new == ["RUN-1"]
    assert report.digest == Lake(LakeSettings(root=str(tmp_path))).project(P).digest


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
    assert report.vanished == ["a"]
    marked = Lake(LakeSettings(root=str(tmp_path))).project(P).records()["a"].vanished_at
    assert marked is not None
    assert len(rows_of(tmp_path, "a")) == 1
    assert report.digest == digest
    assert write(tmp_path, source).vanished == ["a"]
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


def test_duplicates_are_counted_as_a_repair(tmp_path: Path) -> None:
    rows = [*metric("m", [1.0, 2.0]), *metric("m", [3.0], steps=[1], start=START.replace(year=2026))]
    report = write(tmp_path, TableSource({P: {"a": run(rows, "a", repairs={"phantom_rows": 4})}}))
    assert report.repairs == {"phantom_rows": 4, "duplicate_rows": 1}
    assert [row["float_value"] for row in rows_of(tmp_path, "a")] == [1.0, 3.0]


def test_a_run_whose_reading_breaks_off_does_not_stop_the_others(tmp_path: Path) -> None:
    runs = {name: run(metric("m", [1.0] * 10), name) for name in ("a", "b", "c")}
    runs["b"].breaks_after = 1
    source = TableSource({P: runs}, batch_rows=4)
    report = write(tmp_path, source)
    assert list(report.failed) == ["b"]
    assert "broke off" in report.failed["b"]
    assert report.new == ["a", "c"]
    assert sorted(Lake(LakeSettings(root=str(tmp_path))).project(P).records()) == ["a", "c"]
    runs["b"].breaks_after = None
    source.content[P]["b"] = runs["b"]
    assert write(tmp_path, source).new == ["b"]


def test_a_broken_source_stops_soon(tmp_path: Path) -> None:
    runs = {f"{number:02d}": run(metric("m", [1.0]), f"{number:02d}", breaks_after=0) for number in range(20)}
    runs["00"].breaks_after = None
    source = TableSource({P: runs})
    with pytest.raises(SourceError, match="broke off"):
        write(tmp_path, source)
    assert len(source.reads) < 6
    assert list(Lake(LakeSettings(root=str(tmp_path))).project(P).records()) == ["00"]


def test_rows_of_an_unknown_type_fail_their_run_only(tmp_path: Path) -> None:
    odd = [{"attribute_path": "x", "attribute_type": "tensor", "string_value": "v"}]
    report = write(tmp_path, TableSource({P: {"a": run(odd, "a"), "b": run(metric("m", [1.0]), "b")}}))
    assert "tensor" in report.failed["a"]
    assert report.new == ["b"]
    assert not (tmp_path / "data" / DIRECTORY / ".staging").exists()


def test_a_run_without_rows_and_a_project_without_runs_exist(tmp_path: Path) -> None:
    write(tmp_path, TableSource({P: {"empty": run([], "empty")}}))
    record = Lake(LakeSettings(root=str(tmp_path))).project(P).records()["empty"]
    assert record.complete
    assert record.total_rows == 0
    assert rows_of(tmp_path, "empty") == []
    other = LakeWriter(LakeSettings(root=str(tmp_path)), TableSource({"ws/none": {}})).write_project("ws/none")
    assert other.digest
    assert Lake(LakeSettings(root=str(tmp_path))).projects() == ["ws/none", P]
    assert Lake(LakeSettings(root=str(tmp_path))).project("ws/none").records() == {}


def test_unknown_projects_are_refused_and_leave_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UnknownProjectError):
        write(tmp_path, TableSource({}))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnknownProjectError, match="Materialize"):
        Lake(LakeSettings(root=str(tmp_path))).project(P)


def test_a_foreign_export_in_the_lakes_place_is_never_touched(tmp_path: Path) -> None:
    place = tmp_path / "data" / DIRECTORY
    place.mkdir(parents=True)
    theirs = place / "RUN-1-549fcb30a0f06072_part_0.parquet"
    pq.write_table(as_table(P, "RUN-1", metric("m", [1.0])), theirs)
    before = theirs.read_bytes()
    with pytest.raises(LakeError, match="foreign export"):
        write(tmp_path, TableSource({P: {"RUN-1": run(metric("m", [2.0]))}}))
    assert theirs.read_bytes() == before


def test_parts_of_ours_that_no_manifest_names_are_reported(tmp_path: Path) -> None:
    source = TableSource({P: {"a": run(metric("m", [1.0]), "a"), "b": run(metric("m", [2.0]), "b")}})
    write(tmp_path, source)
    for path in (tmp_path / "data" / DIRECTORY / ".manifest").iterdir():
        path.unlink()
    source.content[P].pop("b")
    report = write(tmp_path, source)
    assert ["belong to no run" in problem.message for problem in report.problems] == [True]
    assert len(list((tmp_path / "data" / DIRECTORY).glob("*.parquet"))) == 2


def test_a_part_that_was_removed_is_written_again(tmp_path: Path) -> None:
    source = TableSource({P: {"a": run(metric("m", [1.0]), "a")}})
    write(tmp_path, source)
    (part,) = (tmp_path / "data" / DIRECTORY).glob("*.parquet")
    part.unlink()
    assert write(tmp_path, source).changed == ["a"]
    assert len(rows_of(tmp_path, "a")) == 1


def test_models_lie_apart_from_runs(tmp_path: Path) -> None:
    for scope in (Scope.MODELS, Scope.MODEL_VERSIONS):
        lake = make_lake(tmp_path, {P: {f"M-{scope}": [param("p", str(scope)), file("f", b"x")]}}, scope=scope)
        assert lake.projects(scope) == [P]
        assert list(lake.project(P, scope).records()) == [f"M-{scope}"]
        name = f"{safe_name(f'M-{scope}')}_part_0.parquet"
        assert (tmp_path / "model_data" / DIRECTORY / scope.value / name).is_file()
    assert Lake(LakeSettings(root=str(tmp_path))).projects() == []
    assert len([path for path in (tmp_path / "model_files" / DIRECTORY).rglob("*") if path.is_file()]) == 2


def test_progress_ends_at_the_end(tmp_path: Path) -> None:
    seen: list[Progress] = []
    source = TableSource({P: {name: run(metric("m", [1.0] * 5), name) for name in "abc"}})
    write(tmp_path, source, progress=seen.append)
    assert [item.runs_done for item in seen][-1] == 3
    assert seen[-1].size_done == seen[-1].size_total > 0
    assert seen[-1].rows == 15
    assert seen[-1].eta == 0


def test_a_long_materialization_keeps_few_manifest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neptune_assets.lake.manifest.COMPACT_AFTER", 5)
    source = TableSource({P: {f"{n:02d}": run(metric("m", [1.0]), f"{n:02d}") for n in range(23)}})
    write(tmp_path, source)
    assert len(list((tmp_path / "data" / DIRECTORY / ".manifest").glob("*.jsonl"))) == 1
    assert len(Lake(LakeSettings(root=str(tmp_path))).project(P).records()) == 23


def in_child(work: Any) -> int:
    """Run ``work`` in a forked process; return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_full_disk_names_place_and_space_and_keeps_finished_runs(tmp_path: Path) -> None:
    # A real limit of the kernel: no file of this process may grow beyond 200 kB, as on a disk that is full.
    big = [os.urandom(500).hex() for _ in range(2000)]
    source = TableSource({P: {"a": run(metric("m", [1.0]), "a"), "b": run(texts("log", big), "b")}})
    said = tmp_path / "said"

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            write(tmp_path / "lake", source)
        except LakeError as error:
            said.write_text(str(error))

    assert in_child(work) == 0
    message = said.read_text()
    assert str(tmp_path) in message
    assert "MB free" in message
    assert "Make room" in message
    lake = Lake(LakeSettings(root=str(tmp_path / "lake"))).project(P)
    assert list(lake.records()) == ["a"]
    assert list((tmp_path / "lake" / "data" / DIRECTORY / ".staging").iterdir()) == []
    assert write(tmp_path / "lake", source).new == ["b"]
    assert len(rows_of(tmp_path / "lake", "b")) == 2000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return the directory of a file system of 2 MB; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("what", ["rows", "file", "sorting"])
def test_a_disk_that_is_really_full(small_disk: Path, tmp_path: Path, what: str) -> None:
    big = texts("log", [os.urandom(500).hex() for _ in range(6000)])
    rows = [file("f", os.urandom(3_000_000))] if what == "file" else big
    source = TableSource({P: {"a": run(metric("m", [1.0]), "a"), "b": run(rows, "b")}})
    lake = tmp_path / "lake" if what == "sorting" else small_disk / "lake"
    options: dict[str, Any] = {"rows_in_memory": 1000, "scratch": str(small_disk)} if what == "sorting" else {}
    with pytest.raises(LakeError, match=r"No space left|sorting a large run on disk") as error:
        write(lake, source, **options)
    assert str(small_disk) in str(error.value)
    assert "Make room" in str(error.value)
    assert list(Lake(LakeSettings(root=str(lake))).project(P).records()) == ["a"]
    left = [path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    assert left == []
    source.content[P]["b"] = run(metric("m", [2.0]), "b")
    assert write(lake, source, **options).new == ["b"]
    assert len(rows_of(lake, "b")) == 1


def test_a_lake_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    place = tmp_path / "lake"
    place.write_text("a file where the lake should be")
    with pytest.raises(LakeError, match=r"failed at .*lake"):
        write(place, TableSource({P: {"a": run(metric("m", [1.0]), "a")}}))


@pytest.mark.parametrize("limit", [400_000, 1000])
def test_spilling_changes_nothing(tmp_path: Path, limit: int) -> None:
    values = [float(number) for number in range(2500)]
    rows = [row for pair in zip(metric("b", values), metric("a", values), strict=True) for row in pair][::-1]
    scratch = tmp_path / "scratch"
    write(tmp_path / "lake", TableSource({P: {"a": run(rows, "a")}}), rows_in_memory=limit, scratch=str(scratch))
    read = rows_of(tmp_path / "lake", "a")
    assert [row["attribute_path"] for row in read] == ["a"] * 2500 + ["b"] * 2500
    assert [row["float_value"] for row in read] == values * 2
    assert not scratch.exists() or list(scratch.iterdir()) == []
