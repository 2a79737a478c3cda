"""NeptuneMigration: one ``defs.yaml`` becomes one set of assets.

Belongs here: YAML to settings, and discovery of projects through Dagster's state file. Everything else is
:func:`neptune_assets.build.build_defs`, which tests call without any YAML.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import dagster as dg
from dagster.components.utils.defs_state import DefsStateConfig, DefsStateConfigArgs
from pydantic import BaseModel, Field, ValidationError

from neptune_assets.build import build_defs, discover_projects
from neptune_assets.errors import NeptuneAssetsError, SettingsError
from neptune_assets.migration_settings import Settings
from neptune_assets.partitions import project_keys
from neptune_assets.sources.registry import source_at


class MigrationParams(BaseModel):
    """Options of ``dg scaffold defs neptune_assets.NeptuneMigration NAME``."""

    source: str | None = Field(default=None, description="Kind of source; found out from the path if left out.")
    path: str | None = Field(default=None, description="Export, recordings or store to read; a URL for remote exports.")
    lake: str = Field(default="data/lake", description="Directory or URL of the lake.")
    target: list[str] = Field(default_factory=list, description="Targets to load into, with their defaults.")


class MigrationScaffolder(dg.Scaffolder[MigrationParams]):
    """Writes a ``defs.yaml`` that runs as it is."""

    @classmethod
    def get_scaffold_params(cls) -> type[MigrationParams]:
        """Return the options of the command."""
        return MigrationParams

    def scaffold(self, request: dg.ScaffoldRequest[MigrationParams]) -> None:
        """Write the file. Raises click.UsageError if the path holds nothing that the source could read."""
        if request.scaffold_format != "yaml":
            raise click.UsageError("A migration is written in YAML: leave out --format.")
        params, root = request.params, request.project_root or Path.cwd()
        try:
            source = source_at(params.source, params.path, root)
            attributes = {
                "source": source,
                "lake": {"root": params.lake},
                **({"targets": {name: {} for name in params.target}} if params.target else {}),
            }
            Settings.model_validate(attributes)
        except (NeptuneAssetsError, ValidationError) as error:
            request.target_path.rmdir()
            raise click.UsageError(str(error)) from error
        dg.scaffold_component(request, attributes)


@dg.scaffold_with(MigrationScaffolder)
class NeptuneMigration(dg.StateBackedComponent):
    """Bring the runs of one Neptune export, recording or server home: source, lake, summary and targets as assets."""

    def __init__(self, settings: Settings, prefix: str) -> None:
        self.settings = settings
        self.prefix = prefix

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Return the model that Dagster checks the YAML against, line by line."""
        return Settings

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> NeptuneMigration:
        """Make the component from checked YAML; templates such as ``{{ env.LAKE_ROOT }}`` are filled in here."""
        if not isinstance(attributes, Settings):
            raise SettingsError(f"{context.path} has no attributes.", hint="Give at least source and lake.")
        values = context.resolution_context.resolve_value(attributes.model_dump(exclude_unset=True))
        try:
            settings = Settings.model_validate(values)
        except ValidationError as error:
            raise SettingsError(
                f"Settings in {context.path} are wrong once templates are filled in: {error}",
                hint="Check the environment variables that the file names.",
            ) from error
        prefix = settings.key_prefix or context.path.name
        component = cls(settings.anchored(Path(context.project_root)), prefix)
        context.component_tree.mark_component_defs_state_key(
            defs_state_key=component.defs_state_config.key, loc=context.component_loc
        )
        return component

    @property
    def defs_state_config(self) -> DefsStateConfig:
        """Where the list of discovered projects is kept: a local file, refreshed by ``dg utils refresh-defs-state``."""
        return DefsStateConfig.from_args(
            DefsStateConfigArgs.local_filesystem(), default_key=f"NeptuneMigration[{self.prefix}]"
        )

    def write_state_to_path(self, state_path: Path) -> None:
        """Ask the source for its projects and write their keys as JSON."""
        keys = discover_projects(self.settings)
        state_path.parent.mkdir(parents=True, exist_ok=True)
        state_path.write_text(json.dumps({"projects": keys}, indent=1), encoding="utf-8")

    def build_defs_from_state(self, context: dg.ComponentLoadContext, state_path: Path | None) -> dg.Definitions:
        """Build the assets, one partition for each project in the settings or in the state file."""
        only = self.settings.filters.projects.only
        if only is not None:
            keys = project_keys(only)
        elif state_path is not None:
            keys = project_keys(json.loads(state_path.read_text(encoding="utf-8"))["projects"])
        else:
            keys = []
        return build_defs(self.settings, keys, prefix=self.prefix)
