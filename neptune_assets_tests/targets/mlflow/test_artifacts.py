"""Artifacts of runs in every place MLflow can keep them: a directory, S3 (emulated by moto), through a real server."""

from __future__ import annotations

import hashlib
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from moto.server import ThreadedMotoServer

from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import LoadReport, load_project
from neptune_assets.targets.mlflow.load import MlflowTarget as Opened
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets_tests.conformance.targets import PROJECT, born, histogram, point, text
from neptune_assets_tests.support.lake_factory import file, file_set, files, make_lake
from neptune_assets_tests.support.mlflow_server import RunningServer, mlflow_server
from neptune_assets_tests.targets.mlflow.place import MlflowPlace

BIG = 100 * 2**20

ROWS = born(
    file("f/a/model.bin", b"\x00\x01", "model.bin"),
    file("f/b/model.bin", b"other", "model.bin"),
    file("f/model", b"by name", "model.onnx"),
    file("f/empty", b"", "empty.txt"),
    file("f/../../up", b"up", "up.txt"),
    file("f/50% off #1 ü 漢?.txt", b"odd"),
    *files("f/series", [b"zero", b"one"], steps=["0", "1.5"], extension="png"),
    file_set("f/set", {"a/x.txt": b"x", "b/x.txt": b"y", "../z": b"z"}),
    *(text("log", i, f"line {i}\nü") for i in range(50)),
    histogram("h", 0, [0.0, 0.5, 1.0], [1.0, 2.0]),
    point("inf", 0, float("inf")),
)
CONTENTS = {
    "files/f/a/model.bin": b"\x00\x01",
    "files/f/b/model.bin": b"other",
    "files/f/model.onnx": b"by name",
    "files/f/empty.txt": b"",
    "file_series/f/series/0.000000.png": b"zero",
    "file_series/f/series/1.500000.png": b"one",
    "file_sets/f/set/a/x.txt": b"x",
    "file_sets/f/set/b/x.txt": b"y",
    "histograms/h.jsonl": None,
    "series/log.jsonl": None,
    "neptune/names.json": None,
    "neptune/artifacts.json": None,
    "neptune/points_apart.parquet": None,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import boto3

    emulator = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    emulator.start()
    host, port = emulator.get_host_and_port()
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # All emulators of one process share what they hold.
    bucket = f"bucket-{uuid4().hex}"
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=bucket)
    yield f"s3://{bucket}/some/root"
    emulator.stop()


