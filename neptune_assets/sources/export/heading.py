"""What is known of a run from footers and its few ``sys/`` rows, without reading its points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.schema import PARAMETER_TYPES, SERIES_TYPES
from neptune_assets.sources.export.directory import RunParts
from neptune_assets.sources.export.names import safe_name
from neptune_assets.sources.export.parts import Part, PartError, open_part
from neptune_assets.sources.export.roots import Root
from neptune_assets.sources.times import moment_of

_PARAMETERS: Final = frozenset(str(kind) for kind in PARAMETER_TYPES)
_SERIES: Final = frozenset(str(kind) for kind in SERIES_TYPES)
_SYS: Final = ("sys/", "sys0")
"""The smallest and, not included, the largest path below ``sys``: 0 comes after the slash."""

_COLUMNS: Final = ("attribute_path", "attribute_type", "string_value", "bool_value", "datetime_value")


@dataclass(slots=True)
class Heading:
    """Identity and system attributes of a run.

    ``project_id`` and ``run_id`` are as its rows have them, None if no part can be read. ``first_point`` is the
    earliest time of any series, as stored, in epoch milliseconds; so are the times in ``system``, which Python's
    datetimes may not hold. ``types`` are the attribute types in the parts that can be read.
    """

    project_id: str | None = None
    run_id: str | None = None
    has_system_rows: bool = False
    system: Mapping[str, Any] = field(default_factory=dict)
    first_point: int | None = None
    types: frozenset[str] = frozenset()
    unreadable: Mapping[int, str] = field(default_factory=dict)
    """Numbers of the parts that cannot be opened, with the reason."""

    def text(self, name: str) -> str | None:
        """Return a system attribute that is a string."""
        value = self.system.get(name)
        return value if isinstance(value, str) else None

    def milliseconds(self, name: str) -> int | None:
        """Return a system attribute that is a date and time, in epoch milliseconds."""
        value = self.system.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def moment(self, name: str) -> datetime | None:
        """Return a system attribute that is a date and time; None too if it is outside the years 1 to 9999."""
        return moment_of(self.milliseconds(name))

    def flag(self, name: str) -> bool:
        """Return a system attribute that is true or false; False if the run has none."""
        return self.system.get(name) is True


def read_heading(root: Root, run: RunParts) -> Heading:
    """Read footers of all parts, and ``sys/`` rows from the row groups that can hold them."""
    heading = Heading()
    unreadable: dict[int, str] = {}
    types: set[str] = set()
    for number, entry in sorted(run.parts.items()):
        try:
            with open_part(root, entry) as part:
                if heading.run_id is None:
                    heading.project_id, heading.run_id = _identity(part, run.prefix)
                types.update(_types(part))
                for group in part.row_groups:
                    heading.first_point = _earlier(heading.first_point, _first_point(part, group))
                # Parameters of a run are written in one batch, which is never split over parts.
                if not heading.has_system_rows:
                    _read_system(part, heading)
        except PartError as error:
            unreadable[number] = str(error)
    heading.types = frozenset(types)
    heading.unreadable = unreadable
    return heading


def _identity(part: Part, prefix: str) -> tuple[str | None, str | None]:
    for group in part.row_groups:
        runs, projects = part.bounds(group, "run_id"), part.bounds(group, "project_id")
        if runs and projects and runs[0] == runs[1] and projects[0] == projects[1] and safe_name(runs[0]) == prefix:
            return projects[0], runs[0]
    fallback: tuple[str | None, str | None] = (None, None)
    for batch in part.batches(columns=("project_id", "run_id")):
        for run_id in batch["run_id"].unique().to_pylist():
            if run_id is None:
                continue
            row = batch["run_id"].index(run_id).as_py()
            identity = (batch["project_id"][row].as_py(), run_id)
            if safe_name(run_id) == prefix:
                return identity
            fallback = fallback if fallback[1] is not None else identity
    return fallback


def _types(part: Part) -> set[str]:
    """Return the attribute types of a part; only row groups that hold several have to be read for it."""
    types: set[str] = set()
    mixed = []
    for group in part.row_groups:
        bounds = part.bounds(group, "attribute_type")
        if bounds and bounds[0] == bounds[1]:
            types.add(bounds[0])
        else:
            mixed.append(group)
    for batch in part.batches(mixed, ("attribute_type",)):
        types.update(kind for kind in batch["attribute_type"].unique().to_pylist() if kind is not None)
    return types


def _first_point(part: Part, group: int) -> int | None:
    return part.first_time(group) if part.may_hold(group, "attribute_type", _SERIES) else None


def _earlier(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _read_system(part: Part, heading: Heading) -> None:
    groups = [
        group
        for group in part.row_groups
        if part.may_hold(group, "attribute_type", _PARAMETERS) and _may_hold_system(part, group)
    ]
    system: dict[str, Any] = {}
    for batch in part.batches(groups, _COLUMNS):
        rows = batch.filter(pc.starts_with(batch["attribute_path"], _SYS[0]))
        place = rows.schema.get_field_index("datetime_value")
        rows = rows.set_column(place, "datetime_value", rows["datetime_value"].view(pa.int64()))
        for row in rows.to_pylist():
            value = next((row[name] for name in _COLUMNS[2:] if row[name] is not None), None)
            if value is not None:
                system.setdefault(row["attribute_path"], value)
        heading.has_system_rows = heading.has_system_rows or rows.num_rows > 0
    heading.system = system


def _may_hold_system(part: Part, group: int) -> bool:
    bounds = part.bounds(group, "attribute_path")
    return bounds is None or (bounds[0] < _SYS[1] and bounds[1] >= _SYS[0])
