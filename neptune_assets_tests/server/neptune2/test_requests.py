from __future__ import annotations

import base64
import io
import math
import zipfile
from typing import Any

import pytest

from neptune_assets.server.neptune2.routes import HANDLERS, SHARED
from neptune_assets.server.neptune2.swagger import OPERATIONS
from neptune_assets.server.store.database import RUN, seal
from neptune_assets_tests.support.ingest import Ingest, assign
from neptune_assets_tests.support.ingest import points as points3
from neptune_assets_tests.support.neptune2 import PROJECT, Http, points
from neptune_assets_tests.support.server import Served


def values(http: Http, run: str, path: str, **query: Any) -> list[tuple[float, int, Any]]:
    found = http.call("getFloatSeriesValues", experimentId=run, attribute=path, limit=1000, offset=0, **query)
    return [(item["step"], item["timestampMillis"], item["value"]) for item in found["values"]]


def test_everything_that_is_described_is_served() -> None:
    assert {operation.name for operation in OPERATIONS} == set(HANDLERS) | SHARED


def test_without_a_token_nothing_is_told(served: Served, http: Http) -> None:
    http.client.headers.pop("Authorization")
    for operation in OPERATIONS:
        if operation.name not in ("getClientConfig", "exchangeApiToken"):
            assert http.status(operation.name) == 401, operation.name


def test_a_custom_id_names_one_run(http: Http) -> None:
    first, again, other = (http.create(customId=name) for name in ("mine", "mine", "other"))
    assert first == again
    assert first["id"] != other["id"]
    assert [first["shortId"], other["shortId"]] == ["VISION-1", "VISION-2"]
    for identifier in (first["id"], f"{PROJECT}/VISION-1"):
        assert http.call("getExperiment", experimentId=identifier) == first


def test_a_custom_id_that_looks_like_a_number_takes_no_other_runs_id(http: Http) -> None:
    taken = http.create(customId="VISION-2")
    assert taken["shortId"] == "VISION-1"
    assert http.create()["shortId"] == "VISION-3"


def test_models_and_versions(http: Http) -> None:
    model = http.create("model", key="MOD")
    assert model["shortId"] == "VISION-MOD"
    versions = [http.create("modelVersion", parentId=model["id"])["shortId"] for _ in range(3)]
    assert versions == ["VISION-MOD-1", "VISION-MOD-2", "VISION-MOD-3"]
    wanted = {"projectIdentifier": PROJECT, "type": "model", "key": "MOD"}
    assert http.status("createExperiment", wanted) == 409
    assert http.status("createExperiment", {**wanted, "key": "no key"}) == 400
    assert http.status("createExperiment", {**wanted, "type": "modelVersion", "parentId": "none"}) == 404
    version = http.attributes(f"{PROJECT}/VISION-MOD-2")
    assert version["sys/model_id"][1]["value"] == "VISION-MOD"
    assert version["sys/stage"][1]["value"] == "none"
    assert http.apply(f"{PROJECT}/VISION-MOD-2", ("sys/stage", "assignString", {"value": "staging"})) == []
    (error,) = http.apply(f"{PROJECT}/VISION-MOD-2", ("sys/stage", "assignString", {"value": "best"}))
    assert "best" in error
    staged = http.table("modelVersion", '(`sys/stage`:string = "staging")')
    assert [row["sys/id"]["value"] for row in staged] == ["VISION-MOD-2"]


def test_what_is_not_there(http: Http) -> None:
    run = http.create()["id"]
    answer = http.raw("getExperiment", experimentId=f"{PROJECT}/VISION-9")
    assert (answer.status_code, answer.json()["errorType"]) == (404, "EXPERIMENT_NOT_FOUND")
    for call in ("getFloatAttribute", "getStringSetAttribute", "downloadAttribute", "getFloatSeriesValues"):
        answer = http.raw(call, experimentId=run, attribute="nothing")
        assert (answer.status_code, answer.json()["errorType"]) == (404, "NOT_FOUND"), call
    assert http.status("getFloatAttribute", experimentId=run, attribute="sys/id") == 404
    assert http.status("getProject", projectIdentifier="no project") == 404
    assert http.status("ping", experimentId="00000000-0000-0000-0000-000000000000") == 404
    assert http.status("executeOperations", [], experimentId="none") == 404
    assert http.status("listArtifactFiles", projectIdentifier=PROJECT, hash="ab") == 404
    assert http.status("getDownloadPrepareRequest", id="forged.0") == 404