@pytest.fixture(params=["directory", "s3 and database", "s3 through the client", "server"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "server":
        server = request.getfixturevalue("server")
        server.empty()
        return {"tracking_uri": server.url}
    MlflowPlace(tmp_path)
    if request.param == "directory":
        return {"artifact_root": str(tmp_path / "elsewhere")}
    return {"artifact_root": request.getfixturevalue("s3"), "direct": request.param == "s3 and database"}


def load(root: Path, options: dict[str, Any], rows: Any) -> LoadReport:
    make_lake(root / "lake", {PROJECT: {"R-1": rows}})
    settings = LakeSettings(root=str(root / "lake"))
    target = MlflowSettings(**options)
    return load_project(
        Lake(settings).project(PROJECT),
        lambda: Opened(target, settings),
        Ledger(settings, "mlflow", PROJECT),
        sleep=lambda _: None,
    )


def fetched(root: Path, options: dict[str, Any], to: Path) -> dict[str, Path]:
    """Everything that MLflow itself downloads of the only run."""
    uri = options.get("tracking_uri") or f"sqlite:///{root}/lake/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    to.mkdir()
    got = Path(download_artifacts(run_id=run.info.run_id, dst_path=str(to), tracking_uri=uri))
    return {item.relative_to(got).as_posix(): item for item in got.rglob("*") if item.is_file()}


def test_every_kind_arrives_whole_and_keeps_its_extension(options: dict[str, Any], tmp_path: Path) -> None:
    report = load(tmp_path, options, ROWS)
    assert not report.failed, report.failed
    got = fetched(tmp_path, options, tmp_path / "got")
    for path, content in CONTENTS.items():
        assert path in got, (path, sorted(got))
        if content is not None:
            assert got[path].read_bytes() == content
    rest = {path: item.read_bytes() for path, item in got.items() if path not in CONTENTS}
    assert sorted(rest.values()) == [b"odd", b"up", b"z"]
    assert all(".." not in path for path in rest)
    assert got["series/log.jsonl"].read_text("utf-8").count("\n") == 50
    # Loaded again with one file less: what is gone in the lake is gone there.
    report = load(tmp_path, options, [row for row in ROWS if row["attribute_path"] != "f/a/model.bin"])
    assert not report.failed, report.failed
    assert set(got) - set(fetched(tmp_path, options, tmp_path / "again")) == {"files/f/a/model.bin"}


def test_a_file_that_is_lost_cut_or_changed_is_found(s3: str, tmp_path: Path) -> None:
    import os

    import boto3

    MlflowPlace(tmp_path)
    options = {"artifact_root": s3}
    report = load(tmp_path, options, ROWS)
    run = Lake(LakeSettings(root=str(tmp_path / "lake"))).project(PROJECT).run("R-1")
    target = Opened(MlflowSettings(**options), LakeSettings(root=str(tmp_path / "lake")))
    assert target.verify(run, report.receipts[0]).ok
    client = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    bucket = s3.split("/")[2]
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]]
    (lost,) = [key for key in keys if key.endswith("f/b/model.bin")]
    (cut,) = [key for key in keys if key.endswith("log.jsonl")]
    client.delete_object(Bucket=bucket, Key=lost)
    client.put_object(Bucket=bucket, Key=cut, Body=b"short")
    client.put_object(Bucket=bucket, Key=cut + ".more", Body=b"")
    (changed,) = [key for key in keys if key.endswith("f/a/model.bin")]
    client.put_object(Bucket=bucket, Key=changed, Body=b"\x00\x02")
    found = "\n".join(target.verify(run, report.receipts[0]).differences)
    target.close()
    by_size = ("'files/f/b/model.bin' is missing", "'series/log.jsonl' has 5 bytes", "was not written")
    for words in (*by_size, "'files/f/a/model.bin' has other content"):
        assert words in found
    quick = Opened(MlflowSettings(**options, verify_files="size"), LakeSettings(root=str(tmp_path / "lake")))
    found = "\n".join(quick.verify(run, report.receipts[0]).differences)
    quick.close()
    assert all(words in found for words in by_size)
    assert "other content" not in found


def test_an_artifact_that_was_changed_behind_a_server_is_found(server: RunningServer, tmp_path: Path) -> None:
    server.empty()
    options = {"tracking_uri": server.url}
    report = load(tmp_path, options, ROWS)
    run = Lake(LakeSettings(root=str(tmp_path / "lake"))).project(PROJECT).run("R-1")
    target = Opened(MlflowSettings(**options), LakeSettings(root=str(tmp_path / "lake")))
    assert target.verify(run, report.receipts[0]).ok
    (changed,) = server.artifacts.rglob("f/b/model.bin")
    changed.write_bytes(b"othes")
    assert target.verify(run, report.receipts[0]).differences == (
        "artifact 'files/f/b/model.bin' has other content than was written",
    )
    target.close()


def test_a_store_that_does_not_answer_or_refuses_is_named(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MlflowPlace(tmp_path)
    report = load(tmp_path, {"artifact_root": "s3://no-such-bucket/x"}, ROWS)
    assert "bucket does not exist" in report.failed["R-1"]
    assert not report.transient
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        report = load(tmp_path, {"artifact_root": "s3://no-such-bucket/x"}, ROWS)
    assert "does not answer" in report.failed["R-1"]
    assert report.transient


def test_a_large_file_is_never_whole_in_memory(options: dict[str, Any], tmp_path: Path) -> None:
    if "s3://" in options.get("artifact_root", ""):
        # moto runs in this process and holds what it gets.
        options = {"artifact_root": str(tmp_path / "elsewhere"), "direct": options["direct"]}
    content = bytes(range(256)) * (BIG // 256)
    make_lake(tmp_path / "lake", {PROJECT: {"R-1": born(file("big", content, "big.bin"))}})
    expected = hashlib.sha256(content).hexdigest()
    del content
    settings = LakeSettings(root=str(tmp_path / "lake"))
    target = MlflowSettings(**options)
    tracemalloc.start()
    try:
        report = load_project(
            Lake(settings).project(PROJECT), lambda: Opened(target, settings), Ledger(settings, "mlflow", PROJECT)
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not report.failed, report.failed
    assert peak < BIG // 4
    got = fetched(tmp_path, options, tmp_path / "got")
    with got["files/big.bin"].open("rb") as stream:
        assert hashlib.file_digest(stream, "sha256").hexdigest() == expected
