from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.schema import AttributeType
from neptune_assets.server.neptune2.artifacts import artifact_hash
from neptune_assets.server.store.projects import ProjectStore
from neptune_assets.server.store.runs import bits_float, decode
from neptune_assets.testing.lakes import file, file_set, files, histograms, make_lake, metric, param, params, texts
from neptune_assets_tests.support.ingest import PROJECT, Ingest, assign, points
from neptune_assets_tests.support.server import Served, server_in_thread

CREATED = datetime(2025, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC)
VALUES = [0.5, math.nan, -0.0, math.inf]
TRACKED = [
    {"filePath": "1.txt", "fileHash": "a" * 40, "type": "Local", "size": 1, "metadata": []},
    {"filePath": "2.txt", "fileHash": "b" * 40, "type": "Local", "size": 2, "metadata": []},
]
STEPS = [0, "0.000001", "2.5", 999_999_999_999]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    run = [
        *params({"sys/id": "VIS-41", "sys/custom_run_id": "old", "sys/name": "exp", "sys/creation_time": CREATED}),
        *params({"sys/tags": ["b", "a"], "sys/owner": "ada", "lr": 0.1, "big": 2**63 - 1, "on": True, "none": ""}),
        param("two", 1),
        *metric("two", [1.0]),
        *metric("loss", VALUES, steps=STEPS),
        *texts("log", ["one", "two\n\x00"]),
        *histograms("weights", [([0.0, 1.0], [3.0])]),
        file("model", b"of the lake", "model.json"),
        *files("samples", [b"first", b"second"], extension="png"),
        file_set("set", {"a.txt": b"a", "sub/b.txt": b"bb"}),
        file("data", json.dumps(TRACKED).encode(), "files_list.json", kind="artifact"),
        file("odd", b"no list", "odd.bin", kind="artifact"),
    ]
    child = params({"sys/id": "VIS-7", "sys/forking/parent": "old", "sys/forking/step": 1.5})
    return make_lake(tmp_path / "lake", {PROJECT: {"old": run, "child": child, "bare": params({"lr": 0.5})}})


def project_of(served: Served) -> ProjectStore:
    assert served.service is not None
    return served.service.store.project(PROJECT)


def attributes(project: ProjectStore, run_id: str) -> dict[str, tuple[str, Any]]:
    with project.read() as connection:
        rows = connection.execute(
            "SELECT path, type, value FROM attributes JOIN runs ON run = runs.id WHERE run_id = ?", (run_id,)
        ).fetchall()
    return {row["path"]: (row["type"], decode(AttributeType(row["type"]), row["value"])) for row in rows}


def series(project: ProjectStore, path: str, table: str) -> list[tuple[int, int, Any]]:
    column = "bits" if table == "points" else "value"
    with project.read() as connection:
        return [
            tuple(row)
            for row in connection.execute(
                f"SELECT step, time, {table}.{column} FROM {table} JOIN attributes ON attribute = attributes.id"
                " WHERE path = ? ORDER BY step",
                (path,),
            )
        ]


def test_writing_to_a_run_of_the_lake_takes_it_whole_and_goes_on(tmp_path: Path, lake: Lake) -> None:
    with server_in_thread(tmp_path / "store", lake=lake.settings) as served, served.client() as http:
        ingest = Ingest(http)
        assert ingest.create("old") == {"RUN_DUPLICATE": 1}
        assert project_of(served).revision == 0  # resuming alone takes nothing over
        assert ingest.update("old", assign({"new": 1, "lr": 0.2}), points(10**12 - 1, {"loss": 1.0})) == {
            "OK": 2,
            "SERIES_STEP_NON_INCREASING": 1,
        }
        project = project_of(served)
        with project.read() as connection:
            row = connection.execute("SELECT * FROM runs").fetchone()
        assert (row["run_id"], row["sys_id"], row["experiment"]) == ("old", "VIS-41", "exp")
        assert row["created_at"] == round(CREATED.timestamp() * 1000)
        assert row["adopted"] == lake.project(PROJECT).records()["old"].digest
        found = attributes(project, "old")
        assert "sys/id" not in found
        assert found["sys/tags"] == ("string_set", ["a", "b"])
        assert found["sys/owner"] == ("string", "ada")
        assert (found["lr"], found["new"], found["big"]) == (("float", 0.2), ("int", 1), ("int", 2**63 - 1))
        assert (found["on"], found["none"]) == (("bool", True), ("string", ""))
        assert {found[path][0] for path in ("two", "two (float_series)", "two (int)") if path in found} == {
            "int",
            "float_series",
        }
        loss = series(project, "loss", "points")
        assert [step for step, _, _ in loss] == [0, 1, 2_500_000, 999_999_999_999_000_000]
        assert [repr(bits_float(bits)) for _, _, bits in loss] == [repr(value) for value in VALUES]
        assert loss[1][1] - loss[0][1] == 1000
        assert [value for _, _, value in series(project, "log", "objects")] == ["one", "two\n\x00"]
        (histogram,) = (json.loads(value) for _, _, value in series(project, "weights", "objects"))
        assert histogram == {"type": "COUNTING", "edges": [0.0, 1.0], "values": [3.0]}