def test_rules_are_told_by_operation_and_the_rest_is_kept(http: Http) -> None:
    run = http.create()["id"]
    errors = http.apply(
        run,
        ("a", "assignInt", {"value": 1}),
        ("a", "assignString", {"value": "x"}),
        ("tags", "insertStrings", {"values": ["x"]}),
        ("sys/id", "assignString", {"value": "x"}),
        ("sys/tags", "insertStrings", {"values": ["b", "a"]}),
        ("gone", "deleteAttribute", {}),
        ("b", "assignBool", {"value": True}),
    )
    assert len(errors) == 3
    assert all(path in error for path, error in zip(("a", "tags", "sys/id"), errors, strict=True))
    found = http.attributes(run)
    assert found["a"][1]["value"] == 1
    assert found["b"][1]["value"] is True
    assert found["sys/tags"][1]["values"] == ["a", "b"]
    assert "tags" not in found


def test_steps_hold_one_point_and_are_numbered_where_there_are_none(http: Http) -> None:
    run = http.create()["id"]
    assert http.apply(run, ("m", "logFloats", points(1, 2, 3, steps=[0.5, 2, 2.000001]))) == []
    (error,) = http.apply(run, ("m", "logFloats", points(9, 4, 8, steps=[2, 3, 3])))
    assert "2 of 3 points of m" in error
    assert http.apply(run, ("m", "logFloats", points(5)), ("n", "logFloats", points(6, 7))) == []
    assert [step for step, _, _ in values(http, run, "m")] == [0.5, 2.0, 2.000001, 3.0, 4.0]
    assert [(step, value) for step, _, value in values(http, run, "n")] == [(0.0, 6.0), (1.0, 7.0)]


def test_late_points_find_their_place(http: Http) -> None:
    run = http.create()["id"]
    steps = [float(index) for index in range(500, 1500)]
    lines = [f"line {step:g}" for step in steps]
    http.apply(run, ("m", "logFloats", points(*steps, steps=steps)), ("s", "logStrings", points(*lines, steps=steps)))
    assert http.attributes(run)["m"][1]["min"] == 500
    wanted = {"experimentId": run, "attribute": "m"}
    assert len(http.call("getFloatSeriesValues", offset=0, limit=600, **wanted)["values"]) == 600
    early = [float(index) for index in range(502)]
    changes = [
        ("m", "logFloats", points(*early, steps=early)),
        ("s", "logStrings", points(*[f"line {step:g}" for step in early], steps=early)),
    ]
    for _ in range(2):
        assert http.apply(run, *changes) == []
    expected = [float(index) for index in range(1500)]
    for offset in (0, 600, 1200):
        page = http.call("getFloatSeriesValues", offset=offset, limit=600, **wanted)
        assert page["totalItemCount"] == 1500
        assert [item["value"] for item in page["values"]] == expected[offset : offset + 600]
    page = http.call("getStringSeriesValues", experimentId=run, attribute="s", offset=0, limit=2000)
    assert [item["value"] for item in page["values"]] == [f"line {step:g}" for step in expected]
    found = http.attributes(run)
    assert {name: found["m"][1][name] for name in ("last", "lastStep", "min", "max", "average")} == {
        **{"last": 1499.0, "lastStep": 1499.0, "min": 0.0, "max": 1499.0},
        "average": 749.5,
    }
    assert (found["s"][1]["last"], found["s"][1]["lastStep"]) == ("line 1499", 1499.0)


def test_a_request_that_is_sent_again_counts_once(http: Http) -> None:
    run = http.create()["id"]
    for _ in range(3):
        assert http.apply(run, ("m", "logFloats", points(1, 2)), ("s", "logStrings", points("x"))) == []
        assert http.apply(run, ("k", "logFloats", points(1, 2, steps=[1, 2]))) == []
    assert len(values(http, run, "m")) == 2
    assert len(values(http, run, "k")) == 2
    assert http.call("getStringSeriesValues", experimentId=run, attribute="s")["totalItemCount"] == 1
    assert http.apply(run, ("m", "logFloats", points(1, 2, time=2000))) == []
    assert len(values(http, run, "m")) == 4


def test_a_request_counts_once_however_long_the_server_was_away(http: Http, served: Served) -> None:
    run = http.create()["id"]
    assert served.service is not None
    project = served.service.store.project(PROJECT)

    def age() -> None:
        with project.write() as writing:
            writing.connection.execute("UPDATE requests SET at = at - 86400000")

    last = ("m", "logFloats", points(2, time=2000))
    assert http.apply(run, ("m", "logFloats", points(1))) == []
    age()
    assert http.apply(run, last) == []
    age()
    assert http.apply(run, last) == []
    assert [value for _, _, value in values(http, run, "m")] == [1.0, 2.0]
    # What came long before the last one is not kept for ever.
    assert http.apply(run, ("m", "logFloats", points(3, time=3000))) == []
    with project.read() as connection:
        assert connection.execute("SELECT count(*) FROM requests").fetchone()[0] == 2


