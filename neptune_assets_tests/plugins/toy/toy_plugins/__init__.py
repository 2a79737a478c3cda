"""A distribution of somebody else: a source of JSON lines, and a target that is a folder of Parquet files."""

from __future__ import annotations

from pydantic import Field

from neptune_assets.plugins import SourceSpec, TargetSpec
from neptune_assets.schema import Scope
from neptune_assets.settings import Filters, LakeSettings, Model
from neptune_assets.sources.protocol import Source
from neptune_assets.targets.protocol import Target


class JsonLinesSettings(Model):
    """Runs as files of JSON lines."""

    directory: str = Field(description="Holds <workspace>/<project>/<run>.jsonl.")


class ParquetFolderSettings(Model):
    """Runs as Parquet files."""

    directory: str | None = Field(default=None, description="Where the files are; beside the lake if left out.")


def _open_source(settings: JsonLinesSettings, filters: Filters) -> Source:
    from toy_plugins.source import JsonLines

    return JsonLines(settings.directory, filters)


def _open_target(settings: ParquetFolderSettings, lake: LakeSettings, scope: Scope) -> Target:
    from toy_plugins.target import ParquetFolder

    return ParquetFolder(settings.directory or f"{lake.root}/parquet_folder")


SOURCE = SourceSpec(
    name="json_lines",
    title="JSON lines",
    settings=JsonLinesSettings,
    paths=("directory",),
    open=_open_source,
    settings_at=lambda path: {"directory": str(path)} if next(path.glob("*/*/*.jsonl"), None) else None,
)
TARGET = TargetSpec(
    name="parquet_folder",
    title="A folder of Parquet files",
    settings=ParquetFolderSettings,
    paths=("directory",),
    description="Runs of one project as Parquet files.",
    open=_open_target,
)
