from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import (
    FileRef,
    Histogram,
    Run,
    StringSet,
    UpdateRunSnapshot,
    Value,
)
from neptune_api.proto.neptune_pb.ingest.v1.pub.ingest_pb2 import RunOperation

from neptune_assets_tests.support.ingest import (
    PROJECT,
    PROTOBUF,
    Ingest,
    assign,
    change,
    points,
    stored,
    stored_points,
)
from neptune_assets_tests.support.server import Served, server_in_thread


@pytest.fixture
def ingest(http: httpx.Client) -> Ingest:
    return Ingest(http)


def values(served: Served, run_id: str) -> dict[str, Any]:
    with stored(served.store) as connection:
        rows = connection.execute(
            "SELECT path, value FROM attributes JOIN runs ON run = runs.id WHERE run_id = ? AND value IS NOT NULL",
            (run_id,),
        ).fetchall()
    connection.close()
    return {path: value for path, value in rows if path != "sys/owner"}


def test_a_run_is_made_once_and_updated(served: Served, ingest: Ingest) -> None:
    assert ingest.update("r", assign({"a": 1})) == {"PROJECT_NOT_FOUND": 1}
    assert ingest.create("r", experiment_id="exp") == {"OK": 1}
    assert ingest.create("r", experiment_id="other") == {"RUN_DUPLICATE": 1}
    assert ingest.update("other", assign({"a": 1})) == {"RUN_NOT_FOUND": 1}
    assert ingest.update("r", assign({"a": 1, "b": "x"}), points(0, {"m": 1.0, "n": math.inf})) == {"OK": 4}
    assert stored_points(served.store, "r") == {"m": [(0, 1.0)], "n": [(0, math.inf)]}
    assert values(served, "r") == {"a": 1, "b": "x"}
    with stored(served.store) as connection:
        assert connection.execute("SELECT run_id, sys_id, experiment FROM runs").fetchall() == [
            ("r", "VISION-1", "exp")
        ]
    connection.close()


def test_names_that_no_project_can_have(http: httpx.Client) -> None:
    for name in ("", "nospace", "a/b/c", "../..", "a/..", "a/b\x00"):
        assert Ingest(http, name).create("r") == {"PROJECT_INVALID_NAME": 1}
    assert Ingest(http).create("") == {"RUN_INVALID_CREATION_PARAMETERS": 1}


