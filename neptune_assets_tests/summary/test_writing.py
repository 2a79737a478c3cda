from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neptune_assets.summary.database import replacing, write_table

SCHEMA = pa.schema([pa.field("a", pa.int64(), metadata={"description": "numbers"})])


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def numbers(count: int) -> pa.RecordBatchReader:
    batches = (pa.record_batch([pa.array(range(i * 10, i * 10 + 10))], schema=SCHEMA) for i in range(count))
    return pa.RecordBatchReader.from_batches(SCHEMA, batches)


def failing() -> pa.RecordBatchReader:
    def batches():
        yield pa.record_batch([pa.array([1])], schema=SCHEMA)
        raise RuntimeError("the source broke")

    return pa.RecordBatchReader.from_batches(SCHEMA, batches())


def test_a_table_is_written_whole_with_its_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "t.parquet"
    assert write_table(numbers(3), str(path)) == 30
    assert pq.read_table(path)["a"].to_pylist() == list(range(30))
    assert pq.read_schema(path).field("a").metadata == {b"description": b"numbers"}
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"
    assert names(path.parent) == [".t.parquet.sha256", "t.parquet"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(numbers(1), str(path))
    with pytest.raises(RuntimeError, match="the source broke"):
        write_table(failing(), str(path))
    assert pq.read_table(path).num_rows == 10
    assert names(tmp_path) == [".t.parquet.sha256", "t.parquet"]


def test_an_object_store_never_sees_half_a_table(tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("memory")
    path = f"/{tmp_path.name}/t.parquet"
    with pytest.raises(RuntimeError, match="the source broke"):
        write_table(failing(), path, filesystem, str(tmp_path))
    assert not filesystem.exists(path)
    assert write_table(numbers(2), path, filesystem, str(tmp_path)) == 20
    with filesystem.open(path) as stream:
        assert pq.read_table(stream).num_rows == 20
    assert names(tmp_path) == []


def test_writers_of_one_path_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "f"
    inside, most, lock = 0, 0, threading.Lock()

    def write(number: int) -> None:
        nonlocal inside, most
        for _ in range(5):
            with replacing(path) as temporary:
                with lock:
                    inside += 1
                    most = max(most, inside)
                temporary.write_text(str(number) * 1000)
                time.sleep(0.002)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(set(path.read_text())) == 1
    assert names(tmp_path) == ["f"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    code = (
        "import sys, time, pathlib; from neptune_assets.summary.database import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 3
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["f"]
