"""What one run becomes in W&B: names of keys, how steps are counted, and the nested config. Writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from neptune_assets.schema import MICROSTEPS, PARAMETER_TYPES, SERIES_TYPES, AttributeType
from neptune_assets.targets.protocol import Plan
from neptune_assets.targets.wandb.attributes import Attribute, Survey, survey
from neptune_assets.targets.wandb.lineage import Ancestor
from neptune_assets.targets.wandb.naming import MAX_KEY, Naming, clean_key, digest_of, distinct
from neptune_assets.targets.wandb.records import MAX_EXACT
from neptune_assets.targets.wandb.system import MONITORING
from neptune_assets.targets.wandb.texts import step_text

AXIS: Final = "neptune_step"
"""Key of the exact step where W&B's own whole steps cannot hold it."""
LINE_BYTES: Final = 9 << 20
"""W&B skips lines of the history near 10 MiB; rows stay below this."""
_CONFIG_RESERVED: Final = frozenset({"_wandb", "wandb_version", "neptune_assets"})
_KEYED: Final = SERIES_TYPES | {AttributeType.FILE}


@dataclass(frozen=True, slots=True)
class Stepping:
    """How Neptune's steps become ``_step``: multiplied to whole numbers, or counted (``ordinal``) in exact order."""

    multiplier: int = 1
    ordinal: bool = False
    fractional: bool = False

    @property
    def axis(self) -> bool:
        """True if rows carry the exact step in a key of its own, which is then the x axis of every metric."""
        return self.ordinal or self.fractional

    @property
    def unit(self) -> int:
        """Micro-steps in one ``_step``."""
        return MICROSTEPS // self.multiplier


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of one run goes."""

    keys: Mapping[Attribute, str]
    """History keys of series and of single files that are media."""
    system: Mapping[Attribute, str]
    """Keys in the section of system metrics, for those series that stand there and not in the history."""
    config: Mapping[Attribute, tuple[str, ...]]
    """Path inside the nested config for every parameter."""
    stepping: Stepping
    survey: Survey
    collisions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names that several attributes would have had -> their paths; they are told apart."""
    lineage: tuple[Ancestor, ...] = ()
    """Runs whose points stand in front of the run's own, nearest first."""

    def names(self) -> dict[str, str]:
        """Return {attribute path: name in W&B} where the two differ; ``path (type)`` where a path has two types."""
        paths = Counter(path for path, _ in self.survey.rows)
        result: dict[str, str] = {}
        for attribute, name in [
            *self.keys.items(),
            *((item, f"system.{key}") for item, key in self.system.items()),
            *((item, "/".join(parts)) for item, parts in self.config.items()),
        ]:
            path, kind = attribute
            if name != path:
                result[path if paths[path] <= 1 else f"{path} ({kind})"] = name
        return dict(sorted(result.items()))


def stepping(found: Survey) -> Stepping:
    """Choose how steps are counted, so that no two steps meet and no row of the history becomes too long for W&B."""
    multiplier = 10**found.places
    widths = {str(AttributeType.FLOAT_SERIES): 64, str(AttributeType.HISTOGRAM_SERIES): 28_000}
    widest = sum(2 * len(path.encode("utf-8", "replace")) + widths.get(kind, 2_000) for path, kind in found.of(_KEYED))
    if found.lowest < 0 or found.highest * multiplier // MICROSTEPS >= MAX_EXACT or widest > LINE_BYTES:
        return Stepping(ordinal=True, fractional=found.places > 0)
    return Stepping(multiplier=multiplier, fractional=found.places > 0)


