from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.audit import audit
from neptune_assets.cli import USAGE, neptune_assets, run
from neptune_assets.server.store.projects import Store
from neptune_assets.server.store.runs import NewRun
from neptune_assets_tests.support.export_factory import ExportFactory, file_row, run_v3

DEMO = Path(__file__).parents[1] / "demo" / "recordings"


def audited(path: Path, capsys: pytest.CaptureFixture[str], *options: str, status: int = 0) -> list[dict[str, Any]]:
    """Audit a path; return its sources."""
    assert run(audit, [str(path), "--json", *options]) == status
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["sources"]
    return found


def messages(source: dict[str, Any]) -> str:
    return "\n".join(f"{item['project']}: {item['message']}" for item in source["problems"])


@pytest.fixture
def factory(tmp_path: Path) -> ExportFactory:
    made = ExportFactory(tmp_path)
    made.run("ws/one", "R-1", run_v3("R-1"))
    made.run("ws/one", "R-2", [*run_v3("R-2"), [file_row("model", "R-2/model.bin")]])
    made.file("ws/one", "R-2/model.bin", b"weights")
    made.run("ws/two", "R-3", run_v3("R-3"))
    return made


def test_an_export_is_told_with_its_projects_runs_rows_and_files(
    factory: ExportFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = audited(factory.data.parent, capsys)
    assert source["source"] == "export"
    content = {(item["project"], item["scope"]): item for item in source["content"]}
    assert {key: item["runs"] for key, item in content.items()} == {("ws/one", "runs"): 2, ("ws/two", "runs"): 1}
    assert content["ws/one", "runs"]["rows"]["float_series"] == 2 * content["ws/two", "runs"]["rows"]["float_series"]
    assert content["ws/one", "runs"]["files"] == 1
    assert source["problems"] == []
    assert run(audit, [str(factory.data)]) == 0
    said = capsys.readouterr()
    assert "ws/two: 1 runs" in said.out
    assert "0 problems" in said.out


def test_damage_missing_files_and_unfinished_runs_are_named(
    factory: ExportFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(factory.files)
    part = factory.part("ws/two", "R-3")
    part.write_bytes(part.read_bytes()[:-20])
    factory.run("ws/one", "R-4", run_v3("R-4"), unfinished=True)
    (source,) = audited(factory.data.parent, capsys, status=1)
    said = messages(source)
    assert "model.bin" in said
    assert "R-3" in said
    assert factory.part("ws/one", "R-4").name in said
    before = [file.stat().st_mtime_ns for file in sorted(factory.data.rglob("*"))]
    (listed,) = audited(factory.data.parent, capsys, "--list-only", status=1)
    assert "model.bin" not in messages(listed)
    assert [file.stat().st_mtime_ns for file in sorted(factory.data.rglob("*"))] == before


def test_only_projects_that_are_asked_for_are_read(factory: ExportFactory, capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = audited(factory.data.parent, capsys, "--project", "ws/two")
    assert [item["project"] for item in source["content"]] == ["ws/two"]


def test_recordings_are_told_with_what_they_do_not_name(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = audited(DEMO, capsys, "--list-only", status=1)
    assert "does not say for which project" in messages(source)
    assert {item["project"] for item in source["problems"]} == {None}, "each is said once, of no project"
    (source,) = audited(DEMO, capsys, "--list-only", "--set", "project=demo/tabular")
    assert {item["project"]: item["runs"] for item in source["content"]} == {"demo/tabular": 6, "demo/vision": 7}
    assert source["source"] == "offline"


def test_exit_statuses_are_those_that_are_documented(
    factory: ExportFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    statuses = {
        ("audit", str(factory.data)): 0,
        ("audit", str(tmp_path / "empty")): 10,
        ("audit", str(tmp_path / "nowhere")): 2,
        ("audit", str(factory.data), "--source", "nothing"): 1,
        ("audit", str(factory.data), "--set", "nothing=1"): 2,
        ("audit",): 2,
        ("nothing",): 2,
        ("verify", str(tmp_path / "nowhere")): 10,
        ("plan", "nobody", "--root", str(tmp_path)): 2,
        ("--help",): 0,
    }
    assert {command: run(neptune_assets, command) for command in statuses} == statuses
    assert "audit" in capsys.readouterr().out


def test_what_is_no_export_names_what_it_could_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(audit, [str(tmp_path)]) == 10
    said = capsys.readouterr().err
    assert "neptune-exporter directory" in said
    assert "recordings of Neptune's clients" in said


@pytest.mark.parametrize("given", ["project", "project=[a"])
def test_a_setting_that_cannot_be_understood_is_wrong_usage(
    factory: ExportFactory, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    assert run(audit, [str(factory.data), "--set", given]) == USAGE
    assert "--set project" in capsys.readouterr().err


def test_a_project_that_cannot_be_opened_does_not_end_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    for name in ("ws/a", "ws/b"):
        with store.project(name, create=True).write() as writing:
            writing.create_run(NewRun("r"))
    directory = store.project("ws/a").directory
    store.close()
    (database,) = directory.glob("*.sqlite*")
    database.write_bytes(b"not a database" * 1_000)
    (source,) = audited(tmp_path / "store", capsys, "--source", "server", status=1)
    assert {item["project"]: item["runs"] for item in source["content"]}["ws/b"] == 1
    assert "ws_a-" in messages(source)
