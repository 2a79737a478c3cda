"""Settings of the server: where its data is, where it listens, and its limits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from neptune_assets.settings import EnvironmentName, LakeSettings, Model


class ServerSettings(Model):
    """One server: one store that it alone writes, and optionally one lake that it only reads."""

    store: Path = Field(description="Directory of what clients log; made if it is not there.")
    lake: LakeSettings | None = Field(default=None, description="The lake to serve beside the store; none if left out.")
    host: str = Field(default="127.0.0.1", description="Address to listen on; loopback unless told otherwise.")
    port: int = Field(default=8020, ge=0, le=65535, description="Port to listen on; 0 lets the system choose.")
    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+$",
        description="How clients reach the server, if by a proxy or a name; the address they came to if left out.",
    )
    insecure: bool = Field(
        default=False, description="Listen without https on addresses that other machines can reach all the same."
    )
    certfile: Path | None = Field(default=None, description="Certificate for https.")
    keyfile: Path | None = Field(default=None, description="Private key of the certificate.")
    create_projects: bool = Field(default=True, description="Make a project when a client first writes to it.")
    user: str = Field(default="neptune", description="Name of the one user that the token stands for.")
    api_key_env: EnvironmentName | None = Field(
        default=None, description="Environment variable with the API key; left out, a random one is kept in the store."
    )
    body_mb: int = Field(
        default=32,
        ge=1,
        description="Largest request that is not a file, in MiB; four of that size are held at a time.",
    )
    snapshot_mb: int = Field(default=4, ge=1, description="Largest single operation inside a request, in MiB.")
    file_gb: int = Field(default=64, ge=1, description="Largest file that may be uploaded, in GiB.")
    part_mb: int = Field(default=16, ge=1, description="Files larger than this are uploaded in steps, in MiB.")
    large_files: Literal["resumable", "multipart"] = Field(
        default="resumable",
        description="How: neptune-scale holds one chunk in memory for resumable, the whole file for multipart.",
    )
    gc_grace_days: int = Field(default=30, ge=8, description="Days to keep uploaded files that no attribute refers to.")
    url_seconds: int = Field(default=3600, ge=10, description="How long signed URLs of files are good for.")
    token_seconds: int = Field(default=3600, ge=60, description="How long access tokens are good for.")
    connections: int = Field(
        default=512, ge=8, description="Connections at the same time; beyond, those that ask for nothing are closed."
    )
    head_kb: int = Field(default=64, ge=8, description="Largest head of a request (its address and headers), in KiB.")
    silence_seconds: float = Field(
        default=30, gt=0, description="How long a client may pause in the midst of a request or of its answer."
    )
    threads: int = Field(default=40, ge=2, description="Requests that are worked on at the same time.")
    memory_mb: int = Field(default=512, ge=64, description="DuckDB's memory limit for reading, in MiB.")
    scratch: Path | None = Field(default=None, description="Directory for DuckDB's files; the system's if left out.")
    access_log: Path | None = Field(default=None, description="File for the access log; standard output if left out.")

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, values: Any) -> Any:
        """Accept ``unused_days``, which was renamed after 0.1."""
        if isinstance(values, dict) and "unused_days" in values:
            warnings.warn("unused_days is now gc_grace_days; use that name.", DeprecationWarning, stacklevel=2)
            values = {**values, "gc_grace_days": values["unused_days"]}
            del values["unused_days"]
        return values
