"""Settings of the target `mlflow`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from neptune_assets.settings import EnvironmentName, Model


class MlflowSettings(Model):
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