def test_series_are_paged_in_any_order(http: Http) -> None:
    run = http.create()["id"]
    steps = [index * 0.25 for index in range(2500)]
    http.apply(run, ("m", "logFloats", points(*range(2500), steps=steps)))
    wanted = {"experimentId": run, "attribute": "m"}
    for offset, limit in ((0, 1000), (1000, 1000), (2000, 1000), (700, 10), (710, 5), (2500, 10), (2499, 10)):
        page = http.call("getFloatSeriesValues", offset=offset, limit=limit, **wanted)
        assert page["totalItemCount"] == 2500
        assert [item["value"] for item in page["values"]] == list(range(2500))[offset : offset + limit]
    after = http.call("getFloatSeriesValues", skipToStep=10.25, limit=3, **wanted)
    assert [item["step"] for item in after["values"]] == [10.5, 10.75, 11.0]
    # What is logged meanwhile shows at once.
    http.apply(run, ("m", "logFloats", points(7, steps=[9999])))
    page = http.call("getFloatSeriesValues", offset=2500, limit=10, **wanted)
    assert (page["totalItemCount"], [item["value"] for item in page["values"]]) == (2501, [7])


def test_clearing_configuring_and_deleting(http: Http) -> None:
    run = http.create()["id"]
    http.apply(run, ("m", "logFloats", points(1, 2)), ("m", "configFloatSeries", {"min": 0, "unit": "m"}))
    assert http.attributes(run)["m"][1] == {
        **{"attributeName": "m", "attributeType": "floatSeries", "last": 2.0, "lastStep": 1.0, "min": 1.0, "max": 2.0},
        **{"average": 1.5, "variance": 0.25, "config": {"min": 0, "unit": "m"}},
    }
    assert http.apply(run, ("m", "clearFloatSeries", {}), ("m", "logFloats", points(5, steps=[0]))) == []
    assert values(http, run, "m") == [(0.0, 1000, 5.0)]
    assert "is of type" in http.apply(run, ("m", "clearStringSeries", {}))[0]
    assert http.apply(run, ("m", "deleteAttribute", {}), ("m", "assignString", {"value": "now"})) == []
    assert http.attributes(run)["m"][0] == "string"


def test_images_keep_bytes_names_and_order(http: Http) -> None:
    run = http.create()["id"]
    png = b"\x89PNG\r\n\x1a\n" + bytes(300)
    images = [{"data": base64.b64encode(png + bytes([n])).decode(), "name": f"n{n}"} for n in range(3)]
    assert http.apply(run, ("im", "logImages", points(*images, steps=[1, 5, 10]))) == []
    page = http.call("getImageSeriesValues", experimentId=run, attribute="im", limit=1, offset=0)
    assert page["totalItemCount"] == 3
    for index in range(3):
        answer = http.raw("getImageSeriesValue", experimentId=run, attribute="im", index=index)
        assert (answer.content, answer.headers["content-type"]) == (png + bytes([index]), "image/png")
    assert http.status("getImageSeriesValue", experimentId=run, attribute="im", index=3) == 404
    assert http.attributes(run)["sys/size"][1]["value"] == 3 * len(png) + 3


def test_an_image_keeps_its_bytes_whatever_comes_to_its_step(http: Http) -> None:
    run = http.create()["id"]
    png = b"\x89PNG\r\n\x1a\n"
    images = [{"data": base64.b64encode(png + bytes([n])).decode(), "name": f"n{n}"} for n in range(4)]
    assert http.apply(run, ("im", "logImages", points(images[0], images[2], steps=[0, 2]))) == []
    # The same ones again, one that comes late, and others at steps that hold some.
    again = ("im", "logImages", points(images[0], images[1], images[2], steps=[0, 1, 2]))
    assert http.apply(run, again) == []
    (error,) = http.apply(run, ("im", "logImages", points(images[3], {**images[1], "name": "x"}, steps=[0, 1])))
    assert "2 of 2 points of im" in error
    for index in range(3):
        answer = http.raw("getImageSeriesValue", experimentId=run, attribute="im", index=index)
        assert answer.content == png + bytes([index])
    assert http.status("getImageSeriesValue", experimentId=run, attribute="im", index=3) == 404
    assert http.attributes(run)["sys/size"][1]["value"] == 3 * len(png) + 3


