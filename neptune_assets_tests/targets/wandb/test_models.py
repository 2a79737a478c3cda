"""Models and versions staged for W&B, read with wandb's own protobuf classes: no account, nothing of the target's."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from neptune_assets.schema import Scope
from neptune_assets.targets.wandb.artifacts import alias_of, collection_name, registry_name
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets_tests.conformance.targets import born, dying, ms, param, point, text
from neptune_assets_tests.support.lake_factory import file, file_set, make_lake
from neptune_assets_tests.support.model_rows import MODEL, version
from neptune_assets_tests.support.wandb_files import read_wandb
from neptune_assets_tests.support.wandb_models import PROJECT, Models, files_of, weights


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path)


def test_a_version_is_a_run_and_a_version_of_its_model(models: Models) -> None:
    runs = models.runs({"PRO-7": born(point("loss", 0, 1.0))})
    models.models()
    things = {f"PRO-CLS-{n}": version(n) for n in (1, 12)}
    things["PRO-CLS-2"] = version(
        2,
        "production",
        param("sys/description", "string", "the second"),
        param("sys/tags", "string_set", ["good one", "a/b", "ü"]),
        param("run/id", "string", "PRO-7"),
        param("nan", "float", math.nan),
        param("big", "int", 2**63 - 1),
        param("long", "string", "x" * 7_000),
        point("acc", "0.5", 0.9, ms(1)),
        text("log", 0, "line"),
        weights(b"\x00\x01"),
        file_set("all", {"a/x.bin": b"x", "a/y.bin": b"y"}),
        file("listed", b"[]", "files_list.json", kind="artifact"),
    )
    report = models.versions(things)
    assert report.loaded == ["PRO-CLS-1", "PRO-CLS-2", "PRO-CLS-12"]
    staged = models.staged()
    model, second = staged["PRO-CLS"], staged["PRO-CLS-2"]
    assert (model.run.project, model.run.job_type, model.run.run_group) == ("proj", "model", "PRO-CLS")
    assert (model.config["threshold"], model.run.notes, model.artifacts) == (0.5, "tells cats from dogs", [])
    assert (second.run.project, second.run.job_type, second.run.run_group) == ("proj", "model_version", "PRO-CLS")
    # The run has everything that a version in W&B cannot have, exactly.
    assert second.config["long"] == "x" * 7_000
    assert [(row["neptune_step"], row["acc"]) for row in second.history if "acc" in row] == [(0.5, 0.9)]
    logged = models.logged("PRO-CLS-2")
    assert (logged.type, logged.name, logged.entity, logged.project) == ("model", "PRO-CLS", "team", "proj")
    assert logged.run_id == runs.receipts[0].target_id
    assert list(logged.aliases) == ["latest", "production", "PRO-CLS-2"]
    assert (logged.description, list(logged.tags)) == ("the second", ["good one"])
    metadata = json.loads(logged.metadata)
    assert metadata["neptune_project"] == PROJECT
    assert (metadata["neptune_version"], metadata["neptune_model"]) == ("PRO-CLS-2", "PRO-CLS")
    assert (metadata["neptune_stage"], metadata["neptune_run"]) == ("production", "PRO-7")
    assert metadata["wandb_run"] == second.run.run_id
    fields = metadata["fields"]
    assert (fields["number"], fields["nan"], fields["big"]) == (2, "NaN", str(2**63 - 1))
    assert fields["sys/tags"] == ["a/b", "good one", "ü"]
    assert len(fields["long"]) == 5_000
    assert files_of(logged) == {
        "weights.pt": b"\x00\x01",
        "all/a/x.bin": b"x",
        "all/a/y.bin": b"y",
        "listed.json": b"[]",
    }
    # Each file has one way to W&B.
    ways = {Path(item.local_path).name for item in logged.manifest.contents} - {"version.json"}
    assert not ways & {Path(path).name for path in second.files}
    # People sync directories in the order of their names.
    logs = sorted(log for log in (models.root / "lake/wandb").rglob("*.wandb") if "model_versions" in str(log))
    assert [read_wandb(log).config["neptune_assets"]["run_id"] for log in logs] == report.loaded
    # Without a run that was loaded, a version is made by its own.
    first = models.logged("PRO-CLS-1")
    assert first.run_id == staged["PRO-CLS-1"].run.run_id
    assert list(first.aliases) == ["latest", "PRO-CLS-1"]
    assert files_of(first) == {}
    assert not models.wrong()
    assert not models.wrong(Scope.MODELS)


def test_versions_with_the_same_files_are_not_one(models: Models) -> None:
    models.versions({f"PRO-CLS-{n}": version(n, "none", weights(b"same")) for n in (1, 2)} | {"PRO-CLS-3": version(3)})
    logged = [models.logged(f"PRO-CLS-{n}") for n in (1, 2, 3)]
    assert {item.name for item in logged} == {"PRO-CLS"}
    assert len({item.digest for item in logged}) == 3
    assert len({item.client_id for item in logged}) == 3
    assert len({item.sequence_client_id for item in logged}) == 1


def test_the_digest_is_wandbs_own(models: Models, tmp_path: Path) -> None:
    import wandb

    models.versions({"PRO-CLS-1": version(1, "none", weights(b"w"), file_set("all", {"a.bin": b"x"}))})
    logged = models.logged("PRO-CLS-1")
    made = wandb.Artifact("any", "any")
    for item in logged.manifest.contents:
        made.add_file(item.local_path, name=item.path, policy="immutable")
    assert logged.digest == made.digest


def test_the_same_again_stages_nothing_and_a_stage_changes_in_place(models: Models) -> None:
    models.models()
    things = {"PRO-CLS-1": version(1, "staging", weights(b"1")), "PRO-CLS-2": version(2, "none", weights(b"2"))}
    models.versions(things)
    before = {path: path.stat().st_mtime_ns for item in models.directories() for path in item.rglob("*")}
    assert (models.versions(things).loaded, models.models().loaded) == ([], [])
    assert {path: path.stat().st_mtime_ns for item in models.directories() for path in item.rglob("*")} == before
    digest = models.logged("PRO-CLS-1").digest
    things["PRO-CLS-1"] = version(1, "production", weights(b"1"))
    assert models.versions(things).loaded == ["PRO-CLS-1"]
    logged = models.logged("PRO-CLS-1")
    assert (logged.digest, list(logged.aliases)) == (digest, ["latest", "production", "PRO-CLS-1"])
    assert len(models.directories()) == 3
    # Lost ledgers are rebuilt from what is staged.
    for item in (models.root / "lake/targets").rglob("*.jsonl"):
        item.unlink()
    assert models.versions(things).loaded == []


def test_a_run_that_is_loaded_later_is_linked_then(models: Models) -> None:
    things = {"PRO-CLS-1": version(1, "none", param("trained/run", "string", "PRO-7"))}
    make_lake(models.lake.root, {PROJECT: {"PRO-7": born(point("m", 0, 1.0))}})
    models.versions(things)
    assert json.loads(models.logged("PRO-CLS-1").metadata)["neptune_run"] == "PRO-7"
    assert models.logged("PRO-CLS-1").run_id == models.staged()["PRO-CLS-1"].run.run_id
    runs = models.runs({"PRO-7": born(point("m", 0, 1.0))})
    assert models.versions(things).loaded == ["PRO-CLS-1"]
    assert models.logged("PRO-CLS-1").run_id == runs.receipts[0].target_id
    assert models.versions(things).loaded == []
    # Runs of models are no runs of the project.
    target = WandbTarget(models.settings, models.lake)
    assert [item.run_id for item in target.runs(PROJECT)] == ["PRO-7"]


def test_trashed_models_and_versions_say_so(models: Models) -> None:
    models.models({"PRO-CLS": [*MODEL, param("sys/trashed", "bool", True)], "PRO-NIL": born()})
    models.versions({"PRO-CLS-1": version(1, "archived", param("sys/trashed", "bool", True))})
    assert models.staged()["PRO-CLS"].config["sys"]["trashed"] is True
    assert json.loads(models.logged("PRO-CLS-1").metadata)["fields"]["sys/trashed"] is True
    # A model without versions is a run: W&B has no collection without a version in it.
    assert models.staged()["PRO-NIL"].artifacts == []


def test_without_an_entity_a_version_is_a_run_and_says_so(tmp_path: Path) -> None:
    models = Models(tmp_path, entity=None)
    report = models.versions({"PRO-CLS-1": version(1, "staging", weights(b"w"))})
    assert "targets.wandb.entity is not set" in " ".join(report.receipts[0].notes)
    found = models.staged()["PRO-CLS-1"]
    assert found.artifacts == []
    assert any(path.endswith("weights.pt") for path in found.files)
    named = Models(tmp_path)
    assert named.versions({"PRO-CLS-1": version(1, "staging", weights(b"w"))}).loaded == ["PRO-CLS-1"]
    assert files_of(named.logged("PRO-CLS-1")) == {"weights.pt": b"w"}


def test_hostile_names_stay_apart() -> None:
    ids = ["A", "a", "A/B", "A B", "A_B", "a_b", "x" * 127, "x" * 128, "x" * 129, "X" * 128, "X" * 129, "..", "ü", "v0"]
    ids += ["A:B", "A\nB", "A\x00B", "latest", "Å", "'", '"', "%2F"]
    names = [collection_name(item) for item in ids]
    assert len({name.casefold() for name in names}) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name) for name in names)
    assert collection_name("PRO-CLS") == "PRO-CLS"
    assert collection_name("X" * 128) == "X" * 128
    linked = [registry_name("p", name) for name in names] + [registry_name("p é", "A"), registry_name("p_", "A")]
    assert len({name.casefold() for name in linked}) == len(linked)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name) for name in linked)
    assert registry_name("p", "PRO-CLS") == "p-PRO-CLS"
    for reserved in ("latest", "LATEST", "v0", "V12", "none", "None", "a/b", "a:b", "", "a\n", "ü", "x" * 129):
        assert alias_of(reserved) is None
    assert [alias_of(stage) for stage in ("staging", "production", "archived")] == ["staging", "production", "archived"]


def test_hostile_ids_texts_and_files_arrive(models: Models) -> None:
    strange = "mödel/ '\"\n:v0"
    things = {
        strange: born(
            param("sys/model_id", "string", "a b/c"),
            param("sys/stage", "string", "latest"),
            param("sys/description", "string", "nul \x00 and\nlines"),
            param("sys/tags", "string_set", ["", "x" * 129, "-ok_"]),
            param("a", "int", 1),
            param("a/b", "string", "\x00"),
            param("inf", "float", -math.inf),
            file("neptune_assets/version", b"theirs", "v.json"),
            file_set("../up", {"../../etc/x": b"x", "A": b"1", "a": b"2", "": b"3"}),
        ),
        "x" * 300: born(param("sys/id", "string", "x" * 300)),
    }
    models.versions(things)
    logged = models.logged(strange)
    assert logged.name == collection_name("a b/c") != "a_b_c"
    assert (list(logged.aliases), list(logged.tags)) == (["latest"], ["-ok_"])
    assert logged.description == "nul \ufffd and\nlines"
    metadata = json.loads(logged.metadata)
    assert (metadata["neptune_version"], metadata["neptune_model"]) == (strange, "a b/c")
    assert metadata["fields"]["inf"] == "-Infinity"
    paths = [item.path for item in logged.manifest.contents]
    assert len({path.casefold() for path in paths}) == len(paths) == 6
    assert not any(part in {"", ".", ".."} for path in paths for part in path.split("/"))
    identity = [
        item for item in logged.manifest.contents if item.local_path.endswith("/files/neptune_assets/version.json")
    ]
    assert json.loads(Path(identity[0].local_path).read_text())["version_id"] == strange
    assert sorted(Path(item.local_path).read_bytes() for item in logged.manifest.contents if item not in identity) == [
        b"1",
        b"2",
        b"3",
        b"theirs",
        b"x",
    ]
    assert models.versions(things).loaded == []


def test_what_is_changed_in_a_staged_version_is_found(models: Models) -> None:
    models.versions({"PRO-CLS-1": version(1, "staging", weights(b"w"))})
    (directory,) = models.directories()
    (path,) = directory.rglob("weights.pt")
    path.write_bytes(b"v")
    assert "model version" in models.wrong()["PRO-CLS-1"]
    path.write_bytes(b"w")
    assert not models.wrong()
    identity = directory / "files/neptune_assets/version.json"
    identity.write_text(identity.read_text().replace("CLS-1", "CLS-2"))
    assert "model version" in models.wrong()["PRO-CLS-1"]
    shutil.rmtree(directory)
    assert models.wrong() == {"PRO-CLS-1": "missing"}
    assert models.versions({"PRO-CLS-1": version(1, "staging", weights(b"w"))}).loaded == ["PRO-CLS-1"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "dotted", ["wandb.staging:RunStage.build", "wandb.load:WandbTarget._stage", "staged:StagedDirectories.publish"]
)
def test_dying_anywhere_is_repaired(models: Models, dotted: str, when: str) -> None:
    things = {"PRO-CLS-1": version(1, "staging"), "PRO-CLS-2": version(2, "staging", weights(b"w"))}
    with dying(f"neptune_assets.targets.{dotted}", when):
        models.versions(things)
    models.versions(things)
    assert sorted(models.staged()) == ["PRO-CLS-1", "PRO-CLS-2"]
    assert not models.wrong()
    assert not list((models.root / "lake/wandb/.staging").glob("*/*"))


def test_a_removed_version_is_staged_no_more(models: Models) -> None:
    models.versions({"PRO-CLS-1": version(1)})
    target = models.target(Scope.MODEL_VERSIONS)
    target.remove(PROJECT, "PRO-CLS-1")
    assert models.directories() == []
    assert target.find(PROJECT, "PRO-CLS-1") is None
