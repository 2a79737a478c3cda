"""Speaks the 3.x protocol of writing to a server with Neptune's own messages, request by request."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import (
    ForkPoint,
    ModifySet,
    ModifyStringSet,
    Run,
    Step,
    UpdateRunSnapshot,
    UpdateRunSnapshots,
    Value,
)
from neptune_api.proto.neptune_pb.ingest.v1.ingest_pb2 import IngestCode
from neptune_api.proto.neptune_pb.ingest.v1.pub.client_pb2 import (
    BulkRequestStatus,
    RequestId,
    RequestIdList,
    SubmitResponse,
)
from neptune_api.proto.neptune_pb.ingest.v1.pub.ingest_pb2 import RunOperation

from neptune_assets.schema import MICROSTEPS

PROTOBUF = {"Content-Type": "application/x-protobuf"}
PROJECT = "team/vision"


class Ingest:
    """Logs to one project and tells, for each request, how many operations ended with which code."""

    def __init__(self, http: httpx.Client, project: str = PROJECT) -> None:
        self.http = http
        self.project = project
        self.last_request = ""

    def create(
        self, run_id: str, *, parent: str | None = None, step: float | None = None, **fields: Any
    ) -> dict[str, int]:
        """Make a run; ``fields`` are those of Neptune's Run."""
        if parent is not None:
            fork = ForkPoint(parent_project=self.project, parent_run_id=parent)
            if step is not None:
                fork.step.CopyFrom(_step(step))
            fields["fork_point"] = fork
        return self._send(RunOperation(project=self.project, run_id=run_id, create=Run(**fields)))

    def update(self, run_id: str, *snapshots: UpdateRunSnapshot) -> dict[str, int]:
        """Send snapshots in one request."""
        batch = UpdateRunSnapshots(snapshots=snapshots)
        return self._send(RunOperation(project=self.project, run_id=run_id, update_batch=batch))

    def codes(self, request_id: str) -> dict[str, int]:
        """Ask what became of a request."""
        body = RequestIdList(ids=[RequestId(value=request_id)]).SerializeToString()
        answer = self.http.post(
            "/api/client/v1/ingest/check", params={"projectIdentifier": self.project}, content=body, headers=PROTOBUF
        ).raise_for_status()
        (status,) = BulkRequestStatus.FromString(answer.content).statuses
        assert all((item.code == 0) == (item.detail == 0) for item in status.code_by_count)
        return {IngestCode.Name(item.detail): item.count for item in status.code_by_count}

    def _send(self, operation: RunOperation) -> dict[str, int]:
        answer = self.http.post("/api/client/v1/ingest", content=operation.SerializeToString(), headers=PROTOBUF)
        submitted = SubmitResponse.FromString(answer.raise_for_status().content)
        self.last_request = submitted.request_ids[-1]
        return self.codes(self.last_request)


def points(
    step: float | None, values: Mapping[str, Any], preview: float | None = None, at: int = 0
) -> UpdateRunSnapshot:
    """Points of many series at one step; ``preview`` is the completion ratio of points that are not final."""
    snapshot = UpdateRunSnapshot(append={path: value_of(value) for path, value in values.items()})
    if step is not None:
        snapshot.step.CopyFrom(_step(step))
    snapshot.timestamp.FromMilliseconds(at)
    if preview is not None:
        snapshot.preview.is_preview = True
        snapshot.preview.completion_ratio = preview
    return snapshot


def assign(values: Mapping[str, Any]) -> UpdateRunSnapshot:
    """Single values."""
    return UpdateRunSnapshot(assign={path: value_of(value) for path, value in values.items()})


def change(path: str, add: tuple[str, ...] = (), remove: tuple[str, ...] = ()) -> UpdateRunSnapshot:
    """Members of a set, added and removed."""
    values = {**dict.fromkeys(add, 1), **dict.fromkeys(remove, 2)}
    return UpdateRunSnapshot(modify_sets={path: ModifySet(string=ModifyStringSet(values=values))})


def value_of(value: Any) -> Value:
    """A value of the wire."""
    if isinstance(value, Value):
        return value
    if isinstance(value, bool):
        return Value(bool=value)
    if isinstance(value, int):
        return Value(int64=value)
    if isinstance(value, float):
        return Value(float64=value)
    return Value(string=value)


def stored(store: Path) -> sqlite3.Connection:
    """The database of the one project in a store, opened by plain sqlite3."""
    (path,) = (store / "projects").glob("*/project.sqlite3")
    return sqlite3.connect(path)


def stored_points(store: Path, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All points of float series of a run, by path, steps in micro-steps."""
    import struct

    found: dict[str, list[tuple[int, float]]] = {}
    with stored(store) as connection:
        for path, step, bits in connection.execute(
            "SELECT path, step, bits FROM points JOIN attributes ON attribute = attributes.id"
            " JOIN runs ON run = runs.id WHERE run_id = ? ORDER BY path, step",
            (run_id,),
        ):
            found.setdefault(path, []).append((step, struct.unpack("<d", struct.pack("<q", bits))[0]))
    connection.close()
    return found


def _step(step: float) -> Step:
    micro = round(step * MICROSTEPS)
    return Step(whole=micro // MICROSTEPS, micro=micro % MICROSTEPS)
