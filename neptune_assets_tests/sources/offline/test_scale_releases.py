"""Recordings of every format that a release of neptune-scale wrote are read alike (cases/scale_recordings.py)."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.conformance.sources import read
from neptune_assets_tests.support.scale_reading import offline, points_of, values_of
from neptune_assets_tests.support.scale_recorder import PROJECT, record

CASES = Path(__file__).resolve().parents[2] / "cases"
START = datetime(2025, 3, 1, 12, 0, 0, 123_000, tzinfo=UTC)
RELEASES = ["0.11.0", "0.11.0-killed", "0.12.1", "0.13.0-killed", "0.15.0", "0.16.0", "0.18.0", "0.20.0"]
"""Formats v1, v1, v2, v3, v3, v4, v4 and v5."""


@pytest.mark.parametrize("release", RELEASES)
def test_a_run_of_each_release_is_complete_and_has_every_value(release: str) -> None:
    source = offline(CASES / "scale-releases" / release)
    assert source.projects() == ["team/old"]
    assert source.problems("team/old") == []
    (info,) = source.runs("team/old")
    assert (info.run_id, info.created_at) == (release, START)
    result = read(source, "team/old", [release])
    rows, end = result.rows[release], result.ends[release]
    assert end.errors == ()
    assert all("-wal" in note.message for note in end.notes)
    assert end.promised is not None
    version = release.removesuffix("-killed")
    values = values_of(rows)
    assert {name: values[name] for name in ("lr", "layers", "name", "flag", "when", "big", "sys/tags")} == {
        "lr": 0.1,
        "layers": 3,
        "name": "net ☃",
        "flag": True,
        "when": START,
        "big": 2**63 - 1,
        "sys/tags": ["a"],
    }
    assert (values["sys/name"], values["sys/creation_time"]) == (f"exp {version}", START)
    steps = [Decimal(step) / 2 for step in range(5)]
    assert points_of(rows, "loss", "float_value") == [(step, START, 1 / (2 * step + 1)) for step in map(float, steps)]
    assert [str(value) for _, _, value in points_of(rows, "acc/top 1", "float_value")] == ["-0.0"] * 5
    if version != "0.11.0":
        assert points_of(rows, "text", "string_value") == [(Decimal(1), START, "line")]
        (note,) = [row["file_value"]["path"] for row in rows if row["attribute_path"] == "note"]
        (file,) = source.files("team/old", release, note)
        with file.open() as stream:
            assert stream.read() == b"from " + version.encode()


@pytest.mark.parametrize("release", ["s012", "s013", "s018"])
def test_recordings_of_people_in_old_formats_are_read(release: str) -> None:
    source = offline(CASES / "old-scale-formats" / release)
    run_id = f"old-{release}"
    assert [info.run_id for info in source.runs("team/scale")] == [run_id]
    result = read(source, "team/scale", [run_id])
    assert result.ends[run_id].errors == ()
    values = values_of(result.rows[run_id])
    assert (values["part1/lr"], values["shared"], values["sys/tags"]) == (0.1, "from part 1", ["t1"])
    points = points_of(result.rows[run_id], "loss", "float_value")
    assert [(step, value) for step, _, value in points] == [(Decimal(step), 1000.0 + step) for step in range(5)]


def test_a_run_resumed_by_an_older_release_has_the_points_of_both_and_is_complete() -> None:
    source = offline(CASES / "unread-recordings")
    result = read(source, "team/scale", ["job-1"])
    assert result.ends["job-1"].errors == ()
    points = points_of(result.rows["job-1"], "loss", "float_value")
    assert [(int(step), value) for step, _, value in points] == [
        (step, (1000.0 if step < 5 else 2000.0) + step) for step in range(10)
    ]
    assert [problem for problem in source.problems("team/scale") if "three" not in problem.message] == []


def test_steps_that_a_resumed_run_logged_again_keep_the_latest_value_and_are_named(tmp_path: Path) -> None:
    made = LakeSettings(root=str(tmp_path))
    report = LakeWriter(made, offline(CASES / "overlapping-steps")).write_project("team/scale")
    run = Lake(made).project("team/scale").run("job-7")
    points = points_of([row for batch in run.batches() for row in batch.to_pylist()], "loss", "float_value")
    again = {6, 7, 8}
    assert [(int(step), value) for step, _, value in points] == [
        (step, (2000.0 if step in again else 1000.0) + step) for step in range(10)
    ]
    assert run.record.complete
    assert report.repairs["conflicting_rows"] == 3
    (note,) = [note for note in run.record.notes if note.attribute_path == "loss"]
    assert note.message.startswith("3 values were replaced")


def test_repeats_of_equal_values_are_told_apart_from_other_ones_over_three_sessions(tmp_path: Path) -> None:
    record("overlap", tmp_path)
    made = LakeSettings(root=str(tmp_path / "lake"))
    LakeWriter(made, offline(tmp_path)).write_project(PROJECT)
    run = Lake(made).project(PROJECT).run("overlap")
    rows = [row for batch in run.batches() for row in batch.to_pylist()]
    series = {
        path: [value for _, _, value in points_of(rows, path, column)]
        for path, column in {
            "same": "float_value",
            "other": "float_value",
            "early": "float_value",
            "text": "string_value",
        }.items()
    }
    assert series == {
        "same": [0, 1, 2, 3, 4],
        "other": [0, 1, 12, 13, 14],
        "early": [0, 1, 2, 3, 4],  # what came later has an earlier time
        "text": ["line 0", "again", "line 2", "line 3", "line 4"],
    }
    assert (run.record.repairs["duplicate_rows"], run.record.repairs["conflicting_rows"]) == (4, 7)
    notes = {note.attribute_path: note.message.split()[0] for note in run.record.notes if note.attribute_path}
    assert notes == {"other": "3", "early": "3", "text": "1"}
    assert run.record.complete


def test_a_session_that_was_resumed_alone_is_partial() -> None:
    source = offline(CASES / "unread-recordings" / "two")
    (error,) = read(source, "team/scale", ["job-1"]).ends["job-1"].errors
    assert "began elsewhere" in error.message


def test_flat_files_are_found_outside_of_neptune_folders_also_when_the_job_was_killed(tmp_path: Path) -> None:
    """Release 0.11 wrote `<project>_<run>_<nanoseconds>.sqlite3` into whatever the log directory was."""
    for release in ("0.11.0", "0.11.0-killed"):
        shutil.copytree(CASES / "scale-releases" / release / ".neptune", tmp_path / "logs", dirs_exist_ok=True)
    source = offline(tmp_path)
    before = {info.run_id: info.fingerprint for info in source.runs("team/old")}
    assert sorted(before) == ["0.11.0", "0.11.0-killed"]
    (closed,) = [path for path in (tmp_path / "logs").iterdir() if "-killed" not in path.name]
    closed.touch()
    after = {info.run_id: info.fingerprint for info in source.runs("team/old")}
    assert [run_id for run_id in before if before[run_id] != after[run_id]] == ["0.11.0"]
