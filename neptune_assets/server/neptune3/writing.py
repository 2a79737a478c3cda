"""What neptune-scale sends: runs are made and updated, durably before the answer; and what became of requests."""

from __future__ import annotations

import math
import re
import secrets
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from google.protobuf.message import DecodeError, Message
from neptune_api.proto.google_rpc.code_pb2 import Code
from neptune_api.proto.neptune_pb.ingest.v1.ingest_pb2 import IngestCode
from neptune_api.proto.neptune_pb.ingest.v1.pub.client_pb2 import BulkRequestStatus, RequestIdList, SubmitResponse
from neptune_api.proto.neptune_pb.ingest.v1.pub.ingest_pb2 import RunOperation
from neptune_api.proto.neptune_pb.ingest.v1.pub.request_status_pb2 import RequestStatus
from starlette.responses import Response
from starlette.routing import BaseRoute

from neptune_assets.errors import SettingsError, UnknownProjectError
from neptune_assets.schema import MAX_STEP, MICROSTEPS, PARAMETER_TYPES, VALUE_COLUMN, AttributeType
from neptune_assets.server.endpoints import PROTOBUF, ApiError, Call, Endpoint
from neptune_assets.server.run_import import imported_file
from neptune_assets.server.service import Service
from neptune_assets.server.store.projects import ProjectStore
from neptune_assets.server.store.runs import (
    SYSTEM_TYPES,
    NewRun,
    Run,
    encode,
    file_value,
    find_run,
    float_bits,
    histogram_value,
    to_json,
)
from neptune_assets.server.store.writing import (
    Atom,
    Attribute,
    Operations,
    Problem,
    Problems,
    Writing,
    atoms_of,
    inheritable,
)

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun

MAX_STRING: Final = 1 << 20
"""Bytes of UTF-8 of a string, or of all members of a set."""
MAX_BINS: Final = 512
_MAX_FILE_PATH: Final = 1024
_MAX_MIME_TYPE: Final = 256
_FIRST_SECOND: Final = -62_135_596_800
_LAST_SECOND: Final = 253_402_300_799

_ATOMS: Final = {
    "float64": AttributeType.FLOAT,
    "int64": AttributeType.INT,
    "string": AttributeType.STRING,
    "bool": AttributeType.BOOL,
    "timestamp": AttributeType.DATETIME,
    "string_set": AttributeType.STRING_SET,
    "file_ref": AttributeType.FILE,
}


