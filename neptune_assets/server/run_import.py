"""Take a run of the lake into the store before a client writes to it: all its rows and files, in one transaction.

Decisions. The lake stays as it is; the store's run hides it from then on. What the store keeps in the run's row (ids,
times, name, fork) comes from the run's ``sys/`` attributes, everything else is copied as it is. The lake may hold two
types at one path, the store cannot: the second one is kept at a path that ends in its type.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from uuid import NAMESPACE_URL, uuid5

import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.errors import LakeError
from neptune_assets.lake.rows import microsteps
from neptune_assets.schema import FILE_TYPES, MICROSTEPS, PARAMETER_TYPES, VALUE_COLUMN, AttributeType
from neptune_assets.server.catalog.tables import made_up_sys_id
from neptune_assets.server.neptune2.artifacts import artifact_hash, artifact_size, read_files_list
from neptune_assets.server.store.database import row_of
from neptune_assets.server.store.files import Stored
from neptune_assets.server.store.projects import ProjectStore
from neptune_assets.server.store.runs import NewRun, Run, encode, file_value, histogram_value, put_artifact, to_json
from neptune_assets.server.store.writing import Writing

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun
    from neptune_assets.server.store.writing import Operations

_SYS_ID: Final = re.compile(r"([A-Z][A-Z0-9]*)-([0-9]{1,18})")
_BLOCK: Final = 1 << 20
_POINTS_IN_MEMORY: Final = 200_000
_IN_ROW: Final = frozenset(
    {
        "sys/id",
        "sys/custom_run_id",
        "sys/creation_time",
        "sys/modification_time",
        "sys/ping_time",
        "sys/trashed",
        "sys/archived",
        "sys/forking/parent",
        "sys/forking/step",
    }
)


def last_number_of(sys_ids: Iterable[str]) -> tuple[str | None, int]:
    """The key that most of these sys ids begin with, and the highest number after it."""
    keys: Counter[str] = Counter()
    numbers: dict[str, int] = {}
    for match in filter(None, map(_SYS_ID.fullmatch, sys_ids)):
        keys[match[1]] += 1
        numbers[match[1]] = max(numbers.get(match[1], 0), int(match[2]))
    if not keys:
        return None, 0
    key = keys.most_common(1)[0][0]
    return key, numbers[key]


def lake_uuid(project_id: str, scope: str, run_id: str) -> str:
    """The uuid of a run of the lake, where it has none: always the same one, kept when the store takes the run."""
    return str(uuid5(NAMESPACE_URL, f"neptune:{scope}/{project_id}/{run_id}"))


def import_run(writing: Writing, project: ProjectStore, run: LakeRun, generation: str = "3") -> Run:
    """Copy a run, model or version of the lake into the store. Raises LakeError if the lake cannot be read whole."""
    system = _system(run)
    scope = run.project.scope.value
    # Without an id of its own it keeps the one that it was shown under.
    sys_id: str | None = str(system.get("sys/id") or "") or made_up_sys_id(run.run_id)
    if sys_id is not None and writing.run_by_sys_id(sys_id, scope) is not None:
        sys_id = None  # Given to another run meanwhile.
    step = system.get("sys/forking/step")
    parent = system.get("sys/forking/parent")
    made = writing.create_run(
        NewRun(
            run.run_id,
            scope,
            sys_id=sys_id,
            uuid=lake_uuid(project.project_id, scope, run.run_id),
            experiment=system.get("sys/name") if generation == "3" else None,
            parent_project=None if parent is None else project.project_id,
            parent_run_id=parent,
            fork_step=None if step is None else round(step * MICROSTEPS),
            generation=generation,
            created_at=system.get("sys/creation_time"),
            modified_at=system.get("sys/modification_time"),
            trashed=bool(system.get("sys/trashed")),
            archived=bool(system.get("sys/archived")),
            adopted=run.record.digest,
        )
    )
    operations = writing.operations(made)
    hidden = _IN_ROW | ({"sys/name"} if generation == "3" else set())
    for path, kind, rows in _attributes(run):
        if path not in hidden:
            _copy(operations, writing, project, run, path, kind, rows)
            if len(writing.points.attributes) > _POINTS_IN_MEMORY:
                writing.flush()
    return made


def _system(run: LakeRun) -> dict[str, Any]:
    """The run's ``sys/`` values by path; datetimes as epoch ms."""
    found: dict[str, Any] = {}
    columns = ["attribute_path", "attribute_type", *dict.fromkeys(VALUE_COLUMN[kind] for kind in PARAMETER_TYPES)]
    for batch in run.batches(PARAMETER_TYPES, columns):
        own = batch.filter(pc.starts_with(batch["attribute_path"], "sys/"))
        for row in own.set_column(
            own.schema.get_field_index("datetime_value"), "datetime_value", own["datetime_value"].cast(pa.int64())
        ).to_pylist():
            found[row["attribute_path"]] = row[VALUE_COLUMN[AttributeType(row["attribute_type"])]]
    return found


