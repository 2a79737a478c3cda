"""A disk that is full while clients write: nothing is answered OK that is not kept, and all of it arrives later."""

from __future__ import annotations

import resource
import sqlite3
from pathlib import Path

import httpx
import psutil

from neptune_assets_tests.support.ingest import PROJECT, Ingest, assign, stored
from neptune_assets_tests.support.neptune2 import Http
from neptune_assets_tests.support.server import Served, server_process

FILE = bytes(range(256)) * 8_192
ROOM = 1 << 20
TEXT = "x" * 100_000


def limit(pid: int, size: int) -> None:
    """Let no file of a process grow beyond this: as a full disk does, but for this process only."""
    psutil.Process(pid).rlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def signed(http: httpx.Client, key: str, size: int) -> str:
    file = {"project_identifier": PROJECT, "path": key, "permission": "write", "size": size}
    (answer,) = http.post("/api/storagebridge/v1/signedUrl", json={"files": [file]}).raise_for_status().json()["files"]
    return str(answer["url"])


def put(http: httpx.Client, key: str) -> httpx.Response:
    """Upload in one request."""
    return http.put(signed(http, key, 10), content=FILE)


def chunk(http: httpx.Client, url: str) -> httpx.Response:
    """Upload in chunks that can go on."""
    return http.put(url, content=FILE, headers={"Content-Range": f"bytes 0-{len(FILE) - 1}/{len(FILE)}"})


def test_nothing_is_answered_ok_that_a_full_disk_did_not_take(tmp_path: Path) -> None:
    with server_process(tmp_path / "store", options=["--part-mb", "1"]) as server:
        assert server.process is not None
        with Served(server.url, server.token, server.store).client() as http:
            ingest, old = Ingest(http), Http(http)
            ingest.create("r")
            run = old.create(customId="old")["id"]
            begun = http.post(signed(http, "chunks", len(FILE))).headers["Location"]
            limit(server.process.pid, ROOM)
            kept, refused = [], []
            for number in range(40):
                message = assign({f"text/{number}": TEXT})
                try:
                    ingest.update("r", message)
                    kept.append(number)
                except httpx.HTTPStatusError as error:
                    refused.append(error.response)
            answers = [
                *refused,
                put(http, "whole"),
                chunk(http, begun),
                old.raw("fileAtomUpload", FILE, experimentIdentifier=run, attribute="f", ext="bin"),
            ]
            assert len(kept) > 0
            assert len(refused) > 10
            assert {answer.status_code for answer in answers} == {503}
            assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
            assert texts(server.store) == {f"text/{number}" for number in kept}
            limit(server.process.pid, resource.RLIM_INFINITY)
            for number in range(40):
                ingest.update("r", assign({f"text/{number}": TEXT}))
            assert put(http, "whole").status_code == 200
            assert chunk(http, begun).status_code == 200
            answer = old.call("fileAtomUpload", FILE, experimentIdentifier=run, attribute="f", ext="bin")
            assert answer == {"errors": []}
            assert texts(server.store) == {f"text/{number}" for number in range(40)}
            read = {"project_identifier": PROJECT, "permission": "read"}
            files = [read | {"path": "whole"}, read | {"path": "chunks"}]
            urls = http.post("/api/storagebridge/v1/signedUrl", json={"files": files}).json()["files"]
            assert [http.get(url["url"]).content == FILE for url in urls] == [True, True]
    log = (tmp_path / "store.log").read_text()
    assert "Traceback" not in log
    assert 0 < log.count("the disk is full") < 4
    with stored(tmp_path / "store") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def texts(store: Path) -> set[str]:
    connection: sqlite3.Connection = stored(store)
    try:
        query = "SELECT path FROM attributes WHERE path LIKE 'text/%' AND length(value) = ?"
        return {row[0] for row in connection.execute(query, (len(TEXT),))}
    finally:
        connection.close()
