"""What the writer says and keeps when a source breaks, a place holds something else, or a disk is full."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from neptune_assets.errors import LakeError, SourceError, UnknownProjectError
from neptune_assets.lake.reader import Lake
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import RunEnd, RunRows
from neptune_assets_tests.support.lake_factory import file, metric, texts
from neptune_assets_tests.support.lake_writing import DIRECTORY, P, rows_of, run, write
from neptune_assets_tests.support.table_source import TableSource, as_table


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


class BreakingAtItsEnd(TableSource):
    """Returns all its runs whole, and then fails."""

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Iterator[RunRows | RunEnd]:
        yield from super().read(project_id, run_ids, scope)
        raise OSError("the connection was reset")


def test_a_source_that_fails_after_its_last_run_is_an_error_that_says_so(tmp_path: Path) -> None:
    source = BreakingAtItsEnd({P: {"a": run(metric("m", [1.0]), "a")}})
    with pytest.raises(SourceError, match="broke off: the connection was reset"):
        write(tmp_path, source)
    assert list(Lake(LakeSettings(root=str(tmp_path))).project(P).records()) == ["a"]
    assert write(tmp_path, source).skipped == ["a"]


def test_rows_of_an_unknown_type_fail_their_run_only(tmp_path: Path) -> None:
    odd = [{"attribute_path": "x", "attribute_type": "tensor", "string_value": "v"}]
    report = write(tmp_path, TableSource({P: {"a": run(odd, "a"), "b": run(metric("m", [1.0]), "b")}}))
    assert "tensor" in report.failed["a"]
    assert report.new == ["b"]
    assert not (tmp_path / "data" / DIRECTORY / ".staging").exists()


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
