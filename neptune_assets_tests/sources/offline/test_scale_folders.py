"""Where recordings of neptune-scale lie and who else is there: killed and live clients, copies, links, moves."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from neptune_assets.build import project_mark
from neptune_assets.errors import FileGoneError, SourceError
from neptune_assets_tests.conformance.sources import read, tree
from neptune_assets_tests.support import scale_recorder as recorder
from neptune_assets_tests.support.scale_reading import database_of, edit, offline, points_of, values_of
from neptune_assets_tests.support.scale_recorder import BASE, PROJECT, record


@pytest.fixture
def read_only(everything: Path, killed: Path, tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "read only"
    shutil.copytree(everything, target / "a")
    shutil.copytree(killed, target / "b")
    paths = [target, *target.rglob("*")]
    for path in paths:
        path.chmod(0o500 if path.is_dir() else 0o400)
    yield target
    for path in paths:
        path.chmod(0o700)


def test_a_killed_process_loses_nothing(killed: Path) -> None:
    database = database_of(killed, "killed")
    assert database.with_name(database.name + "-wal").stat().st_size > database.stat().st_size
    before = tree([killed])
    source = offline(killed)
    assert [info.run_id for info in source.runs(PROJECT)] == ["killed"]
    result = read(source, PROJECT, ["killed"])
    assert points_of(result.rows["killed"], "m", "float_value") == [
        (Decimal(step), BASE + timedelta(seconds=step), step / 2) for step in range(50)
    ]
    assert values_of(result.rows["killed"])["c"] == 1
    assert result.ends["killed"].errors == result.ends["killed"].notes == ()
    assert tree([killed]) == before


def test_read_only_folders_are_read(read_only: Path) -> None:
    before = tree([read_only])
    source = offline(read_only)
    ids = [info.run_id for info in source.runs(PROJECT)]
    assert len(ids) == 4
    result = read(source, PROJECT, ids)
    assert not any(end.errors for end in result.ends.values())
    assert tree([read_only]) == before


def test_a_moved_folder_finds_its_own_files_and_names_what_is_gone(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, database = copied(everything, "everything")
    away = f"replace(source_path, '{everything}', '/gone')"
    edit(database, f"UPDATE file_upload_requests SET source_path = {away}")
    source = offline(folder)
    rows = read(source, PROJECT, ["everything"]).rows["everything"]
    paths = {row["attribute_path"]: row["file_value"]["path"] for row in rows if row["file_value"] is not None}
    (file,) = source.files(PROJECT, "everything", paths["f/bytes"])
    with file.open() as opened:
        assert opened.read() == recorder.BYTES
    (file,) = source.files(PROJECT, "everything", paths["f/path"])
    with pytest.raises(FileGoneError, match=r"/gone/note\.txt"):
        file.open()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "note.txt").write_text("something else")
    source = offline(folder, search_files_in=[str(elsewhere)])
    (file,) = source.files(PROJECT, "everything", paths["f/path"])
    with pytest.raises(FileGoneError, match=r"12 bytes .* 14 now"):
        file.open()
    (elsewhere / "note.txt").write_text(recorder.TEXT_FILE)
    with file.open() as opened:
        assert opened.read() == recorder.TEXT_FILE.encode()
    (elsewhere / "note.txt").unlink()
    os.mkfifo(elsewhere / "note.txt")
    with pytest.raises(FileGoneError):
        file.open()


def test_a_live_process_is_read_as_it_is_and_said_so(tmp_path: Path) -> None:
    process = record("live", tmp_path, wait=False)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        source = offline(tmp_path)
        (first,) = source.runs(PROJECT)
        process.stdin.write("more\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == "ready"
        (second,) = source.runs(PROJECT)
        assert second.fingerprint != first.fingerprint
        result = read(source, PROJECT, ["live"])
        assert [point[2] for point in points_of(result.rows["live"], "m", "float_value")] == [
            float(n) for n in range(10)
        ]
        (note,) = result.ends["live"].notes
        assert f"process {process.pid}" in note.message
        assert result.ends["live"].errors == ()
        process.stdin.write("flood\n")
        process.stdin.flush()
        deadline = time.monotonic() + 2
        counts: list[int] = []
        while time.monotonic() < deadline:
            flooded = read(offline(tmp_path), PROJECT, ["live"])
            if not flooded.ends["live"].errors:
                values = [point[2] for point in points_of(flooded.rows["live"], "m", "float_value")]
                assert values == [float(number) for number in range(len(values))]
                counts.append(len(values))
            else:
                assert "keeps changing" in flooded.ends["live"].errors[0].message
        assert counts == sorted(counts)
        assert counts[-1] > 10
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_project_as_a_whole_is_marked_by_what_lies_in_its_recordings(
    family: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, database = copied(family, "orphan")
    before = project_mark(offline(folder), PROJECT)
    assert project_mark(offline(folder), PROJECT) == before
    edit(database, "DELETE FROM operation_errors")
    os.utime(database, ns=(1, 1))
    assert project_mark(offline(folder), PROJECT) != before


def test_paths_that_cannot_be_used_are_told(everything: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    source = offline(everything, missing)
    assert source.projects() == [PROJECT]
    (problem,) = source.problems(PROJECT)
    assert str(missing) in problem.message
    with pytest.raises(SourceError, match="missing"):
        offline(missing).projects()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="No recording"):
        offline(tmp_path / "empty").projects()


def test_symlink_loops_and_doubled_paths_count_once(everything: Path, tmp_path: Path) -> None:
    holder = tmp_path / "holder"
    holder.mkdir()
    (holder / "loop").symlink_to(holder)
    (holder / "recordings").symlink_to(everything)
    source = offline(holder, everything, everything / "." / ".." / everything.name)
    assert len([info for info in source.runs(PROJECT) if info.run_id == "everything"]) == 1
    end = read(source, PROJECT, ["everything"]).ends["everything"]
    assert end.repairs == {"previews_left_out": 3}


def test_a_copy_of_a_recording_counts_once(
    everything: Path, killed: Path, copied: Callable[[Path, str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, _ = copied(everything, "everything")
    shutil.copytree(killed, tmp_path / "killed copy")
    source = offline(everything, folder, killed, tmp_path / "killed copy")
    result = read(source, PROJECT, ["everything", "killed"])
    assert result.ends["everything"].repairs == {"previews_left_out": 3}
    assert len(points_of(result.rows["killed"], "m", "float_value")) == 50
    assert sum("is a copy of" in problem.message for problem in source.problems(PROJECT)) == 4


def test_a_recording_that_vanishes_after_listing_ends_with_an_error(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, database = copied(everything, "everything")
    source = offline(folder)
    source.runs(PROJECT)
    shutil.rmtree(database.parent)
    with pytest.raises(FileGoneError, match="can no longer be read"):
        source.files(PROJECT, "everything", "shared/my file.bin")
    result = read(source, PROJECT, ["everything", "defaults"])
    assert str(database) in result.ends["everything"].errors[0].message
    assert result.ends["everything"].promised is None
    assert result.ends["defaults"].errors == ()
    source.projects()
    gone = read(source, PROJECT, ["everything"]).ends["everything"]
    assert "recording of run 'everything' in team/vision no longer exists" in gone.errors[0].message


def test_listing_tells_times_and_size(everything: Path) -> None:
    (info,) = [info for info in offline(everything).runs(PROJECT) if info.run_id == "everything"]
    assert info.created_at == BASE
    assert info.modified_at is not None
    assert info.modified_at <= datetime.now(UTC)
    assert info.size_hint > 0
