"""What is installed works where nothing is cloned: the core alone, a `dg` project of one's own, plug-ins of others.

The wheel is built and installed into throw-away environments, from the package index, in the versions of `uv.lock`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from neptune_assets_tests.support.export_factory import ExportFactory, run_v3

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).parent / "toy"


def run(*command: str | Path, cwd: Path, status: int = 0, env: Mapping[str, str] | None = None) -> str:
    """Run a command in an environment that knows nothing of this one; return all it wrote."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))
    }
    quiet = {"DAGSTER_DISABLE_TELEMETRY": "yes", "NO_COLOR": "1", "COLUMNS": "200", **(env or {})}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**kept, **quiet},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}"
    return done.stdout


class Environment:
    """A throw-away virtual environment with the wheel, and an empty directory to work in."""

    def __init__(self, root: Path, *packages: str | Path) -> None:
        self.home = root / "empty"
        self.home.mkdir(parents=True)
        self.bin = root / "venv" / "bin"
        run(uv(), "venv", "-q", "--python", sys.executable, root / "venv", cwd=root)
        self.install(root, *packages)

    def install(self, root: Path, *packages: str | Path) -> None:
        exported = ("export", "--frozen", "--no-hashes", "--no-emit-project", "--all-extras", "-q")
        (root / "versions.txt").write_text(run(uv(), *exported, cwd=ROOT), encoding="utf-8")
        chosen = ("-q", "--python", self.bin / "python", "-c", root / "versions.txt")
        run(uv(), "pip", "install", *chosen, *packages, cwd=root)

    def run(self, command: str, *arguments: str | Path, status: int = 0) -> str:
        """Run one of its commands in the empty directory, with a Dagster home of its own."""
        home = self.home / ".dagster"
        home.mkdir(exist_ok=True)
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n", encoding="utf-8")
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return run(
            self.bin / command, *arguments, cwd=self.home, status=status, env={"DAGSTER_HOME": str(home), "PATH": path}
        )


def uv() -> str:
    found = ROOT / ".tools" / "bin" / "uv"
    return str(found) if found.exists() else shutil.which("uv") or pytest.fail("uv is missing: run `make install`")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    run(uv(), "build", "-q", "--wheel", "--out-dir", place, ROOT, cwd=place)
    (built,) = place.glob("*.whl")
    return built


def export(root: Path) -> Path:
    factory = ExportFactory(root)
    for run_id in ("R-1", "R-2"):
        factory.run("ws/one", run_id, run_v3(run_id))
    return factory.data.parent


def with_extras(wheel: Path, extras: str) -> str:
    return f"neptune_assets[{extras}] @ {wheel.as_uri()}"


