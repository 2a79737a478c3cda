"""The source ``neptune3``: a running Neptune 3.x server, self-hosted or this project's own.

Decisions. A run is the same as long as its ``sys/modification_time`` is: nothing else is asked for to find out what
changed. A fork holds its own points only. Filters on names are applied here, with Python's regular expressions, those
on times and ids by the server too. A server that no longer responds ends the reading; what was read stays.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from neptune_assets.errors import FileGoneError, SourceError, SourceUnavailableError, UnknownProjectError
from neptune_assets.partitions import validate_project_key
from neptune_assets.schema import Scope
from neptune_assets.settings import Filters
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.live import read_token
from neptune_assets.sources.neptune3.reading import RunReader
from neptune_assets.sources.neptune3.rows import FileReference, ListedRun, RefusedError, file_of
from neptune_assets.sources.neptune3.settings import Neptune3Source
from neptune_assets.sources.protocol import Issue, RunEnd, RunInfo, RunRows, SourceFile

if TYPE_CHECKING:
    from neptune_assets.sources.neptune3.client import Client

_READING: Final = "neptune3-1"
"""Part of every fingerprint: raised when the same run would be read differently."""
_IDS_ASKED_FOR: Final = 200
"""More run ids than this are not sent to the server: it lists all runs instead."""


class Neptune3:
    """Reads a Neptune 3.x server. Implements :class:`neptune_assets.sources.protocol.Source`; sends no data.

    Making one sends no request; every method looks first whether the environment allows any.
    """

    kind = "neptune3"

    def __init__(self, settings: Neptune3Source, filters: Filters) -> None:
        self._settings = settings
        self._filters = filters
        self._selection = Selection(filters)
        self._lock = threading.Lock()
        self._made: Client | None = None
        self._listed: dict[str, dict[str, ListedRun]] = {}
        self._problems: dict[str, list[Issue]] = {}

    def projects(self) -> list[str]:
        """Projects of the settings, or those the token may see, after filters, sorted."""
        client = self._client()
        names = self._settings.projects
        if names is None:
            try:
                names = client.projects(self._settings.workspace)
            except RefusedError as error:
                raise self._broken(error, "Its projects cannot be listed") from error
        return sorted({name for name in names if self._selection.project(name)})

    def runs(self, project_id: str, scope: Scope = Scope.RUNS) -> list[RunInfo]:
        """Runs of a project after filters, sorted by id. Raises UnknownProjectError naming the known projects."""
        listed = self._list(project_id)
        if scope is not Scope.RUNS:
            return []
        infos = [self._info(run) for _, run in sorted(listed.items())]
        return [info for info in infos if self._selection.run(info)]

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Iterator[RunRows | RunEnd]:
        """Read runs one after the other; what fails of a run makes it partial, and the next one follows.

        Raises SourceUnavailableError, which is worth trying again, if the server no longer responds.
        """
        listed = self._listed.get(project_id)
        if listed is None or any(run_id not in listed for run_id in run_ids):
            listed = self._list(project_id)
        reading = RunReader(self._client(), self._settings, self._filters, self._selection, project_id)
        known = [run_id for run_id in run_ids if run_id in listed]
        chunks = reading.read([listed[run_id] for run_id in known])
        for run_id in run_ids:
            if run_id not in listed:
                message = f"The server no longer lists run {run_id!r} in {project_id}. List the runs again."
                yield RunEnd(run_id, errors=(Issue(message),))
                continue
            for chunk in chunks:
                yield chunk
                if isinstance(chunk, RunEnd):
                    break

    def files(self, project_id: str, run_id: str, reference: str, scope: Scope = Scope.RUNS) -> Sequence[SourceFile]:
        """The file behind ``file_value.path`` of a row. Raises FileGoneError if the reference names none."""
        file, step = file_of(reference)
        return [ServerFile(self._client(), project_id, run_id, file, step)]

    def problems(self, project_id: str | None = None) -> Sequence[Issue]:
        """Runs that the server lists without or under one id; all else is reported with the run it belongs to."""
        return () if project_id is None else self._problems.get(project_id, ())

    def _client(self) -> Client:
        token = read_token(self._settings)
        with self._lock:
            if self._made is None:
                from neptune_assets.sources.neptune3.client import Client

                self._made = Client(self._settings, token)
            return self._made

    def _list(self, project_id: str) -> dict[str, ListedRun]:
        client = self._client()
        validate_project_key(project_id)
        try:
            runs = [run for query in self._queries() for run in client.list_runs(project_id, query)]
        except RefusedError as error:
            if error.status in {403, 404}:
                raise self._unknown(project_id) from error
            raise self._broken(error, f"The runs of {project_id} cannot be listed") from error
        listed: dict[str, ListedRun] = {}
        sys_ids: set[str] = set()
        problems: list[Issue] = []
        for run in {(run.run_id, run.sys_id): run for run in runs}.values():
            if not run.sys_id:
                problems.append(Issue(f"The server lists a run of {project_id} without sys/id, which cannot be read."))
            elif run.run_id in listed or run.sys_id in sys_ids:
                problems.append(
                    Issue(
                        f"The server lists two runs of {project_id} under one id: {run.run_id!r} with sys/id "
                        f"{run.sys_id!r} is not read. Give one of them another id."
                    )
                )
            else:
                listed[run.run_id] = run
                sys_ids.add(run.sys_id)
        self._listed[project_id] = listed
        self._problems[project_id] = problems
        return listed

    def _queries(self) -> list[Any]:
        """Filters for the server, None for all; a second one lists the trash if filters include it."""
        runs = self._filters.runs
        times = (runs.created_since, runs.created_until, runs.modified_since, runs.modified_until)
        ids = runs.ids if runs.ids_file is None and len(runs.ids or ()) <= _IDS_ASKED_FOR else None
        if not ids and not runs.trashed and not any(times):
            return [None]
        from neptune_query.filters import Attribute, Filter

        query: Any = None
        created, modified = (Attribute(f"sys/{name}_time", type="datetime") for name in ("creation", "modification"))
        ends = ((created, Filter.ge), (created, Filter.lt), (modified, Filter.ge), (modified, Filter.lt))
        for (attribute, compare), moment in zip(ends, times, strict=True):
            if moment is not None:
                query = _both(query, compare(attribute, _utc(moment)))
        if ids:
            named = Attribute("sys/custom_run_id", type="string")
            any_of: Any = None
            for run_id in ids:
                any_of = Filter.eq(named, run_id) if any_of is None else any_of | Filter.eq(named, run_id)
            query = _both(query, any_of)
        if not runs.trashed:
            return [query]
        return [query, _both(query, Filter.eq(Attribute("sys/trashed", type="bool"), True))]

    def _info(self, run: ListedRun) -> RunInfo:
        marks = (
            _READING,
            str(self._settings.metric_previews),
            run.sys_id,
            run.modified if run.modified_at is None else run.modified_at.isoformat(),
            f"{run.archived} {run.trashed}",
        )
        digest = hashlib.blake2b("\n".join(marks).encode("utf-8", "surrogatepass"), digest_size=16)
        return RunInfo(
            run_id=run.run_id,
            fingerprint=digest.hexdigest(),
            created_at=run.created_at,
            modified_at=run.modified_at,
            archived=run.archived,
            trashed=run.trashed,
            size_hint=run.points + run.attributes,
        )

    def _unknown(self, project_id: str) -> SourceError:
        try:
            known = self.projects()
        except SourceError:
            known = []
        return UnknownProjectError(
            f"The server has no project {project_id!r}, or the token may not see it.",
            hint=f"Known projects: {', '.join(known[:20])}{' ...' if len(known) > 20 else ''}."
            if known
            else "Check source.neptune3.projects, and whose token it is.",
        )

    def _broken(self, error: RefusedError, what: str) -> SourceError:
        if error.exhausted:
            return SourceUnavailableError(
                f"{what}: {error}", hint="Check the address in the token and that the server runs, then try again."
            )
        return SourceError(
            f"{what}: {error}", hint="Name the projects in source.neptune3.projects, or check the rights of the token."
        )


@dataclass(frozen=True, slots=True)
class ServerFile:
    """One file of a run on the server; ``relative_path`` is its name there, with the extension of its type."""

    client: Client
    project_id: str
    run_id: str
    file: FileReference
    step: float | None

    @property
    def relative_path(self) -> str:
        """The last part of the key, with an extension guessed from the type if it has none."""
        import mimetypes

        name = self.file.key.replace("\\", "/").rsplit("/", 1)[-1]
        name = name if name not in {"", ".", ".."} else "file"
        if "." not in name.strip("."):
            name += mimetypes.guess_extension(self.file.mime_type) or ""
        return name

    def open(self) -> BinaryIO:
        """Open for streaming. Raises FileGoneError if the bytes are not there or fewer than was logged."""
        if not self.file.key or "\0" in self.file.key:
            raise FileGoneError(f"{self.file.key!r} is not a valid file on the server.", hint="List the runs again.")
        return self.client.download(self.project_id, self.run_id, "file", self.step, self.file)


def _both(first: Any, second: Any) -> Any:
    return second if first is None else first & second


def _utc(moment: str) -> datetime:
    parsed = datetime.fromisoformat(moment)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
