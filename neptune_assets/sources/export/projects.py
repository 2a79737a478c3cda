"""Projects and runs of a data directory: names, parts, and what footers and ``sys/`` rows say of a run.

An exported name ends in 64 bits of hash over the original, so a guessed original can be proved right or wrong.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.errors import SourceError
from neptune_assets.schema import PARAMETER_TYPES, SERIES_TYPES, Scope
from neptune_assets.sources.export.parts import Part, PartError, open_part
from neptune_assets.sources.export.roots import Entry, Root
from neptune_assets.sources.protocol import Issue
from neptune_assets.sources.times import moment_of

_PART: Final = re.compile(
    r"(?P<prefix>.+)_part_(?P<number>0|[1-9][0-9]{0,8})\.parquet(?P<unfinished>\.tmp)?", re.DOTALL
)
_HASH_LENGTH: Final = 17
"""A dash and sixteen hexadecimal digits."""


def safe_name(original: str) -> str:
    """Return the exporter's name for ``original``: cleaned for file systems, with a hash that keeps it unique.

    Unlike the lake's, it is never cut: what the exporter wrote is looked for under the name it gave.
    """
    cleaned = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in original)
    return f"{cleaned}-{hashlib.blake2b(original.encode(errors='surrogatepass'), digest_size=8).hexdigest()}"


@dataclass(frozen=True, slots=True)
class PartName:
    """A part's file name taken apart: which run (cleaned), which number, and whether writing never finished."""

    prefix: str
    number: int
    unfinished: bool


def parse_part(file_name: str) -> PartName | None:
    """Take a part's file name apart from the right, so that run ids may hold ``_part_0``; None for other names."""
    match = _PART.fullmatch(file_name)
    if match is None:
        return None
    return PartName(match["prefix"], int(match["number"]), match["unfinished"] is not None)


def recover_run_id(prefix: str, candidates: Iterable[str] = ()) -> str | None:
    """Return the run id that the exporter cleaned to ``prefix``, if it is among the candidates or cleaning kept it."""
    return _proved(prefix, (*candidates, prefix[:-_HASH_LENGTH]))


def recover_project_id(prefix: str, candidates: Iterable[str] = ()) -> str | None:
    """Return the ``workspace/project`` that the exporter cleaned to ``prefix``, if the hash proves a guess right."""
    cleaned = prefix[:-_HASH_LENGTH]
    guesses = [f"{cleaned[:at]}/{cleaned[at + 1 :]}" for at, letter in enumerate(cleaned) if letter == "_"]
    return _proved(prefix, (*candidates, *guesses))


def _proved(prefix: str, guesses: Iterable[str]) -> str | None:
    return next((guess for guess in guesses if guess and safe_name(guess) == prefix), None)


_REGISTRY = frozenset({str(Scope.MODELS), str(Scope.MODEL_VERSIONS)})


