"""Settings of one migration: what a user writes in ``defs.yaml`` and what tests build in Python.

Every field is documented here once; the README's table is checked against this module. Secrets are never values:
a setting ending in ``_env`` names the environment variable that holds one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, overload
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

_SECRET = re.compile(r"secret|token|password|passwd|api_?key|credential|(^|_)key($|_)", re.IGNORECASE)


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


def _moment(value: str) -> str:
    from datetime import datetime

    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(
            f"{value!r} is not an ISO 8601 date or time, like 2025-06-30 or 2025-06-30T12:00:00Z"
        ) from None
    if len(value) > len("2025-06-30") and moment.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone; write 2025-06-30T12:00:00Z or +02:00 at the end")
    return value


def _environment_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("this is the name of an environment variable, not the secret itself")
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]
Moment = Annotated[str, AfterValidator(_moment)]
EnvironmentName = Annotated[str, AfterValidator(_environment_name)]


class Model(BaseModel):
    """Base of all settings: an unknown name is an error, never ignored."""

    model_config = ConfigDict(extra="forbid")


class StorageSettings(Model):
    """How to reach a file system that is not local (s3://, gs://, az://, any fsspec URL)."""

    options: dict[str, str | int | bool] = Field(
        default_factory=dict, description="Options for fsspec, such as endpoint_url; never secrets."
    )
    secrets_env: dict[str, EnvironmentName] = Field(
        default_factory=dict, description="fsspec options whose values come from the named environment variables."
    )

    @model_validator(mode="after")
    def _no_secrets_in_options(self) -> StorageSettings:
        for name in self.options:
            if _SECRET.search(name):
                raise ValueError(
                    f"options.{name} looks like a secret; put it in an environment variable, name that in secrets_env"
                )
        return self


class ExportSource(Model):
    """A directory that neptune-exporter wrote, local or at any fsspec URL. It is only ever read."""

    data: str = Field(description="The exporter's data directory: one directory a project, Parquet inside.")
    files: str | None = Field(
        default=None, description="The exporter's files directory; leave out if files were not exported."
    )
    model_data: str | None = Field(default=None, description="Data directory of `export-models`.")
    model_files: str | None = Field(default=None, description="Files directory of `export-models`.")
    error_report: str | None = Field(
        default=None,
        description="The exporter's `--error-report-file`, if it lies elsewhere than in the data directory or the two "
        "above it.",
    )
    mode: Literal["copy", "in_place"] = Field(
        default="copy",
        description="copy: repaired rows and files go into the lake. in_place: nothing is copied, the lake points at "
        "the export and repairs are made on reading.",
    )
    source_tz: str = Field(
        default="report",
        description="Time zone whose local time a 2.x export stored as UTC: an IANA name, `infer` (from each run's "
        "first point), `report` (infer and only report) or `UTC` (times are right).",
    )
    storage: StorageSettings = Field(
        default_factory=StorageSettings,
        description="Access to the export if it is remote, for copying it and for reading it in place.",
    )

    @model_validator(mode="after")
    def _known_time_zone(self) -> ExportSource:
        if self.source_tz not in {"infer", "report", "UTC"}:
            if self.source_tz not in available_timezones():
                raise ValueError(
                    f"source_tz {self.source_tz!r} is none of infer, report, UTC, or an IANA name like Europe/Warsaw"
                )
            ZoneInfo(self.source_tz)
        return self


class OfflineSource(Model):
    """Folders recorded by neptune-scale or neptune-client that never reached a server. They are only ever read."""

    paths: list[str] = Field(description="Directories searched for recordings: `.neptune` folders or what holds them.")
    project: str | None = Field(
        default=None,
        description="Project, as workspace/project, for recordings of neptune-client, which do not name theirs.",
    )
    search_files_in: list[str] = Field(
        default_factory=list,
        description="More directories to look in for files that a recording names by a path that is gone.",
    )


class SourceSettings(Model):
    """Where runs come from: exactly one kind."""

    export: ExportSource | None = Field(default=None, description="A neptune-exporter directory.")
    offline: OfflineSource | None = Field(default=None, description="Recordings of Neptune's clients.")

    @model_validator(mode="after")
    def _exactly_one(self) -> SourceSettings:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"source takes exactly one of {', '.join(type(self).model_fields)}; here: {', '.join(given) or 'none'}"
            )
        return self


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
    rows_in_memory: int = Field(
        default=400_000, ge=1_000, description="Rows of one run held in memory before sorting spills to disk."
    )
    sort_memory_mb: int = Field(default=128, ge=32, description="Memory for sorting runs that spilled, in MiB.")
    part_mb: int = Field(default=50, ge=1, description="A run's part file is closed once it is this large, in MiB.")
    scratch: str | None = Field(default=None, description="Local directory for spilled runs; the system's if left out.")
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


