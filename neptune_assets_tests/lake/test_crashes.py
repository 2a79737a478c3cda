"""Kills at every step of a commit, with real processes and real SIGKILL: the old run or the new run, never a mix."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neptune_assets.lake.layout import parse_part_name, safe_name
from neptune_assets.lake.parts import PartWriter, WriteLimits
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.storage import Storage
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import SCHEMA
from neptune_assets.settings import LakeSettings, SummarySettings
from neptune_assets.summary.database import write_database
from neptune_assets_tests.support.lake_factory import file, file_set, metric, table_run, texts
from neptune_assets_tests.support.table_source import TableSource

P = "ws/proj"
SEED = random.Random(1)
NOISE = [SEED.randbytes(200).hex() for _ in range(40)]


def rows(version: int, lines: int) -> list[dict[str, Any]]:
    return [
        *metric("m", [float(version)] * 5),
        *texts("log", [f"{version}{noise}" for noise in NOISE[:lines]]),
        file("f", f"content {version}".encode()),
        file("same", b"never changes"),
        file_set("set", {"a": b"1", f"only in {version}": b"2"}),
    ]


def source(version: int) -> TableSource:
    # The first run shrinks from several parts to fewer and the second grows; the third is new in version 2.
    lines = {1: {"a": 40, "b": 15}, 2: {"a": 15, "b": 40, "c": 2}}[version]
    return TableSource({P: {name: table_run(P, name, rows(version, count)) for name, count in lines.items()}})


def settings(root: Path) -> LakeSettings:
    return LakeSettings(root=str(root), part_mb=1, scratch=str(root / "scratch"))


def write(root: Path, version: int) -> None:
    # Parts roll over after kilobytes instead of megabytes, so that there are many steps in little time.
    limits = WriteLimits(row_group_rows=10, part_bytes=4 << 10)
    LakeWriter(settings(root), source(version), limits=limits).write_project(P)


def content(root: Path) -> dict[str, Any]:
    """Return what the lake holds: rows with the bytes of files in place of their paths."""
    found: dict[str, Any] = {}
    for run in Lake(settings(root)).project(P).runs():
        values = []
        for row in pa.Table.from_batches(run.batches(), SCHEMA).to_pylist():
            value: Any = row["float_value"] if row["string_value"] is None else row["string_value"]
            if row["file_value"] is not None:
                value = []
                for item in run.file_records(row["attribute_path"]):
                    with run.open_file(item.path) as stream:
                        value.append((item.member, stream.read()))
                value.sort()
            values.append((row["attribute_path"], row["step"], value))
        assert run.record.complete
        assert run.content_digest() == run.record.digest
        found[run.run_id] = values
    return found


def peer_view(root: Path) -> dict[str, set[str]]:
    """Return, for each run that neptune-exporter would take for complete, the generations its parts belong to."""
    project = root / "data" / safe_name(P)
    by_run: dict[str, dict[int, str]] = {}
    for path in project.glob("*_part_*.parquet"):
        parsed = parse_part_name(path.name)
        assert parsed is not None
        generation = pq.read_metadata(path).metadata[b"neptune_assets.generation"].decode()
        by_run.setdefault(parsed[0], {})[parsed[1]] = generation
    return {prefix: set(parts.values()) for prefix, parts in by_run.items() if 0 in parts}


STEPS = ("put", "create", "put_file", "move", "delete", "delete_tree", "make_directory", "sync", "prune")


def killed_at(step: int, when: str, work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process that kills itself before or after its ``step``-th change to the disk."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 70
    try:
        counter = iter(range(1_000_000))

        def wrapped(original: Any) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                now = next(counter)
                if now == step and when == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                result = original(*args, **options)
                if now == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        for name in STEPS:
            setattr(Storage, name, wrapped(getattr(Storage, name)))
        for name in ("_flush", "_close_part"):
            setattr(PartWriter, name, wrapped(getattr(PartWriter, name)))
        work()
        status = 0
    finally:
        os._exit(status)


def assert_clean(root: Path) -> None:
    project = root / "data" / safe_name(P)
    lake = Lake(settings(root)).project(P)
    records = lake.records()
    names = {path.name for path in project.iterdir() if not path.name.startswith(".")}
    assert names == {part.name for record in records.values() for part in record.parts}
    assert {path.name for path in project.iterdir() if path.name.startswith(".")} == {".manifest"}
    files = {str(p.relative_to(root / "files" / safe_name(P))) for p in (root / "files").rglob("*") if p.is_file()}
    assert files == {item.path for record in records.values() for item in record.files}
    assert {path.name for path in (project / ".manifest").iterdir()} <= {"lock.json"} | {
        path.name for path in (project / ".manifest").glob("*.jsonl")
    }
    assert peer_view(root) == {safe_name(name): {record.generation} for name, record in records.items()}
    assert list((root / "scratch").glob("*")) == [], "what killed processes spooled is still there"


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    found = {}
    for version in (1, 2):
        root = tmp_path_factory.mktemp("version")
        write(root, version)
        found[version] = content(root)
    return found


VIEWED = """
SELECT run_id, list((attribute_path, coalesce(string_value, float_value::VARCHAR)) ORDER BY attribute_path, step)
FROM raw WHERE file_value IS NULL GROUP BY run_id"""


def viewed(root: Path) -> dict[str, list[Any]]:
    """Return what the views of neptune.duckdb show of each run: the database is as old as the first version."""
    with duckdb.connect(str(root / "neptune.duckdb"), read_only=True) as con:
        return dict(con.execute(VIEWED).fetchall())


def rows_viewed(values: list[Any]) -> list[Any]:
    """Return what the views must show where the lake's reader finds these values."""
    return [
        (path, value if isinstance(value, str) else f"{value}")
        for path, _, value in values
        if not isinstance(value, list)
    ]


