"""Requests that no client sends: without a good token, with signed addresses that were changed, bodies of any shape."""

from __future__ import annotations

import base64
import hmac
import json
import logging
import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest
from neptune_api.proto.neptune_pb.ingest.v1.pub.ingest_pb2 import RunOperation
from starlette.routing import Route, WebSocketRoute

from neptune_assets.server.app import build_app
from neptune_assets.server.neptune2.swagger import OPERATIONS
from neptune_assets.server.tokens import Grant, Secrets, Signer, Tokens, api_token
from neptune_assets_tests.support.ingest import Ingest, assign, change, points
from neptune_assets_tests.support.neptune2 import PROJECT, Http
from neptune_assets_tests.support.neptune2 import points as points2
from neptune_assets_tests.support.server import Served, server_in_thread

PUBLIC = {
    "/health",
    "/api/backend/v1/clients/config",
    "/auth/realms/neptune/.well-known/openid-configuration",
    "/api/backend/v1/authorization/oauth-token",
    "/auth/realms/neptune/protocol/openid-connect/token",
    "/api/backend/swagger.json",
    "/api/leaderboard/swagger.json",
    "/api/artifacts/swagger.json",
}
WORDS = """
path permission size files project_identifier upload_id parts part_number etag query pagination limit offset
sorting sortBy dir name type aggregationMode attributeFilters attributeFilter attributeType projectIdentifiers
attributeNameFilter mustMatchAny mustMatchRegexes mustNotMatchRegexes nextPage nextPageToken
experimentIdsFilter attributeNamesFilter requests series holder identifier attribute lineage includePreview
perSeriesPointsLimit order stepRange from to requestId view pointFilters projectToCreate organizationId
projectKey customId parentId key gitInfo commit entries value step timestampMilliseconds values filePaths min
max unit hash filePath fileHash metadata holderType xSeries yAxis smoothing maxBuckets buckets fixedIndexRange
customYFormula xAxis
"""
OPERATIONS_2 = """
assignFloat assignInt assignBool assignString assignDatetime assignArtifact logFloats logStrings logImages
clearFloatSeries clearStringSet configFloatSeries insertStrings removeStrings deleteAttribute deleteFiles
"""
ACCESS = {"typ": "access", "exp": 2**40}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with server_in_thread(tmp_path_factory.mktemp("hostile") / "store", silence_seconds=10) as running:
        yield running


@pytest.fixture(scope="module")
def routes(served: Served) -> list[tuple[str, str]]:
    assert served.service is not None
    app = build_app(served.service)
    found = [
        (method, route.path)
        for route in app.routes
        if isinstance(route, Route)
        for method in sorted(route.methods or ())
        if method != "HEAD"
    ]
    assert len(found) > 60
    assert [route.path for route in app.routes if not isinstance(route, Route | WebSocketRoute)] == []
    return found


@pytest.fixture(scope="module")
def run(served: Served) -> str:
    """A run with something of every kind."""
    with served.client() as client:
        http = Http(client)
        client.post("/api/backend/v1/projects", json={"organizationId": "team", "name": "vision"}).raise_for_status()
        made: str = http.create(customId="two")["id"]
        logged = [
            ("m", "logFloats", points2(1.0, 2.0)),
            ("s", "logStrings", points2("a")),
            ("x", "assignInt", {"value": 1}),
        ]
        assert http.apply(made, *logged) == []
        http.call("fileAtomUpload", b"abc", experimentIdentifier=made, attribute="f", ext="txt")
        http.call("fileSetFileUpload", b"abc", experimentIdentifier=made, attribute="fs", subPath="a/b.txt")
        ingest = Ingest(client)
        ingest.create("three")
        ingest.update("three", points(1, {"m": 1.0}), assign({"x": 1, "t": "a"}), change("sys/tags", add=("a",)))
        return made


