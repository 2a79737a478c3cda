"""File sets and artifacts as W&B artifacts: real lake, wandb's own digests, real ``wandb sync`` to a local stub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from neptune_assets.lake.reader import LakeRun
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.wandb.artifacts import artifact_name
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets.targets.wandb.staged_runs import read_synced, write_marker
from neptune_assets_tests.support.lake_factory import file, file_set, make_lake, metric
from neptune_assets_tests.support.wandb_files import read_wandb
from neptune_assets_tests.support.wandb_stub import WandbStub

KEY = "k3y" + "0123456789abcdef" * 4
LONG = "deep/" + "x" * 300
LISTED = b'[{"filePath": "s3://bucket/x"}]'
MEMBERS = {"a.txt": b"one", "sub/b.bin": b"\x00" * 70_000, "sub/empty": b""}
ROWS = [
    *metric("loss", [1.0, 0.5]),
    file_set("data/train set", MEMBERS),
    file_set("data/train_set", {"other": b"other"}),
    file_set(LONG, {"c": b"c"}),
    file("dataset", LISTED, "files_list.json", kind="artifact"),
    file("model", b"weights", "model.bin"),
]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbStub]:
    monkeypatch.setenv("MY_WANDB_KEY", KEY)
    with WandbStub(KEY) as server:
        yield server


def lake_run(root: Path) -> LakeRun:
    return make_lake(root / "lake", {"ws/p": {"R": ROWS}}).project("ws/p").run("R")


def opened(root: Path, **options: Any) -> WandbTarget:
    settings = WandbSettings.model_validate({"entity": "team", "file_sets": "artifacts", **options})
    target = WandbTarget(settings, LakeSettings(root=str(root / "lake")))
    target.check()
    return target


def staged(root: Path) -> Path:
    (directory,) = (root / "lake/wandb").glob("*/offline-run-*")
    return directory


def wandb_digest(files: dict[str, bytes], place: Path) -> str:
    import wandb

    made = wandb.Artifact("any", "any")
    for number, (name, content) in enumerate(files.items()):
        source = place / str(number)
        source.write_bytes(content)
        made.add_file(str(source), name=name, policy="immutable")
    return str(made.digest)


def test_the_staged_run_logs_them_as_wandb_would(tmp_path: Path) -> None:
    run = lake_run(tmp_path)
    target = opened(tmp_path)
    receipt = target.replace(run, target.plan(run))
    assert target.verify(run, receipt).ok
    assert receipt.unbalanced() == {}
    assert receipt.written["file_set"] == 3
    (log,) = staged(tmp_path).glob("*.wandb")
    found = read_wandb(log)
    by_path = {json.loads(item.artifact.metadata)["neptune_attribute"]: item.artifact for item in found.artifacts}
    assert set(by_path) == {"data/train set", "data/train_set", LONG, "dataset"}
    assert len({item.name for item in by_path.values()}) == 4
    assert all(len(item.name) <= 128 and "/" not in item.name for item in by_path.values())
    one = by_path["data/train set"]
    (tmp_path / "hashed").mkdir()
    assert one.digest == wandb_digest(MEMBERS, tmp_path / "hashed")
    assert (one.type, one.entity, one.project, list(one.aliases)) == ("neptune-file-set", "team", "p", ["latest"])
    assert {item.path: Path(item.local_path).read_bytes() for item in one.manifest.contents} == MEMBERS
    assert by_path["dataset"].type == "neptune-artifact"
    # Each file has one way to W&B.
    ways = [item.local_path for art in by_path.values() for item in art.manifest.contents]
    assert not {str(staged(tmp_path) / "files" / path) for path in found.files} & set(ways)
    assert any(path.startswith("neptune/model") for path in found.files)


def test_they_arrive_once_and_the_staged_files_stay(tmp_path: Path, stub: WandbStub) -> None:
    run = lake_run(tmp_path)
    target = opened(tmp_path, api_key_env="MY_WANDB_KEY", base_url=stub.url)
    receipt = target.replace(run, target.plan(run))
    assert target.verify(run, receipt).ok
    assert set(stub.unknown) <= {"ServerFeaturesQuery"}
    (sent,) = stub.runs.values()
    arrived = {json.loads(item.metadata)["neptune_attribute"]: item for item in sent.artifacts.values()}
    assert {item.state for item in arrived.values()} == {"COMMITTED"}
    one = arrived["data/train set"]
    manifest = json.loads(one.files["wandb_manifest.json"])
    assert set(manifest["contents"]) == set(MEMBERS)
    assert {name: content for name, content in one.files.items() if name != "wandb_manifest.json"} == MEMBERS
    assert {name: content for name, content in arrived["dataset"].files.items() if name != "wandb_manifest.json"} == {
        "dataset.json": LISTED
    }
    assert [content for name, content in sent.files.items() if name.startswith("neptune/")] == [b"weights"]

    # As if the load had died before it knew: sent again, nothing is doubled.
    synced = read_synced(staged(tmp_path))
    assert synced is not None
    write_marker(staged(tmp_path), replace(synced, confirmed=False))
    summary = json.loads(sent.summary)
    sent.summary = "{}"
    assert not target.verify(run, receipt).ok
    target.replace(run, target.plan(run))
    assert json.loads(sent.summary)["neptune_assets"] == summary["neptune_assets"]
    assert target.verify(run, receipt).ok
    assert len(sent.artifacts) == 4
    assert [item.commits for item in sent.artifacts.values()] == [1] * 4
    assert len(sent.history) == 2


def test_an_artifact_that_w_and_b_has_not_is_found(tmp_path: Path, stub: WandbStub) -> None:
    run = lake_run(tmp_path)
    target = opened(tmp_path, api_key_env="MY_WANDB_KEY", base_url=stub.url)
    receipt = target.replace(run, target.plan(run))
    (sent,) = stub.runs.values()
    name = next(iter(sent.artifacts.values())).name
    sent.artifacts = {key: item for key, item in sent.artifacts.items() if item.name != name}
    assert target.verify(run, receipt).differences == (f"W&B has no artifact {name}",)


def test_a_changed_or_missing_file_of_an_artifact_is_found(tmp_path: Path) -> None:
    run = lake_run(tmp_path)
    target = opened(tmp_path)
    receipt = target.replace(run, target.plan(run))
    (path,) = [item for item in staged(tmp_path).rglob("a.txt") if item.read_bytes() == b"one"]
    path.write_bytes(b"two")
    assert any("the artifact is not what was staged" in line for line in target.verify(run, receipt).differences)
    path.unlink()
    assert any("the artifact is not what was staged" in line for line in target.verify(run, receipt).differences)


def test_another_choice_stages_the_run_anew(tmp_path: Path) -> None:
    run = lake_run(tmp_path)
    target = opened(tmp_path)
    target.replace(run, target.plan(run))
    other = opened(tmp_path, file_sets="run_files")
    found = other.find("ws/p", "R")
    assert found is not None
    assert found.digest is None
    receipt = other.replace(run, other.plan(run))
    assert other.verify(run, receipt).ok
    (log,) = staged(tmp_path).glob("*.wandb")
    assert read_wandb(log).artifacts == []
    assert sum(path.startswith("neptune/") for path in read_wandb(log).files) == 7


def test_names_are_short_and_never_meet() -> None:
    paths = ["a/b", "a_b", "a b", "a" * 200, "a" * 201, "ü", "x/" * 90, "."]
    names = [artifact_name("np0123456789", path) for path in paths]
    assert len(set(names)) == len(paths)
    assert all(len(name) <= 128 and "/" not in name for name in names)


def test_artifacts_need_an_entity() -> None:
    with pytest.raises(ValidationError, match="needs entity"):
        WandbSettings(file_sets="artifacts")
