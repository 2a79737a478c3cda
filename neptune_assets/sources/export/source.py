"""A neptune-exporter directory as a source of runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from neptune_assets.errors import FileGoneError, NeptuneAssetsError, SourceError, UnknownProjectError
from neptune_assets.schema import Scope
from neptune_assets.settings import Filters
from neptune_assets.sources.export.project_report import (
    ErrorReport,
    missing_classes,
    named_files,
    read_error_report,
    stray_files,
)
from neptune_assets.sources.export.projects import FoundProject, FoundRun, Projects, parse_part, safe_name
from neptune_assets.sources.export.reading import RunReading
from neptune_assets.sources.export.roots import Entry, ExportFile, Root, resolve_files
from neptune_assets.sources.export.settings import ExportSource
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.protocol import InPlaceRun, Issue, RunEnd, RunInfo, RunRows

READING_VERSION: Final = 1
"""Part of every fingerprint: raised when repairs change, so that runs are read again."""

_REGISTRY: Final = (Scope.MODELS, Scope.MODEL_VERSIONS)
_LOOKED_AT: Final = 20
"""Directories that are looked into to tell data from files."""


class Export:
    """A neptune-exporter directory. Implements :class:`neptune_assets.sources.protocol.Source`; never writes."""

    kind = "export"

    def __init__(self, settings: ExportSource, filters: Filters) -> None:
        """Connect to the file systems; nothing is read yet. Raises SettingsError if a secret is missing."""
        self._settings = settings
        self._filters = filters
        self._selection = Selection(filters)
        self._data = Root(settings.data, settings.storage, "data")
        self._files = _optional_root(settings, "files", settings.files)
        self._model_data = _optional_root(
            settings, "model_data", settings.model_data if filters.model_registry else None
        )
        self._model_files = _optional_root(settings, "model_files", settings.model_files)
        self._error_report = _optional_root(settings, "error_report", settings.error_report)
        self._projects = {root.setting: Projects(root) for root in (self._data, self._model_data) if root is not None}
        self._found: dict[tuple[str, Scope], FoundProject] = {}
        self._directories: dict[str, dict[str, str]] = {}
        self._strays: list[tuple[str | None, Issue]] = []
        self._report: ErrorReport | None = None

    def projects(self) -> list[str]:
        """Names of all projects after filters, sorted. Raises SourceError if the export cannot be read."""
        self._look()
        names = {name for directories in self._directories.values() for name in directories}
        return sorted(name for name in names if self._selection.project(name))

    def runs(self, project_id: str, scope: Scope = Scope.RUNS) -> list[RunInfo]:
        """Runs, models or model versions of one project after filters, sorted by id.

        Only footers and ``sys/`` rows are read. Raises UnknownProjectError if there is no such project.
        """
        self._report = None
        found = self._find(project_id, scope, again=True)
        infos = (self._info(project_id, run, scope) for run in found.runs.values())
        return sorted((info for info in infos if self._selection.run(info)), key=lambda info: info.run_id)

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Iterator[RunRows | RunEnd]:
        """Read runs one after the other, repaired; see :meth:`neptune_assets.sources.protocol.Source.read`."""
        found = self._find(project_id, scope)
        for run_id in run_ids:
            run = found.runs.get(run_id)
            if run is None:
                gone = Issue(f"The export no longer holds run {run_id} of {project_id}. Restore or export it again.")
                yield RunEnd(run_id, errors=(gone,))
                continue
            try:
                reading = RunReading(
                    self._root_of(scope),
                    run.parts,
                    run.heading,
                    self._selection,
                    self._settings.source_tz,
                    project_id=project_id,
                    run_id=run_id,
                )
                yield from reading.chunks(self._known_errors(project_id, run), self._known_notes(run))
            except NeptuneAssetsError as error:
                yield RunEnd(run_id, errors=(Issue(str(error)),))

    def files(self, project_id: str, run_id: str, reference: str, scope: Scope = Scope.RUNS) -> Sequence[ExportFile]:
        """Resolve what ``file_value.path`` of a row holds: one file, or all members of a directory in sorted order.

        Raises FileGoneError if nothing is there, UnsafePathError if the reference would leave the files root.
        """
        setting = "files" if scope == Scope.RUNS else "model_files"
        root = self._files_root(scope)
        if root is None:
            raise FileGoneError(
                f"{reference} of {run_id} cannot be looked for: source.export.{setting} is not set.",
                hint=f"Set it to the exporter's {setting} directory.",
            )
        return resolve_files(root, self._files_directory(project_id, scope, root), reference)

    def problems(self, project_id: str | None = None) -> Sequence[Issue]:
        """What is wrong with a project as a whole, its model registry included: see :mod:`.project_report`."""
        known: set[str] = set()
        self._look()
        issues = [issue for project, issue in self._strays if project in {None, project_id}]
        if project_id is None:
            return issues
        for setting, directories in self._directories.items():
            directory = directories.get(project_id)
            if directory is None:
                continue
            if directory != safe_name(project_id):
                issues.append(
                    Issue(
                        f"The directory {directory} under {setting} is not the exporter's name for {project_id}.",
                        notice=True,
                    )
                )
            scopes = (Scope.RUNS,) if setting == "data" else _REGISTRY
            scope_runs = [self._find(project_id, scope) for scope in scopes]
            runs = [run for found in scope_runs for run in found.runs.values()]
            known.update(run.run_id for run in runs)
            issues.extend(issue for found in scope_runs for issue in found.problems)
            if setting == "data":
                issues.extend(missing_classes(run.heading for run in runs))
            owners, shared = named_files(self._root_of(scopes[0]), (run.parts for run in runs))
            issues.extend(shared)
            root = self._files_root(scopes[0])
            if root is not None:
                place = self._files_directory(project_id, scopes[0], root)
                there = root.describe(root.locate(place))
                if owners and (there is None or there.special is not None or _only_parts(root, place)):
                    what = f"it holds no directory {place} with files" if root.exists() else "it does not exist"
                    if there is not None and there.special is not None:
                        what = f"{place} in it is {there.special}, not a directory"
                    issues.append(
                        Issue(
                            f"None of the {len(owners):,} files of {project_id} is below source.export.{root.setting} "
                            f"{root.url}: {what}. Restore it, or correct the setting."
                        )
                    )
                if root.exists():
                    issues.extend(stray_files(root, place, owners))
        report = self._errors()
        issues.extend(report.unreadable)
        issues.extend(
            Issue(
                f"The exporter reported errors for {run_id}, of which the export holds nothing. Export it again, or "
                f"take its lines out of {report.places[0]} if it is lost."
            )
            for run_id in sorted(report.runs(project_id) - known)
        )
        return issues

    def in_place(self, project_id: str, run_id: str, scope: Scope = Scope.RUNS) -> InPlaceRun | None:
        """Return where the run's readable parts and its files lie; None in copy mode or if there is no such run.

        How to repair the rows is in the ``repairs`` of the run's RunEnd.
        """
        run = self._find(project_id, scope).runs.get(run_id)
        if self._settings.mode == "copy" or run is None:
            return None
        root, files = self._root_of(scope), self._files_root(scope)
        return InPlaceRun(
            parts=[
                root.address(entry.path)
                for number, entry in sorted(run.parts.parts.items())
                if number not in run.heading.unreadable
            ],
            files_root=""
            if files is None
            else files.address(f"{files.base}/{self._files_directory(project_id, scope, files)}"),
        )

    def _info(self, project_id: str, run: FoundRun, scope: Scope) -> RunInfo:
        heading = run.heading
        return RunInfo(
            run.run_id,
            self._fingerprint(project_id, run, scope),
            created_at=heading.moment("sys/creation_time"),
            modified_at=heading.moment("sys/modification_time"),
            archived=heading.flag("sys/archived"),
            trashed=heading.flag("sys/trashed"),
            size_hint=run.parts.size,
        )

    def _fingerprint(self, project_id: str, run: FoundRun, scope: Scope) -> str:
        """Hash over everything that changes what reading the run gives."""
        files, root = self._files_root(scope), self._root_of(scope)
        parts = [
            READING_VERSION,
            run.parts.mark,
            self._errors().mark(project_id, run.run_id),
            self._settings.source_tz,
            self._settings.mode,
            root.url if self._settings.mode == "in_place" else None,
            None if files is None else files.url,
            self._filters.attributes.model_dump(mode="json"),
        ]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def _known_errors(self, project_id: str, run: FoundRun) -> list[Issue]:
        """Return what names and footers alone show to be missing from a run."""
        issues = []
        for number in run.parts.missing:
            name = f"{run.parts.prefix}_part_{number}.parquet"
            state = "was never finished" if number in run.parts.unfinished else "is missing"
            mark = ", and with it the exporter's mark of a complete run" if number == 0 else ""
            issues.append(Issue(f"Part {name} {state}{mark}. Export the run again."))
        if not run.heading.has_system_rows and len(run.heading.unreadable) < len(run.parts.parts):
            issues.append(
                Issue(f"Run {run.run_id} has no sys/ rows, so its parameters were not exported. Export the run again.")
            )
        return issues + self._errors().issues(project_id, run.run_id, self._selection)

    def _known_notes(self, run: FoundRun) -> list[Issue]:
        notes = [
            Issue(f"{entry.name} was left over by an export that was interrupted; it is not read.")
            for number, entry in sorted(run.parts.unfinished.items())
            if number in run.parts.parts
        ]
        if run.parts.prefix != safe_name(run.run_id):
            notes.append(Issue(f"Parts named {run.parts.prefix} hold run {run.run_id}, whose name differs."))
        return notes

    def _look(self) -> None:
        """Find all projects anew."""
        self._report = None
        candidates = {*(self._filters.projects.only or ()), *self._errors_if_there().projects()}
        self._directories, self._strays = {}, []
        for setting, projects in self._projects.items():
            scopes = (Scope.RUNS,) if setting == "data" else _REGISTRY
            files = self._files_root(scopes[0])
            if files is not None:
                _check_exchanged(self._root_of(scopes[0]), files)
            projects.check()
            self._directories[setting], problems = projects.directories(scopes, sorted(candidates))
            self._strays.extend(problems)
            if files is not None:
                self._check_files(files, self._directories[setting])

    def _check_files(self, files: Root, directories: Mapping[str, str]) -> None:
        """Raise SourceError if the directory of files is surely another one than the exporter's, naming the right one.

        An export without any file may have none: what is missing is reported by :meth:`problems` where rows name files.
        """
        data = self._settings.data if files.setting == "files" else str(self._settings.model_data)
        there = {entry.name for entry in files.entries() or [] if entry.is_directory}
        wanted = {safe_name(project_id) for project_id in directories} | set(directories.values())
        if not directories or any(not _only_parts(files, name) for name in sorted(there & wanted)[:_LOOKED_AT]):
            return
        url = files.url.rstrip("/")
        nearby = [f"{data.rstrip('/').rpartition('/')[0]}/{files.setting}", f"{url}/{files.setting}"]
        nearby += [*(f"{url}/{name}" for name in sorted(there)), url.rpartition("/")[0]]
        for place in filter(None, nearby):
            near = Root(place, self._settings.storage, files.setting)
            names = {entry.name for entry in near.entries() or [] if entry.is_directory} if near.exists() else set()
            if names & wanted and not any(_holds_parts(near, name) for name in sorted(names & wanted)[:_LOOKED_AT]):
                what = "holds no files of these projects" if files.exists() else "does not exist"
                raise SourceError(f"source.export.{files.setting} {files.url} {what}.", hint=f"Set it to {place}.")

    def _find(self, project_id: str, scope: Scope, *, again: bool = False) -> FoundProject:
        key = (project_id, scope)
        if key in self._found and not again:
            return self._found[key]
        if not self._knows(project_id):
            self._look()
        elif again:
            # Without this, a disk that went away would look like an export whose runs were deleted.
            for projects in self._projects.values():
                projects.check()
        if not self._knows(project_id):
            raise UnknownProjectError(
                f"The export at {self._data.url} holds no project {project_id}.",
                hint="Check the name's spelling, or export the project; known are: "
                + (", ".join(sorted({name for names in self._directories.values() for name in names})) or "none"),
            )
        setting = "data" if scope == Scope.RUNS else "model_data"
        directory = self._directories.get(setting, {}).get(project_id)
        if directory is None:
            found = FoundProject("")
        else:
            candidates = {*(self._filters.runs.ids or ()), *self._errors().runs(project_id)}
            found = self._projects[setting].runs(directory, scope, sorted(candidates))
        self._found[key] = found
        return found

    def _knows(self, project_id: str) -> bool:
        return any(project_id in directories for directories in self._directories.values())

    def _errors(self) -> ErrorReport:
        if self._report is None:
            self._report = read_error_report(self._data, self._error_report)
        return self._report

    def _errors_if_there(self) -> ErrorReport:
        return self._errors() if self._data.exists() else ErrorReport()

    def _files_directory(self, project_id: str, scope: Scope, root: Root) -> str:
        """Name of a project's directory under the files root: the exporter's, or that of its data if renamed alike."""
        name = safe_name(project_id)
        renamed = self._find(project_id, scope).directory
        if root.describe(root.locate(name)) is None:
            if renamed not in {"", name}:
                return renamed
            found = None if name.isascii() else root.same_name(name)
            return name if found is None else found.name
        return name

    def _root_of(self, scope: Scope) -> Root:
        if scope == Scope.RUNS:
            return self._data
        return self._model_data or self._data

    def _files_root(self, scope: Scope) -> Root | None:
        return self._files if scope == Scope.RUNS else self._model_files


def _check_exchanged(data: Root, files: Root) -> None:
    """Raise SourceError if the directory of files holds Parquet parts and that of data none."""
    names = [[entry.name for entry in root.entries() or [] if entry.is_directory] for root in (data, files)]
    parts = [
        any(_holds_parts(root, name) for name in found[:_LOOKED_AT])
        for root, found in zip((data, files), names, strict=True)
    ]
    if parts == [False, True]:
        raise SourceError(
            f"source.export.{files.setting} {files.url} holds the Parquet of runs, and source.export.{data.setting} "
            f"{data.url} holds none: they are exchanged.",
            hint="Exchange the two settings.",
        )


def _holds_parts(root: Root, directory: str) -> bool:
    """True if a directory of the root holds Parquet parts, as a project's directory of data does."""
    return any(parse_part(entry.name) is not None for entry in _data_entries(root, directory))


def _only_parts(root: Root, directory: str) -> bool:
    """True if a directory of the root holds Parquet parts and nothing else, so that it is surely one of data."""
    entries = _data_entries(root, directory)
    return bool(entries) and all(not entry.is_directory and parse_part(entry.name) is not None for entry in entries)


def _data_entries(root: Root, directory: str) -> list[Entry]:
    """Entries of a project's directory; those of models and their versions in place of the directories that hold them.

    A directory of that name with other things in it is one of files.
    """
    entries = []
    for entry in root.entries(directory) or []:
        inside = root.entries(f"{directory}/{entry.name}") if entry.is_directory and entry.name in _REGISTRY else None
        entries.extend(inside or [entry])
    return entries


def _optional_root(settings: ExportSource, name: str, url: str | None) -> Root | None:
    return None if url is None else Root(url, settings.storage, name)
