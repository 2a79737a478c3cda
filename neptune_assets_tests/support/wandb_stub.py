"""A local HTTP server that answers the calls of W&B's own client: GraphQL, file_stream, and uploads by PUT.

Real client, local stub: what the client sends is kept as it came, so that tests can compare it with what was logged.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

from neptune_assets_tests.support.wandb_collections import Collections, StubArtifact


@dataclass
class StubRun:
    entity: str
    project: str
    name: str
    upserts: list[dict[str, Any]] = field(default_factory=list)
    history: dict[int, str] = field(default_factory=dict)
    """Line number -> line, as the server keeps them: a line sent again for the same number replaces the old one."""
    artifacts: dict[str, StubArtifact] = field(default_factory=dict)
    """By collection and digest, as the server tells versions apart."""
    events: dict[int, str] = field(default_factory=dict)
    """The same of system metrics."""
    summary: str = "{}"
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    history_requests: int = 0

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.history.items())]

    def system(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.events.items())]

    def config(self) -> dict[str, Any]:
        last = [upsert["config"] for upsert in self.upserts if upsert.get("config")][-1]
        return {key: value["value"] for key, value in json.loads(last).items()}


class WandbStub:
    """``with WandbStub() as stub:`` ``stub.url`` is the base URL; ``stub.runs`` what arrived."""

    def __init__(self, key: str = "0" * 40) -> None:
        self.key = key
        self.runs: dict[str, StubRun] = {}
        self.collections = Collections()
        self.unknown: list[str] = []
        self.fail_history = False
        self.faults: dict[str, list[int | str]] = {"graphql": [], "stream": [], "put": []}
        """What the next requests of a kind meet instead of an answer: a status, or "drop", "lose", "cut", "hang".

        "drop" closes the connection at once, "lose" after the request took effect, "cut" amid the answer.
        """
        self.hang_seconds = 3.0
        self.on_stream: Callable[[], None] | None = None
        self.refuse_upsert: str | None = None
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            losing: str | int | None = None

            def log_message(self, *args: Any) -> None:
                pass

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    data = b""
                    while size := int(self.rfile.readline(), 16):
                        data += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    data = gzip.decompress(data)
                return data

            def _fault(self, kind: str) -> bool:
                """Meet the next fault of a kind; True if the request is done with."""
                with stub.lock:
                    fault = stub.faults[kind].pop(0) if stub.faults[kind] else None
                self.losing = fault if fault in {"lose", "cut"} else None
                if isinstance(fault, int):
                    self._answer({"error": "a fault"}, fault)
                elif fault == "hang":
                    time.sleep(stub.hang_seconds)
                    self.close_connection = True
                elif fault == "drop":
                    self.close_connection = True
                return fault is not None and self.losing is None

            def _answer(self, value: Any, status: int = 200) -> None:
                data = json.dumps(value).encode()
                if self.losing:
                    self.close_connection = True
                    if self.losing == "cut":
                        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n"
                        self.wfile.write(head.encode() + data[:1])
                    return
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                body = self._body()
                token = base64.b64encode(f"api:{stub.key}".encode()).decode()
                if self.headers.get("Authorization") != f"Basic {token}":
                    self._answer({"errors": [{"message": "permission denied"}]}, 401)
                elif self.path == "/graphql":
                    if self._fault("graphql"):
                        return
                    request = json.loads(body)
                    with stub.lock:
                        self._answer(stub.graphql(request["query"], request.get("variables") or {}))
                elif match := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", self.path):
                    if stub.on_stream is not None:
                        stub.on_stream()
                    if self._fault("stream"):
                        return
                    with stub.lock:
                        if stub.fail_history:
                            self._answer({"error": "no"}, 400)
                        else:
                            stub.stream(unquote(match[3]), json.loads(body))
                            self._answer({"limits": {}})
                else:
                    stub.unknown.append(self.path)
                    self._answer({}, 404)

            def do_PUT(self) -> None:
                body = self._body()
                match = re.fullmatch(r"/(put|artifact)/([^/]+)/(.+)", self.path)
                assert match
                if self._fault("put"):
                    return
                if match[1] == "artifact":
                    with stub.lock:
                        stub.artifact(unquote(match[2])).files[unquote(match[3])] = body
                    self._answer({})
                    return
                with stub.lock:
                    stub.runs[match[2]].files[unquote(match[3])] = body
                self._answer({})

            def do_GET(self) -> None:
                stub.unknown.append(f"GET {self.path}")
                self._answer({}, 404)

        self.lock = threading.Lock()

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exc_info()[1], ConnectionError):
                    super().handle_error(request, client_address)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> WandbStub:
        self._thread.start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = match[1] if match else ""
        if operation == "Viewer":
            return {"data": {"viewer": {"id": "u", "entity": "stub", "flags": "{}", "teams": {"edges": []}}}}
        if operation == "UpsertBucket":
            if self.refuse_upsert is not None:
                return {"errors": [{"message": self.refuse_upsert}]}
            entity, project = variables.get("entity") or "stub", variables.get("project") or "uncategorized"
            run = self.runs.setdefault(variables["name"], StubRun(entity, project, variables["name"]))
            fresh = not run.upserts
            run.upserts.append(variables)
            bucket = {
                "id": f"id-{run.name}",
                "name": run.name,
                "displayName": variables.get("displayName") or run.name,
                "description": None,
                "config": variables.get("config"),
                "sweepName": None,
                "project": {"id": "p", "name": run.project, "entity": {"id": "e", "name": run.entity}},
                "historyLineCount": len(run.history),
            }
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": fresh}}}
        if operation == "RunResumeStatus":
            return {"data": {"model": None}}
        if operation == "CreateRunFiles":
            name = variables["run"]
            files = [
                {"name": file, "uploadUrl": f"{self.url}/put/{name}/{file}"} for file in variables.get("files") or []
            ]
            return {
                "data": {
                    "createRunFiles": {
                        "runID": f"id-{name}",
                        "uploadHeaders": [],
                        "files": files,
                    }
                }
            }
        if operation == "NeptuneAssetsRun":
            run = self.runs.get(variables["run"])
            if run is None or run.project != variables["project"]:
                return {"data": {"project": {"run": None}}}
            facts = {
                "id": run.name,
                "historyLineCount": len(run.history),
                "eventsLineCount": len(run.events),
                "summaryMetrics": run.summary,
            }
            return {"data": {"project": {"run": facts}}}
        if operation == "NeptuneAssetsArtifacts":
            nodes = [
                {"digest": made.digest, "state": made.state, "artifactSequence": {"name": made.name}}
                for made in self.runs[variables["run"]].artifacts.values()
                if made.state != "DELETED"
            ]
            page = {"edges": [{"node": node} for node in nodes], "pageInfo": {"endCursor": None, "hasNextPage": False}}
            return {"data": {"project": {"run": {"outputArtifacts": page}}}}
        if operation in self.collections.operations:
            return {"data": self.collections.operations[operation](variables)}
        if operation in {"CreateArtifact", "CreateArtifactManifest", "CreateArtifactFiles", "CommitArtifact"}:
            return {"data": self.of_artifacts(operation, variables)}
        self.unknown.append(operation)
        return {"errors": [{"message": f"the stub does not know {operation}"}]}

    def artifact(self, number: str) -> StubArtifact:
        run, _, rest = number.partition("|")
        return self.runs[run].artifacts.get(rest) or self.collections.of(number)

    def of_artifacts(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        given = variables.get("input") or variables
        if operation == "CreateArtifact":
            run, key = self.runs[given["runName"]], f"{given['artifactCollectionName']}|{given['digest']}"
            if key in run.artifacts and run.artifacts[key].state == "DELETED":
                del run.artifacts[key]
            made = run.artifacts.setdefault(
                key,
                StubArtifact(
                    given["artifactCollectionName"],
                    given["artifactTypeName"],
                    given["digest"],
                    metadata=given.get("metadata") or "",
                    number=f"{run.name}|{key}",
                    creator=run.name,
                    description=given.get("description") or "",
                    tags=[item["tagName"] for item in given.get("tags") or []],
                ),
            )
            place = (given["entityName"], given["projectName"], given["artifactCollectionName"])
            made = self.collections.created(place, made, [item["alias"] for item in given.get("aliases") or []])
            answer = {"id": made.number, "state": made.state, "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": answer}}
        if operation == "CreateArtifactFiles":
            edges = [
                {
                    "node": {
                        "storagePath": "x",
                        "uploadUrl": f"{self.url}/artifact/{quote(spec['artifactID'], safe='')}/{quote(spec['name'])}",
                        "uploadHeaders": [],
                        "uploadMultipartUrls": None,
                        "artifact": {"id": spec["artifactID"]},
                    }
                }
                for spec in given["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        number = given["artifactID"]
        if operation == "CommitArtifact":
            made = self.artifact(number)
            made.state, made.commits = "COMMITTED", made.commits + 1
            return {"commitArtifact": {"artifact": {"id": number, "digest": made.digest}}}
        url = f"{self.url}/artifact/{quote(number, safe='')}/wandb_manifest.json"
        file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"m-{number}", "file": file}}}

    def stream(self, name: str, body: dict[str, Any]) -> None:
        run = self.runs[name]
        for file, chunk in (body.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                run.history_requests += 1
                for number, line in enumerate(chunk["content"]):
                    run.history[chunk["offset"] + number] = line
            elif file == "wandb-events.jsonl":
                for number, line in enumerate(chunk["content"]):
                    run.events[chunk["offset"] + number] = line
            elif file == "wandb-summary.json":
                run.summary = chunk["content"][-1]
        if body.get("complete"):
            run.exit_code = body.get("exitcode")
