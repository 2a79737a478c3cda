"""Settings that every source which asks a running server has."""

from __future__ import annotations

import warnings
from typing import Any

from pydantic import Field, model_validator

from neptune_assets.settings import EnvironmentName, Model


class LiveSource(Model):
    """What the sources that ask a running server have in common. They only ever read."""

    projects: list[str] | None = Field(
        default=None, description="Exactly these projects, as workspace/project; found out from the server if left out."
    )
    workspace: str | None = Field(
        default=None, description="Find projects of this workspace only; those of all workspaces if left out."
    )
    api_token_env: EnvironmentName = Field(
        default="NEPTUNE_API_TOKEN", description="Environment variable that holds the API token."
    )
    concurrency: int = Field(default=8, ge=1, le=64, description="Requests to the server at the same time.")
    requests_per_second: float | None = Field(
        default=None, gt=0, description="Maximum requests per second; no limit if left out."
    )
    request_seconds: float = Field(default=120, gt=0, description="Give up waiting for one answer after this long.")
    retry_seconds: float = Field(
        default=300, ge=0, description="Seconds to keep retrying a request that fails with a transient error."
    )
    runs_per_page: int = Field(default=1_000, ge=1, le=10_000, description="Runs asked for at once.")
    points_per_page: int = Field(
        default=10_000,
        ge=1,
        le=10_000,
        description="Points of one float series asked for at once; 1,000 of other series, and where a server refuses "
        "more.",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_client(cls, values: Any) -> Any:
        """Accept ``client: fast`` of version 0.1, which is the only way now; refuse ``client: public``."""
        if not isinstance(values, dict) or "client" not in values:
            return values
        values = dict(values)
        if values.pop("client") not in {"fast", None}:
            raise ValueError(
                "client: public was removed, because Neptune's clients are pinned to their last versions. "
                "Remove the line; the server is read the same way, faster."
            )
        warnings.warn("The setting client was removed; remove the line.", DeprecationWarning, stacklevel=2)
        return values
