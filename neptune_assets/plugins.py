"""Sources and targets as plug-ins: what each says of itself, and how they are found.

A distribution names each :class:`SourceSpec` or :class:`TargetSpec` in the entry points of its group,
``neptune_assets.sources`` or ``neptune_assets.targets``; ours are found the same way. Settings, assets,
checks, plans and tables of the documentation follow from the specs. A module that holds one imports neither its
library nor the rest of its package.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from neptune_assets.errors import SettingsError
from neptune_assets.schema import Scope
from neptune_assets.settings import Filters, LakeSettings, Model, StorageSettings, anchored_path
from neptune_assets.sources.protocol import Source
from neptune_assets.targets.protocol import Target

SOURCES: Final = "neptune_assets.sources"
TARGETS: Final = "neptune_assets.targets"

log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_SUFFIXES: Final = ("_models", "_model_versions", "_reconciled")
"""What names of assets and ledgers end with that follow from a target's: no target may be called so."""
_TAKEN: Final = frozenset({"names", "partial_runs", "parallel_runs"})
"""Settings beside those of targets."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every plug-in declares. ``name`` is that of its entry point, and of its setting."""

    name: str
    title: str
    """What people call it; the description of its setting."""
    settings: type[Model]
    paths: tuple[str, ...] = ()
    """Settings that hold a local path, or a list of them: relative ones are taken from the project's root."""
    requires: tuple[str, ...] = ()
    """Distributions without which it cannot be opened."""
    install: str = ""
    """Requirement that brings them, such as ``neptune-assets[wandb]``."""

    def anchored(self, settings: Model, root: Path) -> Model:
        """Return a copy of its settings in which relative local paths are taken from ``root``."""
        changes: dict[str, Any] = {}
        for name in self.paths:
            value = getattr(settings, name)
            changes[name] = (
                [anchored_path(path, root) for path in value] if isinstance(value, list) else anchored_path(value, root)
            )
        return settings.model_copy(update=changes)

    def check_installed(self) -> None:
        """Raise SettingsError, with the command that helps, if a distribution that it requires is not installed."""
        check_installed(f"{self.title} ({self.name})", self.requires, self.install)


@dataclass(frozen=True, kw_only=True)
class SourceSpec(Spec):
    """A kind of source."""

    open: Callable[[Any, Filters], Source]
    """Make it from its settings; imports its library only here."""
    model_registry: Callable[[Any], bool] | None = None
    """Whether a place of these settings can hold models and model versions; None if none can."""
    settings_at: Callable[[Path], Mapping[str, Any] | None] | None = None
    """Settings that read what a local path holds, None if that is nothing of this kind. Looks at names only."""
    in_place: Callable[[Any], StorageSettings] | None = None
    """How to reach runs that stay where they are; None if every run is copied into the lake.

    A source that declares it is a :class:`~neptune_assets.sources.protocol.ReadsInPlace`.
    """


@dataclass(frozen=True, kw_only=True)
class TargetSpec(Spec):
    """A target. What ``keeps_*`` says is what :class:`neptune_assets.testing.targets.TargetContract` demands."""

    description: str
    """Description of the asset that loads runs."""
    open: Callable[[Any, LakeSettings, Scope], Target]
    """Make what loads runs, models or model versions; imports its library only here."""
    models: str | None = None
    """Description of the asset that loads models and their versions; None if the target has no model registry."""
    keeps_point_times: bool = True
    """False if it knows one time a step, not one a point."""
    keeps_texts: bool = True
    keeps_histograms: bool = True
    keeps_files: bool = True
    """False of these three: rows of such attributes are dropped, with a reason."""


S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Plugins(Generic[S]):
    """The plug-ins of one group: those that can be used, and why others cannot."""

    specs: dict[str, S] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    """Name -> what is wrong with it and what to do; an error of the migration that uses it."""


@cache
def source_plugins() -> Plugins[SourceSpec]:
    """Find all kinds of sources, once."""
    return find_plugins(SOURCES, SourceSpec)


@cache
def target_plugins() -> Plugins[TargetSpec]:
    """Find all targets, once."""
    return find_plugins(TARGETS, TargetSpec)


def find_plugins(group: str, kind: type[S]) -> Plugins[S]:
    """Load the entry points of a group. What cannot be used is logged, and kept with its reason."""
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        points.setdefault(point.name, []).append(point)
    if not points:
        # Without the entry points of this very package every setting would be unknown.
        raise SettingsError(
            f"No entry point of group {group} is installed; the installation of neptune_assets is older than its code.",
            hint="Install it again: `make install` in a checkout, else `pip install --force-reinstall neptune-assets`.",
        )
    found: Plugins[S] = Plugins()
    for name, candidates in sorted(points.items()):
        try:
            found.specs[name] = _load(name, candidates, kind)
        except SettingsError as error:
            log.warning("%s", error)
            found.broken[name] = str(error)
    return found


def _load(name: str, candidates: list[EntryPoint], kind: type[S]) -> S:
    owners = " and ".join(sorted(point.dist.name if point.dist else point.value for point in candidates))
    what = f"{'Target' if kind is TargetSpec else 'Source'} {name!r} of {owners}"
    if len(candidates) > 1:
        raise SettingsError(f"{what}: a name can be taken only once.", hint="Uninstall all but one of them.")
    if not _NAME.fullmatch(name) or name.endswith(_SUFFIXES) or name in _TAKEN:
        raise SettingsError(
            f"{what} does not have a valid name.",
            hint="Use lower case letters, digits and underscores; not "
            f"{', '.join(sorted(_TAKEN))}, and none of {', '.join(_SUFFIXES)} at the end.",
        )
    try:
        spec = candidates[0].load()
    except Exception as error:
        # Whatever a stranger's module raises is its own affair, until somebody uses it.
        raise SettingsError(
            f"{what} cannot be imported: {type(error).__name__}: {error}.",
            hint=f"Install a version of {owners} that works here, or uninstall it.",
        ) from error
    if not isinstance(spec, kind) or spec.name != name:
        raise SettingsError(
            f"{what} is not a {kind.__name__} of that name, but {spec!r}.", hint=f"Correct the entry point of {owners}."
        )
    return spec


def check_installed(what: str, requires: Sequence[str], install: str) -> None:
    """Raise SettingsError, with the command that helps, if a distribution is not installed that ``what`` requires."""
    missing = [name for name in requires if not _installed(name)]
    if missing:
        raise SettingsError(
            f"{what} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            hint=f'Run: pip install "{install or " ".join(missing)}"',
        )


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
