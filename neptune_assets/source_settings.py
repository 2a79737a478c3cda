"""Settings of the sources: one model for each kind, and access to remote storage."""

from __future__ import annotations

import re
from typing import Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, model_validator

from neptune_assets.setting_types import EnvironmentName, Model

_SECRET = re.compile(r"secret|token|password|passwd|api_?key|credential|(^|_)key($|_)", re.IGNORECASE)


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
        default=None, gt=0, description="Most requests a second; as fast as the server answers if left out."
    )
    request_seconds: float = Field(default=120, gt=0, description="Give up waiting for one answer after this long.")
    retry_seconds: float = Field(
        default=300, ge=0, description="Try a request that fails in passing again for this long, then give it up."
    )
    runs_per_page: int = Field(default=1_000, ge=1, le=10_000, description="Runs asked for at once.")
    points_per_page: int = Field(
        default=10_000,
        ge=1,
        le=10_000,
        description="Points of one float series asked for at once; 1,000 of other series, and where a server refuses "
        "more.",
    )


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
    client: Literal["fast", "public"] = Field(
        default="fast",
        description="fast: with a version of neptune-client that was tested for it, use its connection and take the "
        "server's answers as they come. public: only call its public functions, as with any other version.",
    )


class Neptune3Source(LiveSource):
    """A running Neptune 3.x server, read as neptune-query reads it. It is only ever read."""

    points_per_page: int = Field(
        default=250_000, ge=1_000, le=1_000_000, description="Points asked for at once, of all series together."
    )
    series_per_page: int = Field(
        default=1_000, ge=1, le=10_000, description="Series asked for at once, of all runs together."
    )
    metric_previews: bool = Field(
        default=False,
        description="Also take points of metrics that are not final, as series of their own: `<path>:preview` and "
        "`<path>:preview_completion`.",
    )
    client: Literal["fast", "public"] = Field(
        default="fast",
        description="fast: with a version of neptune-query that was tested for it, turn its answers into Parquet "
        "without its data frames. public: only call its public functions, as with any other version.",
    )


class ServerSource(Model):
    """What Neptune's clients logged to our own server (`make serve`), read from its store while it runs."""

    store: str = Field(description="The server's directory, as given to `--store`. It is only ever read.")


class SourceSettings(Model):
    """Where runs come from: exactly one kind."""

    export: ExportSource | None = Field(default=None, description="A neptune-exporter directory.")
    offline: OfflineSource | None = Field(default=None, description="Recordings of Neptune's clients.")
    neptune2: Neptune2Source | None = Field(default=None, description="A running Neptune 2.x server.")
    neptune3: Neptune3Source | None = Field(default=None, description="A running Neptune 3.x server.")
    server: ServerSource | None = Field(default=None, description="The store of our own server.")

    @model_validator(mode="after")
    def _exactly_one(self) -> SourceSettings:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"source takes exactly one of {', '.join(type(self).model_fields)}; here: {', '.join(given) or 'none'}"
            )
        return self
