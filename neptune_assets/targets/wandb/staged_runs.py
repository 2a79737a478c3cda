"""Where offline runs are staged, the marker of one that is complete, and the W&B project that each goes to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from neptune_assets import durable
from neptune_assets.errors import SettingsError, TargetError
from neptune_assets.lake.layout import safe_name
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.protocol import Dropped, Receipt
from neptune_assets.targets.staged import StagedDirectories
from neptune_assets.targets.wandb.mapping import project_name
from neptune_assets.targets.wandb.settings import WandbSettings

MARKER: Final = "neptune_assets.json"
SYNCED: Final = "synced.json"
PROJECT: Final = "project.json"
_LAST_START: Final = 253_402_300_800_000
"""Milliseconds since 1970 of the year 10,000."""
FORMAT: Final = 3
"""Raised when the same run would be staged differently; runs staged in an older format are staged anew."""


def staging_root(settings: WandbSettings, lake: LakeSettings) -> Path:
    """Return the directory of staged runs. Raises SettingsError if it is left out and the lake is not local."""
    if settings.staging is not None:
        return Path(settings.staging).expanduser().absolute()
    root = lake.root.removeprefix("file://")
    if "://" in root:
        raise SettingsError(
            f"The lake at {lake.root} is not local, and W&B runs are staged on a local disk.",
            hint="Set targets.wandb.staging to a local directory.",
        )
    return Path(root).expanduser().absolute() / "wandb"


def choices(settings: WandbSettings) -> dict[str, str]:
    """Return the settings that decide what a staged run looks like; with others it is staged anew."""
    # Teams that loaded some runs with neptune-exporter have system metrics in the history.
    own = settings.naming == "default"
    return {
        "naming": settings.naming,
        "system_metrics": settings.system_metrics if own else "history",
        "file_sets": settings.file_sets,
        "job_type": settings.job_type,
        "job_type_attribute": settings.job_type_attribute or "",
    }


@dataclass(frozen=True, slots=True)
class Marker:
    """Written last into a staged run: whose it is and what was staged. A directory without it is partial."""

    project_id: str
    run_id: str
    digest: str
    wandb_run: str
    wandb_project: str
    entity: str
    choices: dict[str, str]
    """Settings by which the run was staged."""
    history_rows: int
    system_rows: int
    receipt: dict[str, Any]
    artifacts: dict[str, str] = field(default_factory=dict)
    """Names and digests of the run's artifacts."""
    version: dict[str, str] = field(default_factory=dict)
    """Of a model version its collection, digest and where it comes from, see :mod:`.models`."""
    lineage: dict[str, str] = field(default_factory=dict)
    """Digests of the runs whose points stand in front of this fork's own."""
    format: int = FORMAT

    def as_receipt(self) -> Receipt:
        """Return the receipt of staging the run."""
        data = dict(self.receipt)
        data["dropped"] = tuple(item if isinstance(item, Dropped) else Dropped(**item) for item in data["dropped"])
        data["notes"] = tuple(data["notes"])
        return Receipt(**data)


@dataclass(frozen=True, slots=True)
class Synced:
    """What was last sent to W&B, and where; ``confirmed`` once W&B was asked and had all of it."""

    digest: str
    history_rows: int
    wandb_project: str
    entity: str
    base_url: str
    confirmed: bool

    @classmethod
    def of(cls, marker: Marker, base_url: str, *, confirmed: bool) -> Synced:
        """Return what is remembered of uploading this staged run."""
        return cls(marker.digest, marker.history_rows, marker.wandb_project, marker.entity, base_url, confirmed)

    @property
    def place(self) -> tuple[str, str, str]:
        """Server, entity and project."""
        return self.base_url, self.entity, self.wandb_project


class StagedProject(StagedDirectories):
    """The staged runs of one Neptune project: ``<root>/<S(project)>/offline-run-<time>-<id>/``."""

    def __init__(self, root: Path, project_id: str) -> None:
        self.root = root
        super().__init__(root / safe_name(project_id), root / ".staging" / safe_name(project_id))

    def directories(self, wandb_run: str) -> list[Path]:
        """Return the directories of one W&B run; there should be one at most."""
        if not self.path.is_dir():
            return []
        return sorted(self.path.glob(f"offline-run-*-{wandb_run}"))

    def all(self) -> Iterator[Path]:
        """Yield every staged run's directory in a fixed order."""
        if self.path.is_dir():
            yield from sorted(self.path.glob("offline-run-*"))


def directory_name(wandb_run: str, start_ms: int | None) -> str:
    """Return the name ``wandb sync`` knows offline runs by: when the run started, and its id."""
    # A start that no calendar has (a wrong unit of the clock) is kept in the run; the name only has to sort.
    start = start_ms if start_ms is not None and 0 <= start_ms < _LAST_START else 0
    moment = datetime.fromtimestamp(start / 1000, tz=UTC)
    return f"offline-run-{moment:%Y%m%d_%H%M%S}-{wandb_run}"


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file as a whole or not at all; it is on disk once this returns."""
    durable.write(path, json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8"))


def write_marker(directory: Path, marker: Marker | Synced) -> None:
    """Write a marker into a run's directory: that of a staged run before it is published, which makes it durable."""
    if isinstance(marker, Marker):
        (directory / MARKER).write_text(json.dumps(asdict(marker), ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        write_json(directory / SYNCED, asdict(marker))


def read_marker(directory: Path) -> Marker | None:
    """Return the marker of a staged run; None if staging did not finish or an older version of ours did it."""
    data = _read_json(directory / MARKER)
    if data is None or data.get("format") != FORMAT:
        return None
    try:
        return Marker(**data)
    except TypeError:
        return None


def read_synced(directory: Path) -> Synced | None:
    """Return what W&B confirmed for this run; None if it never did."""
    data = _read_json(directory / SYNCED)
    try:
        return None if data is None else Synced(**data)
    except TypeError as error:
        raise TargetError(
            f"{directory / SYNCED} is not a file of ours.", hint="Delete it to have the run uploaded again."
        ) from error


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return data if isinstance(data, dict) else None


class ProjectNames:
    """The W&B projects of Neptune projects: once runs are staged under a name it stays, whatever comes later."""

    def __init__(self, settings: WandbSettings, lake: LakeSettings, root: Path) -> None:
        self._settings, self._lake, self._root = settings, lake, root
        self._names: dict[str, str] = {}

    def name(self, project_id: str) -> str:
        """Return the W&B project."""
        if project_id not in self._names:
            inputs = self._inputs(project_id)
            kept = _kept(self._path(project_id))
            if kept is not None and {name: kept.get(name) for name in inputs} == inputs:
                self._names[project_id] = str(kept["wandb_project"])
            else:
                from neptune_assets.lake.reader import Lake

                lake = Lake(self._lake)
                # A project may have models and no runs.
                others = {other for scope in Scope for other in lake.projects(scope)}
                naming, prefix = self._settings.naming, self._settings.project_prefix
                self._names[project_id] = project_name(project_id, others, naming, prefix)
        return self._names[project_id]

    def keep(self, project_id: str) -> None:
        """Remember the W&B project beside its staged runs."""
        path = self._path(project_id)
        value = {**self._inputs(project_id), "wandb_project": self.name(project_id)}
        if _kept(path) != value:
            write_json(path, value)

    def _path(self, project_id: str) -> Path:
        return StagedProject(self._root, project_id).path / PROJECT

    def _inputs(self, project_id: str) -> dict[str, str]:
        return {
            "project_id": project_id,
            "prefix": self._settings.project_prefix,
            "naming": self._settings.naming,
        }


def _kept(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return data if isinstance(data, dict) else None
