"""The runs that the catalog knows, in memory: found by any of their ids, with their lines of parents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal


@dataclass(frozen=True, slots=True)
class Run:
    """One run (or model, or version of one); ``number`` is its number in the catalog.

    ``origin`` says who holds its points. ``store_id`` is its number in the store's database. ``parent`` is the project
    and the run id (or sys id) that it was forked from, ``fork_step`` in micro-steps, ``created`` in milliseconds.
    """

    number: int
    project: str
    scope: str
    run_id: str
    sys_id: str
    origin: Literal["lake", "store"]
    store_id: int | None = None
    uuid: str | None = None
    experiment: str | None = None
    created: int | None = None
    trashed: bool = False
    archived: bool = False
    parent: tuple[str, str] | None = None
    fork_step: int | None = None
    version: str | int = 0
    """Digest in the lake, or revision in the store."""


class ProjectRuns:
    """The runs of one project and scope. Never changed once it is in the catalog: a changed copy takes its place."""

    def __init__(self) -> None:
        self._by_id: dict[str, Run] = {}
        self._by_number: dict[int, Run] = {}
        self._by_sys_id: dict[str, Run] = {}
        self._by_uuid: dict[str, Run] = {}

    def copy(self) -> ProjectRuns:
        """Return a copy to be changed while others go on reading this one."""
        made = ProjectRuns()
        made._by_id = dict(self._by_id)
        made._by_number = dict(self._by_number)
        made._by_sys_id = dict(self._by_sys_id)
        made._by_uuid = dict(self._by_uuid)
        return made

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._by_id.values())

    def by_id(self, run_id: str) -> Run | None:
        """Return the run with this id."""
        return self._by_id.get(run_id)

    def by_number(self, number: int) -> Run | None:
        """Return the run with this number in the catalog."""
        return self._by_number.get(number)

    def by_sys_id(self, sys_id: str) -> Run | None:
        """Return the run with this sys/id."""
        return self._by_sys_id.get(sys_id)

    def by_uuid(self, uuid: str) -> Run | None:
        """Return the run with this uuid; only runs of the store have one."""
        return self._by_uuid.get(uuid)

    def put(self, run: Run) -> None:
        """Add a run, or replace the one of the same id."""
        self.remove(run.run_id)
        self._by_id[run.run_id] = run
        self._by_number[run.number] = run
        self._by_sys_id[run.sys_id] = run
        if run.uuid is not None:
            self._by_uuid[run.uuid] = run

    def remove(self, run_id: str) -> Run | None:
        """Forget a run and return it."""
        run = self._by_id.pop(run_id, None)
        if run is not None:
            del self._by_number[run.number]
            if self._by_sys_id.get(run.sys_id) is run:
                del self._by_sys_id[run.sys_id]
            if run.uuid is not None:
                self._by_uuid.pop(run.uuid, None)
        return run

    def parent(self, run: Run) -> Run | None:
        """Return the run of this project that a run was forked from, named by its id or, in old data, its sys id."""
        if run.parent is None or run.parent[0] != run.project:
            return None
        return self._by_id.get(run.parent[1]) or self._by_sys_id.get(run.parent[1])

    def heads(self) -> dict[str, Run]:
        """Return, for every experiment, its youngest run; one that is trashed only where all of them are."""
        heads: dict[str, Run] = {}
        for run in self._by_id.values():
            if run.experiment:
                head = heads.get(run.experiment)
                if head is None or _age(run) > _age(head):
                    heads[run.experiment] = run
        return heads


def _age(run: Run) -> tuple[bool, int, int, str]:
    return (not run.trashed, run.created or 0, run.number, run.run_id)


def made_up_sys_id(run_id: str, taken: Iterable[str] = ()) -> str:
    """Return a sys/id for a run of the lake that has none: always the same one, and none of those ``taken``."""
    others = set(taken)
    for attempt in range(1_000):
        digest = blake2b(f"{run_id}\0{attempt}".encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()
        if (sys_id := f"LAKE-{digest}") not in others:
            return sys_id
    raise AssertionError("unreachable")