def test_files_of_an_adopted_run_are_the_stores_own(tmp_path: Path, lake: Lake) -> None:
    with server_in_thread(tmp_path / "store", lake=lake.settings) as served, served.client() as http:
        ingest = Ingest(http)
        ingest.update("old", assign({"new": 1}))
        project = project_of(served)
        found = attributes(project, "old")
        with project.read() as connection:
            keys = dict(connection.execute("SELECT key, sha256 FROM files").fetchall())
            members = dict(connection.execute("SELECT path, sha256 FROM file_set_files").fetchall())
        assert project.objects.path(keys[found["model"][1]["path"]]).read_bytes() == b"of the lake"
        assert found["model"][1]["size"] == 11
        samples = [json.loads(value)["path"] for _, _, value in series(project, "samples", "objects")]
        assert [project.objects.path(keys[key]).read_bytes() for key in samples] == [b"first", b"second"]
        assert {path: project.objects.path(sha).read_bytes() for path, sha in members.items()} == {
            "a.txt": b"a",
            "sub/b.txt": b"bb",
        }
        assert found["set"] == ("file_set", {"size": 3, "files": 2})


def test_new_runs_beside_those_of_the_lake(tmp_path: Path, lake: Lake) -> None:
    with server_in_thread(tmp_path / "store", lake=lake.settings, create_projects=False) as served:
        with served.client() as http:
            ingest = Ingest(http)
            assert ingest.create("new") == {"OK": 1}
            assert ingest.create("fork", parent="old", step=1) == {"OK": 1}
            assert Ingest(http, "not/there").create("new") == {"PROJECT_NOT_FOUND": 1}
        project = project_of(served)
        with project.read() as connection:
            ids = dict(connection.execute("SELECT run_id, sys_id FROM runs").fetchall())
        assert ids == {"new": "VIS-42", "fork": "VIS-43"}
        inherited = attributes(project, "fork")
        assert (inherited["lr"], inherited["sys/tags"]) == (("float", 0.1), ("string_set", ["a", "b"]))
        assert inherited["sys/owner"] == ("string", "neptune")
        assert {"sys/name", "loss", "sys/id"}.isdisjoint(inherited)


def test_an_adopted_fork_keeps_its_parent(tmp_path: Path, lake: Lake) -> None:
    with server_in_thread(tmp_path / "store", lake=lake.settings) as served, served.client() as http:
        Ingest(http).update("child", points(2, {"m": 1.0}))
        with project_of(served).read() as connection:
            row = connection.execute("SELECT parent_run_id, fork_step, sys_id FROM runs").fetchone()
        assert tuple(row) == ("old", 1_500_000, "VIS-7")


def test_a_run_without_an_id_keeps_the_one_it_was_shown_under(tmp_path: Path, lake: Lake) -> None:
    with server_in_thread(tmp_path / "store", lake=lake.settings) as served, served.client() as http:
        assert served.service is not None
        catalog = served.service.catalog
        catalog.refresh(PROJECT)
        shown = catalog.runs(PROJECT).by_id("bare")
        assert shown is not None
        Ingest(http).update("bare", assign({"new": 1}))
        with project_of(served).read() as connection:
            assert connection.execute("SELECT sys_id FROM runs").fetchone()[0] == shown.sys_id


def test_an_artifact_keeps_its_hash_and_its_files(lake: Lake, tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store", lake=lake.settings) as served, served.client() as http:
        Ingest(http).update("old", assign({"more": 1}))
        project = project_of(served)
        found = attributes(project, "old")
        kind, value = found["data"]
        assert kind == "artifact"
        assert value == {"hash": artifact_hash(TRACKED, with_metadata=False)}
        with project.read() as connection:
            row = connection.execute("SELECT size, files FROM artifacts WHERE hash = ?", (value["hash"],)).fetchone()
        assert (row["size"], json.loads(row["files"])) == (3, TRACKED)
        assert found["odd"][0] == "file"
