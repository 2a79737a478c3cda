"""Collections of models: real client, local stub. The real ``wandb sync`` logs versions, our calls settle the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.errors import TargetError
from neptune_assets.lake.reader import Lake
from neptune_assets.schema import Scope
from neptune_assets_tests.conformance.targets import born, dying, param, point
from neptune_assets_tests.support.lake_factory import make_lake
from neptune_assets_tests.support.model_rows import MODEL, version
from neptune_assets_tests.support.wandb_models import KEY, PROJECT, Models, weights
from neptune_assets_tests.support.wandb_stub import StubArtifact, WandbStub

LINKED = ("org-entity", "wandb-registry-model", "proj-PRO-CLS")


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbStub]:
    monkeypatch.setenv("MY_WANDB_KEY", KEY)
    with WandbStub(KEY) as server:
        yield server


@pytest.fixture
def models(tmp_path: Path, stub: WandbStub) -> Models:
    return Models(tmp_path, stub)


def ids(held: list[StubArtifact]) -> list[str]:
    return [json.loads(item.metadata).get("neptune_version", "-") for item in held]


def aliases(held: list[StubArtifact], place: Any = None) -> dict[str, str]:
    """Alias -> version; an alias that two versions had would be found as a wrong length."""
    pairs = [
        (alias, name)
        for item, name in zip(held, ids(held), strict=True)
        for alias in (item.aliases if place is None else item.links.get(place, []))
    ]
    assert len({alias for alias, _ in pairs}) == len(pairs)
    return dict(pairs)


def sent_files(item: StubArtifact) -> dict[str, bytes]:
    ours = {"wandb_manifest.json", "neptune_assets/version.json"}
    return {name: content for name, content in item.files.items() if name not in ours}


def test_versions_arrive_in_order_with_all_they_have(tmp_path: Path, stub: WandbStub) -> None:
    models = Models(tmp_path, stub, registry="model")
    runs = models.runs({"PRO-7": born(point("loss", 0, 1.0))})
    models.models()
    things = {
        "PRO-CLS-1": version(1, "production", weights(b"1")),
        "PRO-CLS-10": version(10, "staging"),
        "PRO-CLS-2": version(
            2,
            "production",
            param("run/id", "string", "PRO-7"),
            param("sys/tags", "string_set", ["good"]),
            param("sys/description", "string", "the second"),
            weights(b"2"),
        ),
    }
    report = models.versions(things)
    assert report.loaded == ["PRO-CLS-1", "PRO-CLS-2", "PRO-CLS-10"]
    assert [receipt.notes[-1] for receipt in report.receipts] == [
        f"version v{n} of the model PRO-CLS" for n in range(3)
    ]
    held = stub.collections.versions("PRO-CLS")
    assert [item.index for item in held] == [0, 1, 2]
    assert ids(held) == ["PRO-CLS-1", "PRO-CLS-2", "PRO-CLS-10"]
    assert {item.state for item in held} == {"COMMITTED"}
    assert {item.type for item in held} == {"model"}
    wanted = {f"PRO-CLS-{n}": f"PRO-CLS-{n}" for n in (1, 2, 10)}
    stages = {"production": "PRO-CLS-2", "staging": "PRO-CLS-10"}
    assert aliases(held) == {**wanted, **stages, "latest": "PRO-CLS-10"}
    assert aliases(held, LINKED) == {**wanted, **stages}
    assert [sent_files(item) for item in held] == [{"weights.pt": b"1"}, {"weights.pt": b"2"}, {}]
    second = held[1]
    assert (second.description, second.tags) == ("the second", ["good"])
    assert second.creator == runs.receipts[0].target_id
    assert held[0].creator == report.receipts[0].target_id
    metadata = json.loads(second.metadata)
    assert (metadata["neptune_run"], metadata["wandb_run_of_origin"]) == ("PRO-7", second.creator)
    assert metadata["fields"]["number"] == 2
    record = Lake(models.lake).project(PROJECT, Scope.MODEL_VERSIONS).records()["PRO-CLS-2"]
    assert metadata["neptune_digest"] == record.digest
    # W&B makes a collection with its first version, so the model's description came with the versions.
    assert stub.collections.descriptions["team", "proj", "PRO-CLS"] == "tells cats from dogs"
    assert stub.runs[report.receipts[1].target_id].upserts[0]["jobType"] == "model_version"
    assert set(stub.unknown) <= {"ServerFeaturesQuery"}
    assert not models.wrong()
    assert not models.wrong(Scope.MODELS)
    # The same again sends nothing.
    changes, commits = stub.collections.changes, [item.commits for item in held]
    assert (models.versions(things).loaded, models.models().loaded) == ([], [])
    assert (stub.collections.changes, [item.commits for item in held], commits) == (changes, commits, [1, 1, 1])


def test_a_stage_and_fields_change_in_place(models: Models, stub: WandbStub) -> None:
    models.models()
    things = {f"PRO-CLS-{n}": version(n, "production" if n > 1 else "none", weights(b"%d" % n)) for n in (1, 2, 3)}
    models.versions(things)
    held = stub.collections.versions("PRO-CLS")
    held[0].tags.append("theirs")
    held[2].aliases.append("champion")
    things["PRO-CLS-3"] = version(3, "archived", param("sys/tags", "string_set", ["a"]), weights(b"3"))
    things["PRO-CLS-1"] = version(1, "staging", param("sys/tags", "string_set", ["a", "b"]), weights(b"1"))
    assert models.versions(things).loaded == ["PRO-CLS-1", "PRO-CLS-3"]
    now = stub.collections.versions("PRO-CLS")
    assert [item.number for item in now] == [item.number for item in held]
    assert len(stub.collections.held["team", "proj", "PRO-CLS"]) == 3
    own = {f"PRO-CLS-{n}": f"PRO-CLS-{n}" for n in (1, 2, 3)}
    expected = {"staging": "PRO-CLS-1", "production": "PRO-CLS-2", "archived": "PRO-CLS-3", "champion": "PRO-CLS-3"}
    found = aliases(now)
    assert {**found, "latest": ""} == {**own, **expected, "latest": ""}
    assert sorted(now[0].tags) == ["a", "b", "theirs"]
    assert json.loads(now[2].metadata)["fields"]["sys/stage"] == "archived"
    things["PRO-CLS-1"] = version(1, "staging", param("sys/tags", "string_set", ["b"]), weights(b"1"))
    models.versions(things)
    assert sorted(stub.collections.versions("PRO-CLS")[0].tags) == ["b", "theirs"]
    models.models({"PRO-CLS": [*MODEL[:-3], param("sys/description", "string", "of today")]})
    assert stub.collections.descriptions["team", "proj", "PRO-CLS"] == "of today"
    assert not models.wrong()


@pytest.mark.parametrize("what", ["late", "other files"])
def test_a_version_takes_its_place(tmp_path: Path, stub: WandbStub, what: str) -> None:
    models = Models(tmp_path, stub, registry="model")
    things = {f"PRO-CLS-{n}": version(n, "staging", weights(b"%d" % n)) for n in (1, 3)}
    if what == "other files":
        things["PRO-CLS-2"] = version(2, "none", weights(b"old"))
    models.versions(things)
    last = stub.collections.versions("PRO-CLS")[-1]
    last.aliases.append("champion")
    last.links[LINKED].append("theirs")
    last.tags.append("mine")
    things["PRO-CLS-2"] = version(2, "none", weights(b"new"))
    assert models.versions(things).loaded == ["PRO-CLS-2"]
    held = stub.collections.versions("PRO-CLS")
    assert ids(held) == ["PRO-CLS-1", "PRO-CLS-2", "PRO-CLS-3"]
    assert [sent_files(item) for item in held] == [{"weights.pt": content} for content in (b"1", b"new", b"3")]
    own = {f"PRO-CLS-{n}": f"PRO-CLS-{n}" for n in (1, 2, 3)}
    assert aliases(held) == {**own, "latest": "PRO-CLS-3", "staging": "PRO-CLS-3", "champion": "PRO-CLS-3"}
    assert aliases(held, LINKED) == {**own, "staging": "PRO-CLS-3", "theirs": "PRO-CLS-3"}
    assert held[2].tags == ["mine"]
    assert models.versions(things).loaded == []
    assert not models.wrong()


def test_nothing_of_others_is_touched(models: Models, stub: WandbStub) -> None:
    models.versions({"PRO-CLS-1": version(1, "production")})
    theirs = StubArtifact("PRO-CLS", "model", "theirs", "COMMITTED", number="t", creator="x", aliases=[])
    place = ("team", "proj", "PRO-CLS")
    stub.collections.created(place, theirs, ["latest", "production"])
    assert not models.wrong()
    things = {"PRO-CLS-1": version(1, "production", weights(b"w")), "PRO-CLS-2": version(2, "production")}
    models.versions(things)
    assert ids_or_theirs(stub) == ["theirs", "PRO-CLS-1", "PRO-CLS-2"]
    assert "production" in theirs.aliases
    assert (theirs.metadata, theirs.tags, theirs.state) == ("", [], "COMMITTED")
    with pytest.raises(TargetError, match="uploaded"):
        models.target(Scope.MODEL_VERSIONS).remove(PROJECT, "PRO-CLS-1")


def ids_or_theirs(stub: WandbStub) -> list[str]:
    return [
        json.loads(item.metadata)["neptune_version"] if item.metadata else item.digest
        for item in stub.collections.versions("PRO-CLS")
    ]


def test_a_registry_named_later_gets_its_links(models: Models, stub: WandbStub, tmp_path: Path) -> None:
    things = {"PRO-CLS-1": version(1, "production"), "PRO-CLS-2": version(2)}
    models.versions(things)
    assert aliases(stub.collections.versions("PRO-CLS"), LINKED) == {}
    later = Models(tmp_path, stub, registry="model")
    assert later.versions(things).loaded == ["PRO-CLS-1", "PRO-CLS-2"]
    linked = aliases(stub.collections.versions("PRO-CLS"), LINKED)
    assert linked == {"production": "PRO-CLS-1", "PRO-CLS-1": "PRO-CLS-1", "PRO-CLS-2": "PRO-CLS-2"}
    assert later.versions(things).loaded == []
    stub.collections.organizations = {}
    alone = Models(tmp_path, stub, registry="other")
    report = alone.load(Scope.MODEL_VERSIONS, things)
    assert "belongs to no organization" in report.failed["PRO-CLS-1"]


def test_a_run_that_is_uploaded_later_is_named_then(models: Models, stub: WandbStub) -> None:
    things = {"PRO-CLS-1": version(1, "none", param("trained/run", "string", "PRO-7"))}
    make_lake(models.lake.root, {PROJECT: {"PRO-7": born(point("m", 0, 1.0))}})
    models.versions(things)
    runs = models.runs({"PRO-7": born(point("m", 0, 1.0))})
    assert models.versions(things).loaded == ["PRO-CLS-1"]
    (held,) = stub.collections.versions("PRO-CLS")
    assert json.loads(held.metadata)["wandb_run_of_origin"] == runs.receipts[0].target_id
    assert models.versions(things).loaded == []
    assert not models.wrong()


def test_what_is_changed_in_w_and_b_is_found(tmp_path: Path, stub: WandbStub) -> None:
    models = Models(tmp_path, stub, registry="model")
    models.models()
    tagged = version(1, "production", param("sys/tags", "string_set", ["t"]))
    things = {"PRO-CLS-1": tagged, "PRO-CLS-2": version(2, "staging"), "PRO-CLS-3": version(3)}
    models.versions(things)
    assert not models.wrong()
    first, second, third = stub.collections.versions("PRO-CLS")
    first.description, first.tags = "another", []
    first.aliases.remove("production")
    second.links.clear()
    found = models.wrong()
    for words in ("description", "tag 't' is missing", "alias 'production' is missing in proj/PRO-CLS"):
        assert words in found["PRO-CLS-1"]
    assert "not linked" in found["PRO-CLS-2"]
    third.metadata = json.dumps({**json.loads(third.metadata), "neptune_model": "x"})
    assert "neptune_model" in models.wrong()["PRO-CLS-3"]
    third.state, third.aliases = "DELETED", []
    third.number = "gone"
    assert "no version" in models.wrong()["PRO-CLS-3"]
    stub.collections.descriptions["team", "proj", "PRO-CLS"] = "x"
    assert "description" in models.wrong(Scope.MODELS)["PRO-CLS"]
    # What somebody deleted, or unlinked, is brought back by the next load.
    assert models.versions(things).loaded == ["PRO-CLS-2", "PRO-CLS-3"]
    assert set(models.wrong()) == {"PRO-CLS-1"}
    models.versions(things, full_refresh=True)
    assert not models.wrong()
    assert [item.commits for item in stub.collections.versions("PRO-CLS")] == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "dotted",
    [
        "models:ModelRegistry.make_room",
        "client:WandbClient.sync",
        "models:ModelRegistry.restore",
        "models:ModelRegistry.settle",
        "models:ModelRegistry._settle_aliases",
    ],
)
def test_dying_anywhere_is_finished_and_not_doubled(models: Models, stub: WandbStub, dotted: str, when: str) -> None:
    things = {"PRO-CLS-1": version(1), "PRO-CLS-3": version(3, "staging", weights(b"3"))}
    models.versions(things)
    things["PRO-CLS-2"] = version(2, "staging", weights(b"2"))
    with dying(f"neptune_assets.targets.wandb.{dotted}", when):
        models.versions(things)
    models.versions(things)
    held = stub.collections.versions("PRO-CLS")
    assert ids(held) == ["PRO-CLS-1", "PRO-CLS-2", "PRO-CLS-3"]
    assert [sent_files(item) for item in held] == [{}, {"weights.pt": b"2"}, {"weights.pt": b"3"}]
    found = aliases(held)
    assert (found["staging"], found["latest"]) == ("PRO-CLS-3", "PRO-CLS-3")
    assert not models.wrong()
    assert models.versions(things).loaded == []


def test_what_was_staged_without_a_key_is_uploaded_with_one(tmp_path: Path, stub: WandbStub) -> None:
    things = {"PRO-CLS-1": version(1, "staging")}
    alone = Models(tmp_path)
    alone.versions(things)
    assert list(alone.logged("PRO-CLS-1").aliases) == ["latest", "staging", "PRO-CLS-1"]
    models = Models(tmp_path, stub)
    assert models.versions(things).loaded == ["PRO-CLS-1"]
    held = stub.collections.versions("PRO-CLS")
    assert aliases(held) == dict.fromkeys(("latest", "staging", "PRO-CLS-1"), "PRO-CLS-1")
    assert not models.wrong()


def test_a_load_that_died_is_finished_and_not_doubled(models: Models, stub: WandbStub) -> None:
    things = {"PRO-CLS-1": version(1, "staging", weights(b"1"))}
    for dotted in ("client:WandbClient.sync", "models:ModelRegistry._settle_aliases"):
        with dying(f"neptune_assets.targets.wandb.{dotted}", "after"):
            models.versions(things)
    models.versions(things)
    held = stub.collections.versions("PRO-CLS")
    assert aliases(held) == dict.fromkeys(("latest", "staging", "PRO-CLS-1"), "PRO-CLS-1")
    assert [item.commits for item in held] == [1]
    assert not models.wrong()
    assert models.versions(things).loaded == []


def test_rows_that_cannot_be_changed_leave_versions_where_they_are(models: Models, stub: WandbStub) -> None:
    things = {"PRO-CLS-1": version(1, "none", point("acc", 0, 1.0), weights(b"1")), "PRO-CLS-2": version(2)}
    models.versions(things)
    things["PRO-CLS-1"] = version(1, "none", point("acc", 0, 2.0), weights(b"other"))
    report = models.load(Scope.MODEL_VERSIONS, things)
    assert "neither change nor remove" in report.failed["PRO-CLS-1"]
    held = stub.collections.versions("PRO-CLS")
    assert [item.index for item in held] == [0, 1]
    assert sent_files(held[0]) == {"weights.pt": b"1"}


def test_two_projects_with_models_of_one_id(models: Models, stub: WandbStub) -> None:
    for project in ("ws/one", "other/one"):
        models.versions({"PRO-CLS-1": version(1, "staging", param("of", "string", project))}, project=project)
    found = [item for held in stub.collections.held.values() for item in held]
    assert len(stub.collections.held) == 2
    assert {json.loads(item.metadata)["neptune_project"] for item in found} == {"ws/one", "other/one"}
    assert all("staging" in item.aliases for item in found)
