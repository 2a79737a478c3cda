"""The offline source: recordings of neptune-scale and of neptune-client, found, grouped into runs and read.

Decisions. Recordings of one run are replayed in the order they began, as one run. A fork that inherits takes over what
its parent had when the fork was recorded (by the clock of the machine, not the creation time that the user may have
chosen), if the parent's recording is here too, wherever it is; without it, the run is read as an orphan, with a note.
All values of users are taken over, files too, and of ``sys/`` the tags, the group tags and the description. Series are
each run's own points only.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pyarrow as pa

from neptune_assets.errors import FileGoneError, NeptuneAssetsError, SettingsError, SourceError, UnknownProjectError
from neptune_assets.partitions import validate_project_key
from neptune_assets.schema import Scope
from neptune_assets.settings import Filters
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.offline.recordings import Recording, Refusal
from neptune_assets.sources.offline.scale import ScaleRecording, find_scale_recordings
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.protocol import Issue, RunEnd, RunInfo, RunRows, SourceFile
from neptune_assets.sources.run_state import RunState

_INHERITED_SYS: Final = frozenset({"sys/tags", "sys/group_tags", "sys/description"})

RunKey = tuple[str, Scope, str]
"""Project, scope, run id."""
Runs = Mapping[RunKey, Sequence[Recording]]


def inherits(recordings: Sequence[Recording]) -> tuple[RunKey, int] | None:
    """Parent and fork time (epoch ms) of a run that takes over its parent's values."""
    for recording in recordings:
        fork = recording.fork
        if fork is not None:
            return ((fork.parent_project, Scope.RUNS, fork.parent_run_id), fork.at) if fork.inherits else None
    return None


def ancestry(runs: Runs, key: RunKey) -> list[tuple[RunKey, int]]:
    """Ancestors a run inherits from, nearest first, each with the time up to which; a loop ends where it closes."""
    chain: list[tuple[RunKey, int]] = []
    seen = {key}
    step = inherits(runs.get(key, ()))
    while step is not None and step[0] not in seen:
        seen.add(step[0])
        chain.append(step)
        step = inherits(runs.get(step[0], ()))
    return chain


def take_over(runs: Runs, key: RunKey, state: RunState) -> None:
    """Give ``state`` what its ancestors had at the moment of each fork, the farthest first."""
    heir = RunState(key[0], key[2], lambda path, kind: False)
    for ancestor, until in reversed(ancestry(runs, key)):
        if ancestor not in runs:
            state.note(orphaned(ancestor, "What the run inherited from it is not known."))
        for recording in runs.get(ancestor, ()):
            if not isinstance(recording, ScaleRecording):
                continue
            try:
                recording.inherit(heir, until)
            except (NeptuneAssetsError, OSError) as error:
                state.whole = False
                state.error(f"What the run inherited from {ancestor[2]!r} cannot be read: {error}")
    for path, kinds in heir.snapshot().items():
        if path.startswith("sys/") and path not in _INHERITED_SYS:
            continue
        for kind, value in kinds.items():
            state.assign(path, kind, value)
    damaged = len(heir.end().errors)
    if damaged:
        state.note(f"{damaged} operations of runs it inherits from cannot be read; inherited values may be missing.")


def orphaned(ancestor: RunKey, consequence: str) -> str:
    """The note about an ancestor that is not here."""
    return f"Its ancestor {ancestor[2]!r} in {ancestor[0]} is not among the recordings. {consequence}"


_BEGINNING: Final = datetime.min.replace(tzinfo=UTC)
_NAMED: Final = 20
"""Paths named in one message when no recording can be read."""


@dataclass(slots=True)
class _Index:
    """Everything found in one scan: recordings of each run in the order they began, and what was refused."""

    runs: dict[RunKey, list[Recording]] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def projects(self) -> list[str]:
        """Projects of all recordings, also of those that cannot be read."""
        unread = {refusal.project_id for refusal in self.refusals if not refusal.notice and refusal.project_id}
        return sorted({project for project, _, _ in self.runs} | unread)

    def unread(self, key: RunKey) -> list[Refusal]:
        """Recordings of a run that cannot be read."""
        return [
            refusal
            for refusal in self.refusals
            if not refusal.notice and (refusal.project_id, refusal.scope, refusal.run_id) == key
        ]


