"""The ``sys/`` attributes that the server makes: derived from a run's row, the same for every reader of the store.

An attribute row of the same path, which a client wrote, counts instead of what is derived.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.server.store.runs import Run

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
