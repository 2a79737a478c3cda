"""`make clean` and `make demo` remove what they made themselves, and nothing that may be the only copy of a run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """What is in a repository that has been used: the demo, somebody's lake and store, caches, Dagster's history."""
    for name in (
        "demo/__pycache__/clean.pyc",
        "neptune_assets/lake/__pycache__/reader.pyc",
        ".venv/lib/__pycache__/site.pyc",
        ".mypy_cache/cache.json",
        "data/lake/data/ws_proj-00871eb7ac1bdb01/RUN-1-549fcb30a0f06072_part_0.parquet",
        "data/server/ws_proj/project.sqlite3",
        "mlruns/0/meta.yaml",
        "wandb/offline-run/run.wandb",
        "dagster_home/history/runs.db",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "demo/clean.py", tmp_path / "demo")
    return tmp_path


def clean(repository: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "demo/clean.py", *options]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True)


def files(repository: Path) -> set[str]:
    return {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}


def test_make_clean_removes_the_demo_and_caches_lists_them_and_keeps_all_else(repository: Path) -> None:
    clean(repository, "--demo-only")
    (repository / "data/demo/mlflow.db").touch()
    before = files(repository)
    done = subprocess.run(
        ["make", "clean", f"PYTHON={sys.executable}"], cwd=repository, capture_output=True, text=True, check=True
    )
    gone = before - files(repository)
    assert gone == {
        "data/demo/.made-by-make-demo",
        "data/demo/mlflow.db",
        "demo/__pycache__/clean.pyc",
        "neptune_assets/lake/__pycache__/reader.pyc",
        ".mypy_cache/cache.json",
    }
    assert all(any(str(repository / name).startswith(path) for path in named(done.stdout)) for name in gone)


def named(output: str) -> list[str]:
    return [line.removeprefix("removed ") for line in output.splitlines() if line.startswith("removed ")]


@pytest.mark.parametrize("options", [(), ("--demo-only",)], ids=["clean", "demo"])
@pytest.mark.parametrize("case", ["not made by the demo", "with another project", "a link"])
def test_a_lake_of_somebody_in_the_demos_place_is_kept(repository: Path, options: tuple[str, ...], case: str) -> None:
    demo = repository / "data/demo"
    if case == "a link":
        demo.symlink_to(repository / "data/lake")
    else:
        if case == "with another project":
            clean(repository, "--demo-only")
        shutil.copytree(repository / "data/lake", demo, dirs_exist_ok=True)
    before = files(repository)
    refused = clean(repository, *options)
    assert refused.returncode == 1
    assert "Not removed" in refused.stdout
    assert "remove it yourself" in refused.stdout
    assert files(repository) == before


def test_no_target_of_the_makefile_removes_directories_by_itself() -> None:
    assert not re.search(r"\brm -\w*r|git clean", (ROOT / "Makefile").read_text(encoding="utf-8"))
