from __future__ import annotations

import base64
import json
import math
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from neptune_assets.server.tokens import Grant, Signer
from neptune_assets_tests.support.ingest import PROJECT, Ingest
from neptune_assets_tests.support.lake_factory import make_lake
from neptune_assets_tests.support.server import Served, server_in_thread

MIB = 1 << 20


def sign(http: httpx.Client, key: str, permission: str, size: int = 0, project: str = PROJECT) -> dict[str, Any]:
    file = {"path": key, "permission": permission, "project_identifier": project, "size": size}
    answer = http.post("/api/storagebridge/v1/signedUrl", json={"files": [file]}).raise_for_status()
    (found,) = answer.json()["files"]
    assert (found["path"], found["project_identifier"]) == (key, project)
    return dict(found)


def read(http: httpx.Client, key: str) -> httpx.Response:
    return httpx.get(sign(http, key, "read")["url"])


@pytest.fixture
def uploads(http: httpx.Client) -> httpx.Client:
    Ingest(http).create("r")
    return http


@pytest.mark.parametrize("key", ["run/attr/none/file.bin", "../../../etc/passwd", "/abs", "é ?#&%2F\n", "x" * 800])
def test_a_file_comes_back_under_its_key_and_nowhere_else(served: Served, uploads: httpx.Client, key: str) -> None:
    content = os.urandom(100_000)
    assert read(uploads, key).status_code == 404
    url = sign(uploads, key, "write", len(content))["url"]
    answer = httpx.put(url, content=content, headers={"Content-Type": "text/x-odd"}).raise_for_status()
    assert answer.headers["etag"]
    found = read(uploads, key)
    assert found.content == content
    assert found.headers["content-type"].startswith("text/x-odd")
    httpx.put(url, content=b"").raise_for_status()
    assert read(uploads, key).content == b""
    names = {path.name for path in served.store.rglob("*") if path.is_file()}
    assert all(
        len(name) == 64 or name.startswith("project.sqlite3") or name in {"lock", "secrets.json"} for name in names
    )


def test_large_files_in_chunks_that_resume(uploads: httpx.Client) -> None:
    content = os.urandom(40 * MIB)
    signed = sign(uploads, "big", "write", len(content))
    assert signed["provider"] == "gcp"
    begun = httpx.post(signed["url"], headers={"X-goog-resumable": "start", "Content-Type": "a/b"}).raise_for_status()
    session = begun.headers["location"]

    def put(first: int, chunk: bytes) -> httpx.Response:
        where = f"bytes {first}-{first + len(chunk) - 1}/{len(content)}"
        return httpx.put(session, content=chunk, headers={"Content-Range": where})

    assert put(16 * MIB, content[16 * MIB : 32 * MIB]).status_code == 308  # ahead of what is there
    assert "range" not in put(16 * MIB, content[16 * MIB : 32 * MIB]).headers
    first = put(0, content[: 16 * MIB])
    assert (first.status_code, first.headers["range"]) == (308, f"bytes=0-{16 * MIB - 1}")
    put(16 * MIB, bytes(16 * MIB))
    assert put(16 * MIB, content[16 * MIB : 32 * MIB]).headers["range"] == f"bytes=0-{32 * MIB - 1}"  # once more
    asked = httpx.put(session, headers={"Content-Range": f"bytes */{len(content)}"})
    assert asked.headers["range"] == f"bytes=0-{32 * MIB - 1}"
    assert read(uploads, "big").status_code == 404
    assert put(32 * MIB, content[32 * MIB :]).status_code == 200
    assert put(32 * MIB, content[32 * MIB :]).status_code == 200  # the answer was lost: sent again
    found = read(uploads, "big")
    assert found.content == content
    assert found.headers["content-type"] == "a/b"


def test_an_empty_file_in_chunks(uploads: httpx.Client) -> None:
    url = sign(uploads, "empty", "write", 0)["url"]
    session = httpx.post(url).raise_for_status().headers["location"]
    assert httpx.put(session, headers={"Content-Range": "bytes */0"}).status_code == 200
    assert read(uploads, "empty").content == b""
    assert httpx.put(session, headers={"Content-Range": "bytes 5-2/10"}).status_code == 200  # it is done
    other = httpx.post(url).headers["location"]
    assert httpx.put(other, content=b"x", headers={"Content-Range": "bytes 5-2/10"}).status_code == 400
    assert httpx.put(other, content=b"x", headers={"Content-Range": "nonsense"}).status_code == 400
    assert httpx.put(other, content=b"xyz", headers={"Content-Range": "bytes 0-1/2"}).status_code == 413


