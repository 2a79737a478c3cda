"""Settings of the target `wandb`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from neptune_assets.settings import EnvironmentName, Model


class WandbSettings(Model):
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
    def _artifacts_have_an_entity(self) -> WandbSettings:
        if self.file_sets == "artifacts" and not self.entity:
            raise ValueError("file_sets: artifacts needs entity, because artifacts are sent to one by its name")
        return self
