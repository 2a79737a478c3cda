"""From settings to the source they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neptune_assets.errors import SettingsError
from neptune_assets.migration_settings import Settings
from neptune_assets.plugins import SourceSpec, source_plugins
from neptune_assets.sources.protocol import Source


def source_at(kind: str | None, path: str | None, root: Path) -> dict[str, dict[str, Any]]:
    """Return the setting ``source`` for what a path holds; local paths below ``root`` become relative to it.

    Without a kind, local paths are looked at: the first kind that knows what is there. Raises SettingsError if none
    does, or not the kind that is given.
    """
    specs = source_plugins().specs
    if kind is not None and kind not in specs:
        raise SettingsError(f"{kind!r} is not a valid source.", hint=f"Choose one of {', '.join(specs)}.")
    chosen = {kind: specs[kind]} if kind is not None else specs
    if path is None or "://" in path:
        if kind is None:
            raise SettingsError("It is not known what to read.", hint=f"Give a source: one of {', '.join(specs)}.")
        return {kind: {} if path is None else {_place(specs[kind]): path}}
    place = Path(path).expanduser().resolve()
    for name, spec in chosen.items():
        found = None if spec.settings_at is None else spec.settings_at(place)
        if found is not None:
            return {name: {key: _relative(value, root.resolve()) for key, value in found.items()}}
    raise SettingsError(
        f"{path} does not hold {' or '.join(_article(spec.title) for spec in chosen.values() if spec.settings_at)}.",
        hint="Give the directory that the exporter, a Neptune client or the server wrote.",
    )


def _place(spec: SourceSpec) -> str:
    """Return the setting that says where everything is: the first path that has to be given."""
    for name in spec.paths:
        if spec.settings.model_fields[name].is_required():
            return name
    raise SettingsError(f"The source {spec.name} does not read a path.", hint="Leave the path out.")


def _relative(value: Any, root: Path) -> Any:
    if isinstance(value, list):
        return [_relative(item, root) for item in value]
    if isinstance(value, str) and Path(value).is_relative_to(root):
        return str(Path(value).relative_to(root))
    return value


def _article(title: str) -> str:
    return title[:1].lower() + title[1:]


def open_source(settings: Settings) -> Source:
    """Open the one source that the settings name. Raises SettingsError if what it needs is not installed."""
    spec, source = settings.source.chosen
    spec.check_installed()
    return spec.open(source, settings.filters)