@dataclass(frozen=True, slots=True)
class RunParts:
    """The parts of one run (or model, or version), by number, and those whose writing never finished."""

    prefix: str
    parts: Mapping[int, Entry]
    unfinished: Mapping[int, Entry]

    @property
    def missing(self) -> list[int]:
        """Numbers of parts that must have been there: the numbers below the highest one that have no part."""
        highest = max((*self.parts, *self.unfinished), default=-1)
        return [number for number in range(highest + 1) if number not in self.parts]

    @property
    def size(self) -> int:
        """Bytes of all finished parts."""
        return sum(entry.size for entry in self.parts.values())

    @property
    def mark(self) -> str:
        """Hash over names, sizes and change marks of the parts; equal marks mean nothing was touched."""
        lines = [
            f"{entry.name}\0{entry.size}\0{entry.stamp}\n"
            for group in (self.parts, self.unfinished)
            for _, entry in sorted(group.items())
        ]
        return hashlib.blake2b("".join(lines).encode(errors="surrogateescape"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Listing:
    """The runs of one project directory by cleaned name, and what is there and belongs to none."""

    runs: Mapping[str, RunParts]
    problems: tuple[Issue, ...]


def project_directories(root: Root) -> list[Entry]:
    """Return the directories that the exporter takes for projects; links that lead out are left out."""
    return [
        entry
        for entry in root.entries() or []
        if entry.is_directory and not entry.leads_out and not entry.name.startswith(".")
    ]


def list_runs(root: Root, directory: str, scope: Scope) -> Listing:
    """Sort out the files of one project directory (for models, of the directory inside it that holds them)."""
    relative = directory if scope == Scope.RUNS else f"{directory}/{scope}"
    parts: dict[str, dict[int, Entry]] = {}
    unfinished: dict[str, dict[int, Entry]] = {}
    problems = []
    for entry in root.entries(relative) or []:
        name = parse_part(entry.name)
        if entry.name.startswith(".") or (entry.is_directory and entry.name in _REGISTRY):
            continue
        # What stands in the place of a part is that part, which cannot be read: it is missed in its run.
        if entry.unread is not None and (entry.leads_out or name is None):
            problems.append(Issue(entry.unread))
        elif name is None or entry.is_directory:
            # Files of other kinds are not the exporter's; a directory or a Parquet file may hold a run.
            notice = not entry.is_directory and ".parquet" not in entry.name.lower()
            problems.append(Issue(f"{entry.path} is not a part of a run; it is not read.", notice=notice))
        else:
            (unfinished if name.unfinished else parts).setdefault(name.prefix, {})[name.number] = entry
    runs = {
        prefix: RunParts(prefix, MappingProxyType(parts.get(prefix, {})), MappingProxyType(unfinished.get(prefix, {})))
        for prefix in sorted({*parts, *unfinished})
    }
    return Listing(MappingProxyType(runs), tuple(problems))


_PARAMETERS: Final = frozenset(str(kind) for kind in PARAMETER_TYPES)
_SERIES: Final = frozenset(str(kind) for kind in SERIES_TYPES)
_SYS: Final = ("sys/", "sys0")
"""The smallest and, not included, the largest path below ``sys``: 0 comes after the slash."""

_COLUMNS: Final = ("attribute_path", "attribute_type", "string_value", "bool_value", "datetime_value")


@dataclass(slots=True)
class RunHeader:
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


def read_run_header(root: Root, run: RunParts) -> RunHeader:
    """Read footers of all parts, and ``sys/`` rows from the row groups that can hold them."""
    heading = RunHeader()
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


def _read_system(part: Part, heading: RunHeader) -> None:
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


_CONNECTIONS: Final = 8
"""Footers read at once from a remote file system."""


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run whose id is known: its parts and its heading."""

    run_id: str
    parts: RunParts
    heading: RunHeader


@dataclass(frozen=True, slots=True)
class FoundProject:
    """Runs of one project and scope by id, and what belongs to none of them."""

    directory: str
    runs: dict[str, FoundRun] = field(default_factory=dict)
    problems: list[Issue] = field(default_factory=list)


def _preference(run: FoundRun) -> tuple[bool, bool]:
    """Sort key of several sets of parts that hold one run; the smallest is read."""
    partial = bool(run.parts.missing or run.heading.unreadable or not run.heading.has_system_rows)
    return partial, run.parts.prefix != safe_name(run.run_id)


class Projects:
    """One data directory of the export. Headings are kept, so that an untouched run's are read only once."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._headings: dict[tuple[str, str], RunHeader] = {}

    def check(self) -> None:
        """Raise SourceError unless the root is a directory with at least one finished part in a directory of it."""
        root = self._root
        if not root.exists():
            raise SourceError(
                f"{root.setting} {root.url} is not a directory.",
                hint="Give the directory that neptune-exporter wrote to.",
            )
        entries = root.entries() or []
        if any(parse_part(entry.name) for entry in entries):
            raise SourceError(
                f"{root.setting} {root.url} is the directory of one project.", hint="Give the directory above it."
            )
        if not [entry for entry in entries if not entry.name.startswith(".")]:
            raise SourceError(
                f"{root.setting} {root.url} is empty: there is no export in it.",
                hint="Give the directory that neptune-exporter wrote to.",
            )
        scopes = tuple(Scope)
        for directory in project_directories(root):
            if any(list_runs(root, directory.name, scope).runs for scope in scopes):
                return
        below = [entry.name for entry in project_directories(root) if self._looks_like_data(entry.name)]
        raise SourceError(
            f"{root.setting} {root.url} is not an export: no directory in it holds '<run>_part_<number>.parquet'.",
            hint=f"Did you mean {root.url.rstrip('/')}/{below[0]}?"
            if below
            else "Give the directory that neptune-exporter wrote its data to, by default exports/data.",
        )

    def directories(
        self, scopes: Iterable[Scope], candidates: Iterable[str]
    ) -> tuple[dict[str, str], list[tuple[str | None, Issue]]]:
        """Return directory by project id, and what else is there that is not read, with its project if that is known.

        That is directories whose project cannot be named, a second one of a project, links, and Parquet files that are
        in no project's directory or not named like parts.
        """
        found: dict[str, str] = {}
        scopes, candidates = tuple(scopes), tuple(candidates)
        problems: list[tuple[str | None, Issue]] = []
        for entry in self._root.entries() or []:
            if entry.unread is not None:
                problems.append((None, Issue(entry.unread)))
            elif not entry.is_directory and ".parquet" in entry.name.lower():
                message = (
                    f"{entry.path} is in no project's directory; it is not read. Move it into that of its project."
                )
                problems.append((None, Issue(message)))
        for entry in project_directories(self._root):
            listings = [list_runs(self._root, entry.name, scope) for scope in scopes]
            if not any(listing.runs for listing in listings):
                problems.extend((None, issue) for listing in listings for issue in listing.problems)
                continue
            project_id = self._project_of(entry.name, listings, candidates)
            if project_id is None:
                message = (
                    f"No part in {entry.path} can be read, so the name of its project is unknown. Export it again."
                )
                problems.append((None, Issue(message)))
            elif project_id not in found:
                found[project_id] = entry.name
            else:
                keep, other = found[project_id], entry.name
                if other == safe_name(project_id):
                    keep, other = other, keep
                found[project_id] = keep
                message = f"{self._root.url}/{other} holds runs of {project_id}, as {keep} does; only {keep} is read."
                problems.append((project_id, Issue(message)))
        return found, problems

    def runs(self, directory: str, scope: Scope, candidates: Iterable[str]) -> FoundProject:
        """Sort out one project directory. ``candidates`` are run ids to try for parts that cannot be read."""
        listing = list_runs(self._root, directory, scope)
        found = FoundProject(directory, problems=list(listing.problems))
        candidates = tuple(candidates)
        for parts, heading in self._read_headings(listing):
            if not parts.parts:
                name = recover_run_id(parts.prefix, candidates) or parts.prefix
                left = ", ".join(entry.name for entry in parts.unfinished.values())
                found.problems.append(
                    Issue(f"The export of {name} was never finished: only {left} is left. Export the run again.")
                )
                continue
            run_id = heading.run_id or recover_run_id(parts.prefix, candidates)
            if run_id is None:
                names = ", ".join(entry.name for entry in parts.parts.values())
                found.problems.append(
                    Issue(f"{names} cannot be read, so the run's id is unknown. Export the run again.")
                )
                continue
            run = FoundRun(run_id, parts, heading)
            other = found.runs.get(run_id)
            if other is not None:
                # The whole one of the two; else the one that is named as the exporter names the run.
                kept, left_out = sorted((run, other), key=_preference)
                found.problems.append(
                    Issue(
                        f"Parts named {left_out.parts.prefix} hold run {run_id}, as {kept.parts.prefix} do; "
                        "they are not read."
                    )
                )
                run = kept
            found.runs[run_id] = run
        return found

    def _project_of(self, directory: str, listings: list[Listing], candidates: tuple[str, ...]) -> str | None:
        """Return the project id that rows hold, preferably one that fits the directory's name."""
        fallback: str | None = None
        for listing in listings:
            for parts in listing.runs.values():
                project_id = self._heading(parts).project_id if parts.parts else None
                if project_id is not None and safe_name(project_id) == directory:
                    return project_id
                fallback = fallback or project_id
        return fallback or recover_project_id(directory, candidates)

    def _read_headings(self, listing: Listing) -> Iterator[tuple[RunParts, RunHeader]]:
        runs = list(listing.runs.values())
        heading: Callable[[RunParts], RunHeader] = self._heading
        if self._root.local or len(runs) < _CONNECTIONS:
            yield from ((parts, heading(parts)) for parts in runs)
            return
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="export-headings") as pool:
            yield from zip(runs, pool.map(heading, runs), strict=True)

    def _heading(self, parts: RunParts) -> RunHeader:
        key = (parts.prefix, parts.mark)
        heading = self._headings.get(key)
        if heading is None:
            heading = read_run_header(self._root, parts)
            # What could not be read may have been a passing trouble of the network: it is tried again next time.
            if not heading.unreadable:
                self._headings[key] = heading
        return heading

    def _looks_like_data(self, directory: str) -> bool:
        inside = [entry.name for entry in self._root.entries(directory) or [] if entry.is_directory]
        return any(list_runs(self._root, f"{directory}/{name}", Scope.RUNS).runs for name in inside)
