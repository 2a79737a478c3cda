"""Settings of the source `export`."""

from __future__ import annotations

from typing import Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, model_validator

from neptune_assets.settings import Model, StorageSettings


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
        description="The exporter's `--error-report-file`, if it is elsewhere than in the data directory or the two "
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
