"""Recordings of the real neptune-scale client, made in processes of their own."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.errors import FileGoneError, SourceError
from neptune_assets.settings import Filters, OfflineSource, RunFilter
from neptune_assets.sources.offline.source import Offline
from neptune_assets_tests.conformance.sources import SourceCase, SourceContract, key, read, tree
from neptune_assets_tests.support import scale_recorder as recorder
from neptune_assets_tests.support.scale_recorder import BASE, PROJECT, record

Row = dict[str, Any]


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("everything")
    record("everything", folder)
    return folder


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    record("family", folder)
    return folder


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    record("killed", folder)
    return folder


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path, str], tuple[Path, Path]]:
    """Copies a recorded tree; gives the copy and the database of one run in it."""

    def copy(folder: Path, run_id: str) -> tuple[Path, Path]:
        target = tmp_path / "copy"
        shutil.copytree(folder, target)
        return target, _database(target, run_id)

    return copy


def _database(folder: Path, run_id: str) -> Path:
    (found,) = folder.rglob(f"team_vision_{run_id}_*/run_operations.sqlite3")
    return found


def _offline(*paths: Path, filters: Filters | None = None, **settings: Any) -> Offline:
    return Offline(OfflineSource(paths=[str(path) for path in paths], **settings), filters or Filters())


def _values(rows: list[Row]) -> dict[str, Any]:
    """Single values by path."""
    columns = ("int_value", "float_value", "string_value", "bool_value", "datetime_value", "string_set_value")
    found: dict[str, Any] = {}
    for row in rows:
        if row["step"] is None and row["file_value"] is None:
            assert row["attribute_path"] not in found
            (found[row["attribute_path"]],) = [row[name] for name in columns if row[name] is not None]
    return found


def _points(rows: list[Row], path: str, column: str) -> list[tuple[Decimal, datetime, Any]]:
    chosen = [row for row in rows if row["attribute_path"] == path]
    return sorted(((row["step"], row["timestamp"], row[column]) for row in chosen), key=lambda point: point[0])


def _edit(database: Path, *statements: str, values: tuple[Any, ...] = ()) -> None:
    connection = sqlite3.connect(database)
    with connection:
        for statement in statements:
            connection.execute(statement, values)
    connection.close()


class TestContract(SourceContract):
    @pytest.fixture
    def case(self, everything: Path) -> SourceCase:
        return SourceCase(
            open=lambda filters: _offline(everything, filters=filters),
            roots=(everything,),
            project=PROJECT,
            run_ids=frozenset({"everything", "defaults", recorder.HOSTILE_RUN}),
            series_run="everything",
            series="m/loss",
            parameter="params/lr",
        )


class TestContractOfKilledRuns(SourceContract):
    @pytest.fixture
    def case(self, killed: Path, family: Path) -> SourceCase:
        family_ids = {"parent", "child", "plain", "grandchild", "orphan", "resumed", "early", "late"}
        return SourceCase(
            open=lambda filters: _offline(killed, family, filters=filters),
            roots=(killed, family),
            project=PROJECT,
            run_ids=frozenset({"killed", *family_ids}),
            series_run="killed",
            series="m",
            parameter="c",
        )


def test_single_values_are_exactly_what_was_logged(everything: Path) -> None:
    rows = read(_offline(everything), PROJECT, ["everything"]).rows["everything"]
    expected = dict(recorder.CONFIGS)
    expected["params/set"] = ["", "a"]
    expected["my/set"] = ["y"]
    expected["sys/tags"] = ["", "one", "three"]
    expected["sys/group_tags"] = ["group"]
    expected["sys/name"] = "exp ☃"
    expected["sys/custom_run_id"] = "everything"
    expected["sys/creation_time"] = BASE
    found = _values(rows)
    assert {path: repr(value) for path, value in found.items() if not isinstance(value, datetime)} == {
        path: repr(value) for path, value in expected.items() if not isinstance(value, datetime)
    }
    assert {path: value for path, value in found.items() if isinstance(value, datetime)} == {
        path: value for path, value in expected.items() if isinstance(value, datetime)
    }
    kinds = {row["attribute_path"]: row["attribute_type"] for row in rows}
    assert (kinds["params/big"], kinds["params/flag"], kinds["params/nan"]) == ("int", "bool", "float")
    assert (kinds["params/when"], kinds["params/set"], kinds["params/empty"]) == ("datetime", "string_set", "string")


def test_points_are_exactly_what_was_logged(everything: Path) -> None:
    rows = read(_offline(everything), PROJECT, ["everything"]).rows["everything"]
    expected = [
        (Decimal(step), BASE + timedelta(milliseconds=1001 * number), value)
        for number, (step, value) in enumerate(zip(recorder.STEPS, recorder.VALUES, strict=True))
    ]
    assert repr(_comparable(_points(rows, "m/loss", "float_value"))) == repr(_comparable(expected))
    assert [point[2] for point in _points(rows, recorder.LONG_NAME + "/m", "float_value")] == [
        float(n) for n in range(8)
    ]
    assert {point[2] for point in _points(rows, "Case/m", "float_value")} == {1.0}
    assert {point[2] for point in _points(rows, "case/m", "float_value")} == {2.0}
    assert _points(rows, "logs/text", "string_value") == [
        (Decimal(number), BASE + timedelta(seconds=number), text) for number, text in enumerate(recorder.TEXTS)
    ]


def _comparable(points: list[tuple[Decimal, datetime, Any]]) -> list[tuple[Decimal, float, Any]]:
    return [(step.quantize(Decimal("0.000001")), time.timestamp(), value) for step, time, value in points]


def test_histograms_are_exactly_what_was_logged(everything: Path) -> None:
    rows = read(_offline(everything), PROJECT, ["everything"]).rows["everything"]
    edges, counts = recorder.COUNTS
    assert _points(rows, "h/c", "histogram_value") == [
        (Decimal(1), BASE, {"type": "COUNTING", "edges": edges, "values": [float(count) for count in counts]})
    ]
    edges, densities = recorder.DENSITIES
    assert _points(rows, "h/d", "histogram_value") == [
        (Decimal("1.5"), BASE, {"type": "DENSITY", "edges": edges, "values": densities})
    ]


def test_previews_are_no_points_and_are_told(everything: Path) -> None:
    result = read(_offline(everything), PROJECT, ["everything"])
    rows, end = result.rows["everything"], result.ends["everything"]
    assert _points(rows, "m/preview", "float_value") == []
    assert _points(rows, "m/superseded", "float_value") == [(Decimal(1), BASE, 9.0)]
    assert end.repairs == {"previews_left_out": 3}
    assert [note.attribute_path for note in end.notes] == ["m/preview"]
    assert "2.0" in end.notes[0].message
    assert "step 2" in end.notes[0].message
    assert end.errors == ()


def test_files_are_exactly_what_was_logged(everything: Path) -> None:
    source = _offline(everything)
    rows = read(source, PROJECT, ["everything"]).rows["everything"]
    contents: dict[tuple[str, Any], bytes] = {}
    names: dict[str, str] = {}
    for row in rows:
        if row["file_value"] is not None:
            (file,) = source.files(PROJECT, "everything", row["file_value"]["path"])
            names[row["attribute_path"]] = file.relative_path
            with file.open() as opened:
                contents[row["attribute_path"], row["step"]] = opened.read()
    assert contents == {
        ("f/bytes", None): recorder.BYTES,
        ("f/path", None): recorder.TEXT_FILE.encode(),
        ("f/empty", None): b"",
        ("f/custom", None): b"custom",
        ("f/series", Decimal(1)): b"file 1",
        ("f/series", Decimal(2)): b"file 2",
        ("f/series", Decimal(3)): b"file 3",
    }
    assert (names["f/path"], names["f/custom"]) == ("note.txt", "my file.bin")


def test_hostile_run_ids_and_the_clients_own_defaults(everything: Path) -> None:
    result = read(_offline(everything), PROJECT, [recorder.HOSTILE_RUN, "defaults"])
    assert _values(result.rows[recorder.HOSTILE_RUN])["sys/custom_run_id"] == recorder.HOSTILE_RUN
    lines = [point[2] for point in _points(result.rows["defaults"], "runtime/stdout", "string_value")]
    assert "a captured line" in "".join(lines)
    assert "sys/id" not in _values(result.rows["defaults"])


def test_a_moved_folder_finds_its_own_files_and_names_what_is_gone(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, database = copied(everything, "everything")
    away = f"replace(source_path, '{everything}', '/gone')"
    _edit(database, f"UPDATE file_upload_requests SET source_path = {away}")
    source = _offline(folder)
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
    source = _offline(folder, search_files_in=[str(elsewhere)])
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


def test_children_inherit_what_the_parent_had_when_they_forked(family: Path) -> None:
    source = _offline(family)
    result = read(source, PROJECT, ["child", "plain", "grandchild", "orphan", "parent"])
    inherited = {
        "p/kept": 1,
        "p/overwritten": "child",
        "p/changed": "before",
        "sys/description": "told",
        "sys/tags": ["from parent"],
        "sys/group_tags": ["family"],
    }
    child = _values(result.rows["child"])
    assert isinstance(child.pop("sys/creation_time"), datetime)
    own = {"sys/custom_run_id": "child", "sys/forking/parent": "parent", "sys/forking/step": 1.5}
    assert child == {**inherited, **own}
    assert [point[2] for point in _points(result.rows["child"], "m", "float_value")] == [2.0]
    grandchild = _values(result.rows["grandchild"])
    assert {path: grandchild[path] for path in inherited} == inherited
    assert grandchild["sys/forking/parent"] == "child"
    plain = _values(result.rows["plain"])
    assert set(plain) == {"own", "sys/custom_run_id", "sys/creation_time", "sys/forking/parent", "sys/forking/step"}
    orphan = result.ends["orphan"]
    assert orphan.errors == ()
    assert "'nowhere'" in orphan.notes[0].message
    assert _values(result.rows["orphan"])["own"] == 1
    assert _values(result.rows["parent"])["p/changed"] == "after"
    for run_id in ("child", "grandchild"):
        (reference,) = [row["file_value"]["path"] for row in result.rows[run_id] if row["file_value"] is not None]
        (file,) = source.files(PROJECT, run_id, reference)
        with file.open() as opened:
            assert opened.read() == b"parent's file"


def test_a_parent_that_filters_leave_out_still_passes_on(family: Path) -> None:
    source = _offline(family, filters=Filters(runs=RunFilter(ids=["child"])))
    assert [info.run_id for info in source.runs(PROJECT)] == ["child"]
    assert _values(read(source, PROJECT, ["child"]).rows["child"])["p/kept"] == 1


def test_a_parent_in_another_folder_changes_the_childs_fingerprint(
    family: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, _ = copied(family, "child")
    shutil.rmtree(folder / "elsewhere")
    alone = {info.run_id: info.fingerprint for info in _offline(folder).runs(PROJECT)}
    together = {info.run_id: info.fingerprint for info in _offline(folder, family / "elsewhere").runs(PROJECT)}
    assert alone["child"] != together["child"]
    assert alone["grandchild"] != together["grandchild"]
    assert alone["plain"] == together["plain"]
    assert "p/kept" not in _values(read(_offline(folder), PROJECT, ["child"]).rows["child"])


def test_a_child_recorded_before_its_parent_inherits_nothing(family: Path) -> None:
    result = read(_offline(family), PROJECT, ["early", "late"])
    assert "p" not in _values(result.rows["early"])
    assert _values(result.rows["early"])["sys/forking/parent"] == "late"
    assert _values(result.rows["late"])["p"] == 1


def test_recordings_of_one_run_are_one_run(family: Path) -> None:
    source = _offline(family)
    result = read(source, PROJECT, ["resumed"])
    found = _values(result.rows["resumed"])
    assert found == {
        "c": "second",
        "only/first": 1,
        "sys/tags": ["b"],
        "sys/creation_time": BASE,
        "sys/custom_run_id": "resumed",
    }
    assert [point[2] for point in _points(result.rows["resumed"], "m", "float_value")] == [1.0, 2.0]
    assert result.ends["resumed"].errors == ()
    (info,) = [info for info in source.runs(PROJECT) if info.run_id == "resumed"]
    assert info.created_at == BASE


def test_a_killed_process_loses_nothing(killed: Path) -> None:
    database = _database(killed, "killed")
    assert database.with_name(database.name + "-wal").stat().st_size > database.stat().st_size
    before = tree([killed])
    source = _offline(killed)
    assert [info.run_id for info in source.runs(PROJECT)] == ["killed"]
    result = read(source, PROJECT, ["killed"])
    assert _points(result.rows["killed"], "m", "float_value") == [
        (Decimal(step), BASE + timedelta(seconds=step), step / 2) for step in range(50)
    ]
    assert _values(result.rows["killed"])["c"] == 1
    assert result.ends["killed"].errors == result.ends["killed"].notes == ()
    assert tree([killed]) == before


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


def test_read_only_folders_are_read(read_only: Path) -> None:
    before = tree([read_only])
    source = _offline(read_only)
    ids = [info.run_id for info in source.runs(PROJECT)]
    assert len(ids) == 4
    result = read(source, PROJECT, ids)
    assert not any(end.errors for end in result.ends.values())
    assert tree([read_only]) == before


def test_a_partly_synced_recording_is_partial(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, database = copied(everything, "everything")
    # What the client runs when a server has acknowledged operations.
    _edit(database, "DELETE FROM run_operations WHERE sequence_id <= 6")
    source = _offline(folder)
    (info,) = [info for info in source.runs(PROJECT) if info.run_id == "everything"]
    assert info.created_at is None
    result = read(source, PROJECT, ["everything"])
    end = result.ends["everything"]
    assert end.promised is None
    assert "6 operations are not here any more" in end.errors[0].message
    points = _points(result.rows["everything"], "m/loss", "float_value")
    assert [str(point[0]) for point in points] == [f"{Decimal(step):.6f}" for step in recorder.STEPS[3:]]
    assert _values(result.rows["everything"])["sys/custom_run_id"] == "everything"


def test_all_operations_synced_but_files_left(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, database = copied(everything, "everything")
    _edit(database, "DELETE FROM run_operations")
    end = read(_offline(folder), PROJECT, ["everything"]).ends["everything"]
    assert end.promised is None
    assert "operations are not here any more" in end.errors[0].message


def test_an_uploaded_file_is_gone(everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]) -> None:
    folder, database = copied(everything, "everything")
    _edit(database, "DELETE FROM file_upload_requests WHERE destination = 'shared/my file.bin'")
    with pytest.raises(FileGoneError, match="shared/my file"):
        _offline(folder).files(PROJECT, "everything", "shared/my file.bin")


def test_other_formats_are_refused(everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]) -> None:
    folder, database = copied(everything, "everything")
    _edit(database, "UPDATE metadata SET version = 'v4'")
    source = _offline(folder)
    assert "everything" not in {info.run_id for info in source.runs(PROJECT)}
    (problem,) = source.problems(PROJECT)
    assert str(database) in problem.message
    assert "'v4'" in problem.message
    assert "sync it with" in problem.message


def test_flat_files_of_old_clients_are_refused(everything: Path, tmp_path: Path) -> None:
    flat = tmp_path / ".neptune" / "team_vision_run_1700000000.sqlite3"
    flat.parent.mkdir()
    shutil.copyfile(_database(everything, "everything"), flat)
    _edit(flat, "UPDATE metadata SET version = 'v1'")
    with pytest.raises(SourceError, match="'v1'") as caught:
        _offline(tmp_path).projects()
    assert str(flat) in str(caught.value)


def test_what_is_no_database_is_refused_and_the_others_are_read(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, database = copied(everything, "defaults")
    database.write_bytes(b"this is no SQLite database " * 1000)
    other = folder / "of someone else.sqlite3"
    _edit(other, "CREATE TABLE things (name)")
    source = _offline(folder)
    assert {info.run_id for info in source.runs(PROJECT)} == {"everything", recorder.HOSTILE_RUN}
    (problem,) = source.problems(PROJECT)
    assert str(database) in problem.message


def test_a_database_cut_short_is_partial(everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]) -> None:
    folder, database = copied(everything, "everything")
    # The first pages stay, so that the run is listed, and a page that operations lie on is overwritten.
    data = bytearray(database.read_bytes())
    data[-2 * 4096 :] = b"\xa5" * (2 * 4096)
    database.write_bytes(data)
    source = _offline(folder)
    assert "everything" in {info.run_id for info in source.runs(PROJECT)}
    result = read(source, PROJECT, ["everything", "defaults"])
    assert result.ends["everything"].errors
    assert result.ends["everything"].promised is None
    assert not result.ends["defaults"].errors


def test_garbage_in_one_operation_spoils_only_that_one(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, database = copied(everything, "everything")
    good = read(_offline(everything), PROJECT, ["everything"]).rows["everything"]
    _edit(database, "UPDATE run_operations SET operation = ? WHERE sequence_id = 5", values=(b"\xff\xff garbage",))
    _edit(database, "UPDATE run_operations SET operation_type = 9 WHERE sequence_id = 6")
    result = read(_offline(folder), PROJECT, ["everything"])
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
        _edit(
            database,
            "INSERT INTO run_operations (timestamp, operation_type, operation, operation_size_bytes) "
            "VALUES (1, 0, ?, 1)",
            values=(blob,),
        )
    result = read(_offline(folder), PROJECT, ["defaults"])
    errors = result.ends["defaults"].errors
    assert [issue.attribute_path for issue in errors] == ["m/step", "m/time", None, "m/bool", "a/nothing"]
    assert "m/without" in errors[2].message
    rows = result.rows["defaults"]
    assert _values(rows)["a/kept"] == 5
    assert [point[2] for point in _points(rows, "m/int", "float_value")] == [7.0]
    assert not {"m/step", "m/time", "m/bool"} & {row["attribute_path"] for row in rows}


def test_a_path_of_two_types_loses_neither(everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]) -> None:
    from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import UpdateRunSnapshot

    folder, database = copied(everything, "everything")
    operation = UpdateRunSnapshot()
    operation.assign["a_b"].string = "text now"
    _edit(
        database,
        "INSERT INTO run_operations (timestamp, operation_type, operation, operation_size_bytes) VALUES (1, 0, ?, 1)",
        values=(operation.SerializeToString(),),
    )
    result = read(_offline(folder), PROJECT, ["everything"])
    assert {("a_b", "int"), ("a_b", "string")} <= result.paths("everything")
    assert "a_b" in {note.attribute_path for note in result.ends["everything"].notes}
    assert not result.ends["everything"].errors


def test_errors_the_client_recorded_are_notes_and_pickles_are_never_read(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, database = copied(everything, "defaults")
    trap = tmp_path / "trap"
    pickled = f"cposix\nsystem\n(S'touch {trap}'\ntR.".encode().hex()
    _edit(
        database,
        "INSERT INTO operation_errors (timestamp, error_type, error_details, error_body, sequence_id) "
        "VALUES (1, 'NeptuneAttributePathInvalid', 'bad path', ?, 2)",
        values=(pickled,),
    )
    (note,) = read(_offline(folder), PROJECT, ["defaults"]).ends["defaults"].notes
    assert "operation 2: NeptuneAttributePathInvalid: bad path" in note.message
    assert not trap.exists()


def test_a_live_process_is_read_as_it_is_and_said_so(tmp_path: Path) -> None:
    process = record("live", tmp_path, wait=False)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        source = _offline(tmp_path)
        (first,) = source.runs(PROJECT)
        watched = source.watch_state()
        process.stdin.write("more\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == "ready"
        (second,) = source.runs(PROJECT)
        assert second.fingerprint != first.fingerprint
        assert source.watch_state() != watched
        result = read(source, PROJECT, ["live"])
        assert [point[2] for point in _points(result.rows["live"], "m", "float_value")] == [float(n) for n in range(10)]
        (note,) = result.ends["live"].notes
        assert f"process {process.pid}" in note.message
        assert result.ends["live"].errors == ()
        process.stdin.write("flood\n")
        process.stdin.flush()
        deadline = time.monotonic() + 2
        counts: list[int] = []
        while time.monotonic() < deadline:
            flooded = read(_offline(tmp_path), PROJECT, ["live"])
            if not flooded.ends["live"].errors:
                values = [point[2] for point in _points(flooded.rows["live"], "m", "float_value")]
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


def test_a_whole_project_can_be_watched_cheaply(family: Path, copied: Callable[[Path, str], tuple[Path, Path]]) -> None:
    folder, database = copied(family, "orphan")
    before = _offline(folder).watch_state()
    assert list(before) == [PROJECT]
    assert _offline(folder).watch_state() == before
    _edit(database, "DELETE FROM operation_errors")
    os.utime(database, ns=(1, 1))
    assert _offline(folder).watch_state() != before


def test_paths_that_cannot_be_used_are_told(everything: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    source = _offline(everything, missing)
    assert source.projects() == [PROJECT]
    (problem,) = source.problems(PROJECT)
    assert str(missing) in problem.message
    with pytest.raises(SourceError, match="missing"):
        _offline(missing).projects()
    (tmp_path / "empty").mkdir()
    assert _offline(tmp_path / "empty").projects() == []


def test_symlink_loops_and_doubled_paths_count_once(everything: Path, tmp_path: Path) -> None:
    holder = tmp_path / "holder"
    holder.mkdir()
    (holder / "loop").symlink_to(holder)
    (holder / "recordings").symlink_to(everything)
    source = _offline(holder, everything, everything / "." / ".." / everything.name)
    assert len([info for info in source.runs(PROJECT) if info.run_id == "everything"]) == 1
    end = read(source, PROJECT, ["everything"]).ends["everything"]
    assert end.repairs == {"previews_left_out": 3}


def test_a_copy_of_a_recording_counts_once(
    everything: Path, killed: Path, copied: Callable[[Path, str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, _ = copied(everything, "everything")
    shutil.copytree(killed, tmp_path / "killed copy")
    source = _offline(everything, folder, killed, tmp_path / "killed copy")
    result = read(source, PROJECT, ["everything", "killed"])
    assert result.ends["everything"].repairs == {"previews_left_out": 3}
    assert len(_points(result.rows["killed"], "m", "float_value")) == 50
    assert sum("is a copy of" in problem.message for problem in source.problems(PROJECT)) == 4


def test_a_recording_that_vanishes_after_listing_ends_with_an_error(
    everything: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, database = copied(everything, "everything")
    source = _offline(folder)
    source.runs(PROJECT)
    shutil.rmtree(database.parent)
    with pytest.raises(FileGoneError, match="cannot be read any more"):
        source.files(PROJECT, "everything", "shared/my file.bin")
    result = read(source, PROJECT, ["everything", "defaults"])
    assert str(database) in result.ends["everything"].errors[0].message
    assert result.ends["everything"].promised is None
    assert result.ends["defaults"].errors == ()
    source.projects()
    gone = read(source, PROJECT, ["everything"]).ends["everything"]
    assert "no recording of run 'everything'" in gone.errors[0].message


def test_listing_tells_times_and_size(everything: Path) -> None:
    (info,) = [info for info in _offline(everything).runs(PROJECT) if info.run_id == "everything"]
    assert info.created_at == BASE
    assert info.modified_at is not None
    assert info.modified_at <= datetime.now(UTC)
    assert info.size_hint > 0