def test_projects_are_only_made_if_they_may_be(tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store", create_projects=False) as served, served.client() as http:
        assert Ingest(http).create("r") == {"PROJECT_NOT_FOUND": 1}
        http.post(
            "/api/backend/v1/projects", json={"organizationIdentifier": "team", "name": "vision"}
        ).raise_for_status()
        assert Ingest(http).create("r") == {"OK": 1}


def test_requests_sent_again_change_nothing(served: Served, ingest: Ingest) -> None:
    ingest.create("r")
    batch = [
        assign({"a": 1.5}),
        change("sys/tags", add=("x",)),
        points(0, {"m": 1.0}),
        points(1.5, {"m": math.nan, "s": "text"}),
        points(2, {"m": 2.0}),
    ]
    assert ingest.update("r", *batch) == {"OK": 6}
    assert ingest.update("r", *batch) == {"OK": 2, "SERIES_POINT_DUPLICATE": 4}
    assert ingest.update("r", *batch[3:], points(3, {"m": 3.0})) == {"OK": 1, "SERIES_POINT_DUPLICATE": 3}
    found = stored_points(served.store, "r")["m"]
    assert [step for step, _ in found] == [0, 1_500_000, 2_000_000, 3_000_000]
    assert math.isnan(found[1][1])


def test_each_point_that_is_refused_is_counted(ingest: Ingest) -> None:
    ingest.create("r")
    ingest.update("r", points(5, {"m": 1.0}), assign({"atom": 1}))
    assert ingest.update("r", points(5, {"m": 2.0, "fresh": 1.0}), points(6, {"m": 1.0, "atom": 1.0})) == {
        "OK": 2,
        "SERIES_STEP_NON_INCREASING": 1,
        "FIELD_TYPE_CONFLICTING": 1,
    }
    assert ingest.update("r", assign({"m": 1, "atom": 2.0, "": 1, "x" * 1025: 1, "sys/id": "a"})) == {
        "FIELD_TYPE_CONFLICTING": 2,
        "FIELD_PATH_EMPTY": 1,
        "FIELD_PATH_EXCEEDS_SIZE_LIMIT": 1,
        "FIELD_PATH_NON_WRITABLE": 1,
    }
    assert ingest.update("r", points(10**12, {"m": 1.0, "n": 2.0})) == {"SERIES_STEP_TOO_LARGE": 2}
    assert ingest.update("r", points(9, {"m": True})) == {"FIELD_TYPE_UNSUPPORTED": 1}
    too_long = assign({"t": "é" * (1 << 19), "u": "é" * (1 << 19) + "x"})
    assert ingest.update("r", too_long) == {"OK": 1, "STRING_VALUE_EXCEEDS_SIZE_LIMIT": 1}


def test_points_that_another_client_kept_for_later(served: Served, ingest: Ingest) -> None:
    ingest.create("r")
    ingest.update("r", *(points(step, {"m": float(step), "n": step, "t": f"line {step}"}) for step in range(50, 100)))
    with stored(served.store) as connection:
        before = connection.execute("SELECT revision FROM runs").fetchone()[0]
    early = [points(step, {"m": float(step), "n": step, "t": f"line {step}"}) for step in range(60)]
    assert ingest.update("r", *early) == {"OK": 150, "SERIES_POINT_DUPLICATE": 30}
    assert ingest.update("r", *early) == {"SERIES_POINT_DUPLICATE": 180}
    assert ingest.update("r", points(3, {"m": -1.0, "n": -1, "t": "x"})) == {"SERIES_STEP_NON_INCREASING": 3}
    found = stored_points(served.store, "r")
    assert found["m"] == found["n"] == [(step * 1_000_000, float(step)) for step in range(100)]
    with stored(served.store) as connection:
        lines = connection.execute("SELECT value FROM objects ORDER BY step").fetchall()
        (after,) = connection.execute("SELECT revision FROM runs").fetchone()
        changed = {row[0] for row in connection.execute("SELECT revision FROM attributes WHERE path <> 'sys/owner'")}
    connection.close()
    assert lines == [(f"line {step}",) for step in range(100)]
    assert after == before + 1
    assert changed == {after}


def test_points_without_a_step_are_a_change_of_the_run(served: Served, ingest: Ingest) -> None:
    ingest.create("r")
    revisions = []
    for _ in range(3):
        ingest.update("r", points(None, {"m": 1.0}))
        with stored(served.store) as connection:
            revisions.append(connection.execute("SELECT revision FROM runs").fetchone()[0])
        connection.close()
    assert len(set(revisions)) == 3


def test_steps_of_points_without_one(served: Served, ingest: Ingest) -> None:
    ingest.create("r")
    ingest.update("r", points(None, {"m": 1.0}), points(None, {"m": 2.0}))
    ingest.update("r", points(7.5, {"m": 3.0}), points(None, {"m": 4.0, "t": "x"}))
    assert stored_points(served.store, "r")["m"] == [(0, 1.0), (1_000_000, 2.0), (7_500_000, 3.0), (8_500_000, 4.0)]


def test_ints_and_floats_of_one_series_in_one_request(served: Served, ingest: Ingest) -> None:
    ingest.create("r")
    batch = [points(step, {"a": step, "b": float(step), "c": "text", "d": -step, "e": 0.5}) for step in range(50)]
    assert ingest.update("r", *batch) == {"OK": 250}
    found = stored_points(served.store, "r")
    assert found["a"] == found["b"] == [(step * 1_000_000, float(step)) for step in range(50)]
    assert found["d"] == [(step * 1_000_000, -float(step)) for step in range(50)]
    assert found["e"] == [(step * 1_000_000, 0.5) for step in range(50)]


def test_previews(served: Served, ingest: Ingest) -> None:
    ingest.create("r")
    assert ingest.update("r", points(1, {"m": 1.0}, preview=0.5), points(1, {"m": 1.25}, preview=0.75)) == {"OK": 2}
    assert stored_points(served.store, "r") == {}
    later = points(2, {"m": 9.0}, preview=0.1)
    assert ingest.update("r", points(1, {"m": 1.5}), points(1, {"m": 0.0}, preview=0.9), later) == {
        "OK": 2,
        "SERIES_PREVIEW_STEP_NOT_AFTER_LAST_COMMITTED_STEP": 1,
    }
    assert stored_points(served.store, "r") == {"m": [(1_000_000, 1.5)]}
    with stored(served.store) as connection:
        assert connection.execute("SELECT step FROM previews").fetchall() == [(2_000_000,)]
    connection.close()
    assert ingest.update("r", points(3, {"m": 3.0})) == {"OK": 1}
    with stored(served.store) as connection:
        assert connection.execute("SELECT step FROM previews").fetchall() == []
    connection.close()


def test_histograms_and_files(served: Served, ingest: Ingest) -> None:
    def histogram(edges: list[float], counts: list[int]) -> Value:
        return Value(histogram=Histogram(bin_edges=edges, counts=Histogram.Counts(values=counts)))

    ingest.create("r")
    file = Value(file_ref=FileRef(path="k", size_bytes=3, mime_type="text/plain"))
    assert ingest.update("r", points(2, {"h": histogram([0, 1], [2**60]), "f": file}), points(1, {"f": file})) == {
        "OK": 3
    }
    wrong = {
        "a": histogram([0, math.nan], [1]),
        "b": histogram([0, 0], [1]),
        "c": histogram([0, 1], [1, 2]),
        "d": histogram(list(range(514)), [0] * 513),
    }
    assert ingest.update("r", points(3, wrong)) == {
        "HISTOGRAM_BIN_EDGES_CONTAINS_NAN": 1,
        "HISTOGRAM_BIN_EDGES_NOT_INCREASING": 1,
        "HISTOGRAM_VALUES_LENGTH_DOESNT_MATCH_BINS": 1,
        "HISTOGRAM_TOO_MANY_BINS": 1,
    }
    with stored(served.store) as connection:
        found = connection.execute(
            "SELECT path, step, objects.value FROM objects JOIN attributes ON attribute = attributes.id"
            " ORDER BY path, step"
        ).fetchall()
    connection.close()
    assert [(path, step, json.loads(value)) for path, step, value in found] == [
        ("f", 1_000_000, {"path": "k", "size": 3, "mime_type": "text/plain"}),
        ("f", 2_000_000, {"path": "k", "size": 3, "mime_type": "text/plain"}),
        ("h", 2_000_000, {"type": "COUNTING", "edges": [0.0, 1.0], "values": [2**60]}),
    ]


def test_sets_and_the_run_itself(served: Served, ingest: Ingest) -> None:
    ingest.create("r")
    ingest.update("r", change("sys/tags", add=("b", "a")), change("sys/tags", add=("c",), remove=("a", "z")))
    ingest.update("r", assign({"set": Value(string_set=StringSet(values=["y", "x", "y"]))}))
    ingest.update("r", assign({"sys/name": "exp", "sys/archived": True, "sys/description": "d"}))
    assert values(served, "r") == {"sys/tags": '["b","c"]', "set": '["x","y"]', "sys/description": "d"}
    with stored(served.store) as connection:
        assert connection.execute("SELECT experiment, archived FROM runs").fetchall() == [("exp", 1)]
    connection.close()


def test_forks_take_over_what_their_parent_had(served: Served, ingest: Ingest) -> None:
    ingest.create("parent")
    ingest.update("parent", assign({"lr": 0.1, "sys/description": "d", "sys/failed": True}), points(0, {"m": 1.0}))
    assert ingest.create("child", parent="parent", step=0.5) == {"OK": 1}
    assert ingest.create("bare", parent="parent", step=1, inherit_configs=False) == {"OK": 1}
    ingest.update("parent", assign({"lr": 0.2}))
    assert values(served, "child") == {"lr": values(served, "child")["lr"], "sys/description": "d"}
    assert values(served, "child")["lr"] != values(served, "parent")["lr"]
    assert values(served, "bare") == {}
    assert ingest.create("child", parent="parent", step=0.5) == {"RUN_DUPLICATE": 1}
    assert ingest.create("child") == {"RUN_DUPLICATE": 1}
    assert ingest.create("child", parent="bare", step=0.5) == {"RUN_CONFLICTING": 1}
    assert ingest.create("orphan", parent="nobody", step=1) == {"RUN_FORK_PARENT_NOT_FOUND": 1}
    assert ingest.update("orphan", points(2, {"m": 1.0})) == {"OK": 1}
    assert ingest.update("child", assign({"m": 1.0})) == {"FIELD_TYPE_CONFLICTING": 1}
    with stored(served.store) as connection:
        found = connection.execute("SELECT parent_run_id, fork_step FROM runs WHERE run_id = 'child'").fetchall()
    connection.close()
    assert found == [("parent", 500_000)]


def test_what_became_of_a_request_outlives_the_server(tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store") as served, served.client() as http:
        ingest = Ingest(http)
        ingest.create("r")
        ingest.update("r", points(1, {"m": 1.0}))
        expected = ingest.update("r", points(1, {"m": 1.0}), points(1, {"m": 9.0}), points(2, {"m": 1.0}))
        request = ingest.last_request
        authorization = http.headers["authorization"]
    assert expected == {"OK": 1, "SERIES_POINT_DUPLICATE": 1, "SERIES_STEP_NON_INCREASING": 1}
    with (
        server_in_thread(tmp_path / "store") as served,
        # The access token of before is still good, too.
        httpx.Client(base_url=served.url, headers={"authorization": authorization}) as http,
    ):
        assert Ingest(http).codes(request) == expected
        assert Ingest(http).codes("of-another-server") == {"OK": 1}


def test_requests_that_are_too_large_or_no_requests(served: Served, http: httpx.Client, ingest: Ingest) -> None:
    def post(content: bytes) -> int:
        return http.post("/api/client/v1/ingest", content=content, headers=PROTOBUF).status_code

    ingest.create("r")
    assert post(b"\xff\xff\xff") == 400
    assert post(b"\x00" * ((32 << 20) + 1)) == 413
    large = RunOperation(
        project=PROJECT, run_id="r", update=UpdateRunSnapshot(assign={"s": Value(string="x" * (5 << 20))})
    )
    assert post(large.SerializeToString()) == 413
    assert http.post("/api/client/v1/ingest/check", content=b"\xff", headers=PROTOBUF).status_code == 400
    assert values(served, "r") == {}


def test_ten_writers_at_once_and_two_to_one_run(served: Served) -> None:
    def log(writer: int) -> None:
        with served.client() as http:
            ingest = Ingest(http)
            run_id = f"run{writer // 2}"
            assert set(ingest.create(run_id)) <= {"OK", "RUN_DUPLICATE"}
            for step in range(0, 100, 5):
                batch = [points(step + i, {f"m{writer % 2}": float(step + i), "shared": 1.0}) for i in range(5)]
                codes = ingest.update(run_id, *batch)
                assert codes["OK"] >= 5

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(log, range(10)))
    expected = [(step * 1_000_000, float(step)) for step in range(100)]
    for run in range(5):
        found = stored_points(served.store, f"run{run}")
        assert found["m0"] == found["m1"] == expected
        assert [step for step, _ in found["shared"]] == [step for step, _ in expected]


def test_create_with_nothing_at_all(http: httpx.Client) -> None:
    body = RunOperation(project=PROJECT, run_id="r", create=Run()).SerializeToString()
    assert http.post("/api/client/v1/ingest", content=body).status_code == 200
    nothing = RunOperation(project=PROJECT, run_id="r").SerializeToString()
    assert http.post("/api/client/v1/ingest", content=nothing).status_code == 200
