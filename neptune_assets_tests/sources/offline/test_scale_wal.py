"""A `-wal` that a killed job left is looked at frame by frame: damage never passes for a whole recording."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from neptune_assets.errors import SourceError
from neptune_assets.sources.protocol import RunEnd
from neptune_assets_tests.conformance.sources import key, read
from neptune_assets_tests.support.scale_reading import database_of, edit, offline
from neptune_assets_tests.support.scale_recorder import PROJECT, record

FRAME = 4096 + 24


def beside(database: Path, suffix: str) -> Path:
    return database.with_name(database.name + suffix)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def keys(folder: Path, run_id: str = "killed") -> tuple[list[object], RunEnd]:
    source = offline(folder)
    assert [info.run_id for info in source.runs(PROJECT)] == [run_id]
    result = read(source, PROJECT, [run_id])
    return sorted(map(key, result.rows[run_id]), key=repr), result.ends[run_id]


@pytest.fixture
def damaged(killed: Path, copied: Callable[[Path, str], tuple[Path, Path]]) -> tuple[Path, Path]:
    """A copy of the killed job's folder and its database."""
    return copied(killed, "killed")


def test_a_flipped_bit_in_any_frame_makes_the_run_partial_and_whole_frames_are_read(
    killed: Path, damaged: tuple[Path, Path]
) -> None:
    folder, database = damaged
    wal = beside(database, "-wal")
    whole, _ = keys(killed)
    original = wal.read_bytes()
    choose = random.Random(12)
    kept = 0
    for bit in [choose.randrange(32 * 8, len(original) * 8) for _ in range(25)]:
        wal.write_bytes(original)
        flip(wal, bit)
        source = offline(folder)
        if not source.problems():
            source.runs(PROJECT)
        if source.problems():  # the page that names project and run is damaged: the recording is refused as a whole
            assert not source.problems()[0].notice
            continue
        found, end = keys(folder)
        assert any(str(wal) in issue.message and "damaged" in issue.message for issue in end.errors), bit
        assert end.promised is None
        assert not [item for item in found if item not in whole]
        kept += len(found)
    # SQLite alone reads half of them on average.
    assert kept > 0.8 * 25 * len(whole)


@pytest.mark.parametrize("byte", range(0, 32, 3))
def test_a_damaged_header_loses_nothing_and_is_named(killed: Path, damaged: tuple[Path, Path], byte: int) -> None:
    folder, database = damaged
    whole, _ = keys(killed)
    flip(beside(database, "-wal"), byte * 8 + 5)
    found, end = keys(folder)
    assert found == whole
    assert any("header" in issue.message for issue in end.errors)


