"""A server of the 2.x protocol in memory, for answers that no real server can be made to give.

What a run holds is given as the protocol has it, so that a test can say things a server of ours never would: attributes
of unknown types, counts that lie, pages that are cut short, runs that vanish. The descriptions of the calls are those
of the real server. The client is the real one.
"""

from __future__ import annotations

import base64
import io
import json
import re
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import jwt

from neptune_assets.server.neptune2.swagger import document
from neptune_assets_tests.support.http_listening import listening

PROJECT = "ws/project"


def attribute(name: str, kind: str, /, **properties: Any) -> dict[str, Any]:
    """An attribute as the server describes it."""
    return {
        "name": name,
        "type": kind,
        f"{kind}Properties": {"attributeName": name, "attributeType": kind, **properties},
    }


def token_for(url: str) -> str:
    """An API token for the server at an address."""
    return base64.b64encode(json.dumps({"api_address": url, "api_key": "secret"}).encode()).decode()


@dataclass
class Container:
    """A run, model or model version: what is said of it, and its points and files by path."""

    run_id: str
    kind: str = "run"
    attributes: list[dict[str, Any]] = field(default_factory=list)
    points: dict[str, list[tuple[float, int, Any]]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    sets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    images: dict[str, list[bytes]] = field(default_factory=dict)
    created: str = "2025-03-01T12:00:00.000Z"
    modified: str = "2025-03-01T13:00:00.000Z"
    trashed: bool = False
    gone: bool = False
    """True once the run is deleted although the table listed it."""

    def described(self) -> list[dict[str, Any]]:
        """All its attributes."""
        return [
            attribute("sys/id", "string", value=self.run_id),
            attribute("sys/creation_time", "datetime", value=self.created),
            attribute("sys/modification_time", "datetime", value=self.modified),
            attribute("sys/trashed", "bool", value=self.trashed),
            *self.attributes,
        ]

    def value(self, name: str) -> Any:
        """What a table says in one column."""
        return {"sys/id": self.run_id, "sys/creation_time": self.created, "sys/trashed": self.trashed}[name]

    def floats(self, path: str, *points: tuple[float, int, float]) -> None:
        """Add a float series: steps, epoch milliseconds, values."""
        self.attributes.append(attribute(path, "floatSeries", last=points[-1][2] if points else None))
        self.points[path] = list(points)

    def strings(self, path: str, *points: tuple[float, int, str]) -> None:
        """Add a string series."""
        self.attributes.append(attribute(path, "stringSeries", last=points[-1][2] if points else None))
        self.points[path] = list(points)

    def file(self, path: str, data: bytes, extension: str) -> None:
        """Add a file."""
        self.attributes.append(attribute(path, "file", name=path, ext=extension, size=len(data)))
        self.files[path] = data


class BrokenError(Exception):
    """The server fails."""


@dataclass
class Stub:
    """The server: what it holds, and how it behaves."""

    containers: list[Container] = field(default_factory=list)
    artifacts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    projects: list[str] = field(default_factory=lambda: [PROJECT])
    projects_per_page: int | None = None
    count: int | None = None
    """What the table says it counts; None to tell the truth."""
    page: int = 10_000
    """Most points and lines it gives at once, whatever is asked for."""
    refused: int | None = None
    """Refuses to give more points than this at once."""
    image_points: bool = False
    """True to tell steps and times of images."""
    has_artifacts: bool = True
    lost: set[str] = field(default_factory=set)
    """Ids of runs that the table leaves out unless it is asked by time of creation."""
    token_seconds: float = 3600
    short: int = 0
    """So many downloads of files come short, although the answer is well formed."""
    broken: set[str] = field(default_factory=set)
    """Names of attributes: what would tell one of them of a run is HTTP 500."""
    endless: bool = False
    """True to send files, images and archives over and over again without an end."""
    unlisted: set[str] = field(default_factory=set)
    """Names of attributes that the list of columns leaves out."""
    no_single: bool = False
    """True to give attributes in tables only."""
    no_search: bool = False
    """True to fail to list columns."""
    version: int = 2
    """Of every project; 1 are those that were never moved to 2.x."""
    requests: list[tuple[str, Mapping[str, list[str]], Any]] = field(default_factory=list)
    prepared: int = 0
    url: str = ""

    @property
    def token(self) -> str:
        """An API token for this server."""
        return token_for(self.url)

    def asked(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(item[0].endswith(path) for item in self.requests)

    def answer(self, path: str, query: Mapping[str, list[str]], body: Any, url: str) -> Any:
        """The answer to one request: JSON, or bytes; None if there is no such thing. ``url`` is what was called."""
        one = {name: values[0] for name, values in query.items()}
        if path.endswith("/swagger.json"):
            return document(path.split("/")[2])
        name = path.split("/v1/", 1)[-1]
        if name == "clients/config":
            return {
                "apiUrl": url,
                "applicationUrl": url,
                "pyLibVersions": {},
                "artifacts": {"enabled": self.has_artifacts, "apiVersion": 2},
            }
        if name == "authorization/oauth-token":
            return {"accessToken": self._access_token(url), "refreshToken": "refresh", "username": "somebody"}
        if path.endswith("/openid-connect/token"):
            return {
                "access_token": self._access_token(url),
                "refresh_token": "refresh",
                "token_type": "bearer",
                "expires_in": self.token_seconds,
            }
        if name == "projects/get":
            known = {project: f"key of {project}" for project in self.projects}
            key = known.get(one["projectIdentifier"])
            workspace, _, short = one["projectIdentifier"].partition("/")
            return key and {
                "id": key,
                "name": short,
                "organizationName": workspace,
                "projectKey": "P",
                "version": self.version,
            }
        if name == "projects":
            return self._list_projects(one)
        if name == "leaderboard/entries/search":
            return self._table(query, body)
        if name == "leaderboard/attributes/search":
            self._fail_for((), fail=self.no_search)
            described = {(each["name"], each["type"]) for item in self.containers for each in item.described()}
            return {"entries": [{"name": n, "type": t} for n, t in sorted(described) if n not in self.unlisted]}
        if name == "artifact/files":
            files = self.artifacts.get(one["hash"])
            return files and {"files": files}
        if name == "attributes/downloadFileSetZipRequest":
            return {"id": f"{one['experimentId']}|{one['attribute']}", "downloadUrl": None}
        if name == "download/downloadRequest":
            self.prepared += 1
            place = f"{url}/api/leaderboard/v1/zip?id={quote(one['id'])}"
            return {"id": one["id"], "downloadUrl": place if self.prepared % 2 == 0 else None}
        if name == "zip":
            key, _, attribute_path = one["id"].partition("|")
            return _zipped(self._by_key(key).sets[attribute_path])
        container = self._by_key(one.get("experimentId", ""))
        return None if container is None or container.gone else self._of(container, name, one)

    def _of(self, container: Container, name: str, one: Mapping[str, str]) -> Any:
        if name == "attributes":
            self._fail_for(container.described(), fail=self.no_single)
            return {"attributes": container.described()}
        path = one.get("attribute", "")
        if name in {"attributes/series/float", "attributes/series/string"}:
            points = container.points.get(path)
            if points is None:
                return None
            offset, limit = int(one["offset"]), min(int(one["limit"]), self.page)
            return {
                "totalItemCount": len(points),
                "values": [
                    {"step": step, "timestampMillis": when, "value": value}
                    for step, when, value in points[offset : offset + limit]
                ],
            }
        if name == "attributes/series/image":
            images = container.images.get(path)
            if images is None:
                return None
            told = [
                {"step": place + 0.5, "timestampMillis": 1_740_000_000_000 + place}
                for place in range(int(one["offset"]), min(len(images), int(one["offset"]) + int(one["limit"])))
            ]
            return {"totalItemCount": len(images), **({"values": told} if self.image_points else {})}
        if name == "attributes/series/image/single":
            return container.images[path][int(one["index"])]
        if name == "attributes/download":
            data = container.files.get(path)
            if data is not None and self.short:
                self.short -= 1
                return data[: len(data) // 2]
            return data
        return None

    def _table(self, query: Mapping[str, list[str]], body: Any) -> Any:
        text = body["query"]["query"]
        kinds = query.get("type", [])
        found = [item for item in self.containers if item.kind in kinds and _matches(item, text)]
        if "sys/creation_time" not in text:
            found = [item for item in found if item.run_id not in self.lost]
            count = len(found) + len(self.lost)
        else:
            count = len(found)
        found.sort(key=lambda item: item.run_id)
        offset, limit = body["pagination"]["offset"], min(body["pagination"]["limit"], self.page)
        assert offset + limit <= 10_000, "no server pages further"
        columns = {item["path"] for item in body.get("attributeFilters") or ()}
        if not columns:
            found = [item for item in found if not item.gone]
        entries = [
            {
                "experimentId": _key(item),
                "type": item.kind,
                "attributes": [each for each in item.described() if not columns or each["name"] in columns],
            }
            for item in found[offset : offset + limit]
        ]
        for entry in entries:
            self._fail_for(entry["attributes"])
        return {"matchingItemCount": count if self.count is None else self.count, "entries": entries}

    def _list_projects(self, one: Mapping[str, str]) -> Any:
        names = [name for name in self.projects if name.startswith(one.get("organizationIdentifier", ""))]
        start = int(one.get("offset", 0))
        size = self.projects_per_page or len(names)
        entries = [
            {"name": name.partition("/")[2], "organizationName": name.partition("/")[0]}
            for name in names[start : start + size]
        ]
        return {"entries": entries, "matchingItemCount": len(names), "totalItemCount": len(names)}

    def _fail_for(self, attributes: Iterable[Mapping[str, Any]], *, fail: bool = False) -> None:
        if fail or any(each["name"] in self.broken for each in attributes):
            raise BrokenError

    def _by_key(self, key: str) -> Any:
        return next((item for item in self.containers if _key(item) == key), None)

    def _access_token(self, url: str) -> str:
        claims = {"exp": int(time.time() + self.token_seconds), "azp": "cli", "iss": f"{url}/auth"}
        return jwt.encode(claims, "k" * 32, algorithm="HS256")

    @contextmanager
    def running(self) -> Iterator[Stub]:
        """Listen until the block ends."""
        with listening(_handler(self)) as self.url:
            yield self


def _key(container: Container) -> str:
    return f"key of {container.run_id}"


def _matches(container: Container, query: str) -> bool:
    """Understand the queries that listing makes: conditions joined by AND, and ids joined by OR."""
    ids = re.findall(r'`sys/id`:string = "([^"]*)"', query)
    if ids and container.run_id not in ids:
        return False
    query = re.sub(r'`sys/id`:string = "[^"]*"', "", query)
    for name, operator, value in re.findall(r'`([^`]+)`:\w+ (=|>=|<|>) ("[^"]*"|\w+)', query):
        have, wanted = container.value(name), json.loads(value)
        if name == "sys/creation_time":
            have, wanted = (datetime.fromisoformat(item).astimezone(UTC) for item in (have, wanted))
        if not {"=": have == wanted, ">": have > wanted, ">=": have >= wanted, "<": have < wanted}[operator]:
            return False
    return True


def _zipped(members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            archive.writestr(name, data)
    return buffer.getvalue()


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(raw) if raw[:1] in (b"{", b"[") else raw
            query = parse_qs(parts.query)
            stub.requests.append((parts.path, query, body))
            try:
                answer = stub.answer(parts.path, query, body, f"http://{self.headers['Host']}")
            except BrokenError:
                self._send(500, b"{}", "application/json")
                return
            limit = int(query.get("limit", ["0"])[0])
            if "/series/" in parts.path and stub.refused is not None and limit > stub.refused:
                self._send(400, b'{"title": "The limit is too high"}', "application/json")
            elif answer is None:
                self._send(404, b'{"errorType": "NOT_FOUND"}', "application/json")
            elif isinstance(answer, bytes) and stub.endless:
                self._send_for_ever(answer)
            elif isinstance(answer, bytes):
                self._send(200, answer, "application/octet-stream")
            else:
                self._send(200, json.dumps(dict(answer)).encode(), "application/json")

        def _send(self, status: int, data: bytes, kind: str) -> None:
            self.send_response_only(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _send_for_ever(self, data: bytes) -> None:
            self.close_connection = True
            self.send_response_only(200)
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(data)

        do_GET = do_POST = handle_any  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    return Handler
