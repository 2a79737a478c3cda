"""Where recordings of neptune-client lie, and which runs and executions they are: old layouts are made from real ones.

The asynchronous mode cannot be recorded without a server; async folders are offline ones moved as `neptune sync` does.
"""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from neptune_assets.errors import SourceError
from neptune_assets.schema import Scope
from neptune_assets.settings import Filters
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline
from neptune_assets.sources.protocol import RunEnd, RunRows
from neptune_assets_tests.support import client_recorder as recorded
from neptune_assets_tests.support.client_reading import (
    NAME,
    PROJECT,
    RUN_ID,
    UUID,
    Read,
    floats,
    op,
    read_all,
    read_one,
    write_log,
)


def test_ids_and_times_are_stable(folder: Path, both: dict[str, Read], tmp_path: Path) -> None:
    copied = shutil.copytree(folder / ".neptune", tmp_path / "elsewhere" / ".neptune")
    assert set(read_all(copied)) == {read.run_id for read in both.values()}
    for path in (folder / ".neptune" / "offline").iterdir():
        run_id = "OFFLINE-" + path.name.split("__")[1].replace("-", "")[:12]
        metadata = json.loads((path / "metadata.json").read_text())
        created = datetime.fromisoformat(metadata["createdAt"])
        (read,) = [read for read in both.values() if read.run_id == run_id]
        assert read.value("sys/id") == run_id
        assert read.value("sys/creation_time") == created.replace(microsecond=created.microsecond // 1000 * 1000)
        (info,) = [info for info in read.source.runs(PROJECT) if info.run_id == run_id]
        assert info.created_at == created
        assert info.modified_at is not None
        assert info.modified_at >= created


def test_project_must_be_named(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"source\.offline\.project"):
        Offline(OfflineSource(paths=[str(folder)]), Filters()).projects()


@pytest.mark.parametrize(
    "place",
    [
        f"async/{NAME}",
        f"async/{NAME}__0",
        f"async/run__{UUID}/exec-1700000000.5-2023-11-14_22.13.20.500000-77",
        f"async/{UUID}/exec-1700000000.5-2023-11-14_22.13.20.500000-77",
        f"offline/run__{UUID}",
        f"offline/{UUID}",
    ],
)
def test_every_layout_is_the_same_run(real: Path, folder: Path, tmp_path: Path, place: str) -> None:
    as_recorded = read_one(real, search_files_in=[str(folder)])
    target = tmp_path / "moved" / ".neptune" / place
    target.parent.mkdir(parents=True)
    real.rename(target)
    metadata = target / "metadata.json"
    if "exec-" in place:
        metadata.unlink()
    read = read_one(tmp_path / "moved", search_files_in=[str(folder)])
    assert read.run_id == RUN_ID
    # Without metadata nothing says that the copy of a value within the run is one.
    missing = set() if metadata.exists() else {"c/float"}
    rows = [row["attribute_path"] for row in as_recorded.rows if row["attribute_path"] not in missing]
    assert rows == [row["attribute_path"] for row in read.rows]
    assert len(read.errors) == len(missing)
    assert len(json.loads(next(iter(read.members("a/tracked").values())))) == 4
    assert read.points("m/points") == as_recorded.points("m/points")
    assert read.members("f/bytes") == {"bytes.bin": recorded.BYTES}
    first_at = json.loads((target / "data-1.log").read_text().splitlines()[0])["at"]
    if not metadata.exists():
        assert abs(read.value("sys/creation_time").timestamp() - first_at) < 0.001


@pytest.mark.parametrize(("kind", "scope"), [("model", Scope.MODELS), ("model_version", Scope.MODEL_VERSIONS)])
def test_models_have_their_own_scope(tmp_path: Path, kind: str, scope: Scope) -> None:
    write_log(tmp_path / "async" / f"{kind}__{UUID}__7__abcdefgh", op("AssignInt", "x", value=1))
    write_log(tmp_path / "async" / NAME, op("AssignInt", "x", value=2))
    assert read_one(tmp_path).value("x") == 2
    assert read_one(tmp_path, scope=scope).value("x") == 1


def test_metadata_of_a_project_is_left_out_and_told(tmp_path: Path) -> None:
    write_log(tmp_path / "async" / f"project__{UUID}__7__abcdefgh", op("AssignInt", "x", value=1))
    write_log(tmp_path / "async" / NAME, op("AssignInt", "x", value=2))
    (problem,) = read_one(tmp_path).source.problems(PROJECT)
    assert "project__" in problem.message


def test_unknown_structure_is_refused(real: Path) -> None:
    metadata = json.loads((real / "metadata.json").read_text())
    (real / "metadata.json").write_text(json.dumps(metadata | {"structureVersion": 4}))
    write_log(real.parent / NAME, op("AssignInt", "x", value=2))
    (problem,) = read_one(real.parent).source.problems(PROJECT)
    assert str(real) in problem.message
    assert "structureVersion 4" in problem.message


def test_log_without_a_name_is_refused_and_foreign_logs_are_ignored(tmp_path: Path) -> None:
    write_log(tmp_path / "async" / NAME, op("AssignInt", "x", value=2))
    write_log(tmp_path / "renamed", op("AssignInt", "x", value=3))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "data-1.log").write_text("12:00 all is well\n")
    (tmp_path / "sync" / NAME / "upload_path").mkdir(parents=True)
    (problem,) = read_one(tmp_path).source.problems(PROJECT)
    assert str(tmp_path / "renamed") in problem.message


