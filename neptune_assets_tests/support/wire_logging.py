"""Logs to a server in neptune-scale's protocol without starting its processes, and sends what it recorded offline.

What is sent is Neptune's own messages (package neptune-api); recordings are sent byte for byte, in the order recorded.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import Run, UpdateRunSnapshot
from neptune_api.proto.neptune_pb.ingest.v1.pub.ingest_pb2 import RunOperation

from neptune_assets_tests.support.server import Served

BASE_MS = 1_740_830_400_123
Points = Sequence[tuple[float, float]]


class WireLogger:
    """Sends operations of one project's runs; every call is answered when the server has them."""

    def __init__(self, served: Served, project: str) -> None:
        self.project = project
        self.client: httpx.Client = served.client()

    def create(self, run_id: str, *, parent: str | None = None, fork_step: float | None = None, **fields: Any) -> None:
        run = Run(family=run_id, **fields)
        run.creation_time.FromMilliseconds(BASE_MS)
        if parent is not None:
            run.fork_point.parent_project = self.project
            run.fork_point.parent_run_id = parent
            micros = round((fork_step or 0.0) * 10**6)
            run.fork_point.step.whole, run.fork_point.step.micro = divmod(micros, 10**6)
        self._send(RunOperation(project=self.project, run_id=run_id, create=run))

    def configs(self, run_id: str, values: Mapping[str, Any]) -> None:
        snapshot = self._snapshot()
        for path, value in values.items():
            kinds = {bool: "bool", int: "int64", float: "float64", str: "string"}
            setattr(snapshot.assign[path], kinds[type(value)], value)
        self.send(run_id, [snapshot])

    def metrics(
        self, run_id: str, series: Mapping[str, Points], *, preview: float | None = None, batch: int = 2_000
    ) -> None:
        """Log points (step, value) of float series; the time of a point is its place after :data:`BASE_MS`."""
        by_step: dict[float, UpdateRunSnapshot] = {}
        for path, points in series.items():
            for step, value in points:
                snapshot = by_step.get(step) or by_step.setdefault(step, self._snapshot(step, len(by_step)))
                snapshot.append[path].float64 = value
                if preview is not None:
                    snapshot.preview.is_preview = True
                    snapshot.preview.completion_ratio = preview
        ordered = [by_step[step] for step in sorted(by_step)]
        for start in range(0, len(ordered), batch):
            self.send(run_id, ordered[start : start + batch])

    def strings(self, run_id: str, series: Mapping[str, Sequence[tuple[float, str]]]) -> None:
        for path, points in series.items():
            snapshots = []
            for number, (step, value) in enumerate(points):
                snapshot = self._snapshot(step, number)
                snapshot.append[path].string = value
                snapshots.append(snapshot)
            self.send(run_id, snapshots)

    def file(
        self, run_id: str, path: str, key: str, content: bytes | None, mime_type: str = "", size: int = -1
    ) -> None:
        """Assign a file and upload it; without content only assign it, as of ``size`` bytes."""
        snapshot = self._snapshot()
        reference = snapshot.assign[path].file_ref
        reference.path, reference.mime_type = key, mime_type
        reference.size_bytes = size if content is None else len(content)
        self.send(run_id, [snapshot])
        if content is not None:
            self.upload(key, content, mime_type)

    def upload(self, key: str, content: bytes, mime_type: str) -> None:
        asked = {"path": key, "permission": "write", "project_identifier": self.project, "size": len(content)}
        answer = self.client.post("/api/storagebridge/v1/signedUrl", json={"files": [asked]}).raise_for_status()
        (signed,) = answer.json()["files"]
        parts = (signed.get("multipart") or {}).get("part_urls")
        assert not parts, "small files come in one part"
        headers = {"Content-Type": mime_type or "application/octet-stream"}
        httpx.put(signed["url"], content=content, headers=headers, timeout=60).raise_for_status()

    def send(self, run_id: str, snapshots: Iterable[UpdateRunSnapshot]) -> None:
        operation = RunOperation(project=self.project, run_id=run_id)
        operation.update_batch.snapshots.extend(snapshots)
        self._send(operation)

    def replay(self, folder: Path) -> None:
        """Send every recording below a folder: all operations in the order of the clock, as they would have come."""
        operations: list[tuple[int, str, int, int, bytes]] = []
        uploads: list[tuple[str, Path, str]] = []
        for database in sorted(folder.rglob("run_operations.sqlite3")):
            connection = sqlite3.connect(database)
            try:
                ((project, run_id),) = connection.execute("SELECT project, run_id FROM metadata")
                assert project == self.project
                query = "SELECT timestamp, sequence_id, operation_type, operation FROM run_operations"
                operations += [
                    (time, run_id, number, kind, blob) for time, number, kind, blob in connection.execute(query)
                ]
                query = "SELECT destination, source_path, mime_type FROM file_upload_requests ORDER BY id"
                for key, source, mime_type in connection.execute(query):
                    # The client's own copies lie beside the database, wherever it was recorded.
                    path = Path(source) if Path(source).exists() else database.parent / Path(source).name
                    uploads.append((key, path, mime_type))
            finally:
                connection.close()
        updates: list[UpdateRunSnapshot] = []
        last = ""
        for _, run_id, _, kind, blob in sorted(operations, key=lambda item: (item[0], item[1], item[2])):
            if updates and (kind == 1 or run_id != last or len(updates) >= 500):
                self.send(last, updates)
                updates = []
            if kind == 1:
                self._send(RunOperation(project=self.project, run_id=run_id, create=Run.FromString(blob)))
            else:
                updates.append(UpdateRunSnapshot.FromString(blob))
            last = run_id
        if updates:
            self.send(last, updates)
        for key, path, mime_type in uploads:
            self.upload(key, path.read_bytes(), mime_type)

    def _send(self, operation: RunOperation) -> None:
        headers = {"Content-Type": "application/x-protobuf"}
        self.client.post(
            "/api/client/v1/ingest", content=operation.SerializeToString(), headers=headers
        ).raise_for_status()

    @staticmethod
    def _snapshot(step: float | None = None, number: int = 0) -> UpdateRunSnapshot:
        snapshot = UpdateRunSnapshot()
        snapshot.timestamp.FromMilliseconds(BASE_MS + number)
        if step is not None:
            snapshot.step.whole, snapshot.step.micro = divmod(round(step * 10**6), 10**6)
        return snapshot
