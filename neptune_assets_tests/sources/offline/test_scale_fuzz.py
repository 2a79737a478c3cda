"""Whatever a recording of neptune-scale holds, listing and reading it never fails as a whole: faults are its run's."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neptune_assets.errors import FileGoneError, SourceError, UnsafePathError
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import RunEnd
from neptune_assets_tests.support.scale_reading import offline

CASES = Path(__file__).resolve().parents[2] / "cases" / "scale-releases"
QUICK = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])

int64 = st.one_of(
    st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 253402300800, -62135596801]), st.integers(-(2**63), 2**63 - 1)
)
cells = st.one_of(st.none(), int64, st.floats(), st.text(max_size=20), st.binary(max_size=40))


@st.composite
def values(draw: st.DrawFn, message: Any) -> None:
    """Fill a protobuf value with one of its kinds."""
    kind = draw(
        st.sampled_from(["float64", "int64", "string", "bool", "timestamp", "string_set", "histogram", "file_ref", ""])
    )
    if kind == "timestamp":
        message.timestamp.seconds = draw(int64)
        message.timestamp.nanos = draw(st.integers(-(2**31), 2**31 - 1))
    elif kind == "string_set":
        message.string_set.values.extend(draw(st.lists(_text, max_size=3)))
    elif kind == "histogram":
        message.histogram.bin_edges.extend(draw(st.lists(st.floats(), max_size=4)))
        if draw(st.booleans()):
            message.histogram.counts.values.extend(draw(st.lists(st.integers(0, 2**64 - 1), max_size=4)))
        else:
            message.histogram.densities.values.extend(draw(st.lists(st.floats(), max_size=4)))
    elif kind == "file_ref":
        message.file_ref.path = draw(_text)
        message.file_ref.size_bytes = draw(int64)
    elif kind == "float64":
        message.float64 = draw(st.floats())
    elif kind == "int64":
        message.int64 = draw(int64)
    elif kind == "string":
        message.string = draw(_text)
    elif kind == "bool":
        message.bool = draw(st.booleans())


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@st.composite
def operations(draw: st.DrawFn) -> tuple[int, bytes]:
    """Kind and message: creating, updating, and bytes that are neither."""
    from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import Run, UpdateRunSnapshot

    if draw(st.integers(0, 4)) == 0:
        return draw(st.integers(-1, 3)), draw(st.binary(max_size=60))
    if draw(st.integers(0, 4)) == 0:
        run = Run(run_id=draw(_text), experiment_id=draw(_text))
        run.creation_time.seconds = draw(int64)
        run.creation_time.nanos = draw(st.integers(-(2**31), 2**31 - 1))
        if draw(st.booleans()):
            run.fork_point.parent_run_id = draw(_text)
            run.fork_point.step.whole = draw(st.integers(0, 2**64 - 1))
            run.fork_point.step.micro = draw(st.integers(0, 2**32 - 1))
            run.inherit_configs = draw(st.booleans())
        return 1, run.SerializeToString()
    update = UpdateRunSnapshot()
    if draw(st.booleans()):
        update.step.whole = draw(st.integers(0, 2**64 - 1))
        update.step.micro = draw(st.integers(0, 2**32 - 1))
    if draw(st.booleans()):
        update.timestamp.seconds = draw(int64)
        update.timestamp.nanos = draw(st.integers(-(2**31), 2**31 - 1))
    update.preview.is_preview = draw(st.booleans())
    for _ in range(draw(st.integers(0, 3))):
        draw(values(update.assign[draw(_text)]))
    for _ in range(draw(st.integers(0, 3))):
        draw(values(update.append[draw(_text)]))
    for _ in range(draw(st.integers(0, 2))):
        update.modify_sets[draw(_text)].string.values[draw(_text)] = draw(st.integers(-3, 5))
    return 0, update.SerializeToString()


def takes_home(folder: Path) -> None:
    """Read every project below a folder through source and lake; nothing may raise but what says that all is unread."""
    source = offline(folder)
    try:
        projects = source.projects()
    except SourceError:
        assert any(str(folder) in problem.message for problem in source.problems())
        return
    for project in projects:
        infos = source.runs(project)
        ends = {}
        for chunk in source.read(project, [info.run_id for info in infos]):
            if isinstance(chunk, RunEnd):
                ends[chunk.run_id] = chunk
                continue
            for value in chunk.batch["file_value"].to_pylist():
                if value is not None:
                    try:
                        for file in source.files(project, chunk.run_id, value["path"]):
                            file.open().close()
                    except (FileGoneError, UnsafePathError):
                        continue
        assert set(ends) == {info.run_id for info in infos}
        made = LakeSettings(root=str(folder / "lake"))
        report = LakeWriter(made, source).write_project(project)
        assert not report.failed
        records = Lake(made).project(project).records()
        for run_id, end in ends.items():
            assert records[run_id].complete or end.errors or records[run_id].errors


def copy_of(release: str, folder: str) -> tuple[Path, Path]:
    target = Path(shutil.copytree(CASES / release, Path(folder) / "r"))
    (database,) = target.rglob("*.sqlite3")
    return Path(folder), database


@QUICK
@given(st.lists(operations(), max_size=8), st.lists(st.tuples(int64, int64), max_size=3))
def test_any_messages_and_times(messages: list[tuple[int, bytes]], times: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, database = copy_of("0.20.0", name)
        with sqlite3.connect(database) as connection:
            for kind, blob in messages:
                connection.execute(
                    "INSERT INTO run_operations (timestamp, operation_type, operation, operation_size_bytes) "
                    "VALUES (?, ?, ?, ?)",
                    (times[0][0] if times else 0, kind, blob, len(blob)),
                )
            for number, (time, sequence) in enumerate(times):
                connection.execute("UPDATE run_operations SET timestamp = ? WHERE sequence_id = ?", (time, number + 1))
                connection.execute(
                    "UPDATE OR IGNORE run_operations SET sequence_id = ? WHERE sequence_id = ?", (sequence, number + 2)
                )
        connection.close()
        takes_home(folder)


@QUICK
@given(
    st.sampled_from(["run_operations", "metadata", "file_upload_requests", "operation_errors", "sqlite_sequence"]),
    st.integers(0, 5),
    cells,
    st.sampled_from(["0.20.0", "0.12.1", "0.11.0"]),
)
def test_any_cell_of_any_table(table: str, column: int, cell: Any, release: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, database = copy_of(release, name)
        connection = sqlite3.connect(database)
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        try:
            if columns:
                chosen = columns[column % len(columns)]
                connection.execute(f"UPDATE OR IGNORE {table} SET {chosen} = ?", (cell,))
                connection.commit()
        except (sqlite3.DatabaseError, UnicodeEncodeError):
            connection.rollback()  # SQLite itself does not take it
        connection.close()
        takes_home(folder)


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=9)), max_size=4), st.integers(0, 40_000)
)
def test_any_bytes_and_any_length_of_the_database(changes: list[tuple[int, bytes]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, database = copy_of("0.20.0", name)
        data = bytearray(database.read_bytes())
        for place, new in changes:
            place %= len(data)
            data[place : place + len(new)] = new
        database.write_bytes(data[: max(0, len(data) - cut)] if cut % 3 == 0 else data)
        takes_home(folder)


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=9)), max_size=4), st.integers(0, 150_000)
)
def test_any_bytes_and_any_length_of_the_wal(changes: list[tuple[int, bytes]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, database = copy_of("0.13.0-killed", name)
        wal = database.with_name(f"{database.name}-wal")
        data = bytearray(wal.read_bytes())
        for place, new in changes:
            place %= len(data)
            data[place : place + len(new)] = new
        wal.write_bytes(data[: max(0, len(data) - cut)] if cut % 3 == 0 else data)
        takes_home(folder)


@QUICK
@given(int64)
def test_any_time_of_the_files(nanoseconds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, database = copy_of("0.20.0", name)
        try:
            os.utime(database, ns=(nanoseconds, nanoseconds))
        except (OSError, OverflowError):
            return  # no file can have it here
        takes_home(folder)
