"""Names and values that are not UTF-8, and artifacts of which only the location is known, through every asset."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import duckdb
import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import Filters, LakeSettings
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline
from neptune_assets_tests.support.client_reading import NAME, RUN_ID, floats, op, write_log
from neptune_assets_tests.support.home import Home, bring_home

CASES = Path(__file__).parent / "cases"
PROJECT = "team/old"
ODD = "caf\\xe9"


def extract(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("names")
    recordings = folder / "recordings"
    case = extract(CASES / "non-utf8-names" / "input.tar", recordings / "case")
    for log in case.rglob("data-1.log"):
        log.write_text(log.read_text().replace("@ROOT@", str(case)))
    extract(CASES / "neptune-client" / "1.14.0.tar.gz", folder / "all")
    shutil.move(folder / "all" / "names", recordings / "names")
    shutil.copytree(CASES / "remote-artifact", recordings / "remote")
    return bring_home(folder, {"paths": [str(recordings)], "project": PROJECT}, PROJECT)


def run_named(home: Home, path: str, value: str) -> str:
    """The id of the run that has a value."""
    with duckdb.connect() as connection:
        pattern = str(home.root / "data" / "**" / "*_part_*.parquet")
        query = "SELECT DISTINCT run_id FROM read_parquet(?) WHERE attribute_path = ? AND string_value = ?"
        ((found,),) = connection.execute(query, [pattern, path, value]).fetchall()
    return str(found)


def files_of(home: Home, run_id: str, path: str) -> dict[str, bytes]:
    (row,) = [row for row in home.lake(run_id) if row["attribute_path"] == path]
    place = home.file(row)
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def test_the_case_is_whole_in_the_lake_and_the_targets(home: Home) -> None:
    run_id = run_named(home, "sys/name", "set")
    (path,) = {row["attribute_path"] for row in home.lake(run_id) if row["attribute_type"] == "file_set"}
    run = Lake(LakeSettings(root=str(home.root))).project(PROJECT).run(run_id)
    members = {record.member: record for record in run.record.files if record.attribute_path == path}
    names = {Path(str(member)).name for member in members}
    assert names == {"r\\xe9sultat.csv", "ok.txt"}
    assert sorted(files_of(home, run_id, path).values()) == sorted([b"1,2", b"ok"])
    for held in (home.mlflow(run_id), home.wandb(run_id)):
        assert sorted(held.files[path].values()) == sorted([b"1,2", b"ok"])
    assert run_named(home, "sys/name", "plain")


def test_values_of_every_kind_reach_the_targets(home: Home) -> None:
    run_id = run_named(home, "value", f"w/{ODD}.txt")
    (run,) = home.summary("runs", run_id)
    assert run["name"] == "names"
    params = {row["attribute_path"]: row for row in home.summary("params", run_id)}
    assert params["value"]["string_value"] == f"w/{ODD}.txt"
    assert params[f"path/{ODD}"]["int_value"] == 1
    for held in (home.mlflow(run_id), home.wandb(run_id)):
        assert held.params["value"] == f"w/{ODD}.txt"
        assert str(held.params[f"path/{ODD}"]) == "1"
        assert [text for _, text in held.texts["texts"]] == [ODD]
        assert sorted(held.files["set"].values()) == [b"latin", b"ok"]
        assert list(held.files["one"].values()) == [b"latin"]


def test_locations_without_bytes_reach_the_targets(home: Home) -> None:
    run_id = run_named(home, "sys/name", "s3")
    for held in (home.mlflow(run_id), home.wandb(run_id)):
        for path, location in (("data/train", "s3://bucket/some/prefix"), ("data/val", "s3://bucket/other/val.csv")):
            ((listed,),) = [json.loads(content) for content in held.files[path].values()]
            assert listed["metadata"] == [{"key": "location", "value": location}]


def readable_by_duckdb(root: Path) -> int:
    """Rows of all manifests as DuckDB reads their JSON; raises what DuckDB raises."""
    with duckdb.connect() as connection:
        manifests = [str(path) for path in root.rglob(".manifest/*.jsonl")]
        rows: Any = connection.execute("SELECT count(*) FROM read_ndjson_objects(?)", [manifests]).fetchone()
        connection.execute("SELECT json_extract(json, '$.*') FROM read_ndjson_objects(?)", [manifests]).fetchall()
    return int(rows[0])


def test_errors_that_name_such_files_keep_the_manifest_readable(home: Home, tmp_path: Path) -> None:
    assert readable_by_duckdb(home.root)
    gone = "/no/such/caf\udce9.bin"
    write_log(
        tmp_path / ".neptune" / "offline" / NAME,
        floats("m\udce9", 1.0),
        op("UploadFile", "one\udce9", ext="bin", file_path=gone, tmp_file_name=None),
        op("UploadFileSet", "set\udce9", file_globs=[gone, "/no/\ud83d*"], reset="False"),
        op("TrackFilesToArtifact", "art\udce9", entries=[[gone, None], ["s3://b/\udce9", "\udce9"]]),
        op("Unknown\udce9", "x\udce9"),
        op("AssignString", "half", value="\ud83d"),
    )
    source = Offline(OfflineSource(paths=[str(tmp_path)], project=PROJECT), Filters())
    report = LakeWriter(LakeSettings(root=str(tmp_path / "lake")), source).write_project(PROJECT)
    assert report.partial == [RUN_ID]
    assert readable_by_duckdb(tmp_path / "lake")
    run = Lake(LakeSettings(root=str(tmp_path / "lake"))).project(PROJECT).run(RUN_ID)
    messages = [issue.message for issue in run.record.errors]
    assert sum("caf\\xe9.bin" in message for message in messages) >= 3
    assert all(message.encode() for message in messages)
