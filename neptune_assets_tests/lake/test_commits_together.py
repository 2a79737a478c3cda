"""Small runs share a commit: what it costs, who sees them when, and what is left if the commit itself fails."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.errors import LakeError, UnknownProjectError
from neptune_assets.lake.parts import WriteLimits
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import RunEnd, RunRows
from neptune_assets_tests.support.lake_factory import file, metric
from neptune_assets_tests.support.lake_writing import DIRECTORY, P, rows_of, run, write
from neptune_assets_tests.support.table_source import TableSource

LIMITS = WriteLimits(wait_seconds=3600.0)
NAMES = [f"r{number:03d}" for number in range(LIMITS.commit_runs + 20)]


def records(root: Path) -> dict[str, Any]:
    return Lake(LakeSettings(root=str(root))).project(P).records()


def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the runs of each delta that is written from now on."""
    found: list[int] = []
    create = Storage.create

    def counted(self: Storage, path: str, data: bytes) -> bool:
        created = create(self, path, data)
        if b'"kind":"delta"' in data:
            found.append(data.count(b"\n") - 2)  # header and last line
        return created

    monkeypatch.setattr(Storage, "create", counted)
    return found


def test_many_small_runs_take_few_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = commits(monkeypatch)
    report = write(tmp_path, TableSource({P: {name: run(metric("m", [1.0]), name) for name in NAMES}}), limits=LIMITS)
    # The first delta, without runs, is of the project itself.
    assert found == [0, LIMITS.commit_runs, 20]
    assert report.new == NAMES == list(records(tmp_path))
    assert (report.total_rows, len(list((tmp_path / "data" / DIRECTORY).glob("*.parquet")))) == (len(NAMES), len(NAMES))
    assert {name for name in NAMES if len(rows_of(tmp_path, name)) == 1} == set(NAMES)
    assert len({record.generation for record in records(tmp_path).values()}) == len(NAMES)


def test_large_runs_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = commits(monkeypatch)
    limits = WriteLimits(wait_seconds=3600.0, commit_bytes=1)
    write(tmp_path, TableSource({P: {name: run(metric("m", [1.0]), name) for name in NAMES[:3]}}), limits=limits)
    assert found == [0, 1, 1, 1]


class Watched(TableSource):
    """Notes, whenever it is asked for more, which runs the lake holds."""

    def __init__(self, root: Path, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[list[str]] = []
        self._root = root

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Iterator[RunRows | RunEnd]:
        for chunk in super().read(project_id, run_ids, scope):
            if isinstance(chunk, RunRows):
                try:
                    self.seen.append(list(records(self._root)))
                except UnknownProjectError:
                    self.seen.append([])
            yield chunk


def test_a_run_does_not_wait_longer_than_it_may(tmp_path: Path) -> None:
    source = Watched(tmp_path, {P: {name: run(metric("m", [1.0]), name) for name in ("a", "b", "c")}})
    write(tmp_path, source, limits=WriteLimits(wait_seconds=0.0))
    assert source.seen == [[], ["a"], ["a", "b"]]


def test_a_commit_that_cannot_be_written_leaves_its_runs_as_they_were(tmp_path: Path) -> None:
    names = NAMES[:60]

    def source(version: int, some: Sequence[str]) -> TableSource:
        rows = {name: [*metric("m", [float(version)]), file("f", f"{version}".encode())] for name in some}
        return TableSource({P: {name: run(rows[name], name) for name in some}})

    write(tmp_path / "lake", source(1, names[:2]), limits=LIMITS)
    said = tmp_path / "said"
    child = os.fork()
    if child == 0:
        # A real limit of the kernel, which every part keeps and the commit of 60 runs does not.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            write(tmp_path / "lake", source(2, names), limits=LIMITS)
        except LakeError as error:
            said.write_text(str(error))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert "Make room" in said.read_text()
    assert sorted(records(tmp_path / "lake")) == names[:2]
    assert [row["float_value"] for row in rows_of(tmp_path / "lake", "r001") if row["step"] is not None] == [1.0]
    place = tmp_path / "lake" / "data" / DIRECTORY
    report = write(tmp_path / "lake", source(2, names), limits=LIMITS)
    assert (len(report.new), len(report.changed)) == (58, 2)
    assert [row["float_value"] for row in rows_of(tmp_path / "lake", "r001") if row["step"] is not None] == [2.0]
    assert not (place / ".staging").exists()
    assert len([path for path in (tmp_path / "lake" / "files").rglob("*") if path.is_file()]) == 60