@pytest.mark.parametrize("left", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("boundary", [True, False])
def test_a_wal_that_was_cut_makes_the_run_partial(damaged: tuple[Path, Path], left: float, boundary: bool) -> None:
    folder, database = damaged
    wal = beside(database, "-wal")
    size = int(wal.stat().st_size * left)
    if boundary:
        size = 32 + (size - 32) // FRAME * FRAME
    with wal.open("r+b") as file:
        file.truncate(size)
    source = offline(folder)
    if not source.runs(PROJECT):
        (problem,) = source.problems(PROJECT)
        assert not problem.notice
        return
    end = read(source, PROJECT, ["killed"]).ends["killed"]
    assert any(str(wal) in issue.message for issue in end.errors)


def test_frames_of_a_transaction_that_was_never_finished_are_told(damaged: tuple[Path, Path]) -> None:
    folder, database = damaged
    beside(database, "-shm").unlink(missing_ok=True)
    wal = beside(database, "-wal")
    data = wal.read_bytes()
    ends = [place for place in range(32, len(data), FRAME) if data[place + 4 : place + 8] != bytes(4)]
    begun = [place for place in range(32, len(data), FRAME) if place + FRAME in ends and place not in ends]
    with wal.open("r+b") as file:
        file.truncate(begun[-1] + FRAME)
    _, end = keys(folder)
    assert any("never finished" in issue.message for issue in end.errors)


def test_earlier_rounds_of_a_wal_are_not_damage(tmp_path: Path, everything: Path) -> None:
    # SQLite starts a -wal anew once all is folded in, and leaves the frames of the round before behind the new ones.
    database = (
        Path(shutil.copytree(database_of(everything, "defaults").parent, tmp_path / "r")) / "run_operations.sqlite3"
    )
    whole = read(offline(everything), PROJECT, ["defaults"]).rows["defaults"]
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    for number in range(30):
        connection.execute("UPDATE run_operations SET timestamp = timestamp + ?", (number,))
    connection.execute("PRAGMA wal_checkpoint(RESTART)")
    connection.execute("UPDATE run_operations SET timestamp = timestamp + 1")
    killed = Path(shutil.copytree(tmp_path / "r", tmp_path / "killed" / "r"))
    connection.close()
    assert beside(killed / database.name, "-wal").stat().st_size > 20 * FRAME
    result = read(offline(tmp_path / "killed"), PROJECT, ["defaults"])
    assert len(result.rows["defaults"]) == len(whole)
    assert result.ends["defaults"].errors == ()


@pytest.mark.parametrize("shared", [True, False])
def test_a_wal_that_is_gone_is_never_a_reason_to_delete(damaged: tuple[Path, Path], shared: bool) -> None:
    folder, database = damaged
    beside(database, "-wal").unlink()
    if not shared:
        beside(database, "-shm").unlink()
    source = offline(folder)
    with pytest.raises(SourceError) as raised:
        source.projects()
    assert str(database) in str(raised.value)
    assert "-wal" in str(raised.value)
    assert "elete" not in str(raised.value)
    (problem, *_) = source.problems()
    assert not problem.notice


def test_a_closed_recording_without_a_wal_is_complete_with_a_note(everything: Path) -> None:
    end = read(offline(everything), PROJECT, ["defaults"]).ends["defaults"]
    assert end.errors == ()
    assert any("-wal is not there" in note.message for note in end.notes)


def test_a_job_killed_late_lacks_what_its_wal_held(tmp_path: Path) -> None:
    """Most of it is folded into the database: without the `-wal` the run looks whole, so at least a note says so."""
    record("killed", tmp_path, "800")  # SQLite folds it in after a thousand pages
    database = database_of(tmp_path, "killed")
    whole, end = keys(tmp_path)
    assert end.errors == ()
    (copy := tmp_path / "copy").mkdir()
    shutil.copytree(database.parent, copy / "with shm")
    beside(copy / "with shm" / database.name, "-wal").unlink()
    found, end = keys(copy)
    assert 0 < len(found) < len(whole)
    assert any("-shm counts" in issue.message for issue in end.errors)
    beside(copy / "with shm" / database.name, "-shm").unlink()
    found, end = keys(copy)
    assert 0 < len(found) < len(whole)
    assert any("-wal is not there" in note.message for note in end.notes)


def test_damaged_pages_of_the_database_make_the_run_partial(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, database = copied(everything, "everything")
    edit(database, "PRAGMA journal_mode = DELETE")
    data = bytearray(database.read_bytes())
    data[4096 * 3 : 4096 * 3 + 16] = b"\x0d\x00\x00\xff\xff\x00\x10\x00" * 2
    database.write_bytes(data)
    source = offline(folder)
    if "everything" in [info.run_id for info in source.runs(PROJECT)]:
        end = read(source, PROJECT, ["everything"]).ends["everything"]
        assert end.errors
        assert end.promised is None
    else:
        assert not source.problems(PROJECT)[0].notice


def test_a_damaged_copy_does_not_hide_a_good_one(killed: Path, tmp_path: Path) -> None:
    whole, _ = keys(killed)
    name = database_of(killed, "killed").parent.name
    for place in ("a", "b"):
        shutil.copytree(database_of(killed, "killed").parent, tmp_path / place / name)
    wal = beside(database_of(tmp_path / "a", "killed"), "-wal")
    flip(wal, wal.stat().st_size * 8 - 40)
    found, end = keys(tmp_path)
    assert {repr(item) for item in whole} <= {repr(item) for item in found}
    assert any(str(wal) in issue.message for issue in end.errors)


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_pipe_beside_a_database_never_blocks(everything: Path, tmp_path: Path, suffix: str) -> None:
    name = database_of(everything, "defaults").parent.name
    for place in ("a", "b"):
        shutil.copytree(database_of(everything, "defaults").parent, tmp_path / place / name)
        os.mkfifo(beside(tmp_path / place / name / "run_operations.sqlite3", suffix))
    signal.alarm(30)  # its default action ends the process
    try:
        found, end = keys(tmp_path, "defaults")
    finally:
        signal.alarm(0)
    assert found
    assert end.errors == ()