def test_files_of_many_parts_and_file_sets(http: Http) -> None:
    run = http.create()["id"]
    content = bytes(range(256)) * 64
    named = {"experimentIdentifier": run, "attribute": "f/a"}
    upload = http.call("fileAtomMultipartUploadStart", ext="bin", totalLength=len(content), **named)["uploadId"]
    for index, start in enumerate(range(0, len(content), 5000)):
        part = content[start : start + 5000]
        headers = {"X-Range": f"bytes={start}-{start + len(part) - 1}/{len(content)}"}
        http.call("fileAtomMultipartUploadPart", part, uploadId=upload, uploadPartIdx=index, headers=headers, **named)
    assert http.call("fileAtomMultipartUploadFinish", uploadId=upload, **named) == {"errors": []}
    assert http.status("fileAtomMultipartUploadFinish", uploadId=upload, **named) == 404
    answer = http.raw("downloadAttribute", experimentId=run, attribute="f/a")
    assert answer.content == content
    assert answer.headers["content-disposition"].endswith('filename="a.bin"')
    assert http.call("fileAtomUpload", b"short", ext="txt", **named) == {"errors": []}
    assert http.raw("downloadAttribute", experimentId=run, attribute="f/a").content == b"short"
    members = {"experimentIdentifier": run, "attribute": "set"}
    for name in ("a/b.txt", "c.txt"):
        assert http.call("fileSetFileUpload", name.encode(), subPath=name, **members) == {"errors": []}
    assert http.status("fileSetFileUpload", b"x", subPath="../x", **members) == 400
    assert http.attributes(run)["sys/size"][1]["value"] == 5 + 7 + 5
    (conflict,) = http.call("fileSetFileUpload", b"x", subPath="x", experimentIdentifier=run, attribute="f/a")["errors"]
    assert "is of type file" in conflict["errorDescription"]
    assert http.apply(run, ("set", "deleteFiles", {"filePaths": ["a"]})) == []
    request = http.call("prepareForDownloadFileSetAttributeZip", experimentId=run, attribute="set")["id"]
    url = http.call("getDownloadPrepareRequest", id=request)["downloadUrl"]
    with zipfile.ZipFile(io.BytesIO(http.client.get(url).content)) as archive:
        assert archive.namelist() == ["/", "c.txt"]


@pytest.mark.parametrize("version", ["1", "2"])
def test_artifacts_are_merged_by_either_version_of_the_calls(http: Http, version: str) -> None:
    from neptune_assets.server.neptune2.artifacts import artifact_hash

    headers = {} if version == "1" else {"X-Neptune-Artifact-Api-Version": version}
    files = [
        {"filePath": name, "fileHash": name * 40, "type": "Local", "size": 1, "metadata": [{"key": "k", "value": name}]}
        for name in "abc"
    ]
    plain = version == "1"
    first = artifact_hash(files[:2], with_metadata=plain)
    named = {"projectIdentifier": PROJECT, "headers": headers}
    assert not http.call("createNewArtifact", hash=first, size=2, **named)["receivedMetadata"]
    assert http.call("uploadArtifactFilesMetadata", {"files": files[:2]}, hash=first, **named)["receivedMetadata"]
    assert http.call("createNewArtifact", hash=first, size=2, **named)["receivedMetadata"]
    made = http.call("createArtifactVersion", {"files": files[2:]}, hash=first, **named)
    assert made == {"artifactHash": artifact_hash(files, with_metadata=plain), "receivedMetadata": True, "size": 3}
    assert http.call("listArtifactFiles", hash=made["artifactHash"], **named) == {"files": files}
    run = http.create()["id"]
    assert http.apply(run, ("art", "assignArtifact", {"hash": first})) == []
    assert http.call("getArtifactAttribute", experimentId=run, attribute="art")["hash"] == first
    assert http.apply(run, ("art", "clearArtifact", {})) == []
    assert http.status("getArtifactAttribute", experimentId=run, attribute="art") == 404


def test_the_trash(http: Http) -> None:
    runs = [http.create()["shortId"] for _ in range(3)]
    model = http.create("model", key="MOD")
    http.create("modelVersion", parentId=model["id"])
    ids = [f"{PROJECT}/{name}" for name in (runs[0], "VISION-MOD", "VISION-9")]
    answer = http.call("trashExperiments", ids, projectIdentifier=PROJECT)
    assert answer["updatedExperimentIdentifiers"] == ids[:2]
    assert len(answer["errors"]) == 1
    kept = "(`sys/trashed`:bool = false)"
    assert {row["sys/id"]["value"] for row in http.table(query=kept)} == set(runs[1:])
    assert len(http.table()) == 3
    assert http.table("modelVersion", kept) == []
    answer = http.call("deleteExperiments", [f"{PROJECT}/{name}" for name in runs[:2]], projectIdentifier=PROJECT)
    assert (len(answer["updatedExperimentIdentifiers"]), len(answer["errors"])) == (1, 1)
    http.call("deleteAllExperiments", projectIdentifier=PROJECT)
    assert http.table("model") == http.table("modelVersion") == []
    assert {row["sys/id"]["value"] for row in http.table()} == set(runs[1:])