def test_a_file_among_the_paths_is_a_notice(offline: Path) -> None:
    execution = write_log(offline / NAME, op("AssignInt", "x", value=1))
    read = read_one(offline, execution / "data-1.log")
    assert read.value("x") == 1
    (notice,) = read.source.problems(PROJECT)
    assert notice.notice
    assert "data-1.log" in notice.message


def test_executions_are_merged_in_time_order(tmp_path: Path) -> None:
    base = tmp_path / "async"
    write_log(base / f"run__{UUID}__2__bbbbbbbb", op("AssignInt", "x", value=2), floats("m", 3.0), at=1_700_000_100.0)
    write_log(base / f"run__{UUID}__1__cccccccc", op("AssignInt", "x", value=1), floats("m", 1.0, 2.0))
    write_log(base / f"run__{UUID}__3__aaaaaaaa", op("AssignInt", "y", value=5), at=1_700_000_100.5)
    read = read_one(tmp_path)
    assert read.value("x") == 2
    assert read.value("y") == 5
    assert read.points("m") == [(Decimal(0), 1.0), (Decimal(1), 2.0), (Decimal(2), 3.0)]


def test_clear_in_a_later_execution(tmp_path: Path) -> None:
    base = tmp_path / "async"
    write_log(base / f"run__{UUID}__1__cccccccc", floats("m", 1.0, 2.0))
    later = (op("ClearFloatLog", "m"), floats("m", 3.0))
    write_log(base / f"run__{UUID}__2__bbbbbbbb", *later, at=1_700_000_100.0)
    assert read_one(tmp_path).points("m") == [(Decimal(0), 3.0)]


def test_copies_of_one_execution_count_once(tmp_path: Path) -> None:
    write_log(tmp_path / "a" / "offline" / NAME, floats("m", 1.0))
    write_log(tmp_path / "b" / "offline" / NAME, floats("m", 1.0), floats("m", 2.0))
    read = read_one(tmp_path)
    assert read.points("m") == [(Decimal(0), 1.0), (Decimal(1), 2.0)]
    assert any(str(tmp_path / "a") in note for note in read.notes)


def test_log_files_are_read_in_order_of_their_numbers(offline: Path) -> None:
    for first, value in ((1, 0.0), (2, 1.0), (3, 2.0)):
        write_log(offline / NAME, *[floats("m", value)], first=first)
    write_log(offline / NAME, *[floats("m", float(n)) for n in range(3, 9)], first=4)
    write_log(offline / NAME, floats("m", 9.0), first=10)
    read = read_one(offline)
    assert [value for _, value in read.points("m")] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]


def test_fingerprint_follows_the_recording(real: Path, tmp_path: Path) -> None:
    source = Offline(OfflineSource(paths=[str(tmp_path)], project=PROJECT), Filters())

    def fingerprint() -> str:
        return source.runs(PROJECT)[0].fingerprint

    first = fingerprint()
    assert fingerprint() == first
    for path in (real / "data-1.log", real / "metadata.json", min((real / "upload_path").iterdir())):
        with path.open("ab") as file:
            file.write(b" ")
        assert fingerprint() != first
        first = fingerprint()


def test_filters_leave_attributes_out(real: Path) -> None:
    settings = OfflineSource(paths=[str(real)], project=PROJECT)
    source = Offline(settings, Filters.model_validate({"attributes": {"include": ["^m/points$"]}}))
    (info,) = source.runs(PROJECT)
    chunks = list(source.read(PROJECT, [info.run_id]))
    end = chunks[-1]
    assert isinstance(end, RunEnd)
    assert end.promised == {"float_series": 1}
    assert sum(chunk.batch.num_rows for chunk in chunks if isinstance(chunk, RunRows)) == len(recorded.POINTS)
