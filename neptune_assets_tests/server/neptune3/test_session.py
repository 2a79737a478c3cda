from __future__ import annotations

import base64
import json
import time

import httpx
import jwt
import pytest

from neptune_assets.server.tokens import Secrets, Tokens, api_token
from neptune_assets_tests.support.server import Served

KEY = b"k" * 32


def get_token(url: str, token: str) -> httpx.Response:
    return httpx.get(f"{url}/api/backend/v1/authorization/oauth-token", headers={"X-Neptune-Api-Token": token})


def test_a_client_finds_its_way_from_the_token_to_a_session(served: Served) -> None:
    config = httpx.get(f"{served.url}/api/backend/v1/clients/config").json()
    assert config["apiUrl"] == served.url
    discovery = httpx.get(config["security"]["openIdDiscovery"]).json()
    issued = get_token(served.url, served.token).raise_for_status().json()
    claims = jwt.decode(issued["accessToken"], options={"verify_signature": False})
    assert claims["azp"] == config["security"]["clientId"]
    assert f"{claims['iss']}/protocol/openid-connect/token" == discovery["token_endpoint"]
    form = {
        "grant_type": "refresh_token",
        "refresh_token": issued["refreshToken"],
        "client_id": claims["azp"],
        "expires_in": "3.5",
    }
    renewed = httpx.post(discovery["token_endpoint"], data=form).raise_for_status().json()
    headers = {"Authorization": f"Bearer {renewed['access_token']}"}
    assert httpx.get(f"{served.url}/api/backend/v1/projects", headers=headers).json()["entries"] == []
    assert httpx.post(discovery["token_endpoint"], data=form | {"refresh_token": "x"}).status_code == 400
    wrong_kind = form | {"refresh_token": issued["accessToken"]}
    assert httpx.post(discovery["token_endpoint"], data=wrong_kind).status_code == 400


def test_tokens_that_are_not_ours(served: Served) -> None:
    fields = json.loads(base64.b64decode(served.token))
    other = base64.b64encode(json.dumps(fields | {"api_key": "x" * 64}).encode()).decode()
    for token in (
        other,
        "",
        "ANONYMOUS",
        "not base64!",
        base64.b64encode(b"[]").decode(),
        base64.b64encode(b"\xff").decode(),
    ):
        assert get_token(served.url, token).status_code == 401


@pytest.mark.parametrize("path", ["/api/backend/v1/projects", "/api/backend/v1/projects/get", "/api/client/v1/ingest"])
def test_nothing_without_an_access_token(served: Served, path: str) -> None:
    issued = get_token(served.url, served.token).json()
    forged = jwt.encode({"typ": "access", "exp": 2**40}, KEY)
    unsigned = jwt.encode({"typ": "access", "exp": 2**40}, "", algorithm="none")
    for header in (
        None,
        "",
        "Bearer",
        "Bearer x",
        f"Basic {issued['accessToken']}",
        f"Bearer {issued['refreshToken']}",
    ):
        headers = {} if header is None else {"Authorization": header}
        method = "POST" if path.endswith("ingest") else "GET"
        assert httpx.request(method, served.url + path, headers=headers).status_code == 401
    for token in (forged, unsigned):
        method = "POST" if path.endswith("ingest") else "GET"
        assert httpx.request(method, served.url + path, headers={"Authorization": f"Bearer {token}"}).status_code == 401


def test_access_tokens_expire() -> None:
    expired = Tokens(Secrets("key", KEY, KEY), "me", -1).exchange(api_token("key", "http://x"), "http://x")
    assert expired is not None
    assert not Tokens(Secrets("key", KEY, KEY), "me", 60).authorized(f"Bearer {expired['accessToken']}")
    fresh = Tokens(Secrets("key", KEY, KEY), "me", 60).exchange(api_token("key", "http://x"), "http://x")
    assert fresh is not None
    assert Tokens(Secrets("key", KEY, KEY), "me", 60).authorized(f"Bearer {fresh['accessToken']}")


def test_projects_are_made_and_listed(http: httpx.Client) -> None:
    def create(name: str, **fields: str) -> httpx.Response:
        return http.post("/api/backend/v1/projects", json={"organizationIdentifier": "team", "name": name, **fields})

    assert create("vision", projectKey="VIS").json()["projectKey"] == "VIS"
    assert create("vision").status_code == 409
    assert create("a/b").status_code == 400
    assert create("..").status_code == 400
    create("audio").raise_for_status()
    listed = http.get("/api/backend/v1/projects", params={"userRelation": "viewerOrHigher", "sortBy": "lastViewed"})
    assert [(entry["organizationName"], entry["name"]) for entry in listed.json()["entries"]] == [
        ("team", "audio"),
        ("team", "vision"),
    ]
    found = http.get("/api/backend/v1/projects/get", params={"projectIdentifier": "team/vision"}).json()
    assert http.get("/api/backend/v1/projects/get", params={"projectIdentifier": found["id"]}).json() == found


def test_the_access_log_tells_no_secret(served: Served, http: httpx.Client) -> None:
    http.get("/api/backend/v1/projects/get", params={"projectIdentifier": "hidden/name"})
    httpx.get(f"{served.url}/storage/v1/signed.token")
    httpx.get(f"{served.url}/no/such/path?secret=1")
    log, deadline = served.store.parent / f"{served.store.name}.log", time.monotonic() + 60
    # A line follows its answer.
    while "(none)" not in (text := log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    lines = [json.loads(line) for line in text.splitlines()]
    assert {"/storage/v1/{token}", "/api/backend/v1/projects/get", "(none)"} <= {line["route"] for line in lines}
    assert {line["status"] for line in lines if line["route"] == "(none)"} == {404}
    for secret in ("hidden", "signed.token", "secret", "Bearer", served.token):
        assert secret not in text
