from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neptune_assets.errors import SettingsError
from neptune_assets.migration_settings import Settings
from neptune_assets.schema import Scope
from neptune_assets.settings import NameRules
from neptune_assets.targets.registry import loads
from neptune_assets.targets.rules import RenamedProject, Rules, read_rules, wanted_name
from neptune_assets.testing.lakes import file, make_lake, metric, params

ROWS = [
    *params({"hp/lr": 0.1, "secret/key": "x", "sys/id": "R-1", "sys/name": "first"}),
    *metric("train/loss", [1.0, 0.5, 0.25]),
    *metric("monitoring/cpu", [1.0] * 7),
    file("secret/blob", b"abc"),
]


def rules(**values: Any) -> Rules:
    return Rules(NameRules(**values))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("hyper_parameters/lr", "hp/lr"),
        ("metrics/train/loss", "loss"),
        ("metrics/val/loss", "val/loss"),
        ("metrics", "metrics"),
        ("metrics/", "metrics/"),
        ("sys/id", "sys/id"),
        ("sys_kept", "ys_kept"),
        ("old/metrics/x", "x"),
        ("other", "zther"),
        ("b", "b"),
    ],
)
def test_names(path: str, name: str) -> None:
    chosen = rules(
        keep=["sys/"],
        strip=["metrics/", "metrics/train/", "s"],
        rename=[{"prefix": "hyper_parameters/", "to": "hp/"}, {"prefix": "old/", "to": ""}, {"prefix": "o", "to": "z"}],
    )
    assert chosen.name(path) == name


def test_kept_attributes_are_never_dropped() -> None:
    chosen = rules(keep=["a/b"], drop=["^a/", "c$"])
    assert chosen.dropped_by("a/x") == "^a/"
    assert chosen.dropped_by("xc") == "c$"
    assert chosen.dropped_by("a/bc") is None
    assert chosen.dropped_by("ba/") is None


def test_rules_that_do_nothing_leave_digests_alone() -> None:
    assert rules(keep=["a"], naming="neptune-exporter", collisions="refuse").digest("ab" * 16) == "ab" * 16
    digests = {rules(**values).digest("ab" * 16) for values in ({"drop": ["a"]}, {"drop": ["b"]}, {"strip": ["a"]})}
    assert len(digests) == 3
    assert all(len(digest) == 32 for digest in digests)
    assert rules(drop=["a"]).digest("ab" * 16) == rules(drop=["a"]).digest("ab" * 16)


def test_a_ruled_run_lacks_what_is_dropped_and_counts_it(tmp_path: Path) -> None:
    project = make_lake(tmp_path, {"ws/p": {"r": ROWS}}).project("ws/p")
    run = RenamedProject(project, rules(drop=["^secret/", "^monitoring/"], strip=["hp/"])).run("r")
    assert {(d.attribute_type, d.reason, d.rows) for d in run.dropped} == {
        ("file", "dropped by rule '^secret/'", 1),
        ("string", "dropped by rule '^secret/'", 1),
        ("float_series", "dropped by rule '^monitoring/'", 7),
    }
    assert dict(run.record.rows) == {"float": 1, "string": 2, "float_series": 3}
    assert run.record.files == ()
    whole = [row for batch in run.batches() for row in batch.to_pylist()]
    assert [row["attribute_path"] for row in whole] == ["hp/lr", "sys/id", "sys/name", *["train/loss"] * 3]
    narrow = list(run.batches(columns=["float_value"]))
    assert all(batch.schema.names == ["float_value"] for batch in narrow)
    assert sum(batch.num_rows for batch in narrow) == 6
    assert wanted_name(run)("hp/lr") == "lr"
    assert wanted_name(project.run("r"))("hp/lr") == "hp/lr"
    assert run.original.total_rows == len(ROWS)


def test_a_file_of_rules_is_read(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text("strip: [metrics/]\nrename:\n  - {prefix: a/, to: b/}\nnaming: neptune-exporter\n")
    found = read_rules(str(path))
    assert found.name("metrics/x") == "x"
    assert found.name("a/x") == "b/x"
    path.write_text("")
    assert read_rules(str(path)).name("metrics/x") == "metrics/x"


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("strip: [a]\ndorp: [b]\n", 2, "dorp"),
        ("strip:\n  - a\ndrop:\n  - fine\n  - '('\n", 5, "regular expression"),
        ("rename:\n  - prefix: a\n    to: b\n  - prefix: ''\n    to: c\n", 4, "prefix"),
        ("rename:\n  - prefix: a\n", 2, "to"),
        ("\nnaming: peer\n", 2, "neptune-exporter"),
        ("strip: [a\n", 2, "YAML"),
        ("- a\n", 1, "rules"),
    ],
)
def test_a_wrong_file_of_rules_is_named_with_its_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    path = tmp_path / "names.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        read_rules(str(path))
    assert f"names.yaml:{line}:" in str(error.value)
    assert word in str(error.value)


def test_a_missing_file_of_rules_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml"):
        read_rules(str(tmp_path / "none.yaml"))


def test_the_file_of_rules_lies_below_the_project_root_and_names_for_all_targets(tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text("naming: neptune-exporter\n")
    settings = Settings.model_validate(
        {
            "source": {"export": {"data": "x"}},
            "lake": {"root": "lake"},
            "targets": {"mlflow": {}, "wandb": {}, "names": "names.yaml"},
        }
    ).anchored(tmp_path)
    assert settings.targets.names == str(tmp_path / "names.yaml")
    for opener in [load.openers[Scope.RUNS] for load in loads(settings) if Scope.RUNS in load.openers]:
        target = opener()
        assert target._settings.naming == "neptune-exporter"  # type: ignore[attr-defined]
        target.close()


def test_the_old_word_for_collisions_is_taken_for_one_release() -> None:
    with pytest.warns(DeprecationWarning, match="disambiguate"):
        assert NameRules.model_validate({"collisions": "tell_apart"}).collisions == "disambiguate"