class MlflowTarget(Model):
    """Load into MLflow through any tracking URI."""

    tracking_uri: str | None = Field(
        default=None, description="MLflow tracking URI; a SQLite file beside the lake if left out."
    )
    artifact_root: str | None = Field(
        default=None, description="Where new experiments keep artifacts; MLflow's own choice if left out."
    )
    username_env: EnvironmentName | None = Field(default=None, description="Environment variable with the user name.")
    password_env: EnvironmentName | None = Field(default=None, description="Environment variable with the password.")
    token_env: EnvironmentName | None = Field(default=None, description="Environment variable with a bearer token.")
    experiment_prefix: str = Field(default="", description="Put before every experiment's name.")
    naming: Literal["default", "neptune-exporter"] = Field(
        default="default", description="How names are made; neptune-exporter for teams that loaded some runs with it."
    )
    step_multiplier: int | None = Field(
        default=None, ge=1, description="Steps are multiplied by this; chosen from the data if left out."
    )
    http_connections: int = Field(
        default=4, ge=1, le=32, description="Requests at once to a tracking server; more where it has many workers."
    )
    direct: bool = Field(
        default=True,
        description="Write straight into the tracking database when it is SQLite or PostgreSQL of a tested schema.",
    )


class WandbTarget(Model):
    """Load into Weights & Biases: staged as offline runs, verified, then synced when a key is configured."""

    staging: str | None = Field(default=None, description="Directory for offline runs; beside the lake if left out.")
    entity: str | None = Field(default=None, description="W&B entity; the key's default if left out.")
    project_prefix: str = Field(default="", description="Put before every W&B project's name.")
    base_url: str | None = Field(default=None, description="Address of the W&B server; the public one if left out.")
    api_key_env: EnvironmentName | None = Field(
        default=None, description="Environment variable with the API key; without it runs stay staged offline."
    )
    naming: Literal["default", "neptune-exporter"] = Field(
        default="default", description="How names are made; neptune-exporter for teams that loaded some runs with it."
    )
    forks: Literal["stitched", "own"] = Field(
        default="stitched",
        description="Forks begin with their ancestors' metrics and histograms (stitched), or have only their own.",
    )


class PrefixRename(Model):
    """One prefix of attribute paths and what stands in its place."""

    prefix: str = Field(min_length=1, description="What the attribute's path begins with.")
    to: str = Field(description="What the name in the target begins with instead; may be empty.")


class NameRules(Model):
    """How attributes are named in every target, and which of them are not loaded. Prefixes are plain text."""

    keep: list[str] = Field(
        default_factory=list, description="Prefixes of attributes that no other rule changes or drops."
    )
    drop: list[Pattern] = Field(
        default_factory=list,
        description="Attributes whose path matches any of these regular expressions are not loaded; their rows are "
        "counted as dropped by the rule.",
    )
    strip: list[str] = Field(
        default_factory=list, description="Prefixes that are taken off; the longest that fits, if several do."
    )
    rename: list[PrefixRename] = Field(
        default_factory=list,
        description="Prefixes that become others, before anything is stripped; the first that fits.",
    )
    naming: Literal["default", "neptune-exporter"] | None = Field(
        default=None, description="How names are made in all targets; if left out, each target's own `naming` holds."
    )
    collisions: Literal["tell_apart", "refuse"] = Field(
        default="tell_apart",
        description="What happens where two attributes of a run would have one name. tell_apart: a digest makes them "
        "differ, which is reported. refuse: the run is not loaded.",
    )


class TargetSettings(Model):
    """Where to load runs. No target, if nothing is said."""

    mlflow: MlflowTarget | None = Field(default=None, description="MLflow.")
    wandb: WandbTarget | None = Field(default=None, description="Weights & Biases.")
    names: NameRules | str | None = Field(
        default=None, description="Rules for names, here or as the path of a YAML file that holds them."
    )
    partial_runs: Literal["withhold", "load"] = Field(
        default="withhold", description="What loads do with runs that are partial in the lake."
    )


class AutomationSettings(Model):
    """What runs by itself. Schedules and sensors ship switched off; turn them on in the UI or here."""

    schedule: str = Field(default="0 3 * * *", description="Cron schedule of the backfill over all projects.")
    time_zone: str = Field(default="UTC", description="Time zone of the schedule.")
    enabled: bool = Field(default=False, description="Start with the schedule and the sensor switched on.")
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
                setattr(export, name, _anchor(getattr(export, name), root))
        if offline is not None:
            offline.paths = [_anchor(path, root) for path in offline.paths]
            offline.search_files_in = [_anchor(path, root) for path in offline.search_files_in]
        settings.filters.runs.ids_file = _anchor(settings.filters.runs.ids_file, root)
        settings.lake.root = _anchor(settings.lake.root, root)
        settings.lake.scratch = _anchor(settings.lake.scratch, root)
        settings.summary.database = _anchor(settings.summary.database, root)
        if isinstance(settings.targets.names, str):
            settings.targets.names = _anchor(settings.targets.names, root)
        if settings.targets.wandb is not None:
            settings.targets.wandb.staging = _anchor(settings.targets.wandb.staging, root)
        return settings


@overload
def _anchor(path: str, root: Path) -> str: ...
@overload
def _anchor(path: None, root: Path) -> None: ...
@overload
def _anchor(path: str | None, root: Path) -> str | None: ...
def _anchor(path: str | None, root: Path) -> str | None:
    if path is None or "://" in path:
        return path
    return str((root / Path(path).expanduser()).resolve())
