"""Settings of the targets: one model for each, and the rules for names in all of them."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from neptune_assets.setting_types import EnvironmentName, Model, Pattern

PARALLEL_RUNS: Final = 4
"""Runs loaded at once, where a target takes several and nothing else is said."""


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
    verify_files: Literal["full", "size"] = Field(
        default="full",
        description="How artifacts are read back. full: every byte, which means to download them where they are not on "
        "a local disk. size: names and sizes only.",
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
    system_metrics: Literal["section", "history"] = Field(
        default="section",
        description="Where series below `monitoring/` go: the page's section of system metrics, by their time, or the "
        "history, by step. With naming neptune-exporter always the history.",
    )
    file_sets: Literal["run_files", "artifacts"] = Field(
        default="run_files",
        description="What Neptune's file sets and artifacts become: files of their run, or W&B artifacts, which need "
        "`entity` and a staging directory that is not moved.",
    )
    registry: str | None = Field(
        default=None,
        description="Registry that model versions are linked into, as W&B's page calls it (`model` for "
        "`wandb-registry-model`); left out, they stand in their project's models only.",
    )
    job_type: str = Field(default="", description="Job type of runs.")
    job_type_attribute: str | None = Field(
        default=None, description="Attribute whose value is the job type of runs that have it."
    )

    @model_validator(mode="after")
    def _artifacts_have_an_entity(self) -> WandbTarget:
        if self.file_sets == "artifacts" and not self.entity:
            raise ValueError("file_sets: artifacts needs entity, because artifacts are sent to one by its name")
        return self


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
        default="withhold",
        description="What loads do with runs that are partial in the lake. withhold: they are not loaded, and named. "
        "load: what is there is loaded.",
    )
    parallel_runs: int = Field(
        default=PARALLEL_RUNS, ge=1, le=64, description="Runs loaded at once, where a target takes several."
    )
