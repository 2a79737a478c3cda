"""Recordings of neptune-scale that are synced in part, damaged, of other formats, or hold what no row can."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from neptune_assets.errors import FileGoneError, SourceError
from neptune_assets_tests.conformance.sources import key, read
from neptune_assets_tests.support import scale_recorder as recorder
from neptune_assets_tests.support.scale_reading import database_of, edit, offline, points_of, values_of
from neptune_assets_tests.support.scale_recorder import PROJECT


def test_a_partly_synced_recording_is_partial(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, database = copied(everything, "everything")
    # What the client runs when a server has acknowledged operations.
    edit(database, "DELETE FROM run_operations WHERE sequence_id <= 6")
    source = offline(folder)
    (info,) = [info for info in source.runs(PROJECT) if info.run_id == "everything"]
    assert info.created_at is None
    result = read(source, PROJECT, ["everything"])
    end = result.ends["everything"]
    assert end.promised is None
    assert "6 operations are missing" in end.errors[0].message
    points = points_of(result.rows["everything"], "m/loss", "float_value")
    assert [str(point[0]) for point in points] == [f"{Decimal(step):.6f}" for step in recorder.STEPS[3:]]
    assert values_of(result.rows["everything"])["sys/custom_run_id"] == "everything"


def test_all_operations_synced_but_files_left(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, database = copied(everything, "everything")
    edit(database, "DELETE FROM run_operations")
    end = read(offline(folder), PROJECT, ["everything"]).ends["everything"]
    assert end.promised is None
    assert "operations are missing" in end.errors[0].message


def test_an_uploaded_file_is_gone(everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]) -> None:
    folder, database = copied(everything, "everything")
    edit(database, "DELETE FROM file_upload_requests WHERE destination = 'shared/my file.bin'")
    with pytest.raises(FileGoneError, match="shared/my file"):
        offline(folder).files(PROJECT, "everything", "shared/my file.bin")


def test_other_formats_are_refused(everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]) -> None:
    folder, database = copied(everything, "everything")
    edit(database, "UPDATE metadata SET version = 'v6'")
    source = offline(folder)
    assert "everything" not in {info.run_id for info in source.runs(PROJECT)}
    (problem,) = source.problems(PROJECT)
    assert str(database) in problem.message
    assert "'v6'" in problem.message
    assert "neptune sync" in problem.message


def test_flat_files_of_unknown_formats_are_refused(everything: Path, tmp_path: Path) -> None:
    flat = tmp_path / ".neptune" / "team_vision_run_1700000000.sqlite3"
    flat.parent.mkdir()
    shutil.copyfile(database_of(everything, "everything"), flat)
    edit(flat, "UPDATE metadata SET version = 'v0'")
    with pytest.raises(SourceError, match="'v0'") as caught:
        offline(tmp_path).projects()
    assert str(flat) in str(caught.value)


def test_what_is_no_database_is_refused_and_the_others_are_read(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, database = copied(everything, "defaults")
    database.write_bytes(b"this is no SQLite database " * 1000)
    other = folder / "of someone else.sqlite3"
    edit(other, "CREATE TABLE things (name)")
    source = offline(folder)
    assert {info.run_id for info in source.runs(PROJECT)} == {"everything", recorder.HOSTILE_RUN}
    (problem,) = source.problems(PROJECT)
    assert str(database) in problem.message


def test_a_database_cut_short_is_partial(everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]) -> None:
    folder, database = copied(everything, "everything")
    # The first pages stay, so that the run is listed, and a page that operations lie on is overwritten.
    data = bytearray(database.read_bytes())
    data[-2 * 4096 :] = b"\xa5" * (2 * 4096)
    database.write_bytes(data)
    source = offline(folder)
    assert "everything" in {info.run_id for info in source.runs(PROJECT)}
    result = read(source, PROJECT, ["everything", "defaults"])
    assert result.ends["everything"].errors
    assert result.ends["everything"].promised is None
    assert not result.ends["defaults"].errors


def test_garbage_in_one_operation_spoils_only_that_one(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, database = copied(everything, "everything")
    good = read(offline(everything), PROJECT, ["everything"]).rows["everything"]
    edit(database, "UPDATE run_operations SET operation = ? WHERE sequence_id = 5", values=(b"\xff\xff garbage",))
    edit(database, "UPDATE run_operations SET operation_type = 9 WHERE sequence_id = 6")
    result = read(offline(folder), PROJECT, ["everything"])
    messages = [issue.message for issue in result.ends["everything"].errors]
    assert len(messages) == 2
    assert messages[0].startswith("Operation 5:")
    assert messages[1].startswith("Operation 6:")
    # Operations 5 and 6 are the second and third of the eight metric steps, four metrics each.
    kept = {key(row) for row in result.rows["everything"]}
    lost = [row for row in good if key(row) not in kept]
    assert len(lost) == 8
    assert {str(row["step"]) for row in lost} == {"0.000001", "0.500000"}


def test_values_no_row_can_hold_are_reported_and_left_out(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import UpdateRunSnapshot, Value

    folder, database = copied(everything, "defaults")
    bad = [UpdateRunSnapshot() for _ in range(5)]
    for operation in bad:
        operation.timestamp.seconds = 1_700_000_000
    bad[0].step.whole = 10**12
    bad[0].append["m/step"].float64 = 1.0
    bad[1].step.whole = 1
    bad[1].timestamp.seconds = 2**62
    bad[1].append["m/time"].float64 = 1.0
    bad[2].append["m/without"].float64 = 1.0
    bad[3].step.whole = 1
    bad[3].append["m/bool"].bool = True
    bad[3].append["m/int"].int64 = 7
    bad[4].assign["a/nothing"].CopyFrom(Value())
    bad[4].assign["a/kept"].int64 = 5
    for operation in bad:
        blob = operation.SerializeToString()
        edit(
            database,
            "INSERT INTO run_operations (timestamp, operation_type, operation, operation_size_bytes) "
            "VALUES (1, 0, ?, 1)",
            values=(blob,),
        )
    result = read(offline(folder), PROJECT, ["defaults"])
    errors = result.ends["defaults"].errors
    assert [issue.attribute_path for issue in errors] == ["m/step", None, "m/bool", "a/nothing"]
    assert "m/without" in errors[1].message
    rows = result.rows["defaults"]
    assert values_of(rows)["a/kept"] == 5
    assert [point[2] for point in points_of(rows, "m/int", "float_value")] == [7.0]
    # A point keeps its step and value if no calendar has its time.
    assert [(row["timestamp"], row["float_value"]) for row in rows if row["attribute_path"] == "m/time"] == [
        (None, 1.0)
    ]
    assert "m/time" in {note.attribute_path for note in result.ends["defaults"].notes}
    assert not {"m/step", "m/bool"} & {row["attribute_path"] for row in rows}


def test_a_path_of_two_types_loses_neither(everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]) -> None:
    from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import UpdateRunSnapshot

    folder, database = copied(everything, "everything")
    operation = UpdateRunSnapshot()
    operation.assign["a_b"].string = "text now"
    edit(
        database,
        "INSERT INTO run_operations (timestamp, operation_type, operation, operation_size_bytes) VALUES (1, 0, ?, 1)",
        values=(operation.SerializeToString(),),
    )
    result = read(offline(folder), PROJECT, ["everything"])
    assert {("a_b", "int"), ("a_b", "string")} <= result.paths("everything")
    assert "a_b" in {note.attribute_path for note in result.ends["everything"].notes}
    assert not result.ends["everything"].errors


def test_errors_the_client_recorded_are_notes_and_pickles_are_never_read(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, database = copied(everything, "defaults")
    trap = tmp_path / "trap"
    pickled = f"cposix\nsystem\n(S'touch {trap}'\ntR.".encode().hex()
    edit(
        database,
        "INSERT INTO operation_errors (timestamp, error_type, error_details, error_body, sequence_id) "
        "VALUES (1, 'NeptuneAttributePathInvalid', 'bad path', ?, 2)",
        values=(pickled,),
    )
    notes = read(offline(folder), PROJECT, ["defaults"]).ends["defaults"].notes
    (note,) = [note for note in notes if "-wal" not in note.message]
    assert "operation 2: NeptuneAttributePathInvalid: bad path" in note.message
    assert not trap.exists()
