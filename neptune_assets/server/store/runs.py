"""Rows of a project's database: the project's counters, runs, values of attributes, and artifacts."""

from __future__ import annotations

import json
import sqlite3
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.server.store.database import RESTORE, RUN, DamagedError, intact, row_of, seal


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


SYSTEM_TYPES: Final[Mapping[str, AttributeType]] = MappingProxyType(
    {
        "sys/id": AttributeType.STRING,
        "sys/custom_run_id": AttributeType.STRING,
        "sys/name": AttributeType.STRING,
        "sys/creation_time": AttributeType.DATETIME,
        "sys/modification_time": AttributeType.DATETIME,
        "sys/ping_time": AttributeType.DATETIME,
        "sys/trashed": AttributeType.BOOL,
        "sys/archived": AttributeType.BOOL,
        "sys/tags": AttributeType.STRING_SET,
        "sys/diagnostics/project_uuid": AttributeType.STRING,
        "sys/diagnostics/run_uuid": AttributeType.STRING,
        "sys/forking/parent": AttributeType.STRING,
        "sys/forking/step": AttributeType.FLOAT,
        "sys/running_time": AttributeType.FLOAT,
        "sys/monitoring_time": AttributeType.INT,
    }
)
"""Every attribute that :func:`system_attributes` can make."""


def system_attributes(run: Run, project_uuid: str) -> dict[str, tuple[AttributeType, Any]]:
    """What the server says of a run, by path: type and value (datetimes as epoch ms, sets as lists)."""
    values: dict[str, Any] = {
        "sys/id": run.sys_id,
        "sys/custom_run_id": run.run_id,
        "sys/creation_time": run.created_at,
        "sys/modification_time": run.modified_at,
        "sys/ping_time": run.modified_at if run.ping_at is None else run.ping_at,
        "sys/trashed": bool(run.trashed),
        "sys/archived": bool(run.archived),
        "sys/tags": [],
        "sys/diagnostics/project_uuid": project_uuid,
        "sys/diagnostics/run_uuid": run.uuid,
    }
    if run.experiment is not None:
        values["sys/name"] = run.experiment
    if run.parent_run_id is not None:
        values["sys/forking/parent"] = run.parent_run_id
        if run.fork_step is not None:
            values["sys/forking/step"] = run.fork_step / MICROSTEPS
    if run.generation == "2":
        alive = max(0, values["sys/ping_time"] - run.created_at) / 1000
        values["sys/running_time"] = alive
        values["sys/monitoring_time"] = int(alive)
    return {path: (SYSTEM_TYPES[path], value) for path, value in values.items()}


def put_artifact(
    connection: sqlite3.Connection, digest: str, size: int | None, files: Sequence[Mapping[str, Any]]
) -> None:
    """Keep the list of an artifact's files; ``size`` is that of all of them, if known."""
    connection.execute(
        "INSERT INTO artifacts (hash, size, files, checksum) VALUES (?, ?, ?, ?) ON CONFLICT (hash)"
        " DO UPDATE SET size = excluded.size, files = excluded.files, checksum = excluded.checksum",
        row_of(digest, size, json.dumps(list(files), ensure_ascii=False)),
    )


SqlValue = int | str | None

_JSON_TYPES: Final = frozenset(
    {
        AttributeType.STRING_SET,
        AttributeType.FILE,
        AttributeType.FILE_SET,
        AttributeType.ARTIFACT,
        AttributeType.HISTOGRAM_SERIES,
        AttributeType.FILE_SERIES,
    }
)


def float_bits(value: float) -> int:
    """The 64 bits of a float as a signed integer."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def bits_float(bits: int) -> float:
    """The float of these 64 bits."""
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])


def floats_bits(values: Iterable[float]) -> list[int]:
    """The bits of many floats."""
    return array("q", array("d", values).tobytes()).tolist()


def bits_floats(bits: Iterable[int]) -> list[float]:
    """The floats of many bits."""
    return array("d", array("q", bits).tobytes()).tolist()


def to_json(value: Any) -> str:
    """JSON as it is stored: NaN and infinities as Python writes them, text as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def encode(kind: AttributeType, value: Any) -> SqlValue:
    """Turn a single value into what ``attributes.value`` holds.

    Floats, ints, bools, str as they are in Python; datetimes as epoch ms; string sets as any iterable of str; files
    as a mapping (see :func:`file_value`).
    """
    if kind is AttributeType.FLOAT:
        return float_bits(value)
    if kind is AttributeType.STRING_SET:
        return to_json(sorted(set(value)))
    if kind in _JSON_TYPES:
        return to_json(value)
    if kind is AttributeType.STRING:
        return str(value)
    return int(value)


def decode(kind: AttributeType, value: SqlValue) -> Any:
    """Turn ``attributes.value`` (or the value of an object of a series) back into what :func:`encode` was given."""
    if value is None:
        return None
    if kind is AttributeType.FLOAT:
        return bits_float(int(value))
    if kind is AttributeType.BOOL:
        return bool(value)
    if kind in _JSON_TYPES:
        return json.loads(str(value))
    return value


def file_value(path: str, size: int, mime_type: str) -> dict[str, Any]:
    """What is stored of a file: the key of its bytes, its size, and what it is."""
    return {"path": path, "size": size, "mime_type": mime_type}


def histogram_value(kind: str, edges: Sequence[float], values: Sequence[float]) -> Mapping[str, Any]:
    """What is stored of a histogram; ``kind`` is COUNTING or DENSITY."""
    return {"type": kind, "edges": list(edges), "values": list(values)}
