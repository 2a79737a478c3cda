"""Settings of one migration: what a user writes in ``defs.yaml`` and what tests build in Python.

Each source and target that is installed is one setting below ``source`` or ``targets``, of the model in its spec.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model, model_validator

from neptune_assets.plugins import Plugins, S, SourceSpec, TargetSpec, source_plugins, target_plugins
from neptune_assets.settings import (
    PARALLEL_RUNS,
    AutomationSettings,
    Filters,
    LakeSettings,
    Model,
    NameRules,
    SummarySettings,
    anchored_path,
)


def _refusal(reason: str) -> Callable[[Any], Any]:
    def refuse(_: Any) -> Any:
        raise ValueError(reason)

    return refuse


def _with_plugins(base: type[Any], plugins: Plugins[Any]) -> type[Any]:
    """Return ``base`` with one optional setting for each plug-in; to use a broken one is an error that says why."""
    fields: dict[str, Any] = {
        name: (spec.settings | None, Field(default=None, description=f"{spec.title}."))
        for name, spec in plugins.specs.items()
    }
    for name, reason in plugins.broken.items():
        fields[name] = (Annotated[None, BeforeValidator(_refusal(reason))], Field(default=None, description=reason))
    return create_model(base.__name__, __base__=base, __doc__=base.__doc__, __module__=base.__module__, **fields)


def _used(settings: Model, plugins: Plugins[S]) -> list[tuple[S, Model]]:
    chosen = ((spec, getattr(settings, name)) for name, spec in plugins.specs.items())
    return [(spec, value) for spec, value in chosen if value is not None]


class SourceSettings(Model):
    """Where runs come from: exactly one kind."""

    @model_validator(mode="after")
    def _exactly_one(self) -> SourceSettings:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"source takes exactly one of {', '.join(type(self).model_fields)}; here: {', '.join(given) or 'none'}"
            )
        return self

    @property
    def chosen(self) -> tuple[SourceSpec, Model]:
        """The one kind, and its settings."""
        return _used(self, source_plugins())[0]


class TargetSettings(Model):
    """Where to load runs. No target, if nothing is set."""

    names: NameRules | str | None = Field(
        default=None, description="Rules for names, here or as the path of a YAML file that holds them."
    )
    partial_runs: Literal["withhold", "load"] = Field(
        default="withhold",
        description="What loads do with runs that are partial in the lake. withhold: they are not loaded, and named. "
        "load: what is there is loaded.",
    )
    parallel_runs: int = Field(
        default=PARALLEL_RUNS, ge=1, le=64, description="Runs loaded at once, where a target takes several."
    )

    @property
    def chosen(self) -> list[tuple[TargetSpec, Model]]:
        """The targets, each with its settings."""
        return _used(self, target_plugins())


if not TYPE_CHECKING:
    # What is installed is known only now; to a type checker the settings of plug-ins are those of `chosen`.
    SourceSettings = _with_plugins(SourceSettings, source_plugins())
    TargetSettings = _with_plugins(TargetSettings, target_plugins())


class Settings(Model):
    """One migration: a source, filters, a lake, and targets."""

    source: SourceSettings = Field(description="Where runs come from.")
    filters: Filters = Field(default_factory=Filters, description="What to take.")
    lake: LakeSettings = Field(description="Where the Parquet lake is.")
    summary: SummarySettings = Field(default_factory=SummarySettings, description="DuckDB summaries.")
    targets: TargetSettings = Field(default_factory=TargetSettings, description="Where to load runs.")
    automation: AutomationSettings = Field(default_factory=AutomationSettings, description="What runs by itself.")
    key_prefix: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_]+$",
        description="First part of this migration's asset keys; the folder's name if left out.",
    )

    @model_validator(mode="after")
    def _lake_reads_in_place(self) -> Settings:
        spec, source = self.source.chosen
        if spec.in_place is not None:
            self.lake = self.lake.with_export_storage(spec.in_place(source))
        return self

    @property
    def model_registry(self) -> bool:
        """True if the source can hold a model registry and the filters do not leave it out."""
        spec, source = self.source.chosen
        return self.filters.model_registry and spec.model_registry is not None and spec.model_registry(source)

    def anchored(self, root: Path) -> Settings:
        """Return a copy in which relative local paths are taken from ``root`` instead of the working directory."""
        settings = self.model_copy(deep=True)
        for holder, used in (
            (settings.source, [settings.source.chosen]),
            (settings.targets, settings.targets.chosen),
        ):
            for spec, chosen in used:
                setattr(holder, spec.name, spec.anchored(chosen, root))
        settings.filters.runs.ids_file = anchored_path(settings.filters.runs.ids_file, root)
        settings.lake.root = anchored_path(settings.lake.root, root)
        settings.lake.scratch = anchored_path(settings.lake.scratch, root)
        settings.summary.database = anchored_path(settings.summary.database, root)
        if isinstance(settings.targets.names, str):
            settings.targets.names = anchored_path(settings.targets.names, root)
        return settings
