"""What lies in a data directory: projects, and in each the parts of its runs, sorted out by name alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from neptune_assets.schema import Scope
from neptune_assets.sources.export.names import parse_part
from neptune_assets.sources.export.roots import Entry, Root
from neptune_assets.sources.protocol import Issue

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