def test_projects_are_deleted_with_everything(http: Http) -> None:
    run = http.create()["id"]
    http.apply(run, ("a", "assignInt", {"value": 1}))
    assert len(http.table()) == 1
    http.call("deleteProject", projectIdentifier=PROJECT)
    assert http.client.get("/api/backend/v1/projects").json()["entries"] == []
    assert http.status("getExperiment", experimentId=run) == 404
    http.post("/api/backend/v1/projects", json={"organizationId": "team", "name": "vision"})
    assert http.table() == []
    assert http.create()["shortId"] == "VISION-1"


def test_a_project_has_attributes_of_its_own(http: Http) -> None:
    project = http.call("getProject", projectIdentifier=PROJECT)
    assert http.call("getExperiment", experimentId=project["id"])["type"] == "project"
    assert http.attributes(project["id"]) == {}
    assert http.apply(project["id"], ("k", "assignString", {"value": "v"})) == []
    found = http.attributes(project["id"])
    assert found["k"][1]["value"] == "v"
    assert found["sys/name"][1]["value"] == "vision"
    assert http.table() == []


def test_what_3_x_logs_is_read(http: Http) -> None:
    ingest = Ingest(http.client)
    ingest.create("three", experiment_id="exp")
    ingest.update(
        "three", assign({"lr": 0.5, "big": 2**40}), points3(0, {"loss": 1.0}), points3(1.5, {"loss": math.nan})
    )
    (row,) = http.table(query='(`sys/custom_run_id`:string = "three")')
    assert row["lr"]["value"] == 0.5
    assert row["big"]["value"] == 2**40
    run = f"{PROJECT}/{row['sys/id']['value']}"
    steps, _, numbers = zip(*values(http, run, "loss"), strict=True)
    assert steps == (0.0, 1.5)
    assert numbers == (1.0, "NaN")
    assert http.apply(run, ("note", "assignString", {"value": "of 2.x"})) == []
    assert http.attributes(run)["note"][1]["value"] == "of 2.x"


def test_queries_that_are_none_have_the_title_that_clients_look_for(http: Http) -> None:
    for query in ("key: float = (-_-)", "a:nonsense = 1", '(a:float = "x")'):
        body = {"query": {"query": query}, "pagination": {"limit": 0, "offset": 0}}
        answer = http.raw("searchLeaderboardEntries", body, projectIdentifier=PROJECT, type="run")
        assert (answer.status_code, answer.json()["title"]) == (400, "Syntax error"), query


def test_states_follow_signs_of_life(http: Http, served: Served) -> None:
    old, young = (http.create()["id"] for _ in range(2))
    assert served.service is not None
    with served.service.store.project(PROJECT).write() as writing:
        writing.connection.execute(
            "UPDATE runs SET ping_at = 1000, modified_at = 1000, revision = ? WHERE uuid = ?", (writing.revision, old)
        )
        writing.connection.execute(seal("runs", RUN))
        writing.changed = True
    http.call("ping", experimentId=young)
    assert http.attributes(old)["sys/state"][1]["value"] == "idle"
    assert http.attributes(young)["sys/state"][1]["value"] == "running"
    for state, ids in (("running", ["VISION-2"]), ("idle", ["VISION-1"])):
        rows = http.table(query=f"(`sys/state`:experimentState = {state})")
        assert [row["sys/id"]["value"] for row in rows] == ids
    assert len(http.table(query='(`sys/state`:experimentState != "idle")')) == 1


def test_columns_to_sort_by_are_listed_even_without_rows(http: Http) -> None:
    found = http.call(
        "searchLeaderboardAttributes", {}, projectIdentifier=PROJECT, type="run", search="sys/creation_time"
    )
    assert found == {"entries": [{"name": "sys/creation_time", "type": "datetime"}]}
    run = http.create()["id"]
    http.apply(run, ("a+b", "assignInt", {"value": 1}), ("aab", "assignInt", {"value": 1}))
    found = http.call("searchLeaderboardAttributes", {}, projectIdentifier=PROJECT, type="run", search="a+b")
    assert found == {"entries": [{"name": "a+b", "type": "int"}]}