def _attributes(run: LakeRun) -> Iterator[tuple[str, AttributeType, pa.RecordBatch]]:
    """Rows of one attribute at a time, in order; a long series comes in pieces."""
    for batch in run.batches():
        paths, kinds = batch["attribute_path"].to_pylist(), batch["attribute_type"].to_pylist()
        start = 0
        for row in range(1, len(paths) + 1):
            if row == len(paths) or paths[row] != paths[start] or kinds[row] != kinds[start]:
                yield paths[start], AttributeType(kinds[start]), batch.slice(start, row - start)
                start = row


def _copy(
    operations: Operations,
    writing: Writing,
    project: ProjectStore,
    run: LakeRun,
    path: str,
    kind: AttributeType,
    rows: pa.RecordBatch,
) -> None:
    place = path if operations.kind(path) in {None, kind} else f"{path} ({kind})"
    column = rows[VALUE_COLUMN[kind]]
    if kind is AttributeType.DATETIME:
        column = column.cast(pa.int64())
    if kind in PARAMETER_TYPES:
        operations.assign(place, kind, encode(kind, column[0].as_py()))
        return
    if kind is AttributeType.FLOAT_SERIES:
        column = column.fill_null(float("nan"))
    values = column.to_pylist()
    if kind is AttributeType.FILE_SET:
        _copy_file_set(operations, writing, project, run, path, place)
        return
    if kind is AttributeType.ARTIFACT:
        _copy_artifact(operations, writing, project, run, path, place, values[0])
        return
    if kind in FILE_TYPES:
        stored = [imported_file(writing, project, run, value) for value in values]
        if kind is not AttributeType.FILE_SERIES:
            operations.assign(place, kind, encode(kind, stored[0]))
            return
        values = [to_json(value) for value in stored]
    elif kind is AttributeType.HISTOGRAM_SERIES:
        values = [to_json(histogram_value(value["type"], value["edges"], value["values"])) for value in values]
    steps = microsteps(rows["step"]).tolist()
    times = rows["timestamp"].cast(pa.int64()).fill_null(0).to_pylist()
    attribute = operations.attribute(place, kind)
    if attribute is None or rows["step"].null_count:
        raise LakeError(
            f"The series {path!r} of run {run.run_id!r} has points without a step.", hint="Log to another run."
        )
    if kind is AttributeType.FLOAT_SERIES:
        refused = operations.append_floats(attribute, steps, times, values)
    else:
        refused = operations.append_objects(attribute, steps, times, values)
    if refused:
        raise LakeError(
            f"Series {path!r} of {run.run_id!r} has two points at one step in the lake.", hint="Log to another run."
        )


def imported_file(
    writing: Writing, project: ProjectStore, run: LakeRun, value: dict[str, Any] | None
) -> dict[str, Any]:
    """Copy the bytes of a file under its path in the lake; a file that the lake lacks stays missing."""
    from mimetypes import guess_type

    path = None if value is None else value["path"]
    mime = guess_type(path or "")[0] or "application/octet-stream"
    if path is None:
        return file_value("", 0, mime)
    try:
        source = run.open_file(path)
    except LakeError:
        return file_value(path, 0, mime)
    stored = _bytes(project, source)
    writing.put_file(path, stored.sha256, stored.size, mime)
    return file_value(path, stored.size, mime)


def _copy_file_set(
    operations: Operations, writing: Writing, project: ProjectStore, run: LakeRun, path: str, place: str
) -> None:
    attribute = operations.attribute(place, AttributeType.FILE_SET)
    if attribute is None:
        raise LakeError(f"The file set {path!r} of {run.run_id!r} has no place in the store.", hint="Rename it.")
    total = count = 0
    for record in run.file_records(path):
        if record.member is None or record.attribute_type != AttributeType.FILE_SET:
            continue
        stored = _bytes(project, run.open_file(record.path))
        writing.connection.execute(
            "INSERT OR REPLACE INTO file_set_files (attribute, path, sha256, size, modified_at, checksum)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            row_of(attribute.id, record.member, stored.sha256, stored.size, writing.now),
        )
        total += stored.size
        count += 1
    operations.assign(place, AttributeType.FILE_SET, to_json({"size": total, "files": count}))


def _copy_artifact(
    operations: Operations,
    writing: Writing,
    project: ProjectStore,
    run: LakeRun,
    path: str,
    place: str,
    value: dict[str, Any] | None,
) -> None:
    """Keep an artifact by its hash; one whose list of files the lake lacks becomes the file that is there instead."""
    files = read_files_list(run, path)
    if files is None:
        stored = imported_file(writing, project, run, value)
        operations.assign(place, AttributeType.FILE, encode(AttributeType.FILE, stored))
        return
    digest = artifact_hash(files, with_metadata=False)
    put_artifact(writing.connection, digest, artifact_size(files), files)
    operations.assign(place, AttributeType.ARTIFACT, to_json({"hash": digest}))


def _bytes(project: ProjectStore, source: BinaryIO) -> Stored:
    incoming = project.objects.receive()
    try:
        with source:
            while block := source.read(_BLOCK):
                incoming.write(block)
        return incoming.keep()
    finally:
        incoming.drop()