def check_after_kill(root: Path, versions: dict[int, dict[str, Any]]) -> None:
    seen = content(root)
    shown = viewed(root)
    assert set(shown) >= set(versions[1])
    for name, values in shown.items():
        both = [rows_viewed(version[name]) for version in versions.values() if name in version]
        assert values in both, f"neptune.duckdb shows a part of {name}"
    for name, values in seen.items():
        assert values in (versions[1].get(name), versions[2].get(name)), f"{name} is a mix"
    assert set(seen) >= set(versions[1])
    records = Lake(settings(root)).project(P).records()
    for prefix, generations in peer_view(root).items():
        assert len(generations) == 1, f"neptune-exporter would read a mix of {prefix}"
        # part_0 is there, so all parts of that generation must be.
        (name,) = [name for name in records if safe_name(name) == prefix]
        if generations == {records[name].generation}:
            assert all((root / "data" / safe_name(P) / part.name).exists() for part in records[name].parts)


# Killing after one step is nearly killing before the next: the second walk is for the long proofs.
@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_a_kill_at_any_step_leaves_old_or_new_and_the_next_run_repairs(
    tmp_path: Path, versions: dict[int, dict[str, Any]], when: str
) -> None:
    step = 0
    kills = 0
    while True:
        root = tmp_path / f"{step}"
        write(root, 1)
        write_database(settings(root), SummarySettings())
        assert any(len(record.parts) > 1 for record in Lake(settings(root)).project(P).records().values())
        status = killed_at(step, when, lambda root=root: write(root, 2))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
        check_after_kill(root, versions)
        # A second kill, while repairing, must do no harm either.
        if killed_at(step % 7, when, lambda root=root: write(root, 2)) == -signal.SIGKILL:
            check_after_kill(root, versions)
        write(root, 2)
        assert content(root) == versions[2]
        assert_clean(root)
        # Steps in the middle of the many parts look alike: walk faster there.
        step += 1 if when == "after" or step < 40 else 3
    assert kills > 40


def test_a_kill_in_the_very_first_materialization_leaves_nothing_half(
    tmp_path: Path, versions: dict[int, dict[str, Any]]
) -> None:
    for step in range(0, 60, 4):
        root = tmp_path / f"{step}"
        killed_at(step, "after", lambda root=root: write(root, 1))
        if Lake(settings(root)).projects():
            for name, values in content(root).items():
                assert values == versions[1][name]
        write(root, 1)
        assert content(root) == versions[1]
        assert_clean(root)


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path: Path, versions: dict[int, dict[str, Any]]) -> None:
    write(tmp_path, 1)
    clock = random.Random(7)
    for turn in range(150):
        child = os.fork()
        if child == 0:
            write(tmp_path, 1 + turn % 2)
            os._exit(0)
        time.sleep(clock.uniform(0, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen = content(tmp_path)
        for name, values in seen.items():
            assert values in (versions[1].get(name), versions[2].get(name))
    write(tmp_path, 2)
    assert content(tmp_path) == versions[2]
    assert_clean(tmp_path)