def _signed(key: bytes, *parts: str) -> str:
    digest = hmac.new(key, ".".join(parts).encode(), "sha256").digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def forged(served: Served) -> dict[str, str]:
    """What an Authorization header may hold that is not a good access token."""
    issued = httpx.get(
        f"{served.url}/api/backend/v1/authorization/oauth-token", headers={"X-Neptune-Api-Token": served.token}
    ).json()
    secrets = json.loads((served.store / "secrets.json").read_text())
    key = bytes.fromhex(secrets["token_key"])
    expired = Tokens(Secrets("k", key, key), "me", -1).exchange(api_token("k", served.url), served.url)
    foreign = Tokens(Secrets("k", b"f" * 32, b"f" * 32), "me", 60).exchange(api_token("k", served.url), served.url)
    assert expired is not None
    assert foreign is not None
    good = issued["accessToken"]
    begin, middle, end = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(middle + "=="))
    later = base64.urlsafe_b64encode(json.dumps(claims | {"exp": 2**40}).encode()).rstrip(b"=").decode()
    return {
        "nothing": "",
        "no scheme": good,
        "another scheme": f"Basic {good}",
        "empty": "Bearer",
        "garbage": "Bearer \xff.\xfe.x",
        "expired": f"Bearer {expired['accessToken']}",
        "of another server": f"Bearer {foreign['accessToken']}",
        "unsigned": f"Bearer {jwt.encode(ACCESS, '', algorithm='none')}",
        "another algorithm": f"Bearer {jwt.encode(ACCESS, key * 2, algorithm='HS512')}",
        "an empty key": f"Bearer {begin}.{middle}.{_signed(b'', begin, middle)}",
        "refresh as access": f"Bearer {issued['refreshToken']}",
        "the API token": f"Bearer {served.token}",
        "another expiry": f"Bearer {begin}.{later}.{end}",
        "half a signature": f"Bearer {begin}.{middle}.{end[:20]}",
    }


def test_no_route_answers_without_a_good_access_token(served: Served, routes: list[tuple[str, str]]) -> None:
    tried = 0
    with httpx.Client(base_url=served.url, timeout=60) as http:
        for kind, header in forged(served).items():
            headers = {"Authorization": header.encode("latin-1")} if header else {}
            for method, path in routes:
                if path in PUBLIC or path == "/storage/v1/{token}":
                    continue
                answer = http.request(method, path.format(token="x"), headers=headers, content=b"[]")
                assert answer.status_code == 401, (kind, method, path)
                tried += 1
    assert tried > 700
    assert {path for _, path in routes} >= PUBLIC


def test_tokens_outlive_a_clock_that_was_set_back(served: Served) -> None:
    key = bytes.fromhex(json.loads((served.store / "secrets.json").read_text())["token_key"])
    ahead = jwt.encode({**ACCESS, "iat": int(time.time()) + 600}, key, algorithm="HS256")
    assert served.service is not None
    assert served.service.tokens.authorized(f"Bearer {ahead}")


def test_a_signed_address_allows_one_thing_for_a_while(served: Served, run: str) -> None:
    secrets = json.loads((served.store / "secrets.json").read_text())
    key = bytes.fromhex(secrets["url_key"])
    grant = Grant(PROJECT, "team/a", "read")
    good, expired = Signer(key, 60).sign(grant), Signer(key, -10).sign(grant)
    payload, _, signature = good.partition(".")

    def changed(**fields: Any) -> str:
        found = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))) | fields
        return f"{base64.urlsafe_b64encode(json.dumps(found).encode()).rstrip(b'=').decode()}.{signature}"

    with httpx.Client(base_url=served.url) as http:
        assert http.get(f"/storage/v1/{good}").status_code == 404
        for method in ("PUT", "POST"):
            assert http.request(method, f"/storage/v1/{good}", content=b"x").status_code == 403
        wrong = [
            expired,
            changed(key="team/b"),
            changed(project="team/other"),
            changed(permission="write"),
            changed(expires=2**40),
            changed(upload="0" * 32),
            f"{payload}.{signature.upper()}",
            f"{payload}=.{signature}",
            f"{payload}.{signature[:-1]}",
            f"{payload}.",
            payload,
            f"{good}?a=1",
            Signer(b"f" * 32, 60).sign(grant),
            "%00",
            "..%2f..%2fsecrets.json",
        ]
        for token in wrong:
            assert http.get(f"/storage/v1/{token}").status_code in {400, 404}, token
            assert http.put(f"/storage/v1/{token}", content=b"x").status_code in {403, 404}, token
        writes = Signer(key, 60).sign(Grant(PROJECT, "team/a", "write"))
        assert http.get(f"/storage/v1/{writes}").status_code in {400, 403}


