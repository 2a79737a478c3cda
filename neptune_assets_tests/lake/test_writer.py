from __future__ import annotations

import math
import os
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.parts import GENERATION, RUN_ID, WriteLimits
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.reports import Progress
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import SCHEMA, Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import Issue
from neptune_assets_tests.support.lake_factory import (
    START,
    file,
    histograms,
    make_lake,
    metric,
    param,
    params,
    texts,
)
from neptune_assets_tests.support.lake_writing import DIRECTORY, P, raw_rows, rows_of, run, write
from neptune_assets_tests.support.table_source import TableSource, as_table

HOSTILE = [
    *params(
        {
            "empty": "",
            "nul": "a\0b",
            "lines": "a\r\nb\n",
            "max": 2**63 - 1,
            "min": -(2**63),
            "odd": 2**53 + 1,
            "minus zero": -0.0,
            "nan": math.nan,
            "inf": -math.inf,
            "tiny": 5e-324,
            "when": datetime(1969, 12, 31, 23, 59, 59, 999000, tzinfo=UTC),
            "set": ["b", "", "ü"],
            "no": False,
            "a.b": 1,
            "a_b": 2,
            "A.b": 3,
            "n" * 1500: 4,
            "ü/ /\0/'\"": 5,
        }
    ),
    *metric("m", [math.nan, math.inf, -0.0, 0.1], steps=["-999999999999.999999", "0.000001", 1, "999999999999.999999"]),
    *texts("log", ["", "\0", "line\n"]),
    *histograms("h", [([0.0, 0.5, math.inf], [1.0, -0.0]), ([], [])]),
    *histograms("d", [([0.0, 1.0], [0.25])], kind="DENSITY"),
]


def test_hostile_names_and_values_come_back_exactly(tmp_path: Path) -> None:
    run_id = "a_part_0/..\0" + "ü" * 1200
    write(tmp_path, TableSource({P: {run_id: run(HOSTILE, run_id)}}))
    expected = sorted(as_table(P, run_id, HOSTILE).to_pylist(), key=lambda r: (r["attribute_path"], r["step"] or 0))
    assert repr(raw_rows(tmp_path, run_id)) == repr(expected)
    assert repr(rows_of(tmp_path, run_id)) == repr(expected)


def test_parts_say_whose_they_are_and_use_the_tuned_encodings(tmp_path: Path) -> None:
    write(tmp_path, TableSource({P: {"RUN-1": run(metric("m", [0.5] * 1000))}}))
    (path,) = (tmp_path / "data" / DIRECTORY).glob("*.parquet")
    assert path.name == "RUN-1-549fcb30a0f06072_part_0.parquet"
    metadata = pq.read_metadata(path)
    record = Lake(LakeSettings(root=str(tmp_path))).project(P).records()["RUN-1"]
    assert metadata.metadata[GENERATION.encode()].decode() == record.generation
    assert metadata.metadata[RUN_ID.encode()] == b"RUN-1"
    assert pq.read_schema(path).remove_metadata().equals(SCHEMA)
    columns = {metadata.row_group(0).column(n).path_in_schema: metadata.row_group(0).column(n) for n in range(10)}
    assert all(column.compression == "ZSTD" for column in columns.values())
    assert columns["step"].physical_type == "INT64"
    assert "DELTA_BINARY_PACKED" in columns["step"].encodings
    assert "DELTA_BINARY_PACKED" in columns["timestamp"].encodings
    assert "BYTE_STREAM_SPLIT" in columns["float_value"].encodings
    assert columns["attribute_path"].has_dictionary_page


def test_large_runs_roll_over_into_numbered_parts(tmp_path: Path) -> None:
    noise = os.urandom(3_000_000)
    rows = [*texts("log", [noise[i : i + 15_000].hex() for i in range(0, len(noise), 15_000)]), *metric("a", range(9))]
    settings = {"part_mb": 1}
    # Row groups of 32 MiB in memory would hold all of it: make the run large enough for several.
    many = [
        row for copy in range(12) for row in [{**r, "attribute_path": f"{r['attribute_path']}{copy}"} for r in rows]
    ]
    write(tmp_path, TableSource({P: {"RUN-1": run(many)}}), **settings)
    record = Lake(LakeSettings(root=str(tmp_path))).project(P).records()["RUN-1"]
    assert [part.name for part in record.parts] == [
        f"RUN-1-549fcb30a0f06072_part_{number}.parquet" for number in range(len(record.parts))
    ]
    assert len(record.parts) > 1
    assert sum(part.rows for part in record.parts) == len(many)
    for part in record.parts:
        path = tmp_path / "data" / DIRECTORY / part.name
        assert path.stat().st_size == part.bytes
        assert pq.read_metadata(path).num_rows == part.rows
    assert len(rows_of(tmp_path)) == len(many)


