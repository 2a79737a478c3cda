"""Whatever a log of neptune-client holds, its run ends with what can be kept, and it never stops its project."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neptune_assets.schema import SCHEMA
from neptune_assets.settings import Filters
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline
from neptune_assets.sources.protocol import RunEnd
from neptune_assets_tests.support.client_reading import NAME, PROJECT, floats, op, read_one, write_log

TYPES = [
    *("AssignFloat", "AssignInt", "AssignBool", "AssignString", "AssignDatetime", "AssignArtifact", "AddStrings"),
    *("LogFloats", "LogStrings", "LogImages", "ClearFloatLog", "ConfigFloatSeries", "RemoveStrings", "ClearStringSet"),
    *("UploadFile", "UploadFileContent", "UploadFileSet", "DeleteFiles", "TrackFilesToArtifact", "ClearArtifact"),
    *("CopyAttribute", "DeleteAttribute", "Unknown"),
]
FIELDS = [
    *("value", "values", "hash", "ext", "file_content", "file_path", "tmp_file_name", "file_globs", "reset", "entries"),
    *("file_paths", "source_path", "source_attr_name", "container_id", "container_type", "min", "unit"),
]
ODD = [
    "",
    "\0",
    "a/b",
    "..",
    "\udce9",
    "\ud83d",
    "/proc/self/environ",
    "/no/*.x",
    "s3://b/k",
    "C:\\x\\*",
    "[",
    "~/x",
    "True",
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.sampled_from([2**63, -(2**63), 1e300, 10**400, 1_700_000_000_000])
    | st.sampled_from(ODD)
    | st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["value", "step", "ts", "data", "name"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=6,
)
paths = st.lists(st.sampled_from(["a", "b", "sys", "creation_time", "\udce9", ""]), max_size=2) | values
operations = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES) | values, "path": paths}, optional=dict.fromkeys(FIELDS, values)
)
records = st.fixed_dictionaries(
    {"obj": operations | values}, optional={"version": st.integers(-1, 12) | values, "at": values}
)


def ends(folder: Path) -> list[RunEnd]:
    """Read everything as the lake does, and open every file; returns the runs' ends."""
    source = Offline(OfflineSource(paths=[str(folder)], project=PROJECT), Filters())
    found = []
    for run in source.runs(PROJECT):
        references = []
        for chunk in source.read(PROJECT, [run.run_id]):
            if isinstance(chunk, RunEnd):
                found.append(chunk)
                continue
            chunk.batch.validate(full=True)
            assert chunk.batch.schema == SCHEMA
            for row in chunk.batch.to_pylist():
                if row["timestamp"] is not None:
                    assert row["timestamp"].year
                if row["file_value"] is not None:
                    references.append(row["file_value"]["path"])
        json.dumps([issue.message for issue in found[-1].errors], ensure_ascii=False).encode()
        for reference in references:
            try_to_open(source, run.run_id, reference)
    return found


def try_to_open(source: Offline, run_id: str, reference: str) -> None:
    from neptune_assets.errors import FileGoneError, UnsafePathError

    try:
        for file in source.files(PROJECT, run_id, reference):
            file.relative_path.encode()
            with file.open() as stream:
                stream.read(100)
    except (FileGoneError, UnsafePathError, OSError):
        pass  # what the lake turns into an error of the run


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.lists(records, max_size=8), tail=st.binary(max_size=30))
def test_no_record_stops_a_project(tmp_path_factory: pytest.TempPathFactory, content: list[Any], tail: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    write_log(folder / ".neptune" / "offline" / NAME.replace("0123", "9999"), floats("m", 1.0))
    execution = folder / ".neptune" / "offline" / NAME
    execution.mkdir(parents=True)
    lines = [json.dumps(record).encode() for record in content]
    (execution / "data-1.log").write_bytes(b"\n".join(lines) + tail)
    found = {end.run_id: end for end in ends(folder)}
    assert found["OFFLINE-9999456789ab"].errors == ()


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_damage_to_a_log_stops_a_project(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("flips")
    write_log(folder / ".neptune" / "offline" / NAME.replace("0123", "9999"), floats("m", 1.0))
    execution = write_log(
        folder / ".neptune" / "offline" / NAME,
        floats("m", 1.0, 2.0),
        op("AssignDatetime", "when", value=1_700_000_000_000),
        op("UploadFileSet", "set", file_globs=["/no/x*"], reset="False"),
        op("AddStrings", "tags", values=["a", "b"]),
    )
    log = execution / "data-1.log"
    content = bytearray(log.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    log.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    found = {end.run_id: end for end in ends(folder)}
    assert found["OFFLINE-9999456789ab"].errors == ()


@pytest.mark.parametrize("character", ["x", "\u00e9", "\U0001f600"])
def test_a_record_longer_than_the_setting_takes_no_memory_and_is_named(offline: Path, character: str) -> None:
    folder = write_log(offline / NAME, floats("m", 1.0))
    with (folder / "data-1.log").open("a", encoding="utf-8") as log:
        log.write('{"obj": {"type": "AssignString", "path": ["x"], "value": "')
        for _ in range(20):
            log.write(character * (1_000_000 // len(character.encode())))
        log.write('"}, "version": 2}\n' + json.dumps({"obj": op("AssignInt", "y", value=1), "version": 3}) + "\n")
    tracemalloc.start()
    read = read_one(offline, record_mb=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000
    assert read.value("y") == 1
    assert any("more than 2,000,000 bytes" in message and "record_mb" in message for message in read.errors)
    assert read.end.promised is None
    assert len(read_one(offline, record_mb=64).value("x")) >= 5_000_000


def test_deep_nesting_without_end_is_passed_in_linear_time(offline: Path) -> None:
    folder = write_log(offline / NAME, floats("m", 1.0))
    with (folder / "data-1.log").open("a") as log:
        log.write('{"obj": ' * 400_000 + "\n")
        log.write(json.dumps({"obj": op("AssignInt", "y", value=1), "version": 2}) + "\n")
    read = read_one(offline)
    assert read.value("y") == 1
    assert len(read.errors) == 1
