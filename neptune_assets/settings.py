"""Settings that any stage may need: base of all models, storage, filters, the lake, its summaries, rules for names.

Every field is documented once, here or with its source or target; docs/settings.md is made from these models.
Secrets are never values: a setting ending in ``_env`` names the environment variable that holds one.
What a source or target needs is in its own folder; :mod:`neptune_assets.migration_settings` puts all of it together.
"""

from __future__ import annotations

import re
import warnings
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal, overload

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

_SECRET = re.compile(r"secret|token|password|passwd|api_?key|credential|(^|_)key($|_)", re.IGNORECASE)
PARALLEL_RUNS: Final = 4
"""Runs loaded at once, where a target takes several and nothing else is set."""


class Model(BaseModel):
    """Base of all settings: an unknown name is an error, never ignored."""

    model_config = ConfigDict(extra="forbid")


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


def _moment(value: str) -> str:
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


@overload
def anchored_path(path: str, root: Path) -> str: ...
@overload
def anchored_path(path: None, root: Path) -> None: ...
@overload
def anchored_path(path: str | None, root: Path) -> str | None: ...
def anchored_path(path: str | None, root: Path) -> str | None:
    """Return ``path``, taken from ``root`` if it is relative; URLs and None are returned as they are."""
    if path is None or "://" in path:
        return path
    return str((root / Path(path).expanduser()).resolve())


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
    """What to take from the source. Everything, if nothing is set."""

    projects: ProjectFilter = Field(default_factory=ProjectFilter, description="Which projects.")
    runs: RunFilter = Field(default_factory=RunFilter, description="Which runs.")
    attributes: AttributeFilter = Field(default_factory=AttributeFilter, description="Which attributes.")
    model_registry: bool = Field(default=True, description="Take models and model versions, where the source has them.")


class LakeSettings(Model):
    """Where the Parquet lake is, and how much memory and disk writing it may use."""

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


class PrefixRename(Model):
    """One prefix of attribute paths and what replaces it."""

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
    collisions: Literal["disambiguate", "refuse"] = Field(
        default="disambiguate",
        description="What happens where two attributes of a run would have one name. disambiguate: a digest makes them "
        "differ, which is reported. refuse: the run is not loaded.",
    )

    @field_validator("collisions", mode="before")
    @classmethod
    def _renamed(cls, value: object) -> object:
        """Take the word of before 0.2 for one release."""
        if value != "tell_apart":
            return value
        warnings.warn("collisions: tell_apart is now disambiguate; use that word.", DeprecationWarning, stacklevel=2)
        return "disambiguate"
