"""Rows of the table of runs: how one is found and made."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from typing import Final


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


_COLUMNS: Final = tuple(field.name for field in fields(Run))
SELECT_RUN: Final = f"SELECT {', '.join(_COLUMNS)} FROM runs"  # noqa: S608  (names of our own columns)
"""Selects what :func:`run_of` takes; add WHERE."""


def run_of(row: sqlite3.Row | None) -> Run | None:
    """The run of a row selected with :data:`SELECT_RUN`."""
    return None if row is None else Run(*row)


def find_run(connection: sqlite3.Connection, run_id: str, scope: str = "runs") -> Run | None:
    """The run of this id, if there is one."""
    return run_of(connection.execute(f"{SELECT_RUN} WHERE scope = ? AND run_id = ?", (scope, run_id)).fetchone())


def find_run_by_sys_id(connection: sqlite3.Connection, sys_id: str, scope: str = "runs") -> Run | None:
    """The run of this sys/id, if there is one."""
    return run_of(connection.execute(f"{SELECT_RUN} WHERE scope = ? AND sys_id = ?", (scope, sys_id)).fetchone())


def find_run_by_uuid(connection: sqlite3.Connection, uuid: str) -> Run | None:
    """The run (or model, or version, or project) of this uuid, if there is one."""
    return run_of(connection.execute(f"{SELECT_RUN} WHERE uuid = ?", (uuid,)).fetchone())
