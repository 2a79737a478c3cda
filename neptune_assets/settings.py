"""Settings of one migration: what a user writes in ``defs.yaml`` and what tests build in Python.

Every field is documented once, here or with its source or target; the README's table is checked against these models.
Secrets are never values: a setting ending in ``_env`` names the environment variable that holds one.
All models can be imported from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, model_validator

from neptune_assets.setting_types import Model, Moment, Pattern, anchored_path
from neptune_assets.source_settings import (
    ExportSource,
    LiveSource,
    Neptune2Source,
    Neptune3Source,
    OfflineSource,
    ServerSource,
    SourceSettings,
    StorageSettings,
)
from neptune_assets.target_settings import MlflowTarget, NameRules, PrefixRename, TargetSettings, WandbTarget

__all__ = [
    "AttributeFilter",
    "AutomationSettings",
    "ExportSource",
    "Filters",
    "LakeSettings",
    "LiveSource",
    "MlflowTarget",
    "NameRules",
    "Neptune2Source",
    "Neptune3Source",
    "OfflineSource",
    "PrefixRename",
    "ProjectFilter",
    "RunFilter",
    "ServerSource",
    "Settings",
    "SourceSettings",
    "StorageSettings",
    "SummarySettings",
    "TargetSettings",
    "WandbTarget",
]


class ProjectFilter(Model):
    """Which projects; patterns are regular expressions searched in ``workspace/project``."""

    only: list[str] | None = Field(
        default=None, description="Exactly these projects; they become the partitions without any discovery."
    )
    include: list[Pattern] = Field(default_factory=list, description="Keep projects that match any of these.")
    exclude: list[Pattern] = Field(default_factory=list, description="Leave out projects that match any of these.")


class RunFilter(Model):
    """Which runs, models and model versions; patterns are regular expressions searched in the run id."""

    ids: list[str] | None = Field(default=None, description="Exactly these run ids.")
    ids_file: str | None = Field(default=None, description="A text file with one run id a line; joined with ids.")
    include: list[Pattern] = Field(default_factory=list, description="Keep runs whose id matches any of these.")
    exclude: list[Pattern] = Field(default_factory=list, description="Leave out runs whose id matches any of these.")
    created_since: Moment | None = Field(default=None, description="Keep runs created at this moment or later.")
    created_until: Moment | None = Field(default=None, description="Keep runs created before this moment.")
    modified_since: Moment | None = Field(default=None, description="Keep runs modified at this moment or later.")
    modified_until: Moment | None = Field(default=None, description="Keep runs modified before this moment.")
    archived: bool = Field(default=True, description="Keep archived runs.")
    trashed: bool = Field(default=False, description="Keep runs in the trash.")


class AttributeFilter(Model):
    """Which attributes; patterns are regular expressions searched in the attribute's path."""

    include: list[Pattern] = Field(default_factory=list, description="Keep attributes that match any of these.")
    exclude: list[Pattern] = Field(default_factory=list, description="Leave out attributes that match any of these.")
    classes: list[Literal["parameters", "metrics", "series", "files"]] = Field(
        default=["parameters", "metrics", "series", "files"],
        description="Keep attributes of these classes, in neptune-exporter's words.",
    )


class Filters(Model):
    """What to take from the source. Everything, if nothing is said."""

    projects: ProjectFilter = Field(default_factory=ProjectFilter, description="Which projects.")
    runs: RunFilter = Field(default_factory=RunFilter, description="Which runs.")
    attributes: AttributeFilter = Field(default_factory=AttributeFilter, description="Which attributes.")
    model_registry: bool = Field(default=True, description="Take models and model versions, where the source has them.")


class LakeSettings(Model):
    """Where the Parquet lake lies, and how much memory and disk writing it may use."""

    root: str = Field(description="Directory or fsspec URL of the lake.")
    storage: StorageSettings = Field(default_factory=StorageSettings, description="Access to the lake if it is remote.")
    allow_unsafe_locks: bool = Field(
        default=False,
        description="Write although the lake's storage cannot keep two writers apart: a store that ignores conditional "
        "writes, or a mount whose file locks do not reach other machines. Only one machine may write then, and on such "
        "a store only one process.",
    )
    rows_in_memory: int = Field(
        default=400_000, ge=1_000, description="Rows of one run held in memory before sorting spills to disk."
    )
    sort_memory_mb: int = Field(default=128, ge=32, description="Memory for sorting runs that spilled, in MiB.")
    part_mb: int = Field(default=50, ge=1, description="A run's part file is closed once it is this large, in MiB.")
    verify_days: int = Field(
        default=30, ge=1, description="Days within which the asset lake/verified reads all of the lake again."
    )
    scratch: str | None = Field(
        default=None,
        description="Local directory for temporary files of the lake and its summaries; the system's if left out. What "
        "a killed process left there is removed at the next start.",
    )
    _export_storage: StorageSettings | None = PrivateAttr(default=None)

    @property
    def export_storage(self) -> StorageSettings | None:
        """Access to an export that is read in place, which is ``source.export.storage``; None if that is not known."""
        return self._export_storage

    def with_export_storage(self, storage: StorageSettings) -> LakeSettings:
        """Return a copy for a lake whose runs are read in place from an export on this storage."""
        settings = self.model_copy()
        settings._export_storage = storage
        return settings


class SummarySettings(Model):
    """DuckDB summary tables and the database that people open."""

    database: str | None = Field(
        default=None, description="Local path of neptune.duckdb; inside the lake's root if that is local."
    )
    memory_mb: int = Field(default=256, ge=64, description="DuckDB's memory limit, in MiB.")
    threads: int = Field(default=2, ge=1, description="DuckDB's threads.")


class AutomationSettings(Model):
    """What runs by itself. Schedules and sensors ship switched off; turn them on in the UI or here."""

    schedule: str = Field(default="0 3 * * *", description="Cron schedule of the backfill over all projects.")
    verify_schedule: str = Field(
        default="0 5 * * *", description="Cron schedule on which a share of each project in the lake is read again."
    )
    time_zone: str = Field(default="UTC", description="Time zone of the schedules.")
    enabled: bool = Field(default=False, description="Start with the schedules and the sensors switched on.")
    sensor_seconds: int = Field(
        default=60, ge=10, description="How often the sensor looks for new or grown recordings."
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