def test_what_was_stored_is_never_shown_as_a_page(served: Served, run: str) -> None:
    key = bytes.fromhex(json.loads((served.store / "secrets.json").read_text())["url_key"])
    page = {"Content-Type": "text/html"}
    with httpx.Client(base_url=served.url) as http:
        signed = {name: Signer(key, 60).sign(Grant(PROJECT, "page", name)) for name in ("read", "write")}
        http.put(f"/storage/v1/{signed['write']}", content=b"<script>", headers=page).raise_for_status()
        answer = http.get(f"/storage/v1/{signed['read']}")
    assert answer.content == b"<script>"
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "body",
    [{"projectToCreate": [{}]}, {"projectToCreate": {}}, {}, {"organizationId": "a"}, {"name": "b"}, {"name": {}}],
)
def test_a_project_without_a_name_is_not_made(served: Served, body: Any) -> None:
    with served.client() as http:
        assert http.post("/api/backend/v1/projects", json=body).status_code == 400


class Generator:
    """Requests of any shape: words of the protocol in wrong places, wrong types, messages with bits flipped."""

    def __init__(self, seed: int, run: str) -> None:
        self.random = random.Random(seed)
        self.words = WORDS.split()
        self.texts = [
            *["", "x", "m", "s", "f", "fs", "a" * 5_000, "\0", "\ud800", "..", "-1", "1e400", "NaN", "run", "model"],
            *[PROJECT, run, f"{PROJECT}/VISION-1", f"CUSTOM/{PROJECT}/three", "team/vision/../x", "a/b/c", "read"],
            *["write", "descending", "string", "floatSeries", "(`x`:int = 1", "x MATCHES '['", "0" * 32, "team/x/y"],
            *["modelVersion", "project", '(`x`:float > "a")', '`sys/id`:string MATCHES "("', "[]", "W10=", "{}"],
        ]
        self.operations = OPERATIONS_2.split()
        # The server signs no key that cannot be written.
        self.keys = [text for text in self.texts if text.isprintable()]

    def value(self, depth: int = 0) -> Any:
        choose = self.random.random()
        if depth > 4 or choose < 0.35:
            numbers = [0, 1, -1, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), 2**31]
            return self.random.choice([None, True, False, *numbers, *self.texts, [], {}])
        if choose < 0.6:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        return {self.random.choice(self.words): self.value(depth + 1) for _ in range(self.random.randrange(6))}

    def body(self) -> bytes:
        choose = self.random.random()
        if choose < 0.05:
            return b"[" * 100_000
        if choose < 0.1:
            return self.random.randbytes(self.random.randrange(200))
        if choose < 0.3:
            operation = {
                "path": self.random.choice(self.texts),
                self.random.choice(self.operations): {
                    self.random.choice(["value", "entries", "values", "valueMilliseconds", "hash"]): self.value(2)
                },
            }
            return json.dumps([operation]).encode()
        return json.dumps(self.value()).encode()

    def message(self) -> bytes:
        """A request of neptune-scale, whole or with some bytes changed."""
        made = RunOperation(project=PROJECT, run_id=self.random.choice(["three", "two", "", "new", "x" * 2_000]))
        kind = self.random.randrange(3)
        if kind == 0:
            made.create.run_id = self.random.choice(self.texts[:4])
            made.create.fork_point.parent_run_id = "three"
            made.create.fork_point.step.whole = self.random.choice([0, 2**62, 5])
            made.create.fork_point.step.micro = self.random.choice([0, 2**31, 5])
            made.create.creation_time.seconds = self.random.choice([0, -(2**62), 2**62, 2**40])
            made.create.experiment_id = self.random.choice(["", "e", "x" * 5_000])
        else:
            step = self.random.choice([None, 0, 1.5, 3, 1e11])
            snapshots = [
                points(step, {self.random.choice(["m", "s", "x", ""]): self.random.choice([1.0, "a", 2, True])}),
                assign({self.random.choice(["x", "t", "sys/id", "sys/name", "sys/trashed", "m"]): 1}),
                change(self.random.choice(["sys/tags", "m", ""]), add=("a",)),
            ]
            for snapshot in snapshots:
                snapshot.timestamp.seconds = self.random.choice([0, -(2**62), 2**62, 2**40])
                snapshot.step.whole = self.random.choice([0, 2**63, 10**12, 7])
                snapshot.step.micro = self.random.choice([0, 2**31, 999_999])
            made.update_batch.snapshots.extend(snapshots)
        content = bytearray(made.SerializeToString())
        for _ in range(self.random.choice([0, 0, 1, 3])):
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        return bytes(content)

    def query(self, path: str) -> dict[str, str]:
        asked = {item for operation in OPERATIONS if operation.path == path for item in _parameters(operation)}
        names = sorted({*asked, "experimentId", "experimentIdentifier", "attribute", "projectIdentifier"})
        return {
            name: "".join(letter for letter in str(self.value(9)) if not "\ud800" <= letter < "\ue000")
            for name in names
            if self.random.random() < 0.8
        }

    def headers(self) -> dict[str, str]:
        kinds = ["application/json", "application/x-protobuf", "text/html", "multipart/form-data; boundary=x"]
        found = {"Content-Type": self.random.choice(kinds)}
        if self.random.random() < 0.5:
            found["X-Range"] = self.random.choice(["bytes=0-2/3", "bytes=5-1/3", "x", "bytes=0-9" * 9, "bytes=0-0/0"])
            found["Content-Range"] = self.random.choice(["bytes 0-2/3", "bytes */3", "bytes 9-1/3", "x"])
        return found