class Offline:
    """Reads what Neptune's clients left on disk. Nothing below ``settings.paths`` is ever written to.

    ``projects`` and ``runs`` look at the disk anew; ``read``, ``files`` and ``problems`` use what was found last.
    """

    kind = "offline"

    def __init__(self, settings: OfflineSource, filters: Filters) -> None:
        self._settings = settings
        self._selection = Selection(filters)
        self._lock = threading.Lock()
        self._last: _Index | None = None

    def projects(self) -> list[str]:
        """Projects that have recordings, after filters. Raises SourceError if nothing at all can be read."""
        index = self._scan()
        if not index.runs:
            named = index.refusals[:_NAMED]
            more = f" {len(index.refusals) - _NAMED:,} more paths are refused." if len(index.refusals) > _NAMED else ""
            raise SourceError(
                f"No recording can be read. {' '.join(refusal.message for refusal in named)}{more}",
                hint="",
            )
        return [project for project in index.projects() if self._selection.project(project)]

    def runs(self, project_id: str, scope: Scope = Scope.RUNS) -> list[RunInfo]:
        """Runs of a project, after filters, sorted by id. Raises UnknownProjectError naming the known projects."""
        index = self._scan()
        self._known(index, project_id)
        if scope is not Scope.RUNS and not self._selection.model_registry:
            return []
        keys = sorted(key for key in index.runs if key[:2] == (project_id, scope))
        infos = [self._info(index, key) for key in keys]
        return [info for info in infos if self._selection.run(info)]

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Iterator[RunRows | RunEnd]:
        """Read runs one after the other; a run that cannot be read ends with the error and the next one follows."""
        index = self._found()
        self._known(index, project_id)
        for run_id in run_ids:
            key = (project_id, scope, run_id)
            if key not in index.runs:
                index = self._scan()
            state = RunState(project_id, run_id, self._selection.attribute)
            try:
                for batch in self._replay(index, key, state):
                    yield RunRows(run_id, batch)
            except (NeptuneAssetsError, OSError) as error:
                state.whole = False
                state.error(str(error))
            for batch in state.finish():
                yield RunRows(run_id, batch)
            yield state.end()

    def files(self, project_id: str, run_id: str, reference: str, scope: Scope = Scope.RUNS) -> Sequence[SourceFile]:
        """Files behind ``file_value.path`` of a run's row, from its own recordings, or its ancestors' if inherited.

        Raises FileGoneError if no recording lists the file or it is not where it was.
        """
        index = self._found()
        self._known(index, project_id)
        key = (project_id, scope, run_id)
        for member in [key, *(parent for parent, _ in ancestry(index.runs, key))]:
            for recording in reversed(index.runs.get(member, ())):
                try:
                    found = recording.files(reference)
                except (OSError, SourceError) as error:
                    raise FileGoneError(
                        f"{recording.path} can no longer be read: {error}.",
                        hint="Put the recording back, or list the runs again.",
                    ) from error
                if found is not None:
                    return found
        raise FileGoneError(
            f"No recording of {project_id} run {run_id!r} holds the file {reference!r} now.",
            hint="It was uploaded to a Neptune server and deleted here; another copy or an export may have it.",
        )

    def problems(self, project_id: str | None = None) -> Sequence[Issue]:
        """Paths that could not be used and belong to this project, or to one that cannot be told."""
        refusals = self._found().refusals
        return [
            Issue(refusal.message, notice=refusal.notice)
            for refusal in refusals
            if refusal.project_id in {None, project_id}
        ]

    def _found(self) -> _Index:
        return self._last or self._scan()

    def _scan(self) -> _Index:
        """Search every path again; recordings met twice count once."""
        from neptune_assets.sources.offline.client import ClientSearch

        index = _Index()
        seen: set[Path] = set()
        refused: set[tuple[Path, str]] = set()
        client = ClientSearch(self._settings)
        with self._lock:
            for name in self._settings.paths:
                root = Path(name).expanduser()
                if not root.exists():
                    message = f"{root} does not exist. Correct source.offline.paths."
                    index.refusals.append(Refusal(root, message))
                    continue
                count, refusals = 0, len(index.refusals)
                for found in find_scale_recordings(root, self._settings):
                    self._add(index, found, seen, refused)
                    count += not isinstance(found, Refusal)
                for execution in client.search(root):
                    if isinstance(execution, Refusal):
                        self._add(index, execution, seen, refused)
                    else:
                        count += 1
                if not count:
                    index.refusals.append(_empty(root, index.refusals[refusals:]))
            for recording in client.recordings():
                self._add(index, recording, seen, refused)
            for recordings in index.runs.values():
                recordings.sort(key=lambda item: (item.started_at or item.created_at or _BEGINNING, str(item.path)))
            self._last = index
        return index

    @staticmethod
    def _add(index: _Index, found: Recording | Refusal, seen: set[Path], refused: set[tuple[Path, str]]) -> None:
        if isinstance(found, Refusal):
            if (found.path, found.message) not in refused:
                refused.add((found.path, found.message))
                index.refusals.append(found if _valid(found.project_id) else replace(found, project_id=None))
            return
        path = found.path.resolve()
        if path in seen:
            return
        seen.add(path)
        try:
            validate_project_key(found.project_id)
        except SettingsError as error:
            index.refusals.append(Refusal(found.path, f"{found.path} cannot be used: {error}"))
            return
        recordings = index.runs.setdefault((found.project_id, found.scope, found.run_id), [])
        original = _original(recordings, found)
        if original is None:
            recordings.append(found)
        else:
            message = f"{found.path} is a copy of {original.path} and is passed over. Leave one of them out."
            index.refusals.append(Refusal(found.path, message, found.project_id, notice=True))

    def _known(self, index: _Index, project_id: str) -> None:
        known = [project for project in index.projects() if self._selection.project(project)]
        if project_id not in known:
            raise UnknownProjectError(
                f"There is no recording of project {project_id!r}.",
                hint=f"Known projects: {', '.join(known[:20])}{' ...' if len(known) > 20 else ''}."
                if known
                else "No project was found at all; check source.offline.paths and filters.projects.",
            )

    def _info(self, index: _Index, key: RunKey) -> RunInfo:
        recordings = index.runs[key]
        marks = [_fingerprint(recording) for recording in recordings]
        if inherits(recordings) is not None:
            for parent, _ in ancestry(index.runs, key):
                marks.append(f"parent {parent}")
                marks.extend(_fingerprint(recording) for recording in index.runs.get(parent, ()))
        marks.extend(f"unread {refusal.message}" for refusal in index.unread(key))
        return RunInfo(
            run_id=key[2],
            fingerprint=hashlib.blake2b("\n".join(marks).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(),
            created_at=next((item.created_at for item in recordings if item.created_at is not None), None),
            modified_at=max((item.modified_at for item in recordings if item.modified_at is not None), default=None),
            size_hint=sum(item.size for item in recordings),
        )

    def _replay(self, index: _Index, key: RunKey, state: RunState) -> Iterator[pa.RecordBatch]:
        recordings = index.runs.get(key)
        if not recordings:
            state.whole = False
            state.error(f"The recording of run {key[2]!r} in {key[0]} no longer exists. Refresh the run list.")
            return
        if inherits(recordings) is not None:
            take_over(index.runs, key, state)
        else:
            fork = next((item.fork for item in recordings if item.fork is not None), None)
            if fork is not None and (fork.parent_project, Scope.RUNS, fork.parent_run_id) not in index.runs:
                parent = (fork.parent_project, Scope.RUNS, fork.parent_run_id)
                state.note(orphaned(parent, "The series it continues are not here."))
        for recording in recordings:
            try:
                yield from recording.replay(state)
            except (NeptuneAssetsError, OSError) as error:
                # One of several recordings may be damaged: the others still have their part of the run.
                state.whole = False
                state.error(str(error))
        if state.created is False and state.whole:
            state.whole = False
            state.error(
                f"No recording says how run {key[2]!r} was created, so it was resumed here and began elsewhere; its "
                "creation time and parent are unknown. Add the recording of its beginning."
            )
        for refusal in index.unread(key):
            state.whole = False
            state.error(f"A recording of this run could not be read: {refusal.message}")


def _valid(project_id: str | None) -> bool:
    try:
        return project_id is None or bool(validate_project_key(project_id))
    except SettingsError:
        return False


def _empty(root: Path, refusals: Sequence[Refusal]) -> Refusal:
    """What to say of a path of the settings below which no recording was found: alone, it may be right."""
    archives = any(refusal.archive for refusal in refusals)
    met = " Archives were met there and not read: unpack those that hold any." if archives else ""
    message = f"No recording of Neptune's clients can be read below {root}.{met} Check source.offline.paths."
    return Refusal(root, message, notice=not archives)


def _original(recordings: Sequence[Recording], found: Recording) -> Recording | None:
    """The recording that ``found`` is a copy of. Copies that differ are all read: what one lacks another may have."""
    if isinstance(found, ScaleRecording):
        for recording in recordings:
            if isinstance(recording, ScaleRecording) and found.copies(recording):
                return recording
    return None


def _fingerprint(recording: Recording) -> str:
    """The recording's mark; one that vanished or was closed to us is marked by that, and reading tells the error."""
    try:
        return recording.fingerprint()
    except OSError as error:
        return f"unreadable: {error.errno}"