def test_the_wheel_holds_the_package_and_not_the_demo(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "neptune_assets/components/migration.py" in names
    assert "neptune_assets/py.typed" in names
    sources = {file.relative_to(ROOT).as_posix() for file in (ROOT / "neptune_assets").rglob("*.sql")}
    assert sources <= set(names)
    assert not [name for name in names if "/defs" in name or name.endswith("definitions.py") or "tests" in name]


def test_the_core_alone_materializes_an_export_and_names_what_the_rest_needs(wheel: Path, tmp_path: Path) -> None:
    core = Environment(tmp_path / "core", wheel)
    listed = json.loads(run(uv(), "pip", "list", "-q", "--format=json", "--python", core.bin / "python", cwd=tmp_path))
    installed = {item["name"] for item in listed}
    assert {"dagster", "duckdb", "pyarrow"} <= installed
    assert not installed & {"mlflow", "wandb", "neptune-client", "neptune-query", "neptune-api", "matplotlib", "s3fs"}
    data = export(tmp_path) / "data"
    (core.home / "mine.py").write_text(
        "from neptune_assets.build import build_defs\n"
        "from neptune_assets.migration_settings import Settings\n"
        f"source = {{'export': {{'data': {str(data)!r}}}}}\n"
        "settings = {'source': source, 'lake': {'root': 'lake'}, 'targets': {'wandb': {}, 'mlflow': {}}}\n"
        "defs = build_defs(Settings.model_validate(settings), ['ws/one'], prefix='mine')\n",
        encoding="utf-8",
    )
    project = ("asset", "materialize", "-f", "mine.py", "--partition", "ws/one", "--select")
    core.run("dagster", *project, 'key:"mine/source/*" or key:"mine/lake/runs" or key:"mine/summary/runs"')
    assert "2 of 2 runs" in core.run("neptune-assets", "verify", "lake")
    for target in ("wandb", "mlflow"):
        said = core.run("dagster", *project, f'key:"mine/targets/{target}"', status=1)
        assert f'pip install "neptune-assets[{target}]"' in said
    assert "ws/one: 2 runs" in core.run("neptune-assets", "audit", data)
    assert 'pip install "neptune-assets[server]"' in core.run("neptune-assets", "token", "--store", "s", status=1)
    recordings = ROOT / "demo" / "recordings"
    assert 'pip install "neptune-assets[offline]"' in core.run("neptune-assets", "audit", recordings, status=1)
    (core.home / "far.py").write_text(
        "from neptune_assets.lake.storage import Storage\nStorage('s3://bucket/lake')\n", encoding="utf-8"
    )
    assert 'pip install "neptune-assets[s3]"' in core.run("python", "far.py", status=1)


def test_a_fresh_dg_project_lists_scaffolds_and_materializes_a_migration(wheel: Path, tmp_path: Path) -> None:
    mine = Environment(tmp_path / "mine", with_extras(wheel, "ui"))
    (mine.home / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling>=1.26"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "ours"\nversion = "1.0"\n'
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "ours"\n',
        encoding="utf-8",
    )
    (mine.home / "ours" / "defs").mkdir(parents=True)
    for folder in ("ours", "ours/defs"):
        (mine.home / folder / "__init__.py").touch()
    mine.install(tmp_path, "-e", mine.home)
    (mine.home / "ours" / "definitions.py").write_text(
        "from pathlib import Path\nimport dagster as dg\n\n@dg.definitions\ndef defs():\n"
        "    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n",
        encoding="utf-8",
    )
    export(mine.home)
    assert "neptune_assets.NeptuneMigration" in mine.run("dg", "list", "components")
    scaffold = ("scaffold", "defs", "neptune_assets.NeptuneMigration")
    wrong = mine.run("dg", *scaffold, "wrong", "--source", "export", "--path", "ours", status=2)
    assert "ours is not a neptune-exporter directory" in wrong
    assert not (mine.home / "ours" / "defs" / "wrong").exists()
    mine.run("dg", *scaffold, "rescue", "--source", "export", "--path", "exports")
    written = (mine.home / "ours" / "defs" / "rescue" / "defs.yaml").read_text(encoding="utf-8")
    assert "data: exports/data" in written
    mine.run("dg", "check", "defs")
    mine.run("dg", "utils", "refresh-defs-state")
    mine.run("dg", "launch", "--assets", 'key:"rescue/lake/runs" or key:"rescue/summary/runs"', "--partition", "ws/one")
    # Relative paths are taken from the project's root.
    assert "2 of 2 runs" in mine.run("neptune-assets", "verify", "data/lake")
    assert "2 of 2 runs" in mine.run("neptune-assets", "verify", "rescue")


def test_plug_ins_of_others_pass_both_suites(wheel: Path, tmp_path: Path) -> None:
    for file in (TOY / "toy_plugins").glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) < 150
    # A copy: building leaves nothing in the repository.
    toy = shutil.copytree(TOY, tmp_path / "toy", ignore=shutil.ignore_patterns("__pycache__"))
    others = Environment(tmp_path / "others", wheel, toy, "pytest", "pytest-timeout")
    said = others.run("python", "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", toy / "contracts.py")
    assert " passed" in said
    assert "skipped" not in said
