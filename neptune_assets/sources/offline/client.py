"""Recordings of neptune-client 2.x: `.neptune` folders of runs that were offline or never finished uploading.

All executions of one container are one recording, merged in the order of their times. Names: a recording knows neither
its project (``source.offline.project`` names it) nor ``sys/id``, which only the server gave out. The run id is
``OFFLINE-`` and the first twelve hex digits of the container's uuid (an id that is not a uuid is taken whole), the same
on every machine and for every copy. ``sys/id`` (that id) and ``sys/creation_time`` are made up where the log does not
assign them. Recordings of a project's own metadata are refused: the lake holds runs, models and model versions.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from neptune_assets.schema import AttributeType, Scope
from neptune_assets.sources.offline.client_files import (
    EPOCH,
    SCOPES,
    Execution,
    FileFinder,
    FileInMemory,
    References,
    distinct,
    execution_in,
    gone,
    refusal_of,
    stable_id,
)
from neptune_assets.sources.offline.client_log import (
    LOG_NAME,
    ContainerKey,
    Copied,
    Entry,
    Order,
    Plan,
    Points,
    SeriesPlan,
    Tracked,
    Upload,
)
from neptune_assets.sources.offline.recordings import Fork, Refusal, walk
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.protocol import SourceFile
from neptune_assets.sources.run_state import RunState
from neptune_assets.sources.values import printable, printable_names


class Flaws:
    """Tells a run what is wrong with a log, every flaw once although the log is read twice."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._told: set[str] = set()

    def _new(self, message: str) -> bool:
        new = message not in self._told
        self._told.add(message)
        return new

    def lost(self, message: str) -> None:
        """Missing operations make the run partial, and nobody knows what it should hold."""
        self._state.whole = False
        if self._new(message):
            self._state.error(message)

    def noted(self, message: str) -> None:
        """Report without making the run partial."""
        if self._new(message):
            self._state.note(message)


class Fault:
    """Tells a run of operations that make no sense."""

    def __init__(self, state: RunState) -> None:
        self._state = state

    def __call__(self, message: str, path: str | None) -> None:
        """Report an operation that was left out."""
        self._state.error(message, path)


def silent(message: str, path: str | None) -> None:
    """For passes whose faults another pass tells."""


