"""Projects of one data directory: which directory is whose, and what in each directory is which run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from neptune_assets.errors import SourceError
from neptune_assets.schema import Scope
from neptune_assets.sources.export.directory import Listing, RunParts, list_runs, project_directories
from neptune_assets.sources.export.heading import Heading, read_heading
from neptune_assets.sources.export.names import parse_part, recover_project_id, recover_run_id, safe_name
from neptune_assets.sources.export.roots import Root
from neptune_assets.sources.protocol import Issue

_CONNECTIONS: Final = 8
"""Footers read at once from a remote file system."""


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run whose id is known: its parts and its heading."""

    run_id: str
    parts: RunParts
    heading: Heading


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
        self._headings: dict[tuple[str, str], Heading] = {}

    def check(self) -> None:
        """Raise SourceError unless the root is a directory with at least one finished part in a directory of it."""
        root = self._root
        if not root.exists():
            raise SourceError(
                f"{root.setting} {root.url} is no directory.", hint="Give the directory that neptune-exporter wrote to."
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

    def _read_headings(self, listing: Listing) -> Iterator[tuple[RunParts, Heading]]:
        runs = list(listing.runs.values())
        heading: Callable[[RunParts], Heading] = self._heading
        if self._root.local or len(runs) < _CONNECTIONS:
            yield from ((parts, heading(parts)) for parts in runs)
            return
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="export-headings") as pool:
            yield from zip(runs, pool.map(heading, runs), strict=True)

    def _heading(self, parts: RunParts) -> Heading:
        key = (parts.prefix, parts.mark)
        heading = self._headings.get(key)
        if heading is None:
            heading = read_heading(self._root, parts)
            # What could not be read may have been a passing trouble of the network: it is tried again next time.
            if not heading.unreadable:
                self._headings[key] = heading
        return heading

    def _looks_like_data(self, directory: str) -> bool:
        inside = [entry.name for entry in self._root.entries(directory) or [] if entry.is_directory]
        return any(list_runs(self._root, f"{directory}/{name}", Scope.RUNS).runs for name in inside)
