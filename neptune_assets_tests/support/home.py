"""Takes recordings through every asset with real Dagster, and reads each place they end up in by readers not ours.

The lake and the summary are read with raw pyarrow, MLflow's store with sqlite3, W&B's files with wandb's protobuf.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.build import build_defs, discover_projects
from neptune_assets.migration_settings import Settings
from neptune_assets_tests.conformance.targets import Held
from neptune_assets_tests.support.wandb_held import held_run
from neptune_assets_tests.targets.mlflow.place import MlflowPlace


def bits(value: float) -> bytes:
    """All NaN are one; everything else is itself, also -0.0."""
    return b"nan" if math.isnan(value) else struct.pack(">d", value)


@dataclass
class Home:
    """Where recordings of one project came to."""

    root: Path
    project: str

    def lake(self, run_id: str) -> list[dict[str, Any]]:
        """All rows of a run."""
        tables = [pq.read_table(part) for part in (self.root / "data").rglob("*_part_*.parquet")]
        return [row for row in pa.concat_tables(tables).to_pylist() if row["run_id"] == run_id]

    def file(self, row: dict[str, Any]) -> Path:
        """Where the file, or the directory of a file set, of a row lies."""
        (files,) = (self.root / "files").iterdir()
        return Path(files / row["file_value"]["path"])

    def summary(self, name: str, run_id: str) -> list[dict[str, Any]]:
        """Rows of one run in a table of the summary."""
        (file,) = (self.root / "summary" / name).glob("*.parquet")
        return [row for row in pq.read_table(file).to_pylist() if row["run_id"] == run_id]

    def mlflow(self, run_id: str) -> Held:
        """What MLflow's store holds of a run."""
        (held,) = MlflowPlace(self.root.parent).held(self.project)[run_id]
        return held

    def wandb(self, run_id: str) -> Held:
        """What the staged W&B files hold of a run."""
        staged = [held_run(file.parent) for file in (self.root / "wandb").rglob("*.wandb")]
        (held,) = [held for project, found, held in staged if (project, found) == (self.project, run_id)]
        return held


def bring_home(folder: Path, offline: dict[str, Any], project: str) -> Home:
    """Materialize every asset of a project from recordings; all must succeed and every check pass."""
    MlflowPlace(folder)  # puts a migrated database there: MLflow's migrations take long
    settings = Settings.model_validate(
        {
            "source": {"offline": offline},
            "lake": {"root": str(folder / "lake")},
            "targets": {"mlflow": {}, "wandb": {}},
        }
    )
    assert project in discover_projects(settings)
    defs = build_defs(settings, [project], prefix="e")
    everything = dg.AssetSelection.all() - dg.AssetSelection.assets("e/summary/neptune_duckdb")
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            list(defs.assets or ()),  # type: ignore[arg-type]
            selection=everything,
            partition_key=project,
            instance=instance,
            resources=defs.resources,
        )
        assert result.success
        assert all(check.passed for check in result.get_asset_check_evaluations())
    return Home(folder / "lake", project)