def assign(plan: Plan, state: RunState, references: References, run_id: str, created: datetime | None) -> None:
    """Put a plan's attributes into the state, points aside, and tell what the lake has no place for.

    ``run_id`` and ``created`` are assigned to ``sys/id`` and ``sys/creation_time`` where the log does not say them.
    """
    for path, kinds in plan.attributes.items():
        for kind, value in kinds.items():
            if isinstance(value, SeriesPlan):
                if value.described:
                    state.note(
                        f"Of {path!r}, {value.described} images have a name or description, "
                        "which the lake has no column for.",
                        path,
                        kind,
                    )
            elif not isinstance(value, Upload | list | Tracked):
                state.assign(path, kind, value)
            elif state.rows.wants(kind, path):
                _assign_file(path, kind, value, state, references)
    for path in sorted(plan.configured):
        state.note(f"The range or unit configured for {path!r} is not kept; the lake has no column for it.", path)
    if state.assigned("sys/id", AttributeType.STRING) is None:
        state.assign("sys/id", AttributeType.STRING, run_id)
    if created is not None and state.assigned("sys/creation_time", AttributeType.DATETIME) is None:
        state.assign("sys/creation_time", AttributeType.DATETIME, (created - EPOCH) // timedelta(milliseconds=1))


def _assign_file(path: str, kind: AttributeType, value: Any, state: RunState, references: References) -> None:
    if isinstance(value, Upload):
        state.assign(path, kind, references.upload(value))
        _note_change(path, value, state)
        return
    if isinstance(value, Tracked):
        found, elsewhere, missing = references.tracked(value)
        for item in elsewhere:
            what = f"tracks {item.location}" if item.location else f"was assigned by the hash {item.hash}"
            state.note(
                f"The artifact {path!r} {what}. A list of its files was never recorded, so that is all there is of it.",
                path,
                kind,
            )
        there = bool(found or elsewhere) or not value.entries
    else:
        members, missing = references.members(value)
        there = bool(members)
        if any(shown != name for name, shown in printable_names(members).items()):
            state.note(
                f"The file set {path!r} has names that are not UTF-8; its names are kept with escapes like \\xe9, and "
                "with backslashes doubled.",
                path,
                kind,
            )
    for message in missing:
        state.error(message, path, kind)
    if there:
        state.assign(path, kind, references.collection(kind, path))


def _note_change(path: str, upload: Upload, state: RunState) -> None:
    """Say so if a file that was named, not copied, is newer than the record that names it."""
    recorded = upload.operation.get("file_path")
    if not isinstance(recorded, str) or upload.at is None:
        return
    try:
        changed = Path(recorded).stat().st_mtime
    except (OSError, ValueError):
        return  # gone: opening it says so
    if changed > upload.at + 1:
        state.note(f"{recorded} was changed after it was logged as {path!r}; it is taken as it is now.", path)


class ClientRecording:
    """All executions of one container. See :class:`~neptune_assets.sources.offline.recordings.Recording`."""

    def __init__(
        self,
        key: ContainerKey,
        executions: Sequence[Execution],
        settings: OfflineSource,
        finder: FileFinder,
        others: Mapping[ContainerKey, ClientRecording],
    ) -> None:
        self.key = key
        self.keys = frozenset({key, *(item.recorded_as for item in executions if item.recorded_as is not None)})
        self._kind, self._container = key
        self._executions, self._copies = distinct(executions)
        self._settings = settings
        self._others = others
        self._collections: dict[tuple[str, AttributeType], Any] | None = None
        self._references = References(self.path, self._executions, finder, settings)

    @property
    def path(self) -> Path:
        """Folder of the first execution."""
        return self._executions[0].folder

    @property
    def project_id(self) -> str:
        """The project that settings name."""
        return self._settings.project or ""

    @property
    def run_id(self) -> str:
        """The stable id made from the container's uuid."""
        return stable_id(self._container)

    @property
    def scope(self) -> Scope:
        """Run, model or model version."""
        return SCOPES[self._kind]

    @property
    def created_at(self) -> datetime | None:
        """When the first execution began."""
        return self._executions[0].started_at

    @property
    def started_at(self) -> datetime | None:
        """When the first execution began."""
        return self._executions[0].started_at

    @property
    def modified_at(self) -> datetime | None:
        """When a log was last written to."""
        times = [changed for execution in self._executions for _, _, changed in execution.log_facts()]
        return EPOCH + timedelta(microseconds=max(times) // 1000) if times else None

    @property
    def fork(self) -> Fork | None:
        """Runs of neptune-client have no forks."""
        return None

    @property
    def size(self) -> int:
        """Bytes of the logs."""
        return sum(size for execution in self._executions for _, size, _ in execution.log_facts())

    def fingerprint(self) -> str:
        """Digest over names, sizes and times of all files of the recording.

        Files elsewhere that the log names, and recordings that it copies values from, are not part of it.
        """
        facts: list[Any] = [self.project_id, sorted(self._settings.search_files_in)]
        if self._settings.files_from:
            facts.append(sorted(self._settings.files_from))
        facts.extend((execution.folder.name, execution.facts()) for execution in self._executions)
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()

    def replay(self, state: RunState) -> Iterator[pa.RecordBatch]:
        """Read the log twice: first for attributes, then for points (see :mod:`.client_log`)."""
        for copy in self._copies:
            state.note(f"{copy} is a copy of an execution that is read from {self.path.parent}; it is left out.")
        flaws = Flaws(state)
        plan = self._plan(state, flaws)
        assign(plan, state, self._references, self.run_id, self.created_at)
        if not any(isinstance(value, SeriesPlan) for kinds in plan.attributes.values() for value in kinds.values()):
            return
        points = Points(plan, state.rows.point, self._references.image, Fault(state))
        for order, execution, entry in self._entries(flaws):
            points.apply(order, execution, entry)
            if state.rows.ready:
                yield from state.rows.drain()
        if points.numbered:
            state.repair("steps_numbered", points.numbered)
        for path, count in points.rescaled.items():
            state.repair("times_rescaled", count)
            state.note(f"The times of {count} points of {path!r} were not in seconds but in a smaller unit: set right.")
        for path, count in points.timeless.items():
            state.repair("times_dropped", count)
            state.note(f"{count} points of {path!r} have times that no calendar has; they are kept without a time.")

    def files(self, reference: str) -> Sequence[SourceFile] | None:
        """Files behind a reference of this recording. Raises FileGoneError if they are gone."""
        mark, _, rest = reference.partition(":")
        if mark != self._references.mark:
            return None
        kind, _, place = rest.partition(":")
        if kind == AttributeType.FILE_SET:
            members, _ = self._references.members(self._collection(place, AttributeType.FILE_SET) or [])
            if not members:
                raise gone(f"The file set {place!r} of {self.path}", "none of its files is there now")
            names = printable_names(members)
            return [self._references.on_disk(names[name], path) for name, path in sorted(members.items())]
        if kind == AttributeType.ARTIFACT:
            tracked = self._collection(place, AttributeType.ARTIFACT) or Tracked()
            return [FileInMemory("files_list.json", self._references.files_list(tracked))]
        return [self._references.logged_file(reference, kind, place)]

    def values_at(self, wanted: Sequence[Copied], busy: frozenset[ContainerKey]) -> list[Any]:
        """Values of this container's attributes as they were at the times asked for; None where there was none."""
        values: list[Any] = [None] * len(wanted)
        waiting = sorted(
            range(len(wanted)), key=lambda number: (wanted[number].at is None, wanted[number].at or 0.0), reverse=True
        )
        plan = Plan(self.keys, silent)

        def answer() -> None:
            number = waiting.pop()
            value = plan.get(wanted[number].path, wanted[number].kind)
            values[number] = value

        for order, execution, entry in self._entries(None, skim=True):
            while waiting and entry.at is not None:
                limit = wanted[waiting[-1]].at
                if limit is None or entry.at <= limit:
                    break
                answer()
            plan.apply(order, execution, entry)
        while waiting:
            answer()
        return self._fetch(values, busy | self.keys)

    def _entries(self, flaws: Flaws | None, *, skim: bool = False) -> Iterator[tuple[Order, int, Entry]]:
        """All records in order, as (order, number of the execution, record)."""
        if len(self._executions) == 1:
            for entry in self._executions[0].log.entries(flaws, skim=skim):
                yield (0.0, 0, entry.place), 0, entry
            return

        def timed(number: int) -> Iterator[tuple[Order, int, Entry]]:
            latest = self._executions[number].order[0]
            for entry in self._executions[number].log.entries(flaws, skim=skim):
                # A clock may step back; the order inside one log is the order of its records all the same.
                latest = max(latest, entry.at) if entry.at is not None else latest
                yield (latest, number, entry.place), number, entry

        yield from heapq.merge(*map(timed, range(len(self._executions))), key=lambda item: item[0])

    def _plan(self, state: RunState, flaws: Flaws) -> Plan:
        plan = Plan(self.keys, Fault(state))
        for order, execution, entry in self._entries(flaws, skim=True):
            plan.apply(order, execution, entry)
        self._keep_collections(plan)
        copied = [
            (path, kind, value)
            for path, kinds in plan.attributes.items()
            for kind, value in kinds.items()
            if isinstance(value, Copied)
        ]
        fetched = self._fetch([value for _, _, value in copied], self.keys)
        for (path, kind, source), value in zip(copied, fetched, strict=True):
            if value is not None:
                plan.attributes[path][kind] = value
                continue
            del plan.attributes[path][kind]
            state.error(
                f"{path!r} was copied from {source.path!r} of {source.container[0]} {source.container[1]}, "
                "which is not among these recordings. Add its folder to source.offline.paths, or take the value from "
                "an export of that run.",
                path,
                kind,
            )
        return plan

    def _fetch(self, values: list[Any], busy: frozenset[ContainerKey]) -> list[Any]:
        """Replace every :class:`Copied` by its value; None if its container is not here or copies in a circle."""
        asked: dict[ContainerKey, list[int]] = defaultdict(list)
        for number, value in enumerate(values):
            if isinstance(value, Copied):
                asked[value.container].append(number)
        for container, numbers in asked.items():
            other = None if container in busy else self._others.get(container)
            wanted = [values[number] for number in numbers]
            answers = [None] * len(numbers) if other is None else other.values_at(wanted, busy)
            for number, answer in zip(numbers, answers, strict=True):
                values[number] = answer
        return values

    def _keep_collections(self, plan: Plan) -> None:
        self._collections = {
            (printable(path), kind): value
            for path, kinds in plan.attributes.items()
            for kind, value in kinds.items()
            if kind in {AttributeType.FILE_SET, AttributeType.ARTIFACT}
        }

    def _collection(self, path: str, kind: AttributeType) -> Any:
        if self._collections is None:
            plan = Plan(self.keys, silent)
            for order, execution, entry in self._entries(None, skim=True):
                plan.apply(order, execution, entry)
            self._keep_collections(plan)
        return (self._collections or {}).get((path, kind))


class ClientSearch:
    """Finds recordings of neptune-client below several directories: executions of one container may be in many."""

    def __init__(self, settings: OfflineSource) -> None:
        self._settings = settings
        self._containers: dict[ContainerKey, list[Execution]] = defaultdict(list)
        self._seen: set[str] = set()

    def search(self, root: Path) -> Iterator[Execution | Refusal]:
        """Search at and below a directory; yields executions that hold something, and what cannot be read."""
        if root.is_file():  # recordings of this client are folders
            return
        empty = 0
        for folder in walk(root):
            if isinstance(folder, Refusal):
                yield folder
                continue
            # A pipe or a device of the name is opened like a log, which says what is wrong with it and does not block.
            names = tuple(name for name in (*folder.files, *folder.special) if LOG_NAME.fullmatch(name))
            real = os.path.realpath(folder.path)
            if not names or real in self._seen:
                continue
            self._seen.add(real)
            found = execution_in(folder, names, self._settings)
            if found is None:
                continue
            if isinstance(found, Refusal):
                yield found
            elif found[1].empty:
                empty += 1
            else:
                self._containers[found[0]].append(found[1])
                yield found[1]
        if empty:
            yield Refusal(
                root,
                f"Nothing was recorded in {empty} executions of neptune-client below {root}; no runs are made of them.",
                self._settings.project,
                notice=True,
            )

    def recordings(self) -> Iterator[ClientRecording | Refusal]:
        """Everything found, one recording for each container.

        Gives a Refusal for a container that is not a run or model, and for every container if ``settings.project`` is
        left out.
        """
        settings = self._settings
        finder = FileFinder(settings)
        recordings: dict[ContainerKey, ClientRecording] = {}
        for key, executions in sorted(self._containers.items()):
            kind, identifier = key
            folder = executions[0].folder
            if settings.project is None:
                yield Refusal(
                    folder,
                    f"{folder} was recorded by neptune-client, which does not say for which project. "
                    "Set source.offline.project to 'workspace/project'.",
                )
            elif kind == "project":
                yield Refusal(
                    folder,
                    f"{folder} holds metadata of project {identifier} itself; the lake keeps runs, models and model "
                    "versions, so it is left out. Keep the folder.",
                    settings.project,
                )
            else:
                try:
                    recordings[key] = ClientRecording(key, executions, settings, finder, recordings)
                except OSError as error:
                    message = f"{error.filename or folder} cannot be read: {error.strerror or error}."
                    yield refusal_of(key, folder, message, settings.project)
        for recording in list(recordings.values()):
            for name in recording.keys:
                recordings.setdefault(name, recording)
            yield recording
