"""What one run becomes in TensorBoard: tags, names of parameters and files, and whole steps. Writes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from neptune_assets.lake.layout import extension_of, format_step
from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.schema import MICROSTEPS, PARAMETER_TYPES, SERIES_TYPES, AttributeType
from neptune_assets.targets.lineage import INHERITED, Ancestor
from neptune_assets.targets.naming import colliding_keys, distinct_keys, distinct_paths
from neptune_assets.targets.profile import (
    MAX_DOUBLE_INT,
    Attribute,
    Kind,
    Outcomes,
    RunProfile,
    profile,
    smallest_multiplier,
)
from neptune_assets.targets.protocol import Plan
from neptune_assets.targets.times import iso, parsed

if TYPE_CHECKING:
    from neptune_assets.lake.manifest import FileRecord
    from neptune_assets.lake.reader import LakeRun

COPY: Final = "neptune_assets/series.parquet"
"""The series as they are in the lake, beside the event file."""
OURS: Final = "neptune_assets"
"""Directory of our own files, and what our own parameters begin with."""
MAX_TAG: Final = 500
"""Characters of a tag, as a bound of ours: TensorBoard states none."""
MAX_RUN: Final = 100
_PLAIN_RUN: Final = re.compile(r"[A-Z0-9][A-Z0-9_.-]*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of one run goes."""

    profile: RunProfile
    tags: Mapping[Attribute, str]
    """Of series, those that ancestors have among them, and of files that may be pictures."""
    parameters: Mapping[Attribute, str]
    facts: Mapping[str, float | str]
    """Parameters of ours: where the run comes from."""
    files: Mapping[FileRecord, str]
    """Paths below the run's directory."""
    multiplier: int
    lineage: tuple[Ancestor, ...]
    collisions: Mapping[str, Sequence[str]]

    @property
    def unit(self) -> int:
        """Micro-steps in one step of TensorBoard."""
        return MICROSTEPS // self.multiplier

    def values(self) -> dict[str, Any]:
        """Return the values of ``sys/`` parameters by path; times in milliseconds since 1970."""
        return {path: value for (path, _), value in self.profile.parameters if path.startswith("sys/")}

    def names(self) -> dict[str, str]:
        """Return {attribute path: name in TensorBoard} where the two differ."""
        return dict(
            sorted(
                (path, name)
                for names in (self.parameters, self.tags)
                for (path, _), name in names.items()
                if path != name
            )
        )


def layout(run: LakeRun, wanted: Callable[[str], str], lineage: tuple[Ancestor, ...]) -> Layout:
    """Give every attribute its place; ``wanted`` is what rules for names want an attribute to be called."""
    found = profile(run)
    series = {**found.series, **{item: None for item in found.files if item[1] in _PICTURES}}
    multiplier = _multiplier(run, SERIES_TYPES, None, 1)
    for ancestor in lineage:
        series |= {item: None for item in profile(ancestor.run).series if item[1] in INHERITED}
        multiplier = _multiplier(ancestor.run, INHERITED, ancestor.until, multiplier)
    facts = _facts(run, multiplier, lineage)
    tags = {item: wanted(item[0]) for item in series}
    parameters = {item: wanted(item[0]) for item, _ in found.parameters}
    # What we say of the run has names of its own, whatever its parameters are called.
    named = distinct_keys({**{(name, ""): name for name in facts}, **parameters}, _clean, limit=MAX_TAG)
    paths = distinct_paths({item: _file_name(item, wanted(item.attribute_path)) for item in run.record.files})
    return Layout(
        found,
        distinct_keys(tags, _clean, limit=MAX_TAG),
        {item: named[item] for item in parameters},
        facts,
        {item: f"files/{path}" for item, path in paths.items()},
        multiplier,
        lineage,
        {
            name: [path for path, _ in items]
            for names in (parameters, tags)
            for name, items in colliding_keys(names, _clean).items()
        },
    )


_PICTURES: Final = frozenset({str(AttributeType.FILE), str(AttributeType.FILE_SERIES)})


