"""What the suite of targets stands on: a place to load into, what it holds, rows to load, and ways to die.

A :class:`Place` reads what the target really holds **independently of the target's own code** (raw SQL, parsed log
files). Everything it reports is in Neptune's words, so that expectations are what was logged.
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.report import LoadReport

PROJECT = "ws/proj"
BORN = datetime(2024, 3, 1, 12, 0, 0, tzinfo=UTC)
BORN_MS = 1_709_294_400_000

Rows = list[dict[str, Any]]


@dataclass
class Held:
    """One run as the target really holds it, under Neptune's names and steps."""

    target_id: str
    digest: str | None
    points: dict[str, list[tuple[Decimal, float, int | None]]] = field(default_factory=dict)
    """attribute path -> (step, value, time in ms or None if the target keeps none), by step; wherever kept."""
    params: dict[str, Any] = field(default_factory=dict)
    """attribute path -> value as held; compared with ``TargetContract.held_param``."""
    texts: dict[str, list[tuple[Decimal, str]]] = field(default_factory=dict)
    histograms: dict[str, list[tuple[Decimal, list[float], list[float]]]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """attribute path -> {anything that tells files of a set or series apart, "" for a single file: content}."""
    tags: set[str] = field(default_factory=set)
    group_tags: set[str] = field(default_factory=set)
    failed: bool = False
    description: str | None = None
    start_ms: int | None = None
    parent: str | None = None
    fork_step: Decimal | None = None


class Place(Protocol):
    """One target in one directory, able to be opened again in another process."""

    def __init__(self, root: Path) -> None:
        """Use ``root`` (which also holds ``lake/``); calling it twice on one directory finds what is there."""

    def open(self) -> Target:
        """Open the target anew."""

    def held(self, project_id: str) -> dict[str, list[Held]]:
        """run id -> everything visible that claims to be this run; more than one means doubled."""

    def damage(self, project_id: str, run_id: str) -> None:
        """Take one stored metric point away behind the target's back."""

    def state(self) -> Any:
        """Anything that differs if a load wrote anything at all."""


class Opens(Protocol):
    """What loading needs of a place."""

    def open(self) -> Target:
        """Open the target anew."""


class Died(BaseException):
    """Stands for the process dying: not an Exception, so that nobody's handler can tidy up."""


def same(left: float, right: float) -> bool:
    """True if two floats are the same double; every NaN counts as the same."""
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return struct.pack("<d", left) == struct.pack("<d", right)


def ms(offset_s: float = 0) -> datetime:
    """A moment so many seconds after the run was born."""
    return datetime.fromtimestamp((BORN_MS + round(offset_s * 1000)) / 1000, tz=UTC)


def param(path: str, kind: str, value: Any) -> dict[str, Any]:
    """A row of a parameter type."""
    return {"attribute_path": path, "attribute_type": kind, f"{kind}_value": value}


def point(path: str, step: str | int | Decimal, value: float | None, when: datetime | None = BORN) -> dict[str, Any]:
    """A row of a float series."""
    return {
        "attribute_path": path,
        "attribute_type": "float_series",
        "step": Decimal(step),
        "timestamp": when,
        "float_value": value,
    }


def text(path: str, step: str | int | Decimal, value: str) -> dict[str, Any]:
    """A row of a string series."""
    return {
        "attribute_path": path,
        "attribute_type": "string_series",
        "step": Decimal(step),
        "timestamp": BORN,
        "string_value": value,
    }


def histogram(
    path: str, step: str | int, edges: list[float], values: list[float], kind: str = "COUNTING"
) -> dict[str, Any]:
    """A row of a histogram series."""
    return {
        "attribute_path": path,
        "attribute_type": "histogram_series",
        "step": Decimal(step),
        "timestamp": BORN,
        "histogram_value": {"type": kind, "edges": edges, "values": values},
    }


def born(*rows: dict[str, Any]) -> Rows:
    """Rows of a run with the sys attributes every run has."""
    return [param("sys/creation_time", "datetime", BORN), *rows]


def settings_of(root: Path) -> LakeSettings:
    """The lake beneath a place's directory."""
    return LakeSettings(root=str(root / "lake"))


def load(place: Opens, root: Path, project_id: str = PROJECT, **options: Any) -> LoadReport:
    """Load one project of the lake beneath ``root`` as the assets do."""
    settings = settings_of(root)
    target = place.open()
    name = target.name
    target.close()
    return load_project(Lake(settings).project(project_id), place.open, Ledger(settings, name, project_id), **options)


def hook(dotted: str) -> tuple[Any, str]:
    """Resolve ``module:Class.method`` or ``module:function`` to (owner, attribute name)."""
    module, _, path = dotted.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    return owner, last


def die_at(dotted: str, when: str, act: Callable[[], None]) -> Callable[[], None]:
    """Make the ``when`` ("before" or "after") of the next call of ``dotted`` run ``act``; return the undo."""
    owner, name = hook(dotted)
    original = owner.__dict__[name]

    def dying(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            act()
        result = original(*args, **kwargs)
        act()
        return result

    setattr(owner, name, dying)
    return lambda: setattr(owner, name, original)


@contextmanager
def dying(dotted: str, when: str) -> Iterator[None]:
    """What is called within dies, as an exception that nobody catches, ``when`` ("before" or "after") of ``dotted``."""

    def die() -> None:
        raise Died

    undo = die_at(dotted, when, die)
    try:
        with pytest.raises(Died):
            yield
    finally:
        undo()


def run_and_die(place_class: str, deaths: list[tuple[str, str, str]]) -> None:
    """Entry of the child process: for each (root, hook, when), load and get killed with SIGKILL at the hook.

    Each load is a fork of this process, which has imported everything and started no thread. Raises RuntimeError if
    one of them does not die as it should.
    """
    owner, name = hook(place_class)
    kind = getattr(owner, name)
    for root, dotted, when in deaths:
        hook(dotted)
        child = os.fork()
        if child == 0:
            try:
                die_at(dotted, when, lambda: os.kill(os.getpid(), signal.SIGKILL))
                load(kind(Path(root)), Path(root))
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise RuntimeError(f"loading into {root} did not die {when} {dotted}: {status}")


def load_and_measure(place_class: str, root: str) -> None:
    """Entry of the child process: load, and print this process's peak of memory in bytes."""
    owner, name = hook(place_class)
    report = load(getattr(owner, name)(Path(root)), Path(root))
    if report.failed or not report.loaded:
        raise RuntimeError(str(report.failed))
    print(_peak_bytes())


def _peak_bytes() -> int:
    """Return the peak of this process's memory; on Linux not ``ru_maxrss``, which begins with what the parent had."""
    status = Path("/proc/self/status")
    if status.exists():
        (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
