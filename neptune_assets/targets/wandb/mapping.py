"""What one run becomes in W&B: names of keys, how steps are counted, and the nested config. Writes nothing."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import numpy as np
import pyarrow as pa

from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.schema import MICROSTEPS, PARAMETER_TYPES, SERIES_TYPES, VALUE_COLUMN, AttributeType
from neptune_assets.targets.columns import codes, plain
from neptune_assets.targets.lineage import INHERITED, Ancestor
from neptune_assets.targets.profile import Kind, Outcomes
from neptune_assets.targets.protocol import Plan
from neptune_assets.targets.times import iso, whole_milliseconds
from neptune_assets.targets.wandb.codec import MAX_EXACT, number_text, step_text

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun

Naming = Literal["default", "neptune-exporter"]
Key = TypeVar("Key", bound=Hashable)

MAX_NAME: Final = 128
"""Characters of project names, run names and groups."""
MAX_KEY: Final = 512
"""Characters of a key of the history, as a bound of ours: W&B states none."""
MAX_TAG: Final = 64
RESERVED_KEYS: Final = frozenset({"", "_step", "_timestamp", "_runtime", "_wandb", "neptune_step", "neptune_assets"})

_NOT_IN_PROJECTS: Final = re.compile(r"[/\\#?%:\x00-\x1f\x7f]")
_NOT_IN_EXPORTER_PROJECTS: Final = re.compile(r"[^a-zA-Z0-9_-]")
_NOT_IN_EXPORTER_KEYS: Final = re.compile(r"[^a-zA-Z0-9_]")


def digest_of(text: str, length: int = 8) -> str:
    """Return the first hex digits of a hash of the text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()[:length]


def shorten(text: str, limit: int, *, source: str | None = None, always: bool = False) -> str:
    """Return the text if it is short enough, else its beginning and a digest of ``source`` (the text itself)."""
    if len(text) <= limit and not always:
        return text
    digest = digest_of(text if source is None else source)
    return f"{text[: limit - len(digest) - 1]}-{digest}"


def run_key(project_id: str, run_id: str) -> str:
    """Return the W&B run id: the same for the same Neptune run, for ever, so that syncing again doubles nothing."""
    return "np" + digest_of(f"{project_id}\n{run_id}", 20)


def project_name(project_id: str, others: Iterable[str], naming: Naming, prefix: str) -> str:
    """Return the W&B project for a Neptune project. ``others`` are the projects it must not meet."""
    if naming == "neptune-exporter":

        def clean(key: str) -> str:
            return _NOT_IN_EXPORTER_PROJECTS.sub("_", f"{prefix}_{key}" if prefix else key)
    else:

        def clean(key: str) -> str:
            return _NOT_IN_PROJECTS.sub("-", prefix + key.partition("/")[2])

    name = clean(project_id)
    meets = any(other != project_id and clean(other).casefold() == name.casefold() for other in others)
    return shorten(name, MAX_NAME, source=project_id, always=meets)


def clean_key(naming: Naming) -> Callable[[str], str]:
    """Return what makes a key of the history out of an attribute's path, before names that meet are told apart."""
    if naming == "default":
        return str

    def clean(path: str) -> str:
        key = _NOT_IN_EXPORTER_KEYS.sub("_", path)
        if not key:
            return "_attribute"
        return key if key[0].isalpha() or key[0] == "_" else f"_{key}"

    return clean


def distinct(
    wanted: Mapping[Key, tuple[str, str]],
    limit: int = MAX_KEY,
    reserved: Collection[str] = RESERVED_KEYS,
) -> dict[Key, str]:
    """Give every key a name of its own.

    ``wanted`` maps a key to (name it would like, text that its digest is made of). Names that meet, are reserved or
    are longer than ``limit`` characters get a digest; the outcome does not depend on the order.
    """
    counts = Counter(name for name, _ in wanted.values())
    plain = {key: name for key, (name, _) in wanted.items() if len(name) <= limit and name not in reserved}
    names = {key: name for key, name in plain.items() if counts[name] == 1}
    taken = {*names.values(), *reserved, *counts}
    for key, (name, source) in sorted(wanted.items(), key=lambda item: item[1]):
        if key in names:
            continue
        for length in (8, 16, 64):
            digest = digest_of(source, length)
            made = f"{name[: limit - length - 1]}-{digest}"
            if made not in taken:
                break
        names[key] = made
        taken.add(made)
    return names


Attribute = tuple[str, str]
"""Path and type."""


@dataclass(slots=True)
class Survey:
    """What reading the names, types and steps of a run found, without its values."""

    rows: Counter[Attribute] = field(default_factory=Counter)
    places: int = 0
    lowest: int = 0
    highest: int = 0
    stepless: Counter[str] = field(default_factory=Counter)

    def of(self, types: Iterable[AttributeType]) -> list[Attribute]:
        """Return the attributes of these types, sorted."""
        wanted = {str(item) for item in types}
        return sorted(key for key in self.rows if key[1] in wanted)

    def by_type(self) -> dict[str, int]:
        """Return the rows of each attribute type."""
        counts: Counter[str] = Counter()
        for (_, kind), rows in self.rows.items():
            counts[kind] += rows
        return dict(counts)


