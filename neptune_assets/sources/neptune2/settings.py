"""Settings of the source `neptune2`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from neptune_assets.settings import StorageSettings
from neptune_assets.sources.live import LiveSource


class Neptune2Source(LiveSource):
    """A running Neptune 2.x server, read through neptune-client. It is only ever read."""

    query: str | None = Field(
        default=None, description="Only runs that match this query in Neptune's query language (NQL)."
    )
    allow_http: bool = Field(
        default=False, description="Talk to servers elsewhere over plain http; to this machine's own that is allowed."
    )
    file_sets: Literal["unpack", "zip"] = Field(
        default="unpack", description="unpack: each member of a file set becomes a file. zip: the archive is kept."
    )
    artifact_roots: list[str] = Field(
        default_factory=list,
        description="Local directories and s3:// URLs below which files that artifacts track may be copied; other "
        "files are listed only.",
    )
    artifact_storage: StorageSettings = Field(default_factory=StorageSettings, description="Access to artifacts in S3.")
