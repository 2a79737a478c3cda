"""Rows of the table of runs: how one is found and made."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from typing import Final

from neptune_assets.server.store.checksums import RUN, intact, seal
from neptune_assets.server.store.database import RESTORE, DamagedError


@dataclass(frozen=True, slots=True)
class Run:
    """One row of ``runs``; times in epoch ms, ``fork_step`` in micro-steps. See schema.sql."""

    id: int
    scope: str
    run_id: str
    sys_id: str
    uuid: str
    experiment: str | None
    parent_project: str | None
    parent_run_id: str | None
    fork_step: int | None
    requested_parent: str | None
    inherit_configs: int
    generation: str
    created_at: int
    modified_at: int
    ping_at: int | None
    trashed: int
    archived: int
    adopted: str | None
    revision: int
    attributes: int | None = None
    """How many attributes it has; None where an older version made it."""
    intact: bool = True
    """False if the row is not what was written."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """What a new run begins with; what is None is chosen (``run_id`` becomes the sys id, times become now)."""

    run_id: str | None
    scope: str = "runs"
    sys_id: str | None = None
    uuid: str | None = None
    experiment: str | None = None
    parent_project: str | None = None
    parent_run_id: str | None = None
    fork_step: int | None = None
    requested_parent: str | None = None
    inherit_configs: bool = True
    generation: str = "3"
    created_at: int | None = None
    modified_at: int | None = None
    trashed: bool = False
    archived: bool = False
    adopted: str | None = None
    owner: str | None = None
    """Becomes the attribute sys/owner."""


SEAL_RUN: Final = seal("runs", RUN, "WHERE id = ?")
"""Gives a run's row its checksum; the count of attributes is not part of it."""
SELECT_RUN: Final = f"SELECT {', '.join(RUN)}, attributes, {intact('runs', *RUN)} FROM runs"  # noqa: S608
"""Selects what :func:`run_of` takes; add WHERE."""


def run_of(row: sqlite3.Row | None) -> Run | None:
    """The run of a row selected with :data:`SELECT_RUN`."""
    if row is None:
        return None
    *columns, is_intact = row
    return replace(Run(*columns), intact=bool(is_intact))


def find_run(connection: sqlite3.Connection, run_id: str, scope: str = "runs") -> Run | None:
    """The run of this id, if there is one."""
    return _found(connection, "scope = ? AND run_id = ?", scope, run_id)


def find_run_by_sys_id(connection: sqlite3.Connection, sys_id: str, scope: str = "runs") -> Run | None:
    """The run of this sys/id, if there is one."""
    return _found(connection, "scope = ? AND sys_id = ?", scope, sys_id)


def find_run_by_uuid(connection: sqlite3.Connection, uuid: str) -> Run | None:
    """The run (or model, or version, or project) of this uuid, if there is one."""
    return _found(connection, "uuid = ?", uuid)


def _found(connection: sqlite3.Connection, where: str, *values: str) -> Run | None:
    """Return the run that a condition finds. Raises DamagedError if its row is not what was written."""
    run = run_of(connection.execute(f"{SELECT_RUN} WHERE {where}", values).fetchone())
    if run is not None and not run.intact:
        raise DamagedError(f"The row of run {run.run_id!r} is damaged in the store.", hint=RESTORE)
    return run
