"""What neptune-scale sends: runs are made and updated, durably before the answer; and what became of requests."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError, Message
from neptune_api.proto.neptune_pb.ingest.v1.ingest_pb2 import IngestCode
from neptune_api.proto.neptune_pb.ingest.v1.pub.client_pb2 import RequestIdList
from neptune_api.proto.neptune_pb.ingest.v1.pub.ingest_pb2 import RunOperation
from starlette.responses import Response
from starlette.routing import BaseRoute

from neptune_assets.errors import SettingsError, UnknownProjectError
from neptune_assets.schema import MAX_STEP, MICROSTEPS
from neptune_assets.server.endpoints import PROTOBUF, ApiError, Call, Endpoint
from neptune_assets.server.neptune3.forks import inherited_atoms
from neptune_assets.server.neptune3.snapshots import Snapshots
from neptune_assets.server.neptune3.statuses import Outcome, statuses, submitted
from neptune_assets.server.neptune3.wire_values import RefusedError, milliseconds
from neptune_assets.server.service import Service
from neptune_assets.server.store.projects import ProjectStore
from neptune_assets.server.store.runs import NewRun, Run

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
        raise ApiError(400, "BAD_REQUEST", f"The body is no {kind.DESCRIPTOR.name}: {error}") from None
