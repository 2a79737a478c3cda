"""Settings of the source `offline`."""

from __future__ import annotations

from pydantic import Field

from neptune_assets.settings import Model


class FileLimits(Model):
    """How much one file set or artifact of a recording may hold; what is beyond is reported and left out."""

    files: int = Field(default=1_000_000, ge=1, description="Most files of one file set or artifact.")
    gigabytes: float = Field(default=1_024, gt=0, description="Largest file.")
    seconds: float = Field(default=3_600, gt=0, description="Longest time to find the files of one file set.")


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
    files_from: list[str] = Field(
        default_factory=list,
        description="More directories from which files that recordings name may be read, such as `/data`; `/` for all. "
        "Allowed without it: the directory that holds `.neptune`, and `search_files_in`.",
    )
    record_mb: float = Field(
        default=64,
        gt=0,
        description="Largest record of neptune-client's log, in megabytes; reading takes several times that of memory.",
    )
    file_limits: FileLimits = Field(default_factory=FileLimits, description="Limits on files that recordings name.")
