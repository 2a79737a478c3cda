"""Settings of one migration: what a user writes in ``defs.yaml`` and what tests build in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from neptune_assets.settings import (
    PARALLEL_RUNS,
    AutomationSettings,
    Filters,
    LakeSettings,
    Model,
    NameRules,
    SummarySettings,
    anchored_path,
)
from neptune_assets.sources.export.settings import ExportSource
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune3.settings import Neptune3Source
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.server.settings import ServerSource
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets.targets.wandb.settings import WandbSettings


class SourceSettings(Model):
    """Where runs come from: exactly one kind."""

    export: ExportSource | None = Field(default=None, description="A neptune-exporter directory.")
    offline: OfflineSource | None = Field(default=None, description="Recordings of Neptune's clients.")
    neptune2: Neptune2Source | None = Field(default=None, description="A running Neptune 2.x server.")
    neptune3: Neptune3Source | None = Field(default=None, description="A running Neptune 3.x server.")
    server: ServerSource | None = Field(default=None, description="The store of our own server.")

    @model_validator(mode="after")
    def _exactly_one(self) -> SourceSettings:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"source takes exactly one of {', '.join(type(self).model_fields)}; here: {', '.join(given) or 'none'}"
            )
        return self


class TargetSettings(Model):
    """Where to load runs. No target, if nothing is said."""

    mlflow: MlflowSettings | None = Field(default=None, description="MLflow.")
    wandb: WandbSettings | None = Field(default=None, description="Weights & Biases.")
    names: NameRules | str | None = Field(
        default=None, description="Rules for names, here or as the path of a YAML file that holds them."
    )
    partial_runs: Literal["withhold", "load"] = Field(
        default="withhold",
        description="What loads do with runs that are partial in the lake. withhold: they are not loaded, and named. "
        "load: what is there is loaded.",
    )
    parallel_runs: int = Field(
        default=PARALLEL_RUNS, ge=1, le=64, description="Runs loaded at once, where a target takes several."
    )


class Settings(Model):
    """One migration: a source, filters, a lake, and targets."""

    source: SourceSettings = Field(description="Where runs come from.")
    filters: Filters = Field(default_factory=Filters, description="What to take.")
    lake: LakeSettings = Field(description="Where the Parquet lake lies.")
    summary: SummarySettings = Field(default_factory=SummarySettings, description="DuckDB summaries.")
    targets: TargetSettings = Field(default_factory=TargetSettings, description="Where to load runs.")
    automation: AutomationSettings = Field(default_factory=AutomationSettings, description="What runs by itself.")
    key_prefix: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_]+$",
        description="First part of this migration's asset keys; the folder's name if left out.",
    )

    @model_validator(mode="after")
    def _lake_reads_the_export(self) -> Settings:
        if self.source.export is not None:
            self.lake = self.lake.with_export_storage(self.source.export.storage)
        return self

    def anchored(self, root: Path) -> Settings:
        """Return a copy in which relative local paths are taken from ``root`` instead of the working directory."""
        settings = self.model_copy(deep=True)
        export, offline = settings.source.export, settings.source.offline
        if export is not None:
            for name in ("data", "files", "model_data", "model_files", "error_report"):
                setattr(export, name, anchored_path(getattr(export, name), root))
        if offline is not None:
            offline.paths = [anchored_path(path, root) for path in offline.paths]
            offline.search_files_in = [anchored_path(path, root) for path in offline.search_files_in]
            offline.files_from = [anchored_path(path, root) for path in offline.files_from]
        if settings.source.neptune2 is not None:
            settings.source.neptune2.artifact_roots = [
                anchored_path(path, root) for path in settings.source.neptune2.artifact_roots
            ]
        if settings.source.server is not None:
            settings.source.server.store = anchored_path(settings.source.server.store, root)
        settings.filters.runs.ids_file = anchored_path(settings.filters.runs.ids_file, root)
        settings.lake.root = anchored_path(settings.lake.root, root)
        settings.lake.scratch = anchored_path(settings.lake.scratch, root)
        settings.summary.database = anchored_path(settings.summary.database, root)
        if isinstance(settings.targets.names, str):
            settings.targets.names = anchored_path(settings.targets.names, root)
        if settings.targets.wandb is not None:
            settings.targets.wandb.staging = anchored_path(settings.targets.wandb.staging, root)
        return settings