def survey(run: LakeRun, until: int | None = None) -> Survey:
    """Read names, types and steps of a run; memory grows with its attributes, not with its points.

    ``until`` is for ancestors: only what a fork inherits up to this micro-step is looked at.
    """
    found = Survey()
    lowest: list[int] = []
    highest: list[int] = []
    series = {str(item) for item in SERIES_TYPES}
    types = None if until is None else INHERITED
    for batch in run.batches(types=types, columns=["attribute_path", "attribute_type", "step"]):
        if until is not None:
            steps = microsteps(batch.column("step"))
            batch = batch.filter(pa.array((steps != NONE) & (steps <= until)))
        paths, path_names = codes(batch.column("attribute_path"))
        kinds, kind_names = codes(batch.column("attribute_type"))
        pair, counts = np.unique(paths * len(kind_names) + kinds, return_counts=True)
        for code, count in zip(pair.tolist(), counts.tolist(), strict=True):
            path, kind = divmod(code, len(kind_names))
            found.rows[path_names[path], kind_names[kind]] += count
        stepped = np.isin(kinds, [number for number, name in enumerate(kind_names) if name in series])
        if not stepped.any():
            continue
        steps = microsteps(batch.column("step"))
        valid = steps != NONE
        for number, name in enumerate(kind_names):
            missing = int(np.count_nonzero(stepped & ~valid & (kinds == number)))
            if missing:
                found.stepless[name] += missing
        steps = steps[stepped & valid]
        if steps.size:
            lowest.append(int(steps.min()))
            highest.append(int(steps.max()))
            while found.places < 6 and (steps % 10 ** (6 - found.places)).any():
                found.places += 1
    if lowest:
        found.lowest, found.highest = min(lowest), max(highest)
    return found


MONITORING: Final = "monitoring/"
"""Where neptune-client puts what it measures of the machine; neptune-scale measures nothing."""
EXACT: Final = "neptune_assets/series.parquet"
"""Run file with metrics, histograms and file series as they were, where W&B cannot hold them exactly."""
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
            f"their steps are kept in {EXACT}."
        )
    for kind, rows in sorted(found.stepless.items()):
        notes.append(f"{rows} rows of {kind} have no step; they are kept in {EXACT}.")
    return Plan(
        run_id=run_id,
        names=placed.names(),
        step_multiplier=steps.multiplier,
        notes=tuple(notes),
        collisions=placed.collisions,
    )


class Parameters:
    """Parameters of a run as W&B takes them: filled by :meth:`add`, batch by batch."""

    def __init__(self, placed: Layout, watched: str | None = None) -> None:
        """``watched`` is the path of a parameter whose value is kept apart, as ``sys/`` attributes are."""
        self._placed, self._watched = placed, watched
        self.config: dict[str, Any] = {}
        self.system: dict[str, Any] = {}
        """Values of ``sys/`` attributes, by path; times in milliseconds since 1970."""
        self.watched: dict[str, Any] = {}
        self.written: Counter[str] = Counter()
        self.mapped: Counter[str] = Counter()
        self.null: Counter[str] = Counter()
        self.beyond = 0
        """Whole numbers above 2**53, which browsers round."""

    def add(self, kind: AttributeType, rows: pa.RecordBatch) -> None:
        """Put the rows of one attribute type into the nested config."""
        name = str(kind)
        paths, values = plain(rows.column("attribute_path")), whole_milliseconds(plain(rows.column(VALUE_COLUMN[kind])))
        for path, value in zip(paths.to_pylist(), values.to_pylist(), strict=True):
            if value is None:
                self.null[name] += 1
                continue
            kept, exact = json_value(name, value)
            (self.written if exact else self.mapped)[name] += 1
            if name == "int" and abs(value) > MAX_EXACT:
                self.beyond += 1
            if path.startswith("sys/"):
                self.system[path] = value
            if path == self._watched:
                self.watched[path] = value if exact else kept
            *branches, leaf = self._placed.config[path, name]
            place = self.config
            for branch in branches:
                place = place.setdefault(branch, {})
            place[leaf] = kept


def json_value(kind: str, value: Any) -> tuple[Any, bool]:
    """Return a parameter as JSON holds it, and whether it is still of its own type; a time is in milliseconds."""
    if kind == "float":
        text = number_text(value)
        return (value, True) if text[-1].isdigit() else (text, False)
    if kind == "datetime":
        return iso(value), False
    if kind == "string_set":
        return list(value), True
    return value, True


OUTCOMES: Final[Outcomes] = (
    (Kind.NO_STEP, None, f"not in the history; kept in {EXACT}"),
    (Kind.NO_TIME, None, f"takes the time of its step; {EXACT} says that there was none"),
    (Kind.MANY_BINS, None, f"re-binned for the page; exact in {EXACT}"),
    (Kind.BEYOND_DOUBLE, frozenset({AttributeType.INT}), "exact in the config, rounded by browsers"),
    (Kind.NULL, frozenset(PARAMETER_TYPES), "dropped: it has no value"),
    (Kind.NO_FILE, None, "dropped: its file is not in the lake"),
)
"""What becomes of values that W&B cannot hold as they are: the plan's words for what the receipt will count."""