class RefusedError(Exception):
    """A value that cannot be kept; ``code`` is the IngestCode to answer with."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def milliseconds(stamp: Any) -> int:
    """Epoch milliseconds of a protobuf Timestamp, rounded down. Raises RefusedError for what no calendar holds.

    The client goes through a float, which turns .123 s into 122_999_906 ns: whole microseconds undo that first.
    """
    if not _FIRST_SECOND <= stamp.seconds <= _LAST_SECOND:
        raise RefusedError(IngestCode.DATETIME_VALUE_OUT_OF_RANGE)
    return int(stamp.seconds * 1000 + (stamp.nanos + 500) // 1_000 // 1_000)


def assigned(value: Any) -> tuple[AttributeType, Any]:
    """Type and value of what is assigned. Raises RefusedError."""
    name = value.WhichOneof("value")
    kind = _ATOMS.get(name)
    if kind is None:
        raise RefusedError(IngestCode.FIELD_TYPE_UNSUPPORTED)
    if kind is AttributeType.STRING:
        return kind, _string(value.string)
    if kind is AttributeType.DATETIME:
        return kind, milliseconds(value.timestamp)
    if kind is AttributeType.STRING_SET:
        members = list(value.string_set.values)
        if sum(len(member.encode()) for member in members) > MAX_STRING:
            raise RefusedError(IngestCode.STRING_SET_EXCEEDS_SIZE_LIMIT)
        return kind, members
    if kind is AttributeType.FILE:
        return kind, _file(value.file_ref)
    return kind, getattr(value, name)


def object_value(name: str | None, value: Any) -> str:
    """What a series of strings, histograms or files keeps of one point. Raises RefusedError."""
    if name == "string":
        return _string(value.string)
    if name == "file_ref":
        return to_json(_file(value.file_ref))
    if name == "histogram":
        return to_json(_histogram(value.histogram))
    raise RefusedError(IngestCode.FIELD_TYPE_UNSUPPORTED)


def _string(text: str) -> str:
    if len(text) * 4 > MAX_STRING and len(text.encode()) > MAX_STRING:
        raise RefusedError(IngestCode.STRING_VALUE_EXCEEDS_SIZE_LIMIT)
    return text


def _file(ref: Any) -> dict[str, Any]:
    if len(ref.path) > _MAX_FILE_PATH or len(ref.mime_type) > _MAX_MIME_TYPE:
        raise RefusedError(IngestCode.FILE_REF_EXCEEDS_SIZE_LIMIT)
    return file_value(ref.path, ref.size_bytes, ref.mime_type)


def _histogram(histogram: Any) -> Any:
    kind = histogram.WhichOneof("values")
    if kind is None:
        raise RefusedError(IngestCode.HISTOGRAM_VALUES_LENGTH_DOESNT_MATCH_BINS)
    edges, values = list(histogram.bin_edges), list(getattr(histogram, kind).values)
    if any(math.isnan(edge) for edge in edges):
        raise RefusedError(IngestCode.HISTOGRAM_BIN_EDGES_CONTAINS_NAN)
    if len(values) > MAX_BINS:
        raise RefusedError(IngestCode.HISTOGRAM_TOO_MANY_BINS)
    if any(second <= first for first, second in pairwise(edges)):
        raise RefusedError(IngestCode.HISTOGRAM_BIN_EDGES_NOT_INCREASING)
    if len(edges) != len(values) + 1:
        raise RefusedError(IngestCode.HISTOGRAM_VALUES_LENGTH_DOESNT_MATCH_BINS)
    return histogram_value("COUNTING" if kind == "counts" else "DENSITY", edges, values)


Outcome = Counter[int]
"""How many operations ended with each IngestCode."""

_ID: Final = re.compile(r"[0-9a-f]{16}((?:-[0-9]{1,3}:[0-9]{1,12})*)")
_GRPC: Final = {
    IngestCode.OK: Code.OK,
    IngestCode.PROJECT_NOT_FOUND: Code.NOT_FOUND,
    IngestCode.RUN_NOT_FOUND: Code.NOT_FOUND,
    IngestCode.RUN_FORK_PARENT_NOT_FOUND: Code.NOT_FOUND,
    IngestCode.RUN_DUPLICATE: Code.ALREADY_EXISTS,
    IngestCode.RUN_CONFLICTING: Code.ALREADY_EXISTS,
    IngestCode.SERIES_POINT_DUPLICATE: Code.ALREADY_EXISTS,
    IngestCode.FIELD_TYPE_CONFLICTING: Code.FAILED_PRECONDITION,
}


def submitted(outcome: Outcome) -> SubmitResponse:
    """The answer to a request that ended so."""
    counts = "".join(f"-{code}:{count}" for code, count in sorted(outcome.items()) if count > 0)
    request_id = secrets.token_hex(8) + counts
    return SubmitResponse(request_id=request_id, request_ids=[request_id])


def statuses(wanted: RequestIdList) -> BulkRequestStatus:
    """The status of each request, in the order they were asked for."""
    return BulkRequestStatus(statuses=[_status(item.value) for item in wanted.ids])


def _status(request_id: str) -> RequestStatus:
    match = _ID.fullmatch(request_id)
    counts = [item.split(":") for item in match[1].split("-")[1:]] if match is not None else []
    return RequestStatus(
        code_by_count=[
            RequestStatus.CodeByCount(
                code=_GRPC.get(int(code), Code.INVALID_ARGUMENT), count=int(count), detail=int(code)
            )
            for code, count in counts or [("0", "1")]
        ]
    )


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
                    value = imported_file(writing, project, run, value)
                atoms.setdefault(path, (path, kind.value, encode(kind, value)))
    return list(atoms.values())


MAX_PATH: Final = 1024
"""Bytes of UTF-8 that a path may have."""

_ADD: Final = 1
_REMOVE: Final = 2
_IN_ROW: Final = {"sys/name": "experiment", "sys/trashed": "trashed", "sys/archived": "archived"}
_READ_ONLY: Final = frozenset(SYSTEM_TYPES) - {*_IN_ROW, "sys/tags"}
_CODES: Final = {
    Problem.TYPE_CONFLICT: IngestCode.FIELD_TYPE_CONFLICTING,
    Problem.DUPLICATE_POINT: IngestCode.SERIES_POINT_DUPLICATE,
    Problem.STEP_TAKEN: IngestCode.SERIES_STEP_NON_INCREASING,
    Problem.PREVIEW_NOT_AFTER_LAST: IngestCode.SERIES_PREVIEW_STEP_NOT_AFTER_LAST_COMMITTED_STEP,
}
_SERIES: Final = {
    "string": AttributeType.STRING_SERIES,
    "histogram": AttributeType.HISTOGRAM_SERIES,
    "file_ref": AttributeType.FILE_SERIES,
}
# Plain ints: the enum looks its members up on every use.
_OK: Final = int(IngestCode.OK)
_TYPE_CONFLICT: Final = int(IngestCode.FIELD_TYPE_CONFLICTING)
_UNSUPPORTED: Final = int(IngestCode.FIELD_TYPE_UNSUPPORTED)
_TOO_LARGE: Final = int(IngestCode.SERIES_STEP_TOO_LARGE)
_STEP_INVALID: Final = int(IngestCode.SERIES_STEP_INVALID)


class _Objects:
    """Points of one series of strings, histograms or files that this request brings."""

    __slots__ = ("attribute", "steps", "times", "values")

    def __init__(self, attribute: Attribute) -> None:
        self.attribute = attribute
        self.steps: list[int] = []
        self.times: list[int] = []
        self.values: list[str] = []


class Snapshots:
    """Applies the updates of one request to one run, inside one transaction."""

    def __init__(self, writing: Writing, operations: Operations) -> None:
        self._writing = writing
        self._operations = operations
        self._floats: dict[str, Attribute] = {}
        self._objects: dict[str, _Objects] = {}
        self.outcome = Outcome()

    def apply(self, snapshots: Iterable[Any]) -> Outcome:
        """Apply them in order and return how many operations ended in which way."""
        for snapshot in snapshots:
            if snapshot.append:
                self._append(snapshot)
            if snapshot.assign:
                for path, value in snapshot.assign.items():
                    self._assign(path, value)
            if snapshot.modify_sets:
                for path, change in snapshot.modify_sets.items():
                    self._modify(path, change)
        late, refused = self._writing.points.settle()
        self._count(refused)
        if late:
            self.outcome[_OK] += late
            self._writing.touch(self._operations.run)
        for objects in self._objects.values():
            self._count(
                self._operations.append_objects(objects.attribute, objects.steps, objects.times, objects.values),
                len(objects.steps),
            )
        return self.outcome

    def _append(self, snapshot: Any) -> None:
        append = snapshot.append
        try:
            time = milliseconds(snapshot.timestamp) if snapshot.HasField("timestamp") else self._writing.now
        except RefusedError as error:
            self.outcome[error.code] += len(append)
            return
        step: int | None = None
        if snapshot.HasField("step"):
            where = snapshot.step
            step = where.whole * MICROSTEPS + where.micro
            if where.whole >= MAX_STEP or where.micro >= MICROSTEPS or step < 0:
                self.outcome[_TOO_LARGE if where.whole >= MAX_STEP else _STEP_INVALID] += len(append)
                return
        if snapshot.HasField("preview") and snapshot.preview.is_preview:
            completion = float_bits(snapshot.preview.completion_ratio)
            for path, value in append.items():
                self._preview(path, value, step, time, completion)
        elif step is None:
            for path, value in append.items():
                self._append_one(path, value, None, time)
        else:
            self._append_step(append, step, time)

    def _append_step(self, append: Any, step: int, time: int) -> None:
        """Append values of many attributes at one step. Nearly all there is to do is done here, so it is in a hurry."""
        points = self._writing.points
        attributes, values = points.attributes, points.values
        before = len(attributes)
        known = self._floats
        others = []
        for path, value in append.items():
            if value.WhichOneof("value") != "float64":
                others.append((path, value))
                continue
            attribute = known.get(path) or self._float_series(path)
            if attribute is None:
                continue
            last = attribute.last_step
            if last is None or step > last:
                attribute.last_step = step
                attributes.append(attribute.id)
                values.append(value.float64)
            else:
                points.late(attribute, step, time, value.float64)
        taken = len(attributes) - before
        points.steps.extend([step] * taken)
        points.times.extend([time] * taken)
        if taken:
            self.outcome[_OK] += taken
            self._writing.touch(self._operations.run)
        for path, value in others:
            self._append_one(path, value, step, time)

    def _append_one(self, path: str, value: Any, step: int | None, time: int) -> None:
        """Append one point of any kind; without a step it comes a whole step after the last one."""
        kind = value.WhichOneof("value")
        if kind in {"float64", "int64"}:
            attribute = self._floats.get(path) or self._float_series(path)
            if attribute is not None:
                last, number = attribute.last_step, float(getattr(value, kind))
                at = _next_step(last) if step is None else step
                if last is None or at > last:
                    self._count(self._operations.append_floats(attribute, [at], [time], [number]), 1)
                else:
                    self._writing.points.late(attribute, at, time, number)
            return
        try:
            text = object_value(kind, value)
        except RefusedError as error:
            self.outcome[error.code] += 1
            return
        objects = self._object_series(path, _SERIES[kind])
        if objects is not None:
            last = objects.steps[-1] if objects.steps else objects.attribute.last_step
            objects.steps.append(_next_step(last) if step is None else step)
            objects.times.append(time)
            objects.values.append(text)

    def _float_series(self, path: str) -> Attribute | None:
        """The series at this path; None, and counted, if points cannot go there."""
        attribute = self._series(path, AttributeType.FLOAT_SERIES)
        if attribute is not None:
            self._floats[path] = attribute
        return attribute

    def _object_series(self, path: str, kind: AttributeType) -> _Objects | None:
        found = self._objects.get(path)
        if found is not None and found.attribute.kind is kind:
            return found
        attribute = self._series(path, kind)
        if attribute is None:
            return None
        self._objects[path] = _Objects(attribute)
        return self._objects[path]

    def _series(self, path: str, kind: AttributeType) -> Attribute | None:
        code = _path_problem(path)
        attribute = None if code else self._operations.attribute(path, kind)
        if attribute is None:
            self.outcome[code or _TYPE_CONFLICT] += 1
        return attribute

    def _preview(self, path: str, value: Any, step: int | None, time: int, completion: int) -> None:
        kind = value.WhichOneof("value")
        if kind not in {"float64", "int64"}:
            self.outcome[_UNSUPPORTED] += 1
            return
        attribute = self._floats.get(path) or self._float_series(path)
        if attribute is not None:
            at = _next_step(attribute.last_step) if step is None else step
            bits = float_bits(float(getattr(value, kind)))
            self._count(self._operations.preview(attribute, at, time, bits, completion), 1)

    def _assign(self, path: str, value: Any) -> None:
        code = _path_problem(path)
        if code:
            self.outcome[code] += 1
            return
        try:
            kind, found = assigned(value)
        except RefusedError as error:
            self.outcome[error.code] += 1
            return
        if path not in _IN_ROW:
            self._count(self._operations.assign(path, kind, encode(kind, found)), 1)
        elif kind is not SYSTEM_TYPES[path]:
            self.outcome[_TYPE_CONFLICT] += 1
        else:
            self._operations.run = self._writing.update_run(self._operations.run, **{_IN_ROW[path]: found})
            self.outcome[_OK] += 1

    def _modify(self, path: str, change: Any) -> None:
        code = _path_problem(path)
        if code or change.WhichOneof("type") != "string":
            self.outcome[code or _UNSUPPORTED] += 1
            return
        values = change.string.values
        refused = self._operations.change_set(
            path,
            add=[name for name, what in values.items() if what == _ADD],
            remove=[name for name, what in values.items() if what == _REMOVE],
        )
        self._count(refused, 1)

    def _count(self, problems: Problems, total: int | None = None) -> None:
        """Count what was refused; of ``total`` operations the others went well."""
        for problem, count in problems.items():
            self.outcome[_CODES[problem]] += count
        if total is not None:
            self.outcome[_OK] += total - problems.total()


def _next_step(last: int | None) -> int:
    return 0 if last is None else last + MICROSTEPS


def _path_problem(path: str) -> int:
    """The code of what is wrong with a path; 0 if nothing is."""
    if not path:
        return int(IngestCode.FIELD_PATH_EMPTY)
    if len(path) * 4 > MAX_PATH and len(path.encode("utf-8", "replace")) > MAX_PATH:
        return int(IngestCode.FIELD_PATH_EXCEEDS_SIZE_LIMIT)
    if path in _READ_ONLY:
        return int(IngestCode.FIELD_PATH_NON_WRITABLE)
    return 0


_MAX_STATUSES = 10_000
_MAX_RUN_ID = 1024


def routes() -> list[BaseRoute]:
    """Routes of writing runs."""
    return [
        Endpoint("/api/client/v1/ingest", ingest, writes=True).route(),
        Endpoint("/api/client/v1/ingest/check", check, writes=True, limit_mb=4).route(),
    ]


def ingest(call: Call) -> Response:
    """Make or update a run; answered when it is on the disk."""
    operation = _parsed(RunOperation, call.body)
    which = operation.WhichOneof("operation")
    if which is None or operation.run_id == "" or len(operation.run_id) > _MAX_RUN_ID:
        return _answer(Outcome({IngestCode.RUN_INVALID_CREATION_PARAMETERS: 1}))
    # Only creating a run can make its project, and only if settings or the client say so.
    create = False if which != "create" else True if operation.create_missing_project else None
    try:
        project = call.service.project_to_write(operation.project, create=create)
    except UnknownProjectError:
        return _answer(Outcome({IngestCode.PROJECT_NOT_FOUND: 1}))
    except SettingsError:
        return _answer(Outcome({IngestCode.PROJECT_INVALID_NAME: 1}))
    if which == "create":
        return _answer(_create(call.service, project, operation.run_id, operation.create))
    snapshots = [operation.update] if which == "update" else operation.update_batch.snapshots
    limit = call.service.settings.snapshot_mb << 20
    if len(call.body) > limit and any(snapshot.ByteSize() > limit for snapshot in snapshots):
        raise ApiError(413, "SNAPSHOT_TOO_LARGE", f"A single operation may have {limit >> 20} MiB.")
    with project.write() as writing:
        run = call.service.run_to_write(project, writing, operation.run_id)
        if run is None:
            return _answer(Outcome({IngestCode.RUN_NOT_FOUND: 1}))
        outcome = Snapshots(writing, writing.operations(run)).apply(snapshots)
    return _answer(outcome)


def check(call: Call) -> Response:
    """Tell what became of requests, in the order asked for."""
    wanted = _parsed(RequestIdList, call.body)
    if len(wanted.ids) > _MAX_STATUSES:
        raise ApiError(400, "BAD_REQUEST", f"At most {_MAX_STATUSES} requests can be asked for.")
    return Response(statuses(wanted).SerializeToString(), media_type=PROTOBUF)


def _create(service: Service, project: ProjectStore, run_id: str, new: Any) -> Outcome:
    fork = new.fork_point if new.HasField("fork_point") else None
    step = None
    if fork is not None and fork.HasField("step"):
        step = fork.step.whole * MICROSTEPS + fork.step.micro
        if fork.step.whole >= MAX_STEP or fork.step.micro >= MICROSTEPS:
            return Outcome({IngestCode.RUN_INVALID_CREATION_PARAMETERS: 1})
    try:
        created = milliseconds(new.creation_time) if new.HasField("creation_time") else None
    except RefusedError:
        return Outcome({IngestCode.RUN_INVALID_CREATION_PARAMETERS: 1})
    lake = service.lake_project(project.project_id)
    with project.write() as writing:
        there = writing.run(run_id)
        if there is not None:
            return Outcome({_again(there, fork, step): 1})
        if lake is not None and run_id in lake.records():
            return Outcome({IngestCode.RUN_DUPLICATE: 1})
        outcome = Outcome({IngestCode.OK: 1})
        atoms = None
        parent_project = None
        if fork is not None:
            parent_project = fork.parent_project or project.project_id
            atoms = inherited_atoms(service, writing, project, parent_project, fork.parent_run_id)
            if atoms is None:
                outcome = Outcome({IngestCode.RUN_FORK_PARENT_NOT_FOUND: 1})
        inherits = not new.HasField("inherit_configs") or bool(new.inherit_configs)
        run = writing.create_run(
            NewRun(
                run_id,
                experiment=new.experiment_id if new.HasField("experiment_id") and new.experiment_id else None,
                parent_project=parent_project,
                parent_run_id=None if fork is None else fork.parent_run_id,
                fork_step=step,
                requested_parent=fork.requested_parent_id or None if fork is not None else None,
                inherit_configs=inherits,
                created_at=created,
                owner=service.settings.user,
            )
        )
        if atoms and inherits:
            writing.take_over(run, atoms)
    return outcome


def _again(run: Run, fork: Any, step: int | None) -> int:
    """What to answer if a run is created that is there: the same again is fine, another parent is not."""
    asked = (None, None) if fork is None else (fork.parent_run_id, step)
    same = fork is None or asked == (run.parent_run_id, run.fork_step)
    return int(IngestCode.RUN_DUPLICATE if same else IngestCode.RUN_CONFLICTING)


def _answer(outcome: Outcome) -> Response:
    return Response(submitted(outcome).SerializeToString(), media_type=PROTOBUF)


def _parsed(kind: type[Message], body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise ApiError(400, "BAD_REQUEST", f"The body is not a valid {kind.DESCRIPTOR.name}: {error}") from None
