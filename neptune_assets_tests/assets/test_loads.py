"""Loads as Dagster runs them: plan and report, what somebody deleted later, and the exit status of the real command."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from neptune_assets.plan import main
from neptune_assets.targets.wandb.codec import LogWriter
from neptune_assets.testing.lakes import make_lake
from neptune_assets_tests.assets.test_stages import ONE, Migration
from neptune_assets_tests.support.export_factory import run_v3
from neptune_assets_tests.support.wandb_files import payloads, pb
from neptune_assets_tests.targets.mlflow.place import migrated_database

TABLES = ("metrics", "latest_metrics", "params", "tags", "runs")


def loaded(root: Path, names: tuple[str, ...], **targets: Any) -> Migration:
    migration = Migration(root, targets=targets)
    for name in names:
        migration.export.run(ONE, name, run_v3(name))
    assert migration.materialize("lake/runs").success
    return migration


def test_a_deleted_run_and_a_deleted_point_in_mlflow_are_found(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    shutil.copy(migrated_database(), file)
    migration = loaded(tmp_path, ("a", "b", "c"), mlflow={"tracking_uri": f"sqlite:///{file}"})
    outcome = migration.materialize("targets/mlflow")
    assert outcome.success, outcome.errors
    assert {"plan", "load_verified", "rows_accounted_for"} == {name.partition(":")[2] for name in outcome.checks}
    assert all(check.passed for check in outcome.checks.values())
    metadata = outcome.metadata["targets/mlflow"]
    assert "3" in metadata["plan"]
    report = pq.read_table(metadata["report_table"]).to_pylist()
    assert {row["run_id"] for row in report} == {"a", "b", "c"}
    assert sum(row["rows"] for row in report) == metadata["rows_in"]
    assert migration.materialize("targets/mlflow_reconciled").checks["targets/mlflow_reconciled:reconciled"].passed
    with closing(sqlite3.connect(file)) as db, db:
        ids = dict(db.execute("SELECT value, run_uuid FROM tags WHERE key = 'neptune.run_id'"))
        for table in TABLES:
            db.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (ids["b"],))
        db.execute("DELETE FROM metrics WHERE rowid = (SELECT max(rowid) FROM metrics WHERE run_uuid = ?)", (ids["c"],))
    outcome = migration.materialize("targets/mlflow_reconciled")
    assert not outcome.success
    assert not outcome.checks["targets/mlflow_reconciled:reconciled"].passed
    found = pq.read_table(migration.lake / "targets" / "mlflow_reconciled").to_pylist()
    assert {row["run_id"]: row["verdict"] for row in found} == {"a": "equal", "b": "missing", "c": "differs"}


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_one_flipped_bit_of_the_lake_stops_the_load_and_reconciling_names_the_lake(tmp_path: Path, name: str) -> None:
    file = tmp_path / "mlflow.db"
    shutil.copy(migrated_database(), file)
    chosen = {"mlflow": {"tracking_uri": f"sqlite:///{file}"}, "wandb": {"staging": str(tmp_path / "wandb")}}
    migration = loaded(tmp_path, ("a", "b"), **{name: chosen[name]})
    part = sorted((migration.lake / "data").glob("*/a-*_part_0.parquet"))[0]
    raw = bytearray(part.read_bytes())
    raw[len(raw) // 2] ^= 32
    part.write_bytes(raw)
    outcome = migration.materialize(f"targets/{name}")
    assert not outcome.success
    assert not outcome.checks[f"targets/{name}:load_verified"].passed
    assert not migration.materialize(f"targets/{name}_reconciled").success
    found = pq.read_table(migration.lake / "targets" / f"{name}_reconciled").to_pylist()
    assert {row["run_id"]: row["verdict"] for row in found} == {"a": "lake_damaged", "b": "equal"}
    assert all(str(part) in row["difference"] for row in found if row["run_id"] == "a")


def test_a_deleted_record_of_a_staged_wandb_run_is_found(tmp_path: Path) -> None:
    migration = loaded(tmp_path, ("a", "b"), wandb={"staging": str(tmp_path / "wandb")})
    assert migration.materialize("targets/wandb").success
    log = sorted((tmp_path / "wandb").glob("*/offline-run-*/*.wandb"))[0]
    kept = list(payloads(log.read_bytes()))
    history = [n for n, raw in enumerate(kept) if pb.Record.FromString(raw).WhichOneof("record_type") == "history"]
    log.unlink()
    with LogWriter(log) as writer:
        for number, raw in enumerate(kept):
            if number != history[1]:
                writer.append(raw)
    outcome = migration.materialize("targets/wandb_reconciled")
    assert not outcome.success
    check = outcome.checks["targets/wandb_reconciled:reconciled"]
    assert not check.passed
    found = pq.read_table(migration.lake / "targets" / "wandb_reconciled").to_pylist()
    assert sorted(row["verdict"] for row in {row["run_id"]: row for row in found}.values()) == ["differs", "equal"]


def command(root: Path, migration: Migration, asset: str) -> subprocess.CompletedProcess[str]:
    settings = root / "settings.json"
    settings.write_text(migration.settings.model_dump_json(exclude_none=True), encoding="utf-8")
    (root / "defs.py").write_text(
        "from pathlib import Path\n"
        "from neptune_assets.build import build_defs\n"
        "from neptune_assets.migration_settings import Settings\n"
        f"settings = Settings.model_validate_json(Path({str(settings)!r}).read_text())\n"
        f"defs = build_defs(settings, [{ONE!r}], prefix='m')\n",
        encoding="utf-8",
    )
    (root / "home").mkdir(exist_ok=True)
    return subprocess.run(
        [
            *(sys.executable, "-m", "dagster", "asset", "materialize", "-f", str(root / "defs.py")),
            *("--partition", ONE, "--select", f'key:"m/{asset}"'),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "DAGSTER_HOME": str(root / "home"), "DAGSTER_DISABLE_TELEMETRY": "yes"},
    )


def test_the_exit_status_tells_whether_every_run_was_loaded(tmp_path: Path) -> None:
    migration = loaded(tmp_path, ("a", "b"), wandb={"staging": str(tmp_path / "wandb")})
    (part,) = (path for path in (migration.lake / "data").glob("*/*.parquet") if path.name.startswith("b-"))
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    torn = command(tmp_path, migration, "targets/wandb")
    assert torn.returncode != 0
    assert "'b'" in torn.stderr
    assert len(list((tmp_path / "wandb").glob("*/offline-run-*"))) == 1, "the other run goes on"
    part.write_bytes(whole)
    good = command(tmp_path, migration, "targets/wandb")
    assert good.returncode == 0, good.stderr
    assert len(list((tmp_path / "wandb").glob("*/offline-run-*"))) == 2


DEFS = """
type: neptune_assets.components.NeptuneMigration
attributes:
  source: {offline: {paths: [recordings]}}
  filters: {projects: {only: [ws/one]}}
  lake: {root: lake}
  targets:
    wandb: {}
    names: names.yaml