def layout(
    found: Survey,
    naming: Naming,
    wanted: Callable[[str], str] = str,
    lineage: tuple[Ancestor, ...] = (),
    *,
    section: bool = False,
) -> Layout:
    """Give every attribute its place. Names depend on the attributes of the run, and of those it is forked from, alone.

    ``wanted`` is what rules for names want an attribute to be called. ``section`` puts series of what Neptune monitored
    of the machine into W&B's section of system metrics instead of the history.
    """
    clean = clean_key(naming)
    whole = _whole(found, [survey(ancestor.run, ancestor.until) for ancestor in lineage])
    paths = Counter(path for path, _ in whole.rows)

    def source(attribute: Attribute) -> str:
        path, kind = attribute
        return path if paths[path] == 1 else f"{path}\n{kind}"

    system = {
        item: (clean(wanted(item[0])).removeprefix(MONITORING), source(item))
        for item in whole.of([AttributeType.FLOAT_SERIES])
        if section and item[0].startswith(MONITORING)
    }
    keyed = {item: (clean(wanted(item[0])), source(item)) for item in whole.of(_KEYED) if item not in system}
    parameters = {item: clean(wanted(item[0])) for item in found.of(PARAMETER_TYPES)}
    if naming == "neptune-exporter":
        flat = distinct({item: (name, source(item)) for item, name in parameters.items()}, MAX_KEY, _CONFIG_RESERVED)
        places: dict[Attribute, tuple[str, ...]] = {item: (name,) for item, name in flat.items()}
    else:
        places = _nested(parameters, source)
    collisions = _meeting(parameters) | _meeting({item: name for item, (name, _) in keyed.items()})
    collisions |= _meeting({item: name for item, (name, _) in system.items()})
    return Layout(distinct(keyed), distinct(system), places, stepping(whole), found, collisions, lineage)


def _whole(found: Survey, inherited: Sequence[Survey]) -> Survey:
    """Return what a run and what it inherits have together: attributes, and the reach of steps."""
    whole = Survey(Counter(found.rows), found.places, found.lowest, found.highest)
    for other in inherited:
        if other.rows:
            whole.rows |= other.rows
            whole.places = max(whole.places, other.places)
            whole.lowest, whole.highest = min(whole.lowest, other.lowest), max(whole.highest, other.highest)
    return whole


def _meeting(named: Mapping[Attribute, str]) -> dict[str, list[str]]:
    """Return the names that several attributes would have, and the paths of those."""
    groups: dict[str, list[str]] = {}
    for (path, _), name in named.items():
        groups.setdefault(name, []).append(path)
    return {name: paths for name, paths in sorted(groups.items()) if len(paths) > 1}


def _nested(parameters: Mapping[Attribute, str], source: Any) -> dict[Attribute, tuple[str, ...]]:
    """Give parameters their place in the nested config; a value that would be a branch as well is renamed."""
    branches = {
        path[:position] for path in parameters.values() for position, character in enumerate(path) if character == "/"
    }
    wanted: dict[Attribute, tuple[str, str]] = {}
    for item, path in parameters.items():
        head, _, rest = path.partition("/")
        if head in _CONFIG_RESERVED:
            path = f"{head}-{digest_of(head)}" + (f"/{rest}" if rest else "")
        elif path in branches:
            path = f"{path}-{digest_of(path)}"
        wanted[item] = (path, source(item))
    names = distinct(wanted, limit=1 << 30, reserved={"", *branches})
    return {item: tuple(name.split("/")) if all(name.split("/")) else (name,) for item, name in names.items()}


def plan_of(run_id: str, placed: Layout) -> Plan:
    """Say what loading the run will do, as far as names, types and steps tell."""
    found, steps = placed.survey, placed.stepping
    notes: list[str] = []
    if steps.ordinal:
        notes.append(
            f"_step counts the rows of the history, because W&B's whole steps cannot hold this run's; {AXIS} is exact."
        )
    elif steps.axis:
        notes.append(f"_step is the step times {steps.multiplier}; {AXIS} holds the step itself and is the x axis.")
    if max(abs(found.lowest), abs(found.highest)) >= MAX_EXACT:
        notes.append(f"Some steps have more digits than a 64-bit float; {AXIS} has them all in the run file.")
    if placed.lineage:
        names = ", ".join(f"{item.run.run_id} up to step {step_text(item.until)}" for item in placed.lineage)
        notes.append(f"Metrics and histograms of {names} stand in front, as W&B cannot be told of a fork from files.")
    if placed.system:
        rows = sum(found.rows[item] for item in placed.system)
        notes.append(
            f"{rows} points of {len(placed.system)} series below {MONITORING} go to the system metrics, by their time; "
            "their steps are kept in neptune_assets/series.parquet."
        )
    for kind, rows in sorted(found.stepless.items()):
        notes.append(f"{rows} rows of {kind} have no step; they are kept in neptune_assets/series.parquet.")
    return Plan(
        run_id=run_id,
        names=placed.names(),
        step_multiplier=steps.multiplier,
        notes=tuple(notes),
        collisions=placed.collisions,
    )