def test_large_files_in_parts(tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store", large_files="multipart", part_mb=1) as served, served.client() as http:
        Ingest(http).create("r")
        content = os.urandom(2 * MIB + 5)
        signed = sign(http, "big", "write", len(content))
        parts = signed["multipart"]
        assert len(parts["part_urls"]) == math.ceil(len(content) / parts["part_size"]) == 3
        etags = []
        for number, url in enumerate(parts["part_urls"]):
            chunk = content[number * parts["part_size"] : (number + 1) * parts["part_size"]]
            httpx.put(url, content=b"cut short").raise_for_status()
            etags.append(httpx.put(url, content=chunk).raise_for_status().headers["etag"])

        def complete(**changes: Any) -> int:
            body = {
                "project_identifier": PROJECT,
                "path": "big",
                "upload_id": parts["upload_id"],
                "parts": [{"part_number": number, "etag": etag} for number, etag in enumerate(etags, start=1)],
            } | changes
            return http.post("/api/storagebridge/v1/s3/completeMultipartUpload", json=body).status_code

        assert complete(path="other") == 400
        assert complete(upload_id="../../../../etc") == 400
        assert complete(parts=[]) == 400
        assert complete(parts=[{"part_number": 1, "etag": etags[1]}]) == 400
        assert complete(parts=[{"part_number": 1, "etag": "../x"}]) == 400
        assert read(http, "big").status_code == 404
        assert complete() == 204
        assert complete() == 204  # the answer was lost: asked again
        assert read(http, "big").content == content
        assert not list((next((served.store / "projects").iterdir()) / "uploads").iterdir())


def test_urls_are_for_one_purpose_and_for_a_while(served: Served, uploads: httpx.Client) -> None:
    writing, reading = sign(uploads, "k", "write")["url"], sign(uploads, "k", "read")["url"]
    assert httpx.put(reading, content=b"x").status_code == 403
    assert httpx.get(writing).status_code == 403
    payload, _, signature = writing.rpartition("/")[2].partition(".")
    fields = json.loads(base64.urlsafe_b64decode(payload + "=="))
    forged = base64.urlsafe_b64encode(json.dumps(fields | {"key": "other"}).encode()).rstrip(b"=").decode()
    prefix = writing.rpartition("/")[0]
    for token in (f"{forged}.{signature}", f"{payload}.{signature[:-1]}", payload, "", "é.é", f".{signature}"):
        assert httpx.put(f"{prefix}/{token}", content=b"x").status_code in {403, 404}
    assert uploads.post("/api/storagebridge/v1/signedUrl", json={"files": [{"path": "x"}]}).status_code == 400
    unknown = {"path": "k", "permission": "read", "project_identifier": "no/body"}
    refused = uploads.post("/api/storagebridge/v1/signedUrl", json={"files": [unknown]})
    assert (refused.status_code, refused.json()["errorType"]) == (403, "ACCESS_DENIED")


def test_a_file_may_come_before_the_run_that_makes_the_project(http: httpx.Client) -> None:
    httpx.put(sign(http, "k", "write", 1)["url"], content=b"x").raise_for_status()
    assert Ingest(http).create("r") == {"OK": 1}
    assert read(http, "k").content == b"x"


def test_no_file_makes_a_project_that_may_not_be_made(tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store", create_projects=False) as served, served.client() as http:
        file = {"path": "k", "permission": "write", "project_identifier": PROJECT, "size": 1}
        refused = http.post("/api/storagebridge/v1/signedUrl", json={"files": [file]})
        assert (refused.status_code, refused.json()["errorType"]) == (403, "ACCESS_DENIED")


def test_a_signature_expires() -> None:
    grant = Grant("a/b", "key", "write", part=3)
    assert Signer(b"k", 60).grant(Signer(b"k", 60).sign(grant)) == grant
    assert Signer(b"k", 60).grant(Signer(b"k", -1).sign(grant)) is None
    begun = Grant("a/b", "key", "write", upload="0" * 32)
    assert Signer(b"k", -1).grant(Signer(b"k", -1).sign(begun)) == begun  # an upload that has begun can be finished
    assert Signer(b"other", 60).grant(Signer(b"k", 60).sign(grant)) is None


def test_nothing_of_a_broken_upload_is_kept(served: Served, uploads: httpx.Client) -> None:
    url = sign(uploads, "k", "write", 5)["url"]

    def cut() -> Any:
        yield b"ab"
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError):
        httpx.put(url, content=cut(), headers={"Content-Length": "5"})
    assert read(uploads, "k").status_code == 404
    httpx.put(url, content=b"abcde").raise_for_status()
    assert read(uploads, "k").content == b"abcde"


def test_files_of_the_lake_can_be_read(tmp_path: Path) -> None:
    row = {"attribute_path": "f", "attribute_type": "file", "file_value": {"path": "f.txt"}, "_content": b"of the lake"}
    lake = make_lake(tmp_path / "lake", {PROJECT: {"old": [row]}})
    (record,) = lake.project(PROJECT).records()["old"].files
    with server_in_thread(tmp_path / "store", lake=lake.settings) as served, served.client() as http:
        assert read(http, record.path).content == b"of the lake"
        for wrong in (record.path + "x", f"{record.path}/../../x", f"../{record.path}", ".manifest/x"):
            assert read(http, wrong).status_code == 404