def _parameters(operation: Any) -> list[str]:
    return [item.partition(":")[0] for item in operation.parameters.split()]


@pytest.mark.parametrize("seed", [1])
def test_bodies_of_the_wrong_shape_end_in_one_line(
    served: Served, routes: list[tuple[str, str]], run: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    fuzz(served, routes, run, seed, 12, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_bodies_of_the_wrong_shape_end_in_one_line_however_many(
    served: Served, routes: list[tuple[str, str]], run: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    fuzz(served, routes, run, seed, 100, caplog)


def fuzz(
    served: Served, routes: list[tuple[str, str]], run: str, seed: int, each: int, caplog: pytest.LogCaptureFixture
) -> None:
    generator = Generator(seed, run)
    secrets = json.loads((served.store / "secrets.json").read_text())
    signer = Signer(bytes.fromhex(secrets["url_key"]), 3600)
    seen: dict[int, int] = {}
    failures: dict[str, str] = {}
    with caplog.at_level(logging.WARNING), served.client() as http:
        for method, path in routes:
            for _ in range(each if path != "/api/client/v1/ingest" else 10 * each):
                grant = Grant(
                    PROJECT, generator.random.choice(generator.keys), generator.random.choice(["read", "write"])
                )
                address = path.format(token=signer.sign(grant))
                body = generator.message() if "ingest" in path else generator.body()
                if path.endswith("/projects") and method == "DELETE":
                    continue
                query = {} if "{token}" in path else generator.query(path)
                answer = http.request(method, address, params=query, content=body, headers=generator.headers())
                seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
                if answer.status_code >= 500 or "Traceback" in answer.text or str(served.store) in answer.text:
                    failures.setdefault(
                        f"{method} {path} {answer.status_code}", f"{query} {body[:300]!r} {answer.text[:300]}"
                    )
    traced = [record.getMessage() + f": {record.exc_info[1]!r}" for record in caplog.records if record.exc_info]
    assert not failures, "\n".join(f"{where}: {what}" for where, what in failures.items())
    assert not traced, "\n".join(sorted(set(traced)))
    assert len(seen) > 2


def test_a_request_deep_in_json_is_refused(served: Served) -> None:
    with served.client() as http:
        for opening in (b"[", b'{"a":'):
            answer = http.post("/api/backend/v1/projects", content=opening * 200_000)
            assert (answer.status_code, answer.json()["code"]) == (400, 400)