def _multiplier(run: LakeRun, types: frozenset[AttributeType], until: int | None, multiplier: int) -> int:
    """Return the smallest power of ten that makes all steps whole, not below ``multiplier``."""
    for batch in run.batches(types=types, columns=("step",)):
        steps = microsteps(batch["step"])
        kept = (steps != NONE) if until is None else (steps != NONE) & (steps <= until)
        multiplier = smallest_multiplier(steps[kept], multiplier)
    return multiplier


def _facts(run: LakeRun, multiplier: int, lineage: Sequence[Ancestor]) -> dict[str, float | str]:
    facts: dict[str, float | str] = {f"{OURS}/project_id": run.project_id, f"{OURS}/run_id": run.run_id}
    if multiplier > 1:
        facts[f"{OURS}/step_multiplier"] = float(multiplier)
    if run.record.parent is not None:
        facts[f"{OURS}/parent"] = run.record.parent
        if run.record.fork_step is not None:
            facts[f"{OURS}/fork_step"] = format_step(run.record.fork_step)
    if lineage:
        facts[f"{OURS}/stitched"] = json.dumps({item.run.run_id: format_step(item.until) for item in lineage})
    return facts


def _clean(path: str) -> str:
    return _CONTROL.sub("_", path) or "_"


def _file_name(item: FileRecord, name: str) -> str:
    if item.member is not None:
        return f"{name}/{item.member}"
    if item.step is not None:
        name = f"{name}/step_{format_step(item.step)}"
    extension = extension_of(item.path.rpartition("/")[2])
    return name if not extension or extension_of(name.rpartition("/")[2]) == extension else f"{name}.{extension}"


def plain_run(run_id: str) -> bool:
    """True if an id can be the name of a directory; Neptune's own are."""
    return len(run_id) <= MAX_RUN and _PLAIN_RUN.fullmatch(run_id) is not None


def parameter_value(kind: str, value: Any) -> tuple[bool | float | str, bool]:
    """Return a parameter as TensorBoard holds it, and whether it is still of its own type; a time is in ms."""
    if kind == AttributeType.DATETIME:
        return iso(value), False
    if kind == AttributeType.STRING_SET:
        return json.dumps(sorted(value), ensure_ascii=False), False
    if kind == AttributeType.INT:
        return (float(value), True) if abs(value) <= MAX_DOUBLE_INT else (str(value), False)
    # JSON, which TensorBoard's server answers with, has no number for these.
    if kind == AttributeType.FLOAT and value - value != 0:
        return repr(value), False
    return value, True


def start_of(run: LakeRun, values: Mapping[str, Any]) -> int:
    """Return when the run was created, in milliseconds since 1970; 0 if nothing says so."""
    moment = values.get("sys/creation_time")
    if not isinstance(moment, int):
        moment = parsed(run.record.created_at or "")
    return moment or 0


def plan_of(run: LakeRun, placed: Layout) -> Plan:
    """Say what loading the run will do, as far as names, types and steps tell."""
    notes = []
    if placed.multiplier > 1:
        notes.append(
            f"Steps are multiplied by {placed.multiplier}, as TensorBoard knows whole ones only; {COPY} is exact."
        )
    if placed.lineage:
        names = ", ".join(f"{item.run.run_id} up to step {format_step(item.until)}" for item in placed.lineage)
        notes.append(f"Metrics and histograms of {names} are in front, as TensorBoard knows no forks.")
    return Plan(run.run_id, placed.names(), placed.multiplier, notes=tuple(notes), collisions=placed.collisions)


OUTCOMES: Final[Outcomes] = (
    (Kind.NO_STEP, None, f"not in the event file; kept in {COPY}"),
    (Kind.NO_TIME, None, f"takes the time of the run's start; {COPY} says that there was none"),
    (Kind.BEYOND_DOUBLE, frozenset({AttributeType.INT}), "kept as text"),
    (Kind.NULL, PARAMETER_TYPES, "dropped: it has no value"),
    (Kind.NULL, SERIES_TYPES, f"not in the event file; kept in {COPY}"),
    (Kind.NO_FILE, None, "dropped: its file is not in the lake"),
)
"""What becomes of values that TensorBoard cannot hold: the plan's words for what the receipt will count."""
