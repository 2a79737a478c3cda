"""From settings to the source they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neptune_assets.errors import SettingsError, UnknownProjectError
from neptune_assets.migration_settings import Settings
from neptune_assets.plugins import SourceSpec, source_plugins
from neptune_assets.sources.protocol import Source


def source_at(kind: str | None, path: str | None, root: Path) -> dict[str, Mapping[str, Any]]:
    """Return the setting ``source`` for what a path holds; local paths below ``root`` become relative to it.

    Without a kind, local paths are looked at. Raises SettingsError if it is not one kind that can read it.
    """
    if path is not None and "://" not in path:
        found = sources_at(kind, path, root)
        if len(found) > 1:
            raise SettingsError(
                f"{path} can be read as {' and as '.join(name for name, _ in found)}.",
                hint="Say which: give the source.",
            )
        return dict(found)
    specs = source_plugins().specs
    if kind not in specs:
        raise SettingsError(f"It is not known how to read {path}.", hint=f"Give a source: one of {', '.join(specs)}.")
    return {kind: {} if path is None else {_place(specs[kind]): path}}


def sources_at(kind: str | None, path: str, root: Path | None = None) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (kind, settings) of all sources that can read a local path, or of this kind only.

    Paths below ``root``, if it is given, become relative to it. Raises UnknownProjectError if there are none.
    """
    place = Path(path).expanduser().resolve()
    known = {name: spec for name, spec in source_plugins().specs.items() if spec.settings_at is not None}
    if kind is not None and kind not in known:
        raise SettingsError(f"{kind!r} is not a source that reads a path.", hint=f"Give one of {', '.join(known)}.")
    looked = {name: look(place) for name, spec in known.items() if (look := spec.settings_at) and kind in {None, name}}
    found = [
        (name, settings if root is None else _relative(settings, root.resolve()))
        for name, settings in looked.items()
        if settings is not None
    ]
    if not found:
        titles = " or ".join(known[name].title[0].lower() + known[name].title[1:] for name in looked)
        raise UnknownProjectError(
            f"{path} is not {titles}.",
            hint="Give the directory that the exporter, a Neptune client or the server wrote.",
        )
    return found


def _place(spec: SourceSpec) -> str:
    """Return the setting that says where everything is: the first path that has to be given."""
    for name in spec.paths:
        if spec.settings.model_fields[name].is_required():
            return name
    raise SettingsError(f"The source {spec.name} does not read a path.", hint="Leave the path out.")


def _relative(value: Any, root: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _relative(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_relative(item, root) for item in value]
    if isinstance(value, str) and Path(value).is_relative_to(root):
        return str(Path(value).relative_to(root))
    return value


def open_source(settings: Settings) -> Source:
    """Open the one source that the settings name. Raises SettingsError if what it needs is not installed."""
    spec, source = settings.source.chosen
    spec.check_installed()
    return spec.open(source, settings.filters)