"""


def test_a_dry_run_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "dry"\n', encoding="utf-8"
    )
    folder = tmp_path / "dry" / "defs" / "mine"
    folder.mkdir(parents=True)
    for package in (tmp_path / "dry", tmp_path / "dry" / "defs"):
        (package / "__init__.py").touch()
    (folder / "defs.yaml").write_text(DEFS, encoding="utf-8")
    (tmp_path / "names.yaml").write_text("drop: [secret]\nstrip: [a/]\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [
        {"attribute_path": path, "attribute_type": "int", "int_value": 1} for path in ("a/x", "x", "secret|name", "y")
    ]
    make_lake(tmp_path / "lake", {"ws/one": {"R-1": rows}})
    before = sorted(tmp_path.rglob("*"))
    assert main(["mine", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "| create | 1 | R-1 |" in said
    assert "| int | dropped by rule 'secret' | 1 |" in said
    assert "| x | a/x, x |" in said
    assert "not known" in said
    assert main(["mine", "--root", str(tmp_path), "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert (plan["project"], plan["target"], plan["create"]) == ("ws/one", "wandb", ["R-1"])
    assert plan["dropped"] == [{"type": "int", "reason": "dropped by rule 'secret'", "rows": 1}]
    assert plan["collisions"] == {"x": ["a/x", "x"]}
    (tmp_path / "names.yaml").write_text("strip: [a/]\ncollisions: refuse\n", encoding="utf-8")
    assert main(["mine", "--root", str(tmp_path), "--project", "ws/one", "--target", "wandb"]) == 1
    assert main(["mine", "--root", str(tmp_path), "--target", "mlflow"]) == 2
    assert main(["nobody", "--root", str(tmp_path)]) == 2
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts] == before