def test_counts_state_and_facts_stand_in_the_record(tmp_path: Path) -> None:
    created = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    rows = [
        *params({"sys/name": "n", "sys/creation_time": created, "sys/forking/parent": "RUN-0", "sys/forking/step": 7}),
        *metric("m", [1.0, 2.0]),
        *metric("k", [1.0]),
    ]
    promised = {"string": 2, "datetime": 1, "int": 1, "float_series": 2}
    report = write(tmp_path, TableSource({P: {"RUN-1": run(rows, promised=promised, notes=[Issue("a note")])}}))
    record = Lake(LakeSettings(root=str(tmp_path))).project(P).records()["RUN-1"]
    assert record.complete
    assert record.rows == {"datetime": 1, "float_series": 3, "int": 1, "string": 2}
    assert record.attributes == promised
    assert (record.name, record.parent, record.fork_step) == ("n", "RUN-0", 7_000_000)
    assert record.created_at == created.isoformat()
    assert record.source == "table"
    assert [note.message for note in record.notes] == ["a note"]
    assert report.rows == record.rows
    assert report.new == ["RUN-1"]
    assert report.digest == Lake(LakeSettings(root=str(tmp_path))).project(P).digest


def test_duplicates_are_counted_as_a_repair(tmp_path: Path) -> None:
    rows = [*metric("m", [1.0, 2.0]), *metric("m", [3.0], steps=[1], start=START.replace(year=2026))]
    report = write(tmp_path, TableSource({P: {"a": run(rows, "a", repairs={"phantom_rows": 4})}}))
    assert report.repairs == {"phantom_rows": 4, "conflicting_rows": 1}
    assert [row["float_value"] for row in rows_of(tmp_path, "a")] == [1.0, 3.0]


def test_a_run_without_rows_and_a_project_without_runs_exist(tmp_path: Path) -> None:
    write(tmp_path, TableSource({P: {"empty": run([], "empty")}}))
    record = Lake(LakeSettings(root=str(tmp_path))).project(P).records()["empty"]
    assert record.complete
    assert record.total_rows == 0
    assert rows_of(tmp_path, "empty") == []
    other = LakeWriter(LakeSettings(root=str(tmp_path)), TableSource({"ws/none": {}})).write_project("ws/none")
    assert other.digest
    assert Lake(LakeSettings(root=str(tmp_path))).projects() == ["ws/none", P]
    assert Lake(LakeSettings(root=str(tmp_path))).project("ws/none").records() == {}


def test_models_lie_apart_from_runs(tmp_path: Path) -> None:
    for scope in (Scope.MODELS, Scope.MODEL_VERSIONS):
        lake = make_lake(tmp_path, {P: {f"M-{scope}": [param("p", str(scope)), file("f", b"x")]}}, scope=scope)
        assert lake.projects(scope) == [P]
        assert list(lake.project(P, scope).records()) == [f"M-{scope}"]
        name = f"{safe_name(f'M-{scope}')}_part_0.parquet"
        assert (tmp_path / "model_data" / DIRECTORY / scope.value / name).is_file()
    assert Lake(LakeSettings(root=str(tmp_path))).projects() == []
    assert len([path for path in (tmp_path / "model_files" / DIRECTORY).rglob("*") if path.is_file()]) == 2


def test_progress_ends_at_the_end(tmp_path: Path) -> None:
    seen: list[Progress] = []
    source = TableSource({P: {name: run(metric("m", [1.0] * 5), name) for name in "abc"}})
    write(tmp_path, source, progress=seen.append)
    assert [item.runs_done for item in seen][-1] == 3
    assert seen[-1].size_done == seen[-1].size_total > 0
    assert seen[-1].rows == 15
    assert seen[-1].eta == 0


def test_a_long_materialization_keeps_few_manifest_files(tmp_path: Path) -> None:
    source = TableSource({P: {f"{n:02d}": run(metric("m", [1.0]), f"{n:02d}") for n in range(23)}})
    write(tmp_path, source, limits=WriteLimits(deltas=5))
    assert len(list((tmp_path / "data" / DIRECTORY / ".manifest").glob("*.jsonl"))) == 1
    assert len(Lake(LakeSettings(root=str(tmp_path))).project(P).records()) == 23


@pytest.mark.parametrize("limit", [400_000, 1000])
def test_spilling_changes_nothing(tmp_path: Path, limit: int) -> None:
    values = [float(number) for number in range(2500)]
    rows = [row for pair in zip(metric("b", values), metric("a", values), strict=True) for row in pair][::-1]
    scratch = tmp_path / "scratch"
    write(tmp_path / "lake", TableSource({P: {"a": run(rows, "a")}}), rows_in_memory=limit, scratch=str(scratch))
    read = rows_of(tmp_path / "lake", "a")
    assert [row["attribute_path"] for row in read] == ["a"] * 2500 + ["b"] * 2500
    assert [row["float_value"] for row in read] == values * 2
    assert not scratch.exists() or list(scratch.iterdir()) == []
