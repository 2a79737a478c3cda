"""One container recorded by neptune-client 2.x, with all its executions, as a recording that can be replayed."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from neptune_assets.schema import AttributeType, Scope
from neptune_assets.sources.offline.client_assignment import assign
from neptune_assets.sources.offline.client_faults import Fault, Flaws, silent
from neptune_assets.sources.offline.client_files import FileFinder, FileInMemory, gone
from neptune_assets.sources.offline.client_layout import EPOCH, SCOPES, Execution, distinct, stable_id
from neptune_assets.sources.offline.client_log import Entry
from neptune_assets.sources.offline.client_operations import (
    ContainerKey,
    Copied,
    Order,
    Plan,
    Points,
    SeriesPlan,
    Tracked,
)
from neptune_assets.sources.offline.client_references import References
from neptune_assets.sources.offline.recordings import Fork
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.state import RunState
from neptune_assets.sources.protocol import SourceFile
from neptune_assets.sources.values import printable, printable_names


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
        """Read the log twice: first for attributes, then for points (see the module client_operations)."""
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
                raise gone(f"The file set {place!r} of {self.path}", "none of its files is there any more")
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
