import re
import textwrap
import traceback
from pathlib import Path

import dagster as dg
import pytest

GOOD = """
type: neptune_assets.components.NeptuneMigration
attributes:
  source:
    offline:
      paths: [recordings]
  filters:
    projects:
      only: [ws/one, ws/two]
  lake:
    root: lake
"""


def project(root: Path, **files: str) -> Path:
    (root / "pyproject.toml").write_text(
        textwrap.dedent("""
        [tool.dg]
        directory_type = "project"
        [tool.dg.project]
        root_module = "home"
        """),
        encoding="utf-8",
    )
    for name, text in files.items():
        folder = root / "home" / "defs" / name
        folder.mkdir(parents=True)
        (folder / "defs.yaml").write_text(text, encoding="utf-8")
    for folder in (root / "home", root / "home" / "defs"):
        (folder / "__init__.py").touch()
    return root


def load(root: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    monkeypatch.syspath_prepend(str(root))
    for name in [name for name in __import__("sys").modules if name == "home" or name.startswith("home.")]:
        monkeypatch.delitem(__import__("sys").modules, name)
    return dg.load_from_defs_folder(path_within_project=root / "home")


def test_two_migrations_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = GOOD.replace("root: lake", "root: other").replace("ws/one, ws/two", "ws/three")
    defs = load(project(tmp_path, first=GOOD, second=other), monkeypatch)
    graph = defs.resolve_asset_graph()
    keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert {"first/lake/runs", "second/lake/runs", "first/summary/metrics", "second/summary/neptune_duckdb"} <= keys
    partitions = graph.get(dg.AssetKey(["first", "lake", "runs"])).partitions_def
    assert partitions is not None
    assert list(partitions.get_partition_keys()) == ["ws/one", "ws/two"]
    schedules = {f"{name}_{kind}" for name in ("first", "second") for kind in ("backfill", "verify_share")}
    assert {schedule.name for schedule in defs.schedules or ()} == schedules


@pytest.mark.parametrize(
    ("good", "bad", "line", "word"),
    [
        ("root: lake", "rot: lake", 11, "rot"),
        ("paths: [recordings]", "paths: 7", 6, "list"),
        ("only: [ws/one, ws/two]", "include: ['(']", 9, "regular expression"),
        ("offline:", "nothing:", 5, "nothing"),
    ],
)
def test_wrong_settings_are_errors_with_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: str, bad: str, line: int, word: str
) -> None:
    with pytest.raises(Exception, match="broken") as error:
        load(project(tmp_path, broken=GOOD.replace(good, bad)), monkeypatch)
    text = "".join(traceback.format_exception(error.value))
    assert re.search(rf"defs\.yaml:{line}\b", text), text
    assert word in text


def test_templates_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_LAKE", "elsewhere/lake")
    defs = load(project(tmp_path, mine=GOOD.replace("root: lake", "root: '{{ env.MY_LAKE }}'")), monkeypatch)
    metadata = defs.resolve_asset_graph().get(dg.AssetKey(["mine", "lake", "runs"])).metadata
    assert str(tmp_path / "elsewhere/lake") in str(metadata["dagster/uri"])


def test_owners_tags_and_other_fields_are_set_as_for_any_component(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = """
post_processing:
  assets:
    - target: "key:mine/lake/*"
      attributes:
        owners: ["team:ml"]
        tags: {tier: archive}
        description: Ours.
"""
    written = GOOD.replace("neptune_assets.components.NeptuneMigration", "neptune_assets.NeptuneMigration") + more
    graph = load(project(tmp_path, mine=written), monkeypatch).resolve_asset_graph()
    runs = graph.get(dg.AssetKey(["mine", "lake", "runs"]))
    assert runs.owners == ["team:ml"]
    assert runs.tags["tier"] == "archive"
    assert runs.description == "Ours."
    assert {key.name for key in graph.asset_check_keys if key.asset_key == runs.key} >= {"complete", "schema"}
    assert graph.get(dg.AssetKey(["mine", "source", "inventory"])).owners == []
