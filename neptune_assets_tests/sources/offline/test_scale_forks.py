"""Recordings of neptune-scale that belong together: forks and what they inherit, and runs that were resumed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from neptune_assets.settings import Filters, RunFilter
from neptune_assets_tests.conformance.sources import read
from neptune_assets_tests.support.scale_reading import offline, points_of, values_of
from neptune_assets_tests.support.scale_recorder import BASE, PROJECT


def test_children_inherit_what_the_parent_had_when_they_forked(family: Path) -> None:
    source = offline(family)
    result = read(source, PROJECT, ["child", "plain", "grandchild", "orphan", "parent"])
    inherited = {
        "p/kept": 1,
        "p/overwritten": "child",
        "p/changed": "before",
        "sys/description": "told",
        "sys/tags": ["from parent"],
        "sys/group_tags": ["family"],
    }
    child = values_of(result.rows["child"])
    assert isinstance(child.pop("sys/creation_time"), datetime)
    own = {"sys/custom_run_id": "child", "sys/forking/parent": "parent", "sys/forking/step": 1.5}
    assert child == {**inherited, **own}
    assert [point[2] for point in points_of(result.rows["child"], "m", "float_value")] == [2.0]
    grandchild = values_of(result.rows["grandchild"])
    assert {path: grandchild[path] for path in inherited} == inherited
    assert grandchild["sys/forking/parent"] == "child"
    plain = values_of(result.rows["plain"])
    assert set(plain) == {"own", "sys/custom_run_id", "sys/creation_time", "sys/forking/parent", "sys/forking/step"}
    orphan = result.ends["orphan"]
    assert orphan.errors == ()
    assert "'nowhere'" in orphan.notes[0].message
    assert values_of(result.rows["orphan"])["own"] == 1
    assert values_of(result.rows["parent"])["p/changed"] == "after"
    for run_id in ("child", "grandchild"):
        (reference,) = [row["file_value"]["path"] for row in result.rows[run_id] if row["file_value"] is not None]
        (file,) = source.files(PROJECT, run_id, reference)
        with file.open() as opened:
            assert opened.read() == b"parent's file"


def test_a_parent_that_filters_leave_out_still_passes_on(family: Path) -> None:
    source = offline(family, filters=Filters(runs=RunFilter(ids=["child"])))
    assert [info.run_id for info in source.runs(PROJECT)] == ["child"]
    assert values_of(read(source, PROJECT, ["child"]).rows["child"])["p/kept"] == 1


def test_a_parent_in_another_folder_changes_the_childs_fingerprint(
    family: Path, copied: Callable[[Path, str], tuple[Path, Path]]
) -> None:
    folder, _ = copied(family, "child")
    shutil.rmtree(folder / "elsewhere")
    alone = {info.run_id: info.fingerprint for info in offline(folder, files_from=[]).runs(PROJECT)}
    both = offline(folder, family / "elsewhere", files_from=[])
    together = {info.run_id: info.fingerprint for info in both.runs(PROJECT)}
    assert alone["child"] != together["child"]
    assert alone["grandchild"] != together["grandchild"]
    assert alone["plain"] == together["plain"]
    assert "p/kept" not in values_of(read(offline(folder), PROJECT, ["child"]).rows["child"])


def test_a_child_recorded_before_its_parent_inherits_nothing(family: Path) -> None:
    result = read(offline(family), PROJECT, ["early", "late"])
    assert "p" not in values_of(result.rows["early"])
    assert values_of(result.rows["early"])["sys/forking/parent"] == "late"
    assert values_of(result.rows["late"])["p"] == 1


def test_recordings_of_one_run_are_one_run(family: Path) -> None:
    source = offline(family)
    result = read(source, PROJECT, ["resumed"])
    found = values_of(result.rows["resumed"])
    assert found == {
        "c": "second",
        "only/first": 1,
        "sys/tags": ["b"],
        "sys/creation_time": BASE,
        "sys/custom_run_id": "resumed",
    }
    assert [point[2] for point in points_of(result.rows["resumed"], "m", "float_value")] == [1.0, 2.0]
    assert result.ends["resumed"].errors == ()
    (info,) = [info for info in source.runs(PROJECT) if info.run_id == "resumed"]
    assert info.created_at == BASE
