"""What a fork takes over from its parent, wherever that is: this project's store, another's, or the lake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from neptune_assets.errors import UnknownProjectError
from neptune_assets.schema import PARAMETER_TYPES, VALUE_COLUMN, AttributeType
from neptune_assets.server.adoption import adopted_file
from neptune_assets.server.service import Service
from neptune_assets.server.store.projects import ProjectStore
from neptune_assets.server.store.runs import encode, find_run
from neptune_assets.server.store.writing import Atom, Writing, atoms_of, inheritable

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun


def inherited_atoms(
    service: Service, writing: Writing, project: ProjectStore, parent_project: str, parent_run_id: str
) -> list[Atom] | None:
    """Single values of the parent as they are now; None if there is no such run."""
    if parent_project == project.project_id:
        found = writing.run(parent_run_id)
        if found is not None:
            return atoms_of(writing.connection, found)
    else:
        try:
            with service.store.project(parent_project).read() as connection:
                found = find_run(connection, parent_run_id)
                if found is not None:
                    return atoms_of(connection, found)
        except UnknownProjectError:
            pass
    lake = service.lake_project(parent_project)
    if lake is None or parent_run_id not in lake.records():
        return None
    return _lake_atoms(writing, project, lake.run(parent_run_id))


def _lake_atoms(writing: Writing, project: ProjectStore, run: LakeRun) -> list[Atom]:
    atoms: dict[str, Atom] = {}
    for batch in run.batches({*PARAMETER_TYPES, AttributeType.FILE}):
        place = batch.schema.get_field_index("datetime_value")
        plain = batch.set_column(place, "datetime_value", batch["datetime_value"].cast(pa.int64()))
        for row in plain.to_pylist():
            path, kind = row["attribute_path"], AttributeType(row["attribute_type"])
            if inheritable(path):
                value = row[VALUE_COLUMN[kind]]
                if kind is AttributeType.FILE:
                    value = adopted_file(writing, project, run, value)
                atoms.setdefault(path, (path, kind.value, encode(kind, value)))
    return list(atoms.values())
